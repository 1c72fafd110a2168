"""Which rows of an optimizer step are taken at once: rows of similar length, or as many as fill a packed row.

The step keeps its rows, only how they are cut changes. So nothing is biased, and the loss is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What may be taken at once. A row that is longer than `tokens` by itself is taken alone.

    Attributes:
        rows: at most so many rows, where `tokens` is None.
        tokens: at most so many tokens, padding included.
        packed: rows stand one after another in one, so that none is padded.
        multiple: of which a tensor's length in tokens is one.
    """

    rows: int
    tokens: int | None
    packed: bool
    multiple: int = 1

    def cost(self, lengths: Sequence[int]) -> int:
        """The tokens that rows of these lengths take."""
        return self._whole(sum(lengths)) if self.packed else self._whole(max(lengths)) * len(lengths)

    def _whole(self, tokens: int) -> int:
        return -(-tokens // self.multiple) * self.multiple

    def fits(self, lengths: Sequence[int]) -> bool:
        return len(lengths) <= self.rows if self.tokens is None else self.cost(lengths) <= self.tokens


def grouped(lengths: Sequence[int], budget: Budget, processes: int) -> list[list[list[int]]]:
    """The rows of a step in pieces, for each process equally many of nearly equal tokens, the largest first.

    Equally many, because processes that share a model's weights meet in each piece. Only a step with fewer rows than
    that takes has fewer pieces for some.

    Args:
        lengths: tokens of each row; at least as many rows as processes.

    Returns:
        By process, by piece, the rows' numbers.
    """
    if not budget.packed:
        pieces = _alike(lengths, budget)
    else:
        pieces = _even(lengths, budget, processes) if budget.tokens is None else _filled(lengths, budget)

    def cost(piece: list[int]) -> int:
        return budget.cost([lengths[row] for row in piece])

    while len(pieces) % processes and any(len(piece) > 1 for piece in pieces):
        largest = max((piece for piece in pieces if len(piece) > 1), key=cost)
        pieces.remove(largest)
        # Sorted by length: packed halves of equal tokens are every second row, padded ones their two ends.
        middle = (len(largest) + 1) // 2
        pieces += [largest[::2], largest[1::2]] if budget.packed else [largest[:middle], largest[middle:]]
    most = -(-len(pieces) // processes)
    shares: list[list[list[int]]] = [[] for _ in range(processes)]
    for piece in sorted(pieces, key=cost, reverse=True):
        with_room = [share for share in shares if len(share) < most]
        min(with_room, key=lambda share: (sum(map(cost, share)), len(share))).append(piece)
    return shares


def _filled(lengths: Sequence[int], budget: Budget) -> list[list[int]]:
    """Minimum bin slack (Gupta and Ho, 1999): the longest row that is left, with those that fill its piece best.

    Best-fit decreasing leaves the short rows to themselves, six of 640 tokens in 4,096; it needs about a thirtieth more
    pieces.
    """
    assert budget.tokens is not None
    tokens = budget.tokens // budget.multiple * budget.multiple
    left = _longest_first(lengths)
    pieces = []
    while left:
        piece = [left.pop(0)]
        piece += [left[place] for place in _fullest([lengths[row] for row in left], tokens - lengths[piece[0]])]
        left = [row for row in left if row not in piece]
        pieces.append(piece)
    return pieces


def _fullest(lengths: Sequence[int], room: int) -> list[int]:
    """The places of some lengths with the largest sum up to `room`; of equal sums one with long ones."""
    if room < 0:
        return []
    within = (1 << room + 1) - 1
    sums = [1]  # bit n of the k-th: whether some of the last k lengths sum to n
    for length in reversed(lengths):
        sums.append(sums[-1] | (sums[-1] << length & within))
    wanted = sums[-1].bit_length() - 1
    chosen = []
    for place, length in enumerate(lengths):
        rest = sums[len(lengths) - place - 1]
        if length <= wanted and rest >> wanted - length & 1:
            chosen.append(place)
            wanted -= length
    return chosen


def _even(lengths: Sequence[int], budget: Budget, processes: int) -> list[list[int]]:
    """As few pieces as the rows allow, of nearly equal tokens."""
    count = -(-len(lengths) // budget.rows)
    count = min(-(-count // processes) * processes, len(lengths))
    pieces: list[list[int]] = [[] for _ in range(count)]
    taken = [0] * count
    for row in _longest_first(lengths):
        least = min((n for n in range(count) if len(pieces[n]) < budget.rows), key=lambda n: (taken[n], len(pieces[n])))
        pieces[least].append(row)
        taken[least] += lengths[row]
    return [piece for piece in pieces if piece]


def _alike(lengths: Sequence[int], budget: Budget) -> list[list[int]]:
    """Rows by length, cut where the next one would be too many."""
    pieces: list[list[int]] = []
    for row in _longest_first(lengths):
        if pieces and budget.fits([lengths[other] for other in (*pieces[-1], row)]):
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])
