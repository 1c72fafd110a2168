"""Quantization of the language model, and of nothing else."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vlchat.errors import CheckpointError, ConfigError, VLChatError, nearest

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

KINDS = ("nf4", "int8")


def quantization_config(
    kind: str, compute_dtype: torch.dtype | None = None, skip_modules: list[str] | None = None
) -> BitsAndBytesConfig:
    """The bitsandbytes configuration for `nf4` (4 bits, double quantization; QLoRA, arXiv:2305.14314) or `int8`.

    Args:
        compute_dtype: what products are computed in; bfloat16 when absent.
        skip_modules: full names of linear layers to leave in floating point; None leaves the output layer alone.

    Raises:
        ConfigError: for any other kind.
        VLChatError: when bitsandbytes is not installed.
    """
    if kind not in KINDS:
        hint = nearest(kind, KINDS) or "."
        raise ConfigError(f"There is no quantization {kind!r}; known ones are {', '.join(KINDS)}{hint}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise VLChatError(
            f"Quantization {kind} needs bitsandbytes, which is not installed: pip install bitsandbytes, or leave "
            "quantization out."
        )
    from transformers import BitsAndBytesConfig

    # On a CPU it says at its import that one kernel is fetched from a hub, and is not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip_modules)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype or torch.bfloat16,
        llm_int8_skip_modules=skip_modules,
    )


def language_model_prefix(model: nn.Module) -> str:
    """The name of the language model inside any transformers vision-language model, such as `model.language_model`.

    Raises:
        VLChatError: when the model keeps no separate language model.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    for name, module in model.named_modules():
        if module is decoder and name:
            return name
    raise VLChatError(f"{model.__class__.__name__} keeps no language model apart from its vision tower.")


def linear_layers_to_keep(model: nn.Module) -> list[str]:
    """Full names of the linear layers outside the language model's blocks: tower, connector, output layer.

    Full names, because bitsandbytes' skip list matches names from their start or end only, and silently skips nothing
    for a bare `vision_tower`.
    """
    prefix = language_model_prefix(model) + "."
    head = model.get_output_embeddings()  # type: ignore[operator]  # lies inside BLIP-2's language model
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (module is head or not name.startswith(prefix))
    ]


def check_only_language_model_is_quantized(model: nn.Module) -> None:
    """Raises CheckpointError when a layer outside the language model, or none at all, was quantized."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    kinds = (Linear4bit, Linear8bitLt)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    prefix = language_model_prefix(model) + "."
    outside = [name for name in names if not name.startswith(prefix)]
    if not names:
        raise CheckpointError("Quantization was asked for but no layer of the language model was quantized.")
    if outside:
        raise CheckpointError(f"Layers outside the language model were quantized: {', '.join(outside[:5])}.")


def pack_for_cpu(model: nn.Module, allowed: bool) -> None:
    """Allows, or forbids, bitsandbytes' repacking of 4-bit layers when they first answer on a CPU.

    Repacked layers answer faster but pass no gradient back, and that silently: a run that evaluates once would learn
    nothing from then on. So they are packed for answering only, and never under DoRA, which reads their weights anew
    for each answer and cannot read packed ones.

    Raises:
        VLChatError: when it is forbidden too late.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    allowed = allowed and not any(getattr(module, "lora_magnitude_vector", None) for module in model.modules())
    for module in model.modules():
        # By name: asking for the class would import bitsandbytes for models that have nothing of it.
        if module.__class__.__name__ != "Linear4bit":
            continue
        from bitsandbytes.functional import has_avx512bf16

        weight: Any = module.weight
        if not allowed and getattr(weight.quant_state, "packing_format_for_cpu", False):
            raise VLChatError("This quantized model has answered already and can't be trained any more: load it anew.")
        module.support_avx512bf16_for_cpu = allowed and has_avx512bf16()  # type: ignore[assignment]


def keep_scales_under_dora(model: nn.Module) -> None:
    """Lets 8-bit layers on a CPU keep their scales under DoRA.

    To read such a weight, peft 0.21 makes a new parameter of it, without the scales that bitsandbytes 0.50 moved into
    the layer's state; the layer would then take the parameter's scales for newer ones, and have none.
    """

    def keep(layer: Any, _: Any) -> None:
        if layer.weight.SCB is None and layer.state.SCB is not None:
            layer.weight.CB = None

    for module in model.modules():
        if type(module).__module__.startswith("bitsandbytes.") and type(module).__name__ == "Linear8bitLt":
            module.register_forward_pre_hook(keep)


def is_quantized(model: PreTrainedModel | nn.Module) -> bool:
    """Whether some of the model's weights are quantized."""
    return bool(getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None)
