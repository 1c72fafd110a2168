"""Some tensors of a checkpoint, without loading the rest: from safetensors, or from `.bin` files as tensors only."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vlchat.errors import CheckpointError, UnsafeCheckpointError

# A connector's names in every layout -> in ours. LLaVA counts the activations between its layers as well.
_CONNECTORS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"model\.connector\.", ""),
    (r"(?:model\.)?multi_modal_projector\.linear_1\.", "layers.0."),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.", "layers.1."),
    (r"(?:model\.)?image_newline$", "image_newline"),
    (r"(?:model\.)?mm_projector\.(\d+)\.", lambda match: f"layers.{int(match[1]) // 2}."),
    (r"(?:model\.)?mm_projector\.", "projection."),
    (r"language_projection\.", "projection."),
    (r"qformer\.embeddings\.layernorm\.", "qformer.layernorm."),
    (r"qformer\.embeddings\.", "embeddings."),
    (r"qformer\.", "qformer."),
    (r"query_tokens$", "query_tokens"),
]


def read_connector(source: str | Path, revision: str | None = None) -> dict[str, torch.Tensor]:
    """The connector's tensors, by our names, from any layout that has one.

    Args:
        source: a file (`mm_projector.bin`, safetensors), a folder, or a Hub id: a vlchat checkpoint, a run's save,
            transformers' Llava, Blip2 or InstructBlip, or LLaVA's own layout.

    Raises:
        CheckpointError: when there is no connector in it.
        UnsafeCheckpointError: for a pickle that holds more than tensors.
    """
    place = Path(source) if Path(source).exists() else local_folder(source, revision)
    found = connector_tensors(read_tensors(place, lambda name: _renamed(name) is not None))
    if not found:
        raise CheckpointError(f"{source} holds no connector: no tensor is named like a projector's or a Q-Former's.")
    return found


def connector_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those tensors that are a connector's, by our names."""
    named = {_renamed(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if name is not None}


def read_tensors(place: Path, chosen: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """Tensors by name from a file, or from all weight files of a folder (safetensors where there are any).

    Raises:
        CheckpointError: for a file that cannot be read.
        UnsafeCheckpointError: for a pickle that holds more than tensors.
    """
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors")) or sorted(place.glob("*.bin"))
    found: dict[str, torch.Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as opened:
                    found.update({name: opened.get_tensor(name) for name in opened.keys() if chosen(name)})
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{file} can't be read: {error}") from error
        else:
            found.update({name: tensor for name, tensor in _unpickled(file).items() if chosen(name)})
    return found


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or the downloaded copy of a Hub id."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(source), revision=revision, ignore_patterns=["*.msgpack", "*.h5", "*.gguf"]))


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """A pickle of tensors. torch's restricted reader builds tensors and containers, and runs nothing."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(
            f"{file} is a pickle that holds more than tensors, which could run code; it is not read."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file} can't be read: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UnsafeCheckpointError(f"{file} holds other things than named tensors; it is not read.")
    return state


def _renamed(name: str) -> str | None:
    for pattern, ours in _CONNECTORS:
        match = re.match(pattern, name)
        if match:
            return (ours if isinstance(ours, str) else ours(match)) + name[match.end() :]
    return None
