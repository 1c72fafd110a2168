"""Checkpoints: load a model and its processor by path alone, and say what is in one.

Saving (`vlchat.saving`) and adapters (`vlchat.lora`) are reached from here as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig

from vlchat import hub, interop, lora, models
from vlchat.attention import check_attention, set_attention
from vlchat.errors import CheckpointError, ConfigError, nearest
from vlchat.fit import refuse_broken
from vlchat.folders import (
    EMBEDDED,
    adapter_base,
    is_adapter,
    read_manifest,
    refuse_pickles,
    tensor_count,
    title,
    verify,
)
from vlchat.foreign.pictures_only import load_processor
from vlchat.interop import original_llava
from vlchat.lora import add_lora, is_lora, load_lora, merge
from vlchat.model import VLChatForConditionalGeneration
from vlchat.places import locate, resolve_base
from vlchat.processor import VLChatProcessor
from vlchat.quantize import (
    check_only_language_model_is_quantized,
    is_quantized,
    pack_for_cpu,
)
from vlchat.reading import reading
from vlchat.resolution import set_image_size
from vlchat.saving import align_generation, manifest_of_whole, save, save_full
from vlchat.towers.composing import tower_spec
from vlchat.weightless import active
from vlchat.whole import load_whole

__all__ = [
    "EMBEDDED", "add_lora", "align_generation", "describe", "is_lora", "known_dtype", "load", "manifest_of_whole",
    "merge", "save", "save_full",
]  # fmt: skip

_DTYPES = ("auto", "float32", "bfloat16", "float16")
SMALL = 1_000_000_000  # parameters up to which float32 on a CPU is both faster and affordable


def load(
    path_or_id: str | Path | None = None,
    *,
    quantize: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    attn: str | None = None,
    revision: str | None = None,
    merge: bool = False,
    trainable: bool = False,
    bare: bool = False,
) -> tuple[Any, Any]:
    """A model and its processor, ready to generate.

    Args:
        path_or_id: None for the embedded model; a folder that `save` or `save_full` wrote; that of a PEFT adapter; the
            folder or Hub id of any checkpoint that transformers' `AutoModelForImageTextToText` loads, a Hub id with or
            without `@REVISION`; or a short name of `vlchat.models`.
        quantize: `nf4` or `int8` for the language model alone.
        dtype: `auto` is float32 for a model below a billion parameters on a CPU, else what is stored.
        device: `auto` is the GPU where there is one.
        attn: a name of `vlchat.attention.ATTENTION`; None leaves the choice to transformers.
        revision: branch, tag or commit, of a Hub id only.
        merge: add a LoRA adapter into the weights, which makes generation faster.
        trainable: leave a LoRA adapter, and a quantized language model, open for further training.
        bare: of a run or an adapter only what it stands on; generation is not yet aligned with the processor then.

    Raises:
        CheckpointError: when there is nothing there, or a file is damaged, missing, or does not fit the model.
        UnsafeCheckpointError: when the weights are a pickle.
    """
    if merge and quantize is not None:
        raise CheckpointError("An adapter can't be merged into a quantized model: choose merge or quantize.")
    if isinstance(dtype, str):
        known_dtype(dtype)
    target = _device(device)
    check_attention(attn, target)
    model, processor = _load(path_or_id, quantize, dtype, target, revision, trainable, bare)
    model = lora.merge(model) if merge else model
    if quantize is not None:
        check_only_language_model_is_quantized(model)
    if quantize is not None or trainable:  # a checkpoint may be stored quantized
        pack_for_cpu(model, not trainable)
    set_attention(model, attn)
    if isinstance(processor, VLChatProcessor) and not bare:
        align_generation(model, processor)
    return model.eval(), processor


def known_dtype(dtype: str, where: str = "dtype") -> str:
    """The same name, where `load` knows it. Raises ConfigError, which begins with `where`, for any other."""
    if dtype not in _DTYPES:
        raise ConfigError(f'{where} is "{dtype}"; use {", ".join(_DTYPES)}{nearest(dtype, _DTYPES) or "."}')
    return dtype


def describe(path_or_id: str | Path | None = None, revision: str | None = None) -> dict[str, Any]:
    """What people want to know about a checkpoint, without loading its weights; arguments as of `load`.

    Returns:
        `name`, `path`, `parameters` (None where unknown), `trained_on`, `base`, `adapter`, and for our own models
        `vision`, `language`, `connector` and `image_tokens`. Of a model on the Hub `vision` and `language`.
    """
    path_or_id = models.resolve(path_or_id)
    folder, revision = locate(path_or_id, revision)
    name = "vlchat-mini" if path_or_id is None else title(folder) if isinstance(folder, Path) else str(folder)
    about: dict[str, Any] = {
        "name": name, "path": str(folder), "parameters": None, "trained_on": None, "base": None, "adapter": False,
    }  # fmt: skip
    if not isinstance(folder, Path):
        return about | hub.describe(folder, revision) | ({"revision": revision} if revision else {})
    if is_adapter(folder):
        return about | {"base": {"model": adapter_base(folder)[0]}, "adapter": True}
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
    bare: bool = False,
) -> tuple[Any, Any]:
    folder, revision = locate(path_or_id, revision)
    manifest = None
    if isinstance(folder, Path):
        if not original_llava.is_one(folder):
            refuse_pickles(folder)
        if is_adapter(folder):
            return _load_adapter(folder, quantize, dtype, device, trainable, bare)
        manifest = read_manifest(folder)
        if manifest is not None and not active():
            verify(folder, manifest)
    if not isinstance(folder, Path) or manifest is None or manifest.get("base") is None:
        model, processor = load_whole(folder, quantize, dtype, device, revision)
        model = _settle(model, quantize, dtype, device)
    else:
        processor = load_processor(folder)
        model = _load_base(folder, manifest, processor, quantize, dtype, device)
        if (side := manifest.get("image_size")) is not None:
            set_image_size(model, processor, side)
    if bare or manifest is None or not isinstance(folder, Path):
        return model, processor
    if manifest.get("trained") and not active():
        put(read_trained(folder, manifest, model))
    if manifest.get("adapter"):
        model = load_lora(model, folder / manifest["adapter"], trainable=trainable)
    return model, processor


def _load_base(
    folder: Path,
    manifest: dict[str, Any],
    processor: Any,
    quantize: str | None,
    dtype: str | torch.dtype,
    device: torch.device,
) -> Any:
    """What a run stands on; its connector is random where the run made it."""
    sources = resolve_base(folder, manifest)
    if "model" in sources:
        model, _ = _load(sources["model"], quantize, dtype, device, None, False)
        return lora.merge(model)
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
    return _settle(model, quantize, dtype, device)


def _load_adapter(
    folder: Path, quantize: str | None, dtype: str | torch.dtype, device: torch.device, trainable: bool, bare: bool
) -> tuple[Any, Any]:
    """A PEFT adapter of another making, on the base that it names."""
    base, revision = adapter_base(folder)
    place, revision = locate(base, revision)
    if isinstance(place, Path) and (read_manifest(place) is not None or is_adapter(place)):
        model, processor = _load(base, quantize, dtype, device, revision, False)
        model = lora.merge(model)
    else:  # by the names of transformers' class, which it was trained on
        model, processor = load_whole(place, quantize, dtype, device, revision, ours=False)
        model = _settle(model, quantize, dtype, device)
    if (folder / "processor_config.json").is_file():  # trainers save the one that they trained with
        with reading(folder, "processor"):
            processor = load_processor(folder)
    elif (folder / "chat_template.jinja").is_file():
        processor.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    _, processor = interop.settle(model, processor, convertible=False)
    return (model if bare else load_lora(model, folder, trainable=trainable)), processor


def _settle(model: Any, quantize: str | None, dtype: str | torch.dtype, device: torch.device) -> Any:
    """A small model in float32 on a CPU. Before a run's tensors go in, so that they are not rounded on the way."""
    small = dtype == "auto" and device.type == "cpu" and not is_quantized(model) and _parameters(model) < SMALL
    return model.float() if small else model


def read_trained(folder: Path, manifest: dict[str, Any], model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """What a run trained beside its adapter: the model's parameters with the tensors that belong into them.

    Raises:
        CheckpointError: when a tensor has no place in the model or another shape, or one of a new connector is missing.
    """
    path = folder / manifest["trained"]
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    parameters = dict(model.named_parameters())
    fresh = "model" not in manifest["base"]  # then the connector is random until it is read from the file
    required = [name for name in parameters if name.startswith("model.connector.")] if fresh else []
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
    refuse_broken(path, tensors.items())
    return [(parameters[name], tensor) for name, tensor in tensors.items()]


def put(values: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> None:
    """Copies each tensor into its parameter."""
    with torch.no_grad():
        for parameter, tensor in values:
            parameter.copy_(tensor)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto" and (mode := active()):
        return mode.device
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
