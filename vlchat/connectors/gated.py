"""A connector that fuses the features of two towers."""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization

from vlchat.connectors.attention import CrossAttention, FeedForward
from vlchat.connectors.base import Connector
from vlchat.connectors.projections import MLPConnector
from vlchat.errors import ConfigError


class GatedConnector(Connector):
    """Attention-gated fusion: the first tower's tokens attend to the second's, through gates that start closed.

    The layer is Flamingo's gated cross-attention (arXiv:2204.14198): `x + tanh(a) * attention(x, second)`, then
    `x + tanh(b) * feed_forward(x)` with `a = b = 0` at first, so that training starts from the first tower alone. An
    MLP leads to the language model. Both towers' features arrive side by side in one tensor, as the `concat` tower
    gives them (or one tower of which two layers are taken).

    Args:
        widths: of the first and of the second tower's features.
        depth: layers of the MLP.
    """

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        widths: list[int],
        num_attention_heads: int = 8,
        head_dim: int = 64,
        depth: int = 2,
    ) -> None:
        super().__init__()
        if len(widths) != 2 or sum(widths) != vision_dim:
            raise ConfigError(
                f"The gated connector's widths are {widths}, which must be two numbers that add up to the width of "
                f"the tower's features, {vision_dim}."
            )
        self.widths = list(widths)
        first, second = widths
        self.norm = nn.LayerNorm(first)
        self.attention = CrossAttention(first, second, num_attention_heads, head_dim, bias=False)
        self.feed_forward = FeedForward(first, nn.GELU())
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))
        self.mlp = MLPConnector(first, llm_dim, depth=depth)

    def init_own_parameters(self) -> None:
        initialization.zeros_(self.attention_gate)
        initialization.zeros_(self.feed_forward_gate)

    def forward(
        self,
        features: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        tokens, other = features.to(self.norm.weight.dtype).split(self.widths, dim=-1)
        tokens = tokens + self.attention_gate.tanh() * self.attention(self.norm(tokens), other, other)
        tokens = tokens + self.feed_forward_gate.tanh() * self.feed_forward(tokens)
        return self.mlp(tokens)
