"""How many tokens the rows of a run take, before any picture of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from train.heldout import origin
from vlchat.data import BadRow, Example, Mixture, Source, pictures
from vlchat.data.formats import has_answer
from vlchat.data.lengths import measure
from vlchat.data.lesson import blanks
from vlchat.errors import VLChatError
from vlchat.processor import VLChatProcessor

_UNKNOWN = -1
_ANY = (1, 1)  # a picture's size, where each takes equally many tokens


class RowLengths:
    """Counts rows once and remembers them, four bytes each.

    Args:
        mixture: the training rows.
        processor: as of `countable`.
        max_length: the most tokens of a row; None sets no limit.
        shortened: longer rows are cut to it; else they are left out, and take none.
        multiple: as of `train.batches.Lengths`.
    """

    def __init__(
        self, mixture: Mixture, processor: Any, max_length: int | None, shortened: bool, multiple: int
    ) -> None:
        self.mixture, self.processor, self.multiple = mixture, processor, multiple
        self.max_length, self.shortened = max_length, shortened
        self._known = [numpy.full(len(source), _UNKNOWN, dtype=numpy.int32) for source in mixture.sources]

    def __call__(self, positions: Sequence[int]) -> list[int]:
        """The tokens of the rows at these positions of the run's endless order; 0 for those that can't be used."""
        found = []
        for position in positions:
            epoch, index = divmod(position, len(self.mixture))
            self.mixture.set_epoch(epoch)
            number, row = self.mixture.locate(index)
            if self._known[number][row] == _UNKNOWN:
                self._known[number][row] = self._count(*origin(self.mixture.sources[number], row))
            found.append(int(self._known[number][row]))
        return found

    def _count(self, source: Source, row: int) -> int:
        example = source.read(row)
        if isinstance(example, BadRow) or not has_answer(example):
            return 0
        try:
            tokens = len(measure(self.processor, blanks(source, example, self._sizes(source, example))))
        except VLChatError:  # told where the row is trained on
            return 0
        if self.max_length is None or tokens <= self.max_length:
            return tokens
        return self.max_length if self.shortened else 0

    def _sizes(self, source: Source, example: Example) -> list[tuple[int, int] | None]:
        shown = example.images
        if getattr(self.processor.image_processor, "image_grid_pinpoints", None) is None:
            return [_ANY] * len(shown)
        return [pictures.header(source.find(one) if isinstance(one, str) else one, "image").size for one in shown]


def countable(mixture: Mixture, processor: Any) -> bool:
    """Whether that costs little: rows of files, for our own processor, which asks pictures for their size alone."""
    sources = [origin(source, 0)[0] for source in mixture.sources]
    return isinstance(processor, VLChatProcessor) and all(isinstance(source, Source) for source in sources)
