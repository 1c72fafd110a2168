"""Connectors with learned queries that read the picture through attention: as many tokens for any picture."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, initialization
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from vlchat.connectors.attention import CrossAttention, FeedForward
from vlchat.connectors.base import Connector
from vlchat.errors import ConfigError
from vlchat.towers.features import side_of_grid


class QFormerConnector(Connector):
    """Learned queries read the image through cross-attention: BLIP-2's Q-Former (arXiv:2301.12597).

    With `text_vocab_size` the instruction's tokens join the queries' self-attention, as in InstructBLIP
    (arXiv:2305.06500); only the queries go on to the language model. The block itself is transformers'
    `Blip2QFormerModel`; its defaults are BLIP-2's (12 layers, 768 wide, cross-attention every second layer).

    Args:
        num_query_tokens: image tokens per image, whatever the number of patches.
        text_vocab_size: vocabulary of the instruction tokens, or None for a Q-Former that sees no text.
    """

    keeps_grid = False

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
        if self.uses_instructions:
            self.embeddings = Blip2TextEmbeddings(config)
        self.qformer = Blip2QFormerModel(config)
        self.projection = nn.Linear(hidden_size, llm_dim)
        self.init_own_parameters()

    def init_own_parameters(self) -> None:
        initialization.normal_(self.query_tokens, mean=0.0, std=self.qformer.config.initializer_range)

    def num_tokens(self, num_patches: int) -> int:
        return self.query_tokens.shape[1]

    def forward(
        self,
        features: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `Connector.forward`. Raises ConfigError for instructions that this Q-Former was not built to read."""
        return self.projection(self.read(features, instruction_ids, instruction_mask))

    def read(
        self,
        features: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The queries' states before they go on to the language model, (images, queries, hidden). As `forward`."""
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
        return self.qformer(
            query_embeds=queries,
            query_length=num_queries,
            attention_mask=attention_mask,
            encoder_hidden_states=features,
        ).last_hidden_state[:, :num_queries]


class ResamplerConnector(Connector):
    """Qwen-VL's resampler (arXiv:2308.12966): one layer of cross-attention from a square grid of learned queries.

    Queries and keys carry 2-D sine positions, so that each query knows its place in the picture. Both are normalized
    before the attention, the result after it, and a last linear layer follows.

    Args:
        num_query_tokens: image tokens per image, a square number.
        num_attention_heads: None gives heads 128 wide, as in Qwen-VL.
    """

    keeps_grid = False

    def __init__(
        self, vision_dim: int, llm_dim: int, num_query_tokens: int = 256, num_attention_heads: int | None = None
    ) -> None:
        super().__init__()
        heads = num_attention_heads or max(1, llm_dim // 128)
        self.side = math.isqrt(num_query_tokens)
        if self.side**2 != num_query_tokens or not num_query_tokens:
            raise ConfigError(
                f"The resampler's num_query_tokens is {num_query_tokens}; it must be a square number such as 64 or 256."
            )
        if llm_dim % 4 or llm_dim % heads:
            raise ConfigError(
                f"The resampler works at the language model's width, {llm_dim}, which must divide by 4 and by its "
                f"{heads} attention heads: choose another num_attention_heads."
            )
        self.query_tokens = nn.Parameter(torch.empty(num_query_tokens, llm_dim))
        self.key_projection = nn.Linear(vision_dim, llm_dim, bias=False)
        self.query_norm = nn.LayerNorm(llm_dim)
        self.key_norm = nn.LayerNorm(llm_dim)
        self.attention = CrossAttention(llm_dim, llm_dim, heads, llm_dim // heads, bias=True)
        self.output_norm = nn.LayerNorm(llm_dim)
        self.projection = nn.Linear(llm_dim, llm_dim, bias=False)
        self.init_own_parameters()

    def init_own_parameters(self) -> None:
        initialization.trunc_normal_(self.query_tokens, std=0.02)

    def num_tokens(self, num_patches: int) -> int:
        side_of_grid(num_patches, "resampler connector")
        return self.side**2

    def forward(
        self,
        features: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        values = self.key_norm(self.key_projection(features.to(self.projection.weight.dtype)))
        side, width = side_of_grid(features.shape[1], "resampler connector"), values.shape[-1]
        queries = self.query_norm(self.query_tokens) + sine_positions(self.side, self.side, width).to(values)
        keys = values + sine_positions(side, self.side, width).to(values)
        output = self.attention(queries.expand(features.shape[0], -1, -1), keys, values)
        return self.projection(self.output_norm(output))


def sine_positions(side: int, extent: int, width: int) -> torch.Tensor:
    """Sines and cosines of the places in a grid of `side` x `side` patches, (side * side, width).

    The grid is laid over `extent` x `extent` units, so that grids of different fineness agree on where things are. At
    `side` units it is the table of MAE (arXiv:2111.06377) and Qwen-VL; Qwen-VL interpolates that table to other sizes.
    """
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    place = (torch.arange(side, dtype=torch.float64) + 0.5) * (extent / side) - 0.5
    angle = place[:, None] * frequency
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    columns, rows = waves.expand(side, -1, -1), waves[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


class PerceiverConnector(Connector):
    """Flamingo's perceiver resampler (arXiv:2204.14198): latents attend to the features and to themselves, layer upon
    layer, at the tower's width; a linear layer leads to the language model. The layers are those of Idefics.

    Args:
        num_query_tokens: latents, and so image tokens per image.
        depth: layers.
    """

    keeps_grid = False

    def __init__(
        self,
        vision_dim: int,
        llm_dim: int,
        num_query_tokens: int = 64,
        depth: int = 6,
        num_attention_heads: int = 8,
        head_dim: int = 64,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ConfigError(f"The perceiver connector's depth is {depth}; it must be at least 1.")
        self.query_tokens = nn.Parameter(torch.empty(num_query_tokens, vision_dim))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "feature_norm": nn.LayerNorm(vision_dim),
                    "latent_norm": nn.LayerNorm(vision_dim),
                    "attention": CrossAttention(vision_dim, vision_dim, num_attention_heads, head_dim, bias=False),
                    "feed_forward": FeedForward(vision_dim, nn.ReLU()),
                }
            )
            for _ in range(depth)
        )
        self.output_norm = nn.LayerNorm(vision_dim)
        self.projection = nn.Linear(vision_dim, llm_dim)
        self.init_own_parameters()

    def init_own_parameters(self) -> None:
        initialization.normal_(self.query_tokens)

    def num_tokens(self, num_patches: int) -> int:
        return self.query_tokens.shape[0]

    def forward(
        self,
        features: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        instruction_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        features = features.to(self.projection.weight.dtype)
        latents = self.query_tokens.expand(features.shape[0], -1, -1)  # (images, latents, vision_dim)
        for layer in self.layers:
            queries = layer["latent_norm"](latents)  # type: ignore[index]
            seen = torch.cat([layer["feature_norm"](features), queries], dim=1)  # type: ignore[index]
            latents = latents + layer["attention"](queries, seen, seen)  # type: ignore[index]
            latents = latents + layer["feed_forward"](latents)  # type: ignore[index]
        return self.projection(self.output_norm(latents))
