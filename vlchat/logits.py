"""What some language models do to their logits after the output layer, as their own classes in transformers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlchat.errors import ConfigError

# Attributes by which language models change their logits, and the values that change nothing.
_CHANGING = ("logit_scale", "logits_scaling", "logits_soft_cap", "lm_head_multiplier", "output_multiplier")
_NEUTRAL = (None, 1, 1.0)

# Model type -> logits (..., vocabulary) and configuration -> logits. The same attribute multiplies in one family and
# divides in another, so that they are told apart by type.
LOGITS: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    **dict.fromkeys(("cohere", "cohere2"), lambda logits, config: logits * config.logit_scale),
    **dict.fromkeys(
        ("granite", "granitemoe", "granitemoeshared", "granitemoehybrid"),
        lambda logits, config: logits / config.logits_scaling,
    ),
}


def finish_logits(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """The output layer's `logits` (..., vocabulary) as the language model of `config` means them.

    The soft cap `cap * tanh(logits / cap)` is Gemma 2's (arXiv:2408.00118).
    """
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    change = LOGITS.get(config.model_type)
    return logits if change is None else change(logits, config)


def changes_logits(config: Any) -> bool:
    """Whether the language model of `config` changes what its output layer gives."""
    return config.model_type in LOGITS or getattr(config, "final_logit_softcapping", None) is not None


def check_logits(config: Any) -> None:
    """Raises ConfigError for a language model that changes its logits in a way that is not known here."""
    if config.model_type in LOGITS:
        return
    for name in _CHANGING:
        if getattr(config, name, None) not in _NEUTRAL:
            raise ConfigError(
                f"A {config.model_type} language model changes its logits ({name} = {getattr(config, name)}), and "
                "vlchat does not know how. Take another one."
            )
