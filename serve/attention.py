"""Attention of a prompt's next tokens to those that are kept, without a copy of keys and values for each head.

Where heads share keys and values (grouped queries, arXiv:2305.13245) under a mask, transformers' SDPA repeats them,
because a GPU's kernels want it so. On a CPU torch reads them in place (`enable_gqa`); the result has the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "vlchat_grouped"
_OWN = ("position_bias", "softcap", "cache", "output_attentions")  # what transformers' function does with them


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA attention; for several masked tokens on a CPU with shared keys and values.

    Args:
        query: (batch, heads, tokens, head_dim).
        key, value: (batch, shared heads, all tokens, head_dim).
        attention_mask: (batch, 1, tokens, all tokens), boolean or added to the logits.
        kwargs: as transformers' own takes them.

    Returns:
        (batch, tokens, heads, head_dim), and None in place of the weights.
    """
    shared = getattr(module, "num_key_value_groups", 1) > 1 and attention_mask is not None and query.shape[2] > 1
    if not shared or query.device.type != "cpu" or any(kwargs.get(name) for name in _OWN):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    found = scaled_dot_product_attention(
        query, key, value, attention_mask, kwargs.get("dropout", 0.0), scale=kwargs.get("scaling"), enable_gqa=True
    )
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


def regroup(decoder: Any) -> None:
    """Has a language model on a CPU attend so, where it would by transformers' SDPA."""
    if decoder.device.type == "cpu" and decoder.config._attn_implementation == "sdpa":
        decoder.set_attn_implementation(GROUPED)
