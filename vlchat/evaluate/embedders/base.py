"""What tasks of similarity need of a model: embeddings of pictures and texts, or a judgement of each pair."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer

from vlchat.errors import CheckpointError
from vlchat.folders import read_manifest, title
from vlchat.reading import reading
from vlchat.towers import load_image_processor

_AT_ONCE = 2**24  # similarities of single queries at once, at most: 128 MiB


class Embedder(Protocol):
    """A model that says how similar pictures and texts are.

    Attributes:
        description: what people should know of it: `name`, `parameters`, `kind`.
        identity: a hash that changes with the weights and with how pictures and texts are prepared.
        embeds: whether it has `images` and `texts`; one that has not judges each pair by `match`.
        matches: whether it has `match`.
        probable: whether the softmax of `match`'s logits is a probability; else only their order means something.
        scale, bias: of its loss: `scale * similarity + bias` are its logits. A scale of None is not known; a bias is
            only that of a sigmoid loss, whose logits are those of a match.
        cut: how many texts, so far, were longer than it reads, and were cut off.
    """

    description: dict[str, Any]
    identity: str
    embeds: bool
    matches: bool
    probable: bool
    scale: float | None
    bias: float | None
    cut: int

    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(pictures, queries, dim) float32 of unit length; one query for models that have none."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, dim) float32 of unit length."""

    def match(self, picture: Image.Image, texts: Sequence[str]) -> np.ndarray:
        """(texts, 2) logits: that the text does not belong to the picture, and that it does."""


def similarity(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(pictures, texts) float64: cosines, of several queries the largest (BLIP-2, arXiv 2301.12597, section 3.2).

    Args:
        images: (pictures, queries, dim), of unit length. texts: (texts, dim), of unit length.
    """
    words = texts.astype(np.float64).T
    result = np.empty((len(images), len(texts)))
    step = max(1, _AT_ONCE // max(1, images.shape[1] * len(texts)))
    for start in range(0, len(images), step):
        some = images[start : start + step].astype(np.float64)
        result[start : start + step] = (some @ words).max(axis=1)
    return result


def unit(vectors: torch.Tensor) -> np.ndarray:
    """The same directions at length 1, float32, on the CPU."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def identity_of(model: torch.nn.Module | Iterable[tuple[str, torch.Tensor]], *more: object) -> str:
    """A hash of every number of a model, and of whatever else its embeddings depend on.

    Args:
        more: things whose text says what they are, such as an image processor's settings.
    """
    named = model.state_dict().items() if isinstance(model, torch.nn.Module) else model
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for thing in more:
        digest.update(f"{thing}\n".encode())
    return digest.hexdigest()


def to_device(inputs: Any, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors where the model is, floats in its precision."""
    return {
        name: value.to(device, dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }


def about(source: str | Path, model: Any) -> dict[str, Any]:
    """What people should know of a model that transformers loaded from a folder or the Hub."""
    folder = Path(source)
    found: dict[str, Any] = {"name": title(folder) if folder.is_dir() else str(source), "kind": type(model).__name__}
    found["parameters"] = model.num_parameters()
    manifest = read_manifest(folder) if folder.is_dir() else None
    return found | ({"trained_on": manifest["trained_on"]} if manifest and manifest.get("trained_on") else {})


def read_whole(
    kind: Any, source: str | Path, dtype: torch.dtype, revision: str | None
) -> tuple[Any, Any, Any]:
    """A published model by its transformers class `kind`, with its tokenizer and image processor.

    Raises:
        CheckpointError: it cannot be read, or lacks tensors.
    """
    version = {} if revision is None else {"revision": revision}
    with reading(source, "model"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **version)
        model, info = kind.from_pretrained(
            source, trust_remote_code=False, use_safetensors=True, output_loading_info=True, dtype=dtype, **version
        )
    if missing := sorted(name for name in info["missing_keys"] if not name.endswith("position_ids")):
        raise CheckpointError(f"{source} lacks tensors: {', '.join(missing[:4])}. It may be cut short.")
    return model, tokenizer, load_image_processor(source, **version)
