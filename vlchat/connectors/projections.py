"""Connectors that map each patch, or each block of neighbouring patches, by itself."""

from __future__ import annotations

import torch
from torch import nn

from vlchat.connectors.base import Connector
from vlchat.errors import ConfigError
from vlchat.towers.features import side_of_grid


class LinearConnector(Connector):
    """One linear layer, as in the first LLaVA (Liu et al. 2023, arXiv:2304.08485)."""

    def __init__(self, vision_dim: int, llm_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.projection = nn.Linear(vision_dim, llm_dim, bias=bias)

    def forward(
        self,
        features: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.projection(features.to(self.projection.weight.dtype))


class MLPConnector(Connector):
    """`depth` linear layers with GELU between them; depth 2 is LLaVA-1.5's `mlp2x_gelu` (arXiv:2310.03744).

    Args:
        hidden_size: width between the layers; None is llm_dim, as in LLaVA.
        norm: normalize the features first (LayerNorm). A tower's last states are not normalized, and a few of their
            dimensions drown the others.
    """

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        depth: int = 2,
        bias: bool = True,
        hidden_size: int | None = None,
        norm: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(f"The mlp connector's depth is {depth}; it must be at least 1.")
        self.norm = nn.LayerNorm(vision_dim) if norm else nn.Identity()
        widths = [vision_dim] + [hidden_size or llm_dim] * (depth - 1) + [llm_dim]
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=bias) for i, o in zip(widths, widths[1:], strict=False))

    def forward(
        self,
        features: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden = self.norm(features.to(next(self.parameters()).dtype))
        for index, layer in enumerate(self.layers):
            hidden = layer(nn.functional.gelu(hidden) if index else hidden)
        return hidden


class DownsampleConnector(Connector):
    """Blocks of `factor` x `factor` patches become one token: their features side by side, then an MLP.

    VILA's `mlp_downsample` (arXiv:2312.07533) is factor 2 with a norm; without one it is the pixel shuffle of Idefics3
    and InternVL. A grid that does not divide gets rows and columns of zeros, as in VILA.

    Args:
        factor: 2 leaves a quarter of the tokens, 3 a ninth.
        depth, hidden_size, norm: of the MLP, as in `MLPConnector`.
    """

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        factor: int = 2,
        depth: int = 2,
        hidden_size: int | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if factor < 2:
            raise ConfigError(f"The downsample connector's factor is {factor}; it must be at least 2.")
        self.factor = factor
        self.mlp = MLPConnector(vision_dim * factor**2, llm_dim, depth=depth, hidden_size=hidden_size, norm=norm)

    def num_tokens(self, num_patches: int) -> int:
        return (-(-side_of_grid(num_patches, "downsample connector") // self.factor)) ** 2

    def forward(
        self,
        features: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        images, patches, width = features.shape
        side, factor = side_of_grid(patches, "downsample connector"), self.factor
        missing = -side % factor
        grid = nn.functional.pad(features.unflatten(1, (side, side)), (0, 0, 0, missing, 0, missing))
        rows = (side + missing) // factor
        blocks = grid.view(images, rows, factor, rows, factor, width).transpose(2, 3)
        return self.mlp(blocks.reshape(images, rows * rows, factor * factor * width))
