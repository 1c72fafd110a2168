"""LoRA on the language model of any transformers vision-language model, by peft."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vlchat.errors import CheckpointError, ConfigError
from vlchat.quantize import is_quantized, language_model_prefix, pack_for_cpu

if TYPE_CHECKING:
    from peft import PeftModel

PROJECTIONS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    "out_proj", "fc1", "fc2",  # as OPT, BLIP-2's language model, calls them
)  # fmt: skip


def add_lora(
    model: nn.Module, r: int = 16, alpha: int = 32, dropout: float = 0.05, targets: str | None = None
) -> PeftModel:
    """Wraps a model so that only low-rank updates of its language model learn (LoRA, arXiv:2106.09685).

    Args:
        r: rank of the updates.
        alpha: their scale is `alpha / r`.
        targets: a regular expression over full module names; by default the attention and feed-forward projections
            of the language model. Bare names such as `q_proj` would land in the vision tower as well.

    Raises:
        ConfigError: when `targets` matches nothing, or something outside the language model, or when there is an
            adapter already.
    """
    with _quiet():
        from peft import LoraConfig, get_peft_model

    if is_lora(model):
        raise ConfigError(
            "The model has an adapter, and a second one cannot be trained on top of it unmerged. Load it without "
            "quantization, or write it whole first (vlchat export) and quantize that."
        )
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
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none")
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
        yield
    logger.setLevel(level)


def is_lora(model: nn.Module) -> bool:
    """Whether the model is wrapped in an adapter."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def load_lora(model: nn.Module, folder: Path, *, trainable: bool = False) -> PeftModel:
    """Puts a saved adapter on a model.

    Raises:
        CheckpointError: when a tensor is missing from the file, or has no place in the model.
    """
    from safetensors import safe_open

    with _quiet():
        from peft import PeftModel, get_peft_model_state_dict

        wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    expected = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if stored != expected:
        raise CheckpointError(
            f"The adapter in {folder} does not fit this model. Missing: {_some(expected - stored)}. "
            f"Unexpected: {_some(stored - expected)}."
        )
    return wrapped


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
        return model.merge_and_unload(safe_merge=True)


def _example(model: nn.Module, prefix: str) -> str:
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(prefix + ".")]
    return names[0] if names else prefix


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return (", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")) or "none"
