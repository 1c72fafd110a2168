"""The blocks that connectors attend with."""

from __future__ import annotations

import torch
from torch import nn


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to another."""

    def __init__(self, query_dim: int, key_dim: int, heads: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(query_dim, heads * head_dim, bias=bias)
        self.key = nn.Linear(key_dim, heads * head_dim, bias=bias)
        self.value = nn.Linear(key_dim, heads * head_dim, bias=bias)
        self.output = nn.Linear(heads * head_dim, query_dim, bias=bias)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """`queries` (images, queries, query_dim) read `keys` and `values` (images, tokens, key_dim)."""
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.query, queries), (self.key, keys), (self.value, values))
        )  # (images, heads, tokens, head_dim)
        read = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.output(read.transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Norm, four times the width, activation, back; without biases, as in Flamingo."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            activation,
            nn.Linear(4 * width, width, bias=False),
        )
