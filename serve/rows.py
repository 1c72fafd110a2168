"""A conversation on its way through the engine: from its prompt, a piece at a time, to the last token of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, TextStreamer

from serve.prefixes import Seen
from serve.tickets import End, Options, Ticket

if TYPE_CHECKING:
    from serve.batch import Batch

_MOST_PADDED = 1.25  # times the tokens of prompts that are computed together


class Writer(TextStreamer):
    """Tokens -> pieces of text, cut where whole words end."""

    def __init__(self, tokenizer: Any, ticket: Ticket) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.ticket = ticket

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.ticket.piece(text)


@dataclass(eq=False)
class Row:
    """A conversation on its way.

    Attributes:
        batch: that it joins.
        inputs, config: of `Chat.prepare`.
        names: of `serve.prefixes.named`.
        digests: of its pictures, see `Pictures.digests`; None before they are looked at.
        seen: those that were looked at, by digest.
        together: whether its prompt may be computed with others.
        embeddings: (1, tokens, hidden) of what of its prompt is not computed yet.
        cached: tokens of its prompt that were known.
        written: its answer.
    """

    batch: Batch
    ticket: Ticket
    options: Options
    inputs: dict[str, torch.Tensor]
    config: GenerationConfig
    ids: list[int]
    writer: Writer
    digests: list[str] | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    together: bool = True
    names: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    embeddings: torch.Tensor | None = None
    cache: DynamicCache | None = None
    cached: int = 0
    written: list[int] = field(default_factory=list)
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    generator: torch.Generator | None = None

    @property
    def joins(self) -> bool:
        """Whether it is answered together with others."""
        return self.batch.joins and self.options.beams == 1

    def whole(self, tokens: int) -> bool:
        """Whether all of its prompt is still to be computed, and is no longer than this."""
        return self.embeddings is not None and self.embeddings.shape[1] == len(self.ids) <= tokens

    def finish(self, reason: str, error: BaseException | None = None) -> None:
        self.writer.end()
        self.ticket.finish(End(reason, len(self.ids), self.cached, len(self.written), error))


def padded(rows: Sequence[Row]) -> int:
    """Tokens that are computed for these prompts together."""
    return len(rows) * max(len(row.ids) for row in rows)


def alike(rows: Sequence[Row]) -> bool:
    """Whether their prompts are about as long as each other."""
    return padded(rows) <= _MOST_PADDED * sum(len(row.ids) for row in rows)
