"""LoRA on the language model of any transformers vision-language model, by peft."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vlchat.errors import CheckpointError, ConfigError
from vlchat.fit import refuse_broken, some
from vlchat.folders import ADAPTER_CONFIG
from vlchat.quantize import is_quantized, keep_scales_under_dora, language_model_prefix, pack_for_cpu
from vlchat.weightless import active

if TYPE_CHECKING:
    from peft import PeftModel

# Of attention and feed-forward layers; OPT has out_proj, fc1 and fc2, Phi-3 the joined ones, GPT-2 those with c_.
PROJECTIONS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj",
    "gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_attn", "c_proj", "c_fc",
)  # fmt: skip


def add_lora(
    model: nn.Module,
    r: int = 16,
    alpha: int = 32,
    dropout: float = 0.05,
    targets: str | None = None,
    dora: bool = False,
    rslora: bool = False,
) -> PeftModel:
    """Wraps a model so that only low-rank updates of its language model learn (LoRA, arXiv:2106.09685).

    Args:
        r: rank of the updates.
        alpha: their scale is `alpha / r`.
        dropout: share of a layer's inputs that its update does not see in training.
        targets: a regular expression over full module names; by default the attention and feed-forward projections
            of the language model. Bare names such as `q_proj` would land in the vision tower as well.
        dora: learn the length of each row of a weight apart from its direction (DoRA, arXiv:2402.09353); closer to full
            fine-tuning at a small rank, slower by the norms that it takes of each weight.
        rslora: scale by `alpha / sqrt(r)` instead (rsLoRA, arXiv:2312.03732), so that a rank of 64 and more learns as
            fast as a small one.

    Raises:
        ConfigError: when `targets` matches nothing, or something outside the language model, when a number is out of
            its range, or when there is an adapter already.
    """
    with _quiet():
        from peft import LoraConfig, get_peft_model

    if r < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ConfigError(
            f"LoRA with r = {r}, alpha = {alpha}, dropout = {dropout} learns nothing: r must be at least 1, alpha "
            "above 0, dropout from 0 to below 1."
        )
    refuse_adapter(model)
    prefix = language_model_prefix(model)
    if targets is None:
        targets = rf"{re.escape(prefix)}\..*\.({'|'.join(PROJECTIONS)})"
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ConfigError(f"The LoRA targets {targets!r} are not a regular expression: {error}.") from error
    matched = [name for name, _ in model.named_modules() if pattern.fullmatch(name)]
    if not matched:
        raise ConfigError(f"The LoRA targets {targets!r} match no layer; names look like {_example(model, prefix)}.")
    outside = [name for name in matched if not name.startswith(prefix + ".")]
    if outside:
        raise ConfigError(
            f"The LoRA targets {targets!r} match {len(outside)} layers outside the language model ({outside[0]} ...): "
            f"begin the expression with {re.escape(prefix)}."
        )
    pack_for_cpu(model, False)
    if dora:
        keep_scales_under_dora(model)
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none", use_dora=dora,
        use_rslora=rslora,
    )  # fmt: skip
    with _quiet():
        return get_peft_model(model, config)  # type: ignore[arg-type]


@contextmanager
def _quiet() -> Iterator[None]:
    """What peft wakes in bitsandbytes and transformers, and nobody can act on: a kernel not built, a renamed method."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # and then it sets it, for GPT-2
        try:
            yield
        finally:
            logger.setLevel(level)


def refuse_adapter(model: nn.Module) -> None:
    """Raises ConfigError for a model with an adapter, which a quantized one keeps unmerged."""
    if is_lora(model):
        raise ConfigError(
            "The model has an adapter, and a second one cannot be trained on top of it unmerged. Load it without "
            "quantization, or write it whole first (vlchat export) and quantize that."
        )


def is_lora(model: nn.Module) -> bool:
    """Whether the model is wrapped in an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def load_lora(model: Any, folder: Path, *, trainable: bool = False, name: str = "default") -> PeftModel:
    """Puts a saved adapter on a model, beside those that it has; the newest one is not active unless it is the first.

    Raises:
        CheckpointError: when a tensor is missing from the file, or has no place in the model.
    """
    with _quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # told below, as an error
        from peft import PeftConfig, PeftModel, set_peft_model_state_dict
        from peft.utils.save_and_load import load_peft_weights

        try:
            if json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("megatron_config"):
                raise CheckpointError(f"{folder} is an adapter for Megatron, and names modules to import.")
            config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = not trainable
            if config.is_prompt_learning:
                raise CheckpointError(f"{folder} holds an adapter of type {config.peft_type}; LoRA and its like load.")
            if getattr(config, "use_dora", False):
                pack_for_cpu(model, False)
                keep_scales_under_dora(model)
            if is_lora(model):
                wrapped = model
                wrapped.add_adapter(name, config)
            else:
                wrapped = PeftModel(model, config, adapter_name=name)
            if active():
                return wrapped
            stored = load_peft_weights(str(folder), device="cpu")
            refuse_broken(folder, stored.items())
            result: Any = set_peft_model_state_dict(wrapped, stored, adapter_name=name)
        except CheckpointError:
            raise
        except Exception as error:  # other people's files
            reason = " ".join(str(error).split())
            raise CheckpointError(f"The adapter in {folder} does not fit this model: {reason[:300]}") from error
    missing = {key for key in result.missing_keys if f".{name}" in key}
    unexpected = set(result.unexpected_keys)
    if missing or unexpected:
        raise CheckpointError(
            f"The adapter in {folder} does not fit this model. Missing: {some(missing)}. "
            f"Unexpected: {some(unexpected)}."
        )
    return wrapped.eval() if not trainable else wrapped


def bare(model: Any) -> Any:
    """The model without a PEFT adapter's wrapper; the adapter's layers stand inside of it and stay in force."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def merge(model: Any) -> Any:
    """The model with its adapter added into its weights; a model without one comes back as it is.

    Raises:
        CheckpointError: when the weights are quantized, where the sum would be rounded a second time.
    """
    if not is_lora(model):
        return model
    if is_quantized(model.get_base_model()):
        raise CheckpointError(
            "An adapter can't be merged into a quantized language model without loss: load the checkpoint without "
            "quantization and merge that."
        )
    with _quiet():
        return model.unload() if active() else model.merge_and_unload(safe_merge=True)


def _example(model: nn.Module, prefix: str) -> str:
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(prefix + ".")]
    return names[0] if names else prefix
