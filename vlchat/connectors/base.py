"""What all connectors share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


class Connector(nn.Module, ABC):
    """From a vision tower's features to the language model's input embeddings.

    A connector is built as `(vision_dim, llm_dim, **kwargs)`. It keeps one token per patch unless it says otherwise.
    It holds no buffers: those that are not saved don't survive loading.
    """

    uses_instructions = False

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
