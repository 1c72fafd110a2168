"""Connectors: from a vision tower's features to the language model's input embeddings.

Every connector is `(vision_dim, llm_dim, **kwargs)` and maps `(images, patches, vision_dim)` to
`(images, image_tokens, llm_dim)`. To add one, write the class and put it in `CONNECTORS`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from vlchat.errors import ConfigError, nearest


class Connector(nn.Module, ABC):
    """What all connectors share. A connector keeps one token per patch unless it says otherwise."""

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


class QFormerConnector(Connector):
    """Learned queries read the image through cross-attention: BLIP-2's Q-Former (arXiv:2301.12597).

    With `text_vocab_size` the instruction's tokens join the queries' self-attention, as in InstructBLIP
    (arXiv:2305.06500); only the queries go on to the language model. The block itself is transformers'
    `Blip2QFormerModel`; its defaults are BLIP-2's (12 layers, 768 wide, cross-attention every second layer).

    Args:
        num_query_tokens: image tokens per image, whatever the number of patches.
        text_vocab_size: vocabulary of the instruction tokens, or None for a Q-Former that sees no text.
    """

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        num_query_tokens: int = 32,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int | None = None,
        cross_attention_frequency: int = 2,
        dropout: float = 0.1,
        text_vocab_size: int | None = None,
        max_instruction_tokens: int = 512,
    ) -> None:
        super().__init__()
        self.uses_instructions = text_vocab_size is not None
        config = Blip2QFormerConfig(
            vocab_size=text_vocab_size or 1,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size or 4 * hidden_size,
            cross_attention_frequency=cross_attention_frequency,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            encoder_hidden_size=vision_dim,
            max_position_embeddings=max_instruction_tokens,
            # Instruction tokens come from the language model's tokenizer, where 0 may be a real word.
            pad_token_id=None,
            use_qformer_text_input=self.uses_instructions,
        )
        self.query_tokens = nn.Parameter(torch.empty(1, num_query_tokens, hidden_size))
        nn.init.normal_(self.query_tokens, std=config.initializer_range)
        if self.uses_instructions:
            self.embeddings = Blip2TextEmbeddings(config)
        self.qformer = Blip2QFormerModel(config)
        self.projection = nn.Linear(hidden_size, llm_dim)

    def num_tokens(self, num_patches: int) -> int:
        return self.query_tokens.shape[1]

    def forward(
        self,
        features: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Connector.forward`. Raises ConfigError for instructions that this Q-Former was not built to read."""
        features = features.to(self.projection.weight.dtype)
        queries = self.query_tokens.expand(features.shape[0], -1, -1)  # (images, queries, hidden)
        num_queries = queries.shape[1]
        attention_mask = None
        if instruction_ids is not None:
            if not self.uses_instructions:
                raise ConfigError("This Q-Former reads no text: build it with text_vocab_size to pass instructions.")
            if instruction_mask is None:
                instruction_mask = torch.ones_like(instruction_ids)
            attention_mask = torch.cat(
                [torch.ones(queries.shape[:2], dtype=instruction_mask.dtype, device=features.device), instruction_mask],
                dim=1,
            )
            queries = self.embeddings(input_ids=instruction_ids, query_embeds=queries)
        output = self.qformer(
            query_embeds=queries,
            query_length=num_queries,
            attention_mask=attention_mask,
            encoder_hidden_states=features,
        ).last_hidden_state[:, :num_queries]  # (images, queries, hidden)
        return self.projection(output)


CONNECTORS: dict[str, type[Connector]] = {
    "linear": LinearConnector,
    "mlp": MLPConnector,
    "qformer": QFormerConnector,
}


def build_connector(connector: dict, vision_dim: int, llm_dim: int) -> Connector:
    """Builds `{"type": name, **kwargs}`.

    Raises:
        ConfigError: for an unknown type or an argument that type does not take, with the nearest right name.
    """
    kwargs = dict(connector)
    name = kwargs.pop("type", None)
    if name not in CONNECTORS:
        hint = nearest(str(name), CONNECTORS) or "."
        raise ConfigError(f"There is no connector {name!r}; known ones are {', '.join(CONNECTORS)}{hint}")
    accepted = list(inspect.signature(CONNECTORS[name]).parameters)[2:]
    for key in kwargs:
        if key not in accepted:
            hint = nearest(key, accepted) or "."
            raise ConfigError(f"The {name} connector has no option {key!r}; it takes {', '.join(accepted)}{hint}")
    return CONNECTORS[name](vision_dim, llm_dim, **kwargs)
