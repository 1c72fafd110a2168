"""What a page about two models' answers to the same rows shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlchat.evaluate import comparison
from vlchat.evaluate.page.building import said_of, score_of
from vlchat.evaluate.page.inputs import Said, Score

SHOWN = 24  # gained rows, and lost ones


@dataclass(frozen=True)
class Change:
    """Two scores over the same rows.

    Attributes:
        name: of the measure, or of the slice's value.
        gap: the second minus the first, with its interval.
        p: of the paired test; None where there was none.
        told: whether the rows tell the two apart, and then whether the second is better.
    """

    name: str
    first: Score
    second: Score
    gap: Score
    p: float | None = None
    told: bool = False

    @property
    def better(self) -> bool:
        return (self.gap.value > 0) == (self.gap.better == "higher") and self.gap.value != 0


@dataclass(frozen=True)
class Pair:
    """A row with what both said."""

    id: str
    question: str
    reference: str
    first: Said
    second: Said
    slices: Mapping[str, str] = field(default_factory=dict)
    pictures: Sequence[Any] = ()


@dataclass(frozen=True)
class Compared:
    """Two models on one task.

    Attributes:
        replay: whether it asks for what the first could do before, so that losses are things forgotten.
        scores: a change a measure, the headline first.
        verdicts: what they mean, in sentences.
        slices: name of a slice -> a change of the headline for each of its values.
        gained, lost: rows to show that the second scores higher, and lower.
        counts: how many rows there are of each of "gained", "lost", "both right", "both wrong".
    """

    task: str
    protocol: str
    scores: Sequence[Change]
    counts: Mapping[str, int]
    replay: bool = False
    verdicts: Sequence[str] = ()
    slices: Mapping[str, Sequence[Change]] = field(default_factory=dict)
    gained: Sequence[Pair] = ()
    lost: Sequence[Pair] = ()
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class ComparisonPage:
    """Two models, by name, on one task or several."""

    first: str
    second: str
    tasks: Sequence[Compared]

    @property
    def title(self) -> str:
        return f"{self.first} and {self.second}"


def compared(
    found: comparison.Comparison,
    *,
    verdicts: Sequence[str] = (),
    pictures: Callable[[int], Sequence[Any]] = lambda number: (),
    shown: int = SHOWN,
) -> Compared:
    """A comparison as a page shows it.

    Args:
        verdicts: sentences that follow the comparison's own.
        pictures: of a row by its number; only those of shown rows are asked for.
        shown: at most so many gained rows, and lost ones, those with the greatest change first.
    """
    before, after = found.before.rows, found.after.rows

    def pair(number: int) -> Pair:
        one, two = before[number], after[number]
        return Pair(
            one["id"], one["question"], one["reference"], said_of(one), said_of(two), one["slices"], pictures(number)
        )

    facts = [("rows", f"{len(before):,}")]
    facts += [("data", ", ".join(f"{key} {value}" for key, value in found.before.data.items()))]
    facts += [("note", note) for note in found.notes]
    facts += [(what, f"{one} → {two}") for what, one, two in found.differing]
    return Compared(
        task=found.task,
        protocol=found.before.protocol,
        scores=[_change(change) for change in found.changes if change.difference.rows or change is found.changes[0]],
        counts=found.counts,
        replay=found.replay,
        verdicts=[found.verdict, *verdicts],
        slices={name: [_change(change) for change in changes] for name, changes in found.slices.items()},
        gained=[pair(number) for number in found.gained[:shown]],
        lost=[pair(number) for number in found.lost[:shown]],
        facts=facts,
    )


def _change(found: comparison.Change) -> Change:
    return Change(
        found.name,
        score_of(found.measure, found.before),
        score_of(found.measure, found.after),
        score_of(found.measure, found.difference),
        None if math.isnan(found.p) else found.p,
        found.told,
    )
