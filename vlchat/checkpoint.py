"""Checkpoints: load a model and its processor by path alone, and say what is in one.

Saving (`vlchat.saving`) and adapters (`vlchat.lora`) are reached from here as well.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vlchat import lora
from vlchat.composing import tower_spec
from vlchat.errors import CheckpointError, ConfigError
from vlchat.folders import EMBEDDED, newest, read_manifest, refuse_pickles, tensor_count, title, verify, weights_digest
from vlchat.lora import add_lora, is_lora, load_lora, merge
from vlchat.model import VLChatForConditionalGeneration
from vlchat.processor import VLChatProcessor
from vlchat.quantize import (
    check_only_language_model_is_quantized,
    linear_layers_to_keep,
    pack_for_cpu,
    quantization_config,
)
from vlchat.reading import reading
from vlchat.saving import align_generation, save, save_full

__all__ = ["EMBEDDED", "add_lora", "align_generation", "describe", "is_lora", "load", "merge", "save", "save_full"]

_DTYPES = ("auto", "float32", "bfloat16", "float16")
SMALL = 1_000_000_000  # parameters up to which float32 on a CPU is both faster and affordable


def load(
    path_or_id: str | Path | None = None,
    *,
    quantize: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    revision: str | None = None,
    merge: bool = False,
    trainable: bool = False,
) -> tuple[Any, Any]:
    """A model and its processor, ready to generate.

    Args:
        path_or_id: None for the embedded model; a folder that `save` or `save_full` wrote; or the folder or Hub id of
            any checkpoint that transformers' `AutoModelForImageTextToText` loads.
        quantize: `nf4` or `int8` for the language model alone.
        dtype: `auto` is float32 for a model below a billion parameters on a CPU, else what is stored.
        device: `auto` is the GPU where there is one.
        merge: add a LoRA adapter into the weights, which makes generation faster.
        trainable: leave a LoRA adapter, and a quantized language model, open for further training.

    Raises:
        CheckpointError: when there is nothing there, or a file is damaged, missing, or does not fit the model.
        UnsafeCheckpointError: when the weights are a pickle.
    """
    if merge and quantize is not None:
        raise CheckpointError("An adapter can't be merged into a quantized model: choose merge or quantize.")
    if isinstance(dtype, str) and dtype not in _DTYPES:
        raise ConfigError(f'dtype is "{dtype}"; use {", ".join(_DTYPES)}.')
    target = _device(device)
    model, processor = _load(path_or_id, quantize, dtype, target, revision, trainable)
    model = lora.merge(model) if merge else model
    if quantize is not None:
        check_only_language_model_is_quantized(model)
        pack_for_cpu(model, not trainable)
    elif dtype == "auto" and target.type == "cpu" and _parameters(model) < SMALL:
        model = model.float()
    if isinstance(processor, VLChatProcessor):
        align_generation(model, processor)
    return model.eval(), processor


def describe(path_or_id: str | Path | None = None) -> dict[str, Any]:
    """What people want to know about a checkpoint, without loading its weights.

    Returns:
        `name`, `path`, `parameters` (None where unknown), `trained_on`, `base`, `adapter`, and for our own models
        `vision`, `language`, `connector` and `image_tokens`.
    """
    folder = _locate(path_or_id)
    name = "vlchat-mini" if path_or_id is None else title(folder) if isinstance(folder, Path) else str(folder)
    about: dict[str, Any] = {
        "name": name, "path": str(folder), "parameters": None, "trained_on": None, "base": None, "adapter": False,
    }  # fmt: skip
    if not isinstance(folder, Path):
        return about
    manifest = read_manifest(folder) or {}
    if not manifest and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no model: it has no config.json.")
    about.update(trained_on=manifest.get("trained_on"), base=manifest.get("base"))
    about["adapter"] = bool(manifest.get("adapter"))
    about["name"] = manifest.get("name", name)
    about["parameters"] = manifest.get("parameters") or tensor_count(folder)
    if (folder / "config.json").is_file():
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{folder / 'config.json'} is damaged: {error}.") from error
        about["vision"] = config.get("vision_config", {}).get("model_type")
        about["language"] = config.get("text_config", {}).get("model_type")
        about["connector"] = config.get("connector")
        about["image_tokens"] = config.get("image_seq_length")
    return about


def _load(
    path_or_id: str | Path | None,
    quantize: str | None,
    dtype: str | torch.dtype,
    device: torch.device,
    revision: str | None,
    trainable: bool,
) -> tuple[Any, Any]:
    folder = _locate(path_or_id)
    if not isinstance(folder, Path):
        return _load_whole(folder, quantize, dtype, device, revision, strict=False)
    refuse_pickles(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        return _load_whole(folder, quantize, dtype, device, revision, strict=False)
    verify(folder, manifest)
    base = manifest.get("base")
    if base is None:
        return _load_whole(folder, quantize, dtype, device, revision, strict=True)
    sources = {key: _resolve(folder, manifest, key) for key in base}
    processor = AutoProcessor.from_pretrained(folder)
    if "model" in sources:
        model, _ = _load(sources["model"], quantize, dtype, device, None, False)
        model = lora.merge(model)
    else:
        config = AutoConfig.from_pretrained(folder)
        model = VLChatForConditionalGeneration.from_backbones(
            tower_spec(config.vision_config, [str(sources[key]) for key in sources if key.startswith("vision")]),
            str(sources["language"]),
            config.connector,
            tokenizer=processor.tokenizer,
            quantize=quantize,
            dtype=dtype,
            device_map={"": str(device)},
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_token=processor.image_token,
            tiles=config.image_grid_pinpoints,
        )
    if manifest.get("trained"):
        fresh = "model" not in sources  # then the connector is random until it is read from the file
        required = [f"model.connector.{name}" for name, _ in model.model.connector.named_parameters()] if fresh else []
        _load_trained(model, folder / manifest["trained"], required)
    if manifest.get("adapter"):
        model = load_lora(model, folder / manifest["adapter"], trainable=trainable)
    return model, processor


def _load_whole(
    source: str | Path,
    quantize: str | None,
    dtype: str | torch.dtype,
    device: torch.device,
    revision: str | None,
    *,
    strict: bool,
) -> tuple[Any, Any]:
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "revision": revision or "main"}
    with reading(source, "checkpoint"):
        config = AutoConfig.from_pretrained(source, revision=revision)
        if quantize is not None:
            with torch.device("meta"):  # only for the names of its layers
                skeleton = AutoModelForImageTextToText.from_config(config)
            compute = dtype if isinstance(dtype, torch.dtype) else None
            options["quantization_config"] = quantization_config(quantize, compute, linear_layers_to_keep(skeleton))
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, config=config, device_map={"": str(device)}, output_loading_info=True, **options
        )
        model, info = loaded
        processor = AutoProcessor.from_pretrained(source, revision=revision)
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    # transformers warns of tensors it has no place for; in a checkpoint of our own that is an error.
    if missing or (unexpected and strict):
        raise CheckpointError(
            f"The weights in {source} do not fit its configuration. Missing: {', '.join(missing) or 'none'}. "
            f"Unexpected: {', '.join(unexpected) or 'none'}."
        )
    return model, processor


def _load_trained(model: nn.Module, path: Path, required: list[str]) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    parameters = dict(model.named_parameters())
    missing = [name for name in required if name not in tensors]
    unexpected = [name for name in tensors if name not in parameters]
    if missing or unexpected:
        raise CheckpointError(
            f"The trained tensors in {path} do not fit the model. Missing: {', '.join(missing) or 'none'}. "
            f"Unexpected: {', '.join(unexpected) or 'none'}."
        )
    for name, tensor in tensors.items():
        if parameters[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name} in {path} has the shape {tuple(tensor.shape)}; the model's is {tuple(parameters[name].shape)}."
            )
        with torch.no_grad():
            parameters[name].copy_(tensor)


def _locate(path_or_id: str | Path | None) -> Path | str:
    if path_or_id is None:
        if not (EMBEDDED / "config.json").is_file():
            raise CheckpointError("This copy of vlchat has no embedded model; name a checkpoint with --model.")
        return EMBEDDED
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return newest(path)
    text = str(path_or_id)
    local = isinstance(path_or_id, Path) or path.exists() or text.startswith((".", "/", "~", "runs/"))
    if local or text.count("/") != 1 or path.parent.is_dir():  # a folder here is meant sooner than one on the Hub
        beside = sorted(found.name for found in path.parent.glob("*/") if newest(found) != found)
        known = f" {path.parent} holds the runs {', '.join(beside)}." if beside else ""
        raise CheckpointError(f"There is no checkpoint folder at {path_or_id}.{known}")
    return text


def _resolve(folder: Path, manifest: dict[str, Any], key: str) -> str | Path | None:
    """Where a part of the base is: beside the checkpoint as it was when it was saved, or at its old place."""
    found = manifest["base"][key]
    relative = manifest.get("base_relative", {}).get(key)
    if relative is not None and (folder / relative).exists():
        found = (folder / relative).resolve()
    elif found is not None and os.path.isabs(found) and not os.path.exists(found):
        raise CheckpointError(f"{folder} was trained on top of {found}, which is not there any more.")
    digest = manifest.get("base_weights", {}).get(key)
    if digest is not None and digest != weights_digest(newest(Path(found or EMBEDDED))):
        raise CheckpointError(
            f"{folder} was trained on top of {found or 'the embedded model'}, whose weights have changed since. Bring "
            "that version back, or train again."
        )
    return found


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ConfigError(f'device is "{device}"; use auto, cpu, cuda or cuda:1.') from None
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device is {device}, and torch sees {torch.cuda.device_count()} GPUs. Use auto or cpu.")
    return wanted


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
