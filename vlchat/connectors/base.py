"""What all connectors share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn
from transformers import initialization

from vlchat.errors import ConfigError


class Connector(nn.Module, ABC):
    """From a vision tower's features to the language model's input embeddings.

    A connector is built as `(vision_dim, llm_dim, **kwargs)`. It keeps one token per patch unless it says otherwise.
    It holds no buffers: those that are not saved don't survive loading.
    """

    uses_instructions = False
    # Whether its tokens lie as the patches do, in a square grid: only such ones of several tiles make one picture.
    keeps_grid = True
    # Ends a row of tokens where pictures are cut into tiles, (llm_dim,); else None.
    image_newline: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("image_newline", None)

    def add_newline(self, llm_dim: int) -> None:
        """Prepares the connector for pictures that are cut into tiles.

        Raises:
            ConfigError: for a connector whose tokens have no places in the picture.
        """
        if not self.keeps_grid:
            raise ConfigError(
                f"A {type(self).__name__} gives each tile the same few tokens, which have no places in the picture, so "
                "tiles can't be put together. Use linear, mlp, downsample or gated with tiles."
            )
        self.image_newline = nn.Parameter(torch.empty(llm_dim))
        self.init_newline()

    def init_newline(self) -> None:
        """As LLaVA-NeXT's."""
        if self.image_newline is not None:
            initialization.normal_(self.image_newline, std=self.image_newline.shape[0] ** -0.5)

    def num_tokens(self, num_patches: int) -> int:
        """How many image tokens come out for `num_patches` features of one image."""
        return num_patches

    @abstractmethod
    def forward(
        self,
        features: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Maps `features` (images, patches, vision_dim) to (images, image_tokens, llm_dim).

        Only an instruction-aware connector reads `instruction_ids` and `instruction_mask` (images, instruction_tokens).
        """

    def init_own_parameters(self) -> None:  # noqa: B027  # most connectors have none
        """Gives the connector's bare parameters (those of no `nn.Linear` or such) their first values.

        To be done with `transformers.initialization`, which leaves tensors that were loaded alone.
        """
