"""Attention over packed rows, each row by itself: no dense mask, and no work on what no token may see.

A dense mask of all rows costs more than the padding that packing saves. Here the rows' lengths travel in the mask's
place, and the kernel that a single row would have is called for each.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SEGMENTED = "segments"  # the attention kernels of a model that takes packed rows so


def segment_lengths(position_ids: torch.Tensor) -> torch.Tensor:
    """How long the rows of a packed one are.

    Args:
        position_ids: (1, tokens), which begin anew with each row.

    Returns:
        (1, 1, 1, rows) int64 in the processor's memory, to be given as the attention mask: four dimensions are what
        transformers hands to each layer as it is, and no layer has to wait for a GPU to know them.
    """
    places = position_ids[0]
    starts = (places == 0).nonzero().flatten().cpu()
    return starts.diff(append=torch.tensor([len(places)])).view(1, 1, 1, -1)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA attention; where the mask is `segment_lengths`, for each row by itself.

    Args:
        query, key, value: (1, heads, tokens, head_dim) of packed rows, else (batch, heads, tokens, head_dim).
        kwargs: `sliding_window` bounds how far back a token sees; the rest as transformers' own takes it.

    Returns:
        (batch, tokens, heads, head_dim), and None in place of the weights.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if "sliding_window" not in kwargs and getattr(getattr(module, "config", None), "sliding_window", None) is not None:
        raise ValueError("a window that only a dense mask knows")  # for `vlchat.data.packing`, which tries this
    lengths = attention_mask.flatten().tolist()
    window = kwargs.get("sliding_window") or max(lengths)
    # `split`, not slices: in the backward pass each slice would write a whole tensor of zeros.
    rows = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    found = [
        sdpa_attention_forward(module, q, k, v, _window(length, window, query.device), **kwargs)[0]
        for (q, k, v), length in zip(rows, lengths, strict=True)
    ]
    return torch.cat(found, dim=1), None


def _window(length: int, window: int, device: torch.device) -> torch.Tensor | None:
    """(length, length), which tokens each of a row sees; None where it sees all before it."""
    if length <= window:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


AttentionInterface.register(SEGMENTED, attention)
AttentionMaskInterface.register(SEGMENTED, sdpa_mask)
