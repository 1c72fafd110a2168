"""Which kernels compute attention: what is asked for is checked before a model loads, and set in all of its parts."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from vlchat.errors import ConfigError, nearest

if TYPE_CHECKING:
    import torch

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flex_attention")


def check_attention(name: str | None, device: torch.device) -> None:
    """Says what can be known before a model is read.

    Raises:
        ConfigError: for an unknown name, and for flash_attention_2 without a GPU or its package.
    """
    if name is None:
        return
    if name not in ATTENTION:
        raise ConfigError(f'attn is "{name}"; use one of {", ".join(ATTENTION)}{nearest(name, ATTENTION) or "."}')
    if name != "flash_attention_2":
        return
    if device.type != "cuda":
        raise ConfigError(f"flash_attention_2 runs on a GPU only, and this model goes to the {device.type}: use sdpa.")
    # transformers takes the kernel from the package `kernels` where flash-attn is not there.
    if not any(importlib.util.find_spec(package) for package in ("flash_attn", "kernels")):
        raise ConfigError("flash_attention_2 needs a package: pip install flash-attn, or use sdpa.")


def set_attention(model: Any, name: str | None) -> None:
    """Sets the kernels of a model and of every part that has them; None leaves the choice to transformers.

    Raises:
        ConfigError: when the model, or its language model, does not have them, or they do not compute in its type.
    """
    if name is None:
        return
    from vlchat.weightless import active  # `vlchat --help` imports this file, and not torch

    if name == "flash_attention_2" and active():
        name = "sdpa"  # which keeps as much, and runs anywhere
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(f"{type(model).__name__} can't use attn {name}: {reason}") from error
    # Parts that can't are passed over with a warning: right for a tower, of which some have one kernel alone.
    decoder = model.get_decoder()
    if decoder.config._attn_implementation != name:
        raise ConfigError(f"The language model, a {type(decoder).__name__}, can't use attn {name}: leave it out.")
    if name == "flash_attention_2" and str(model.dtype) not in ("torch.float16", "torch.bfloat16"):
        raise ConfigError("flash_attention_2 computes in bfloat16 or float16 only: add --dtype bfloat16, or use sdpa.")
