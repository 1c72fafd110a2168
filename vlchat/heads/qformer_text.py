"""The text half of BLIP-2's Q-Former, which only its training needs (arXiv 2301.12597, section 3.2).

The queries' half is the connector. Both halves share attention and norms; the text has feed-forward layers of its own,
and the three objectives differ in who sees whom:

    contrast    queries see queries, text sees text
    matching    everything sees everything
    generation  queries see queries, text sees queries and the text before it

Only queries read the picture, by cross-attention.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerEncoder, Blip2TextEmbeddings

from vlchat.connectors import QFormerConnector
from vlchat.errors import ConfigError, DataError

_MARKS = 3  # what begins a text that is read, one that is written, and what ends either
_START, _WRITE, _END = range(_MARKS)


class QFormerText(nn.Module):
    """A Q-Former that reads and writes text beside its queries. What it shares with the connector trains there.

    Of an instruction-aware connector the text's word embeddings and feed-forward layers are shared as well. Else the
    text's feed-forward layers begin as those of the queries, as BLIP-2's both begin as BERT's.

    Args:
        connector: its queries' half.
        tokenizer: makes the words; [CLS], [DEC] and [SEP] stand behind them in the vocabulary.
        shape_step: texts are padded to a multiple of so many tokens.
    """

    prefix = "qformer"

    def __init__(self, connector: QFormerConnector, tokenizer: Any, shape_step: int = 1) -> None:
        super().__init__()
        config = connector.qformer.config
        self._connector = (connector,)  # not registered: what is shared is the model's
        self._tokenizer, self._shape_step = tokenizer, shape_step
        self.width = config.hidden_size
        if connector.uses_instructions:
            self.own_embeddings = None
        else:
            config = copy.deepcopy(config)
            config.use_qformer_text_input, config.vocab_size = True, len(tokenizer)
            self.own_embeddings = Blip2TextEmbeddings(config)
        self.words: int = self.embeddings.word_embeddings.num_embeddings
        self.limit: int = self.embeddings.position_embeddings.num_embeddings
        self.mark_embeddings = nn.Embedding(_MARKS, self.width)
        self.transform = nn.Sequential(
            nn.Linear(self.width, self.width), nn.GELU(), nn.LayerNorm(self.width, eps=config.layer_norm_eps)
        )
        self.bias = nn.Parameter(torch.zeros(self.words + _MARKS))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        self.encoder = _twin(connector, config)

    @property
    def embeddings(self) -> Blip2TextEmbeddings:
        return self._connector[0].embeddings if self.own_embeddings is None else self.own_embeddings

    def tokens(self, texts: Sequence[str], names: Sequence[str]) -> dict[str, torch.Tensor]:
        """qformer_input_ids and qformer_attention_mask, (rows, tokens): [CLS] text [SEP], padded on the right.

        Args:
            names: of the rows, for messages.

        Raises:
            DataError: a text longer than the Q-Former has positions.
            ConfigError: the connector was built for fewer words than the tokenizer has.
        """
        rows = [[self.words + _START, *ids, self.words + _END]
                for ids in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]]  # fmt: skip
        for row, name in zip(rows, names, strict=True):
            if len(row) > self.limit:
                raise DataError(
                    f"{name}: its caption has {len(row)} tokens and the Q-Former reads at most {self.limit}. "
                    "Shorten it, or raise objective.connector.max_instruction_tokens."
                )
            if max(row[1:-1], default=0) >= self.words:
                raise ConfigError(
                    f"objective.connector: text_vocab_size is {self.words}, and the tokenizer has "
                    f"{len(self._tokenizer)} tokens. Set it to {len(self._tokenizer)}."
                )
        longest = max(map(len, rows))
        length = min(self.limit, longest + -longest % self._shape_step)
        return {
            "qformer_input_ids": torch.tensor([row + [0] * (length - len(row)) for row in rows]),
            "qformer_attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        }

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(rows, hidden): texts read by themselves, as their first state."""
        sees = attention_mask.bool()[:, None].expand(-1, attention_mask.shape[1], -1)
        return self._encode(self._embed(input_ids), sees, None, 0)[:, 0]

    def match(self, features: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(rows, queries, hidden): the queries' states after they have read the picture and the text."""
        queries = self._queries(features)
        there = torch.cat([torch.ones_like(queries[..., 0], dtype=torch.bool), attention_mask.bool()], dim=1)
        states = torch.cat([queries, self._embed(input_ids)], dim=1)
        sees = there[:, None].expand(-1, there.shape[1], -1)
        return self._encode(states, sees, features, queries.shape[1])[:, : queries.shape[1]]

    def write(self, features: torch.Tensor, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries' states (rows, queries, hidden) and the text's (rows, tokens, hidden) as it is written: its first
        token is [DEC], and each token sees the queries and the text up to itself, so never the padding after it."""
        queries = self._queries(features)
        count, tokens = queries.shape[1], input_ids.shape[1]
        first = torch.full_like(input_ids[:, :1], self.words + _WRITE)
        states = torch.cat([queries, self._embed(torch.cat([first, input_ids[:, 1:]], dim=1))], dim=1)
        sees = torch.ones(count + tokens, count + tokens, dtype=torch.bool, device=states.device).tril()
        sees[:count, :count] = True
        states = self._encode(states, sees.expand(len(states), -1, -1), features, count)
        return states[:, :count], states[:, count:]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> (..., words + 3): BERT's head, tied to the embeddings."""
        vocabulary = torch.cat([self.embeddings.word_embeddings.weight, self.mark_embeddings.weight])
        return functional.linear(self.transform(states), vocabulary, self.bias)

    def writing_loss(
        self, features: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        """The sum over the texts' tokens, [SEP] included, of their negative log-likelihood, and their number."""
        _, states = self.write(features, input_ids)
        asked = attention_mask[:, 1:].bool()
        logits = self.logits(states[:, :-1][asked])  # only where a token follows
        targets = input_ids[:, 1:][asked]
        return functional.cross_entropy(logits.float(), targets, reduction="sum"), len(targets)

    def _queries(self, features: torch.Tensor) -> torch.Tensor:
        return self._connector[0].query_tokens.expand(len(features), -1, -1)

    def _embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        table = self.embeddings
        mark = input_ids >= self.words
        marks = self.mark_embeddings(torch.where(mark, input_ids - self.words, 0))
        words = table.word_embeddings(torch.where(mark, 0, input_ids))
        places = table.position_embeddings(torch.arange(input_ids.shape[1], device=input_ids.device))
        return torch.where(mark[..., None], marks, words) + places

    def _encode(
        self, states: torch.Tensor, sees: torch.Tensor, features: torch.Tensor | None, queries: int
    ) -> torch.Tensor:
        """`sees` (rows, tokens, tokens): row i of it is what token i sees."""
        qformer = self._connector[0].qformer
        states = qformer.dropout(qformer.layernorm(states))
        blind = torch.zeros(sees.shape, dtype=states.dtype, device=states.device)
        blind = blind.masked_fill(~sees, torch.finfo(states.dtype).min)[:, None]  # (rows, heads, tokens, tokens)
        if features is not None:
            features = features.to(states.dtype)
        found: Any = self.encoder(states, blind, features, query_length=queries)
        return found.last_hidden_state


def _twin(connector: QFormerConnector, config: Any) -> Blip2QFormerEncoder:
    """The connector's encoder with feed-forward layers for text beside those for queries; the rest are its own."""
    if connector.uses_instructions:
        return connector.qformer.encoder
    with torch.device("meta"):  # a skeleton, of which nothing is kept
        encoder = Blip2QFormerEncoder(config)
    for layer, source in zip(encoder.layer, connector.qformer.encoder.layer, strict=True):
        for name, module in source.named_children():
            setattr(layer, name, module)
        layer.intermediate = copy.deepcopy(source.intermediate_query)
        layer.output = copy.deepcopy(source.output_query)
    return encoder
