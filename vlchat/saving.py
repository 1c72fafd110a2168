"""Writing checkpoints: what a run trained, or a whole model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from vlchat.errors import CheckpointError
from vlchat.folders import EMBEDDED, newest, weights_digest, writing
from vlchat.lora import is_lora
from vlchat.processor import VLChatProcessor
from vlchat.quantize import is_quantized

TRAINED = "trained.safetensors"


def save(
    folder: str | Path,
    model: Any,
    processor: Any,
    *,
    base: dict[str, str | Path | None],
    trained: Iterable[str],
    adapter: bool,
    trained_on: str,
    notes: dict[str, Any] | None = None,
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Writes what training changed, and where the rest comes from, as one folder that `load` takes.

    Args:
        model: as it was trained, with or without an adapter around it.
        base: `{"model": path or Hub id, or None for the embedded model}` or `{"vision": ..., "language": ...}`.
        trained: names of the trained parameters that are not LoRA's, as `named_parameters` gives them.
        adapter: whether to write the LoRA adapter.
        trained_on: one line for people.
        notes: more for the manifest, such as which teacher a student had.
        extra: is called with the staging folder to add files of its own before everything is hashed.

    Raises:
        CheckpointError: for a parameter that does not exist, or a folder that holds something else.
    """
    model = _unwrap(model)
    inner = model.get_base_model() if is_lora(model) else model
    wanted = sorted({_plain_name(name) for name in trained})
    parameters = {_plain_name(name): parameter for name, parameter in inner.named_parameters()}
    unknown = [name for name in wanted if name not in parameters]
    if unknown:
        raise CheckpointError(f"The model has no parameters {', '.join(unknown[:5])} to save.")
    manifest = {
        "base": {key: _reference(value) for key, value in base.items()},
        "base_relative": {
            key: os.path.relpath(Path(value).absolute(), Path(folder).absolute())
            for key, value in base.items()
            if value is not None and Path(value).exists()
        },
        "base_weights": {key: _digest(value) for key, value in base.items()},
        "trained": TRAINED if wanted else None,
        "adapter": "adapter" if adapter else None,
        "trained_on": trained_on,
        "parameters": inner.num_parameters(),
        **(notes or {}),
    }
    with writing(folder, manifest) as stage:
        _write_config(inner, stage)
        processor.save_pretrained(stage)
        if wanted:
            tensors = {name: parameters[name].detach().cpu().contiguous() for name in wanted}
            save_file(tensors, stage / TRAINED, metadata={"format": "pt"})
        if adapter:
            model.save_pretrained(stage / "adapter", save_embedding_layers=False)
            (stage / "adapter" / "README.md").unlink(missing_ok=True)
        if extra is not None:
            extra(stage)


def save_full(
    folder: str | Path,
    model: Any,
    processor: Any,
    *,
    trained_on: str,
    dtype: str | torch.dtype | None = None,
    name: str | None = None,
    adapter: bool = False,
    edited: bool = False,
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Writes a whole model as transformers does (safetensors only), with a manifest beside it.

    Args:
        name: what the model calls itself to people; None takes the folder's name.
        adapter: `extra` writes an adapter of the model into `adapter/`.
        edited: `extra` writes a card that people edited.
        dtype: of the stored weights, `bfloat16` for instance; None keeps each tensor's own. The model is not changed.

    Raises:
        CheckpointError: for a model with an adapter (merge it first) or a quantized one.
    """
    model = _unwrap(model)
    if is_lora(model):
        raise CheckpointError("The model still has an adapter around it: pass merge(model).")
    if is_quantized(model):
        raise CheckpointError("A quantized model can't be written whole: load it without quantization.")
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    if isinstance(processor, VLChatProcessor):
        align_generation(model, processor)
    with writing(folder, manifest_of_whole(model, trained_on, name, adapter, edited)) as stage:
        state = None
        if wanted is not None:
            cast: dict[int, torch.Tensor] = {}  # tied weights stay one tensor
            stored = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # statistics stay as they are
            state = {
                name: cast.setdefault(t.data_ptr(), t.to(wanted)) if name in stored and t.is_floating_point() else t
                for name, t in model.state_dict().items()
            }
        model.save_pretrained(stage, state_dict=state)
        _tidy_config(stage / "config.json", None if wanted is None else str(wanted).removeprefix("torch."))
        processor.save_pretrained(stage)
        if extra is not None:
            extra(stage)


def manifest_of_whole(
    model: Any, trained_on: str, name: str | None, adapter: bool = False, edited: bool = False
) -> dict[str, Any]:
    """What the manifest of a model that needs no other folder says, besides hashes."""
    return {
        "base": None,
        "trained": None,
        "adapter": "adapter" if adapter else None,
        "trained_on": trained_on,
        "parameters": model.num_parameters(),
        **({"name": name} if name else {}),
        **({"card": None} if edited else {}),
    }


def align_generation(model: Any, processor: VLChatProcessor) -> None:
    """Makes generation stop where the template's answers end, pad with the tokenizer's token, and never draw an image.

    Instruction templates often close a turn with another token than the language model was pretrained to stop at.
    """
    config = model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    wanted = {*ends, processor.end_token_id, processor.tokenizer.eos_token_id} - {None}
    config.eos_token_id = sorted(wanted)
    config.pad_token_id = processor.pad_id
    config.suppress_tokens = sorted({*(config.suppress_tokens or []), processor.image_token_id})
    neutral = {"temperature": (None, 1.0), "top_p": (None, 1.0), "top_k": (None, 0, 50), "typical_p": (None, 1.0)}
    if any(getattr(config, setting, None) not in values for setting, values in neutral.items()):
        config.do_sample = True  # Vicuna's names a temperature without it, which transformers refuses to write


def _write_config(model: Any, stage: Path) -> None:
    model.config.save_pretrained(stage)
    path = stage / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # How the base was quantized for this run is no property of what was learned.
    for part in (config, config.get("text_config", {})):
        part.pop("quantization_config", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tidy_config(path: Path, dtype: str | None) -> None:
    """The stored dtype in every part, and no word about the folders that the parts once came from."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config.get("text_config"), config.get("vision_config")):
        if isinstance(part, dict):
            part.pop("_name_or_path", None)
            if dtype is not None:
                part["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _reference(value: str | Path | None) -> str | None:
    if value is None:
        return None
    return str(Path(value).absolute()) if Path(value).exists() else str(value)


def _digest(value: str | Path | None) -> str | None:
    folder = EMBEDDED if value is None else Path(value)
    return weights_digest(newest(folder)) if folder.is_dir() else None


def _unwrap(model: Any) -> Any:
    """The model under what DistributedDataParallel and its like put around it."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


def _plain_name(name: str) -> str:
    """A parameter's name without what peft puts into it."""
    return name.removeprefix("module.").removeprefix("base_model.model.").replace(".base_layer.", ".")
