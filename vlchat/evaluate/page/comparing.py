"""What a page about two models' answers to the same rows shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vlchat.errors import ConfigError
from vlchat.evaluate.page.building import said_of, score_of
from vlchat.evaluate.page.inputs import Said, Score
from vlchat.evaluate.statistics import difference, figure, holm, split

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
    first: Any,
    second: Any,
    *,
    replay: bool = False,
    verdicts: Sequence[str] = (),
    pictures: Callable[[int], Sequence[Any]] = lambda number: (),
    shown: int = SHOWN,
) -> Compared:
    """Two results over the same rows, as a page shows them; p-values of a slice are raised for their number (Holm).

    Args:
        first, second: `vlchat.evaluate.result.Result`s of one task.
        replay: see `Compared`.
        verdicts: sentences about the change.
        pictures: of a row by its number; only those of shown rows are asked for.
        shown: at most so many gained rows, and lost ones, those with the greatest change first.

    Raises:
        ConfigError: the two were not asked the same rows in the same order, or by another protocol.
    """
    if first.protocol != second.protocol or [row["id"] for row in first.rows] != [row["id"] for row in second.rows]:
        raise ConfigError("The two results are not of the same rows by the same protocol, so they can't be compared.")
    before, after = first.rows, second.rows
    everything = np.arange(len(before))
    scores = [_change(measure, measure.name, before, after, everything) for measure in first.measures]
    slices: dict[str, list[Change]] = {}
    for (name, value), rows in split([row["slices"] for row in before], len(before)).items():
        slices.setdefault(name, []).append(_change(first.measures[0], value, before, after, rows))
    slices = {name: _raised(changes) for name, changes in slices.items()}
    gains = np.array([two["score"] - one["score"] for one, two in zip(before, after, strict=True)])
    order = [int(number) for number in np.argsort(-np.abs(gains), kind="stable")]
    gained, lost = [row for row in order if gains[row] > 0], [row for row in order if gains[row] < 0]
    same = [one["score"] for one, gain in zip(before, gains, strict=True) if gain == 0]
    right = sum(score >= 1 for score in same)
    counts = {"gained": len(gained), "lost": len(lost), "both right": right, "both wrong": len(same) - right}

    def pair(number: int) -> Pair:
        one, two = before[number], after[number]
        return Pair(
            one["id"], one["question"], one["reference"], said_of(one), said_of(two), one["slices"], pictures(number)
        )

    return Compared(
        str(first.task), first.protocol, scores, counts, replay, verdicts, slices,
        [pair(number) for number in gained[:shown]], [pair(number) for number in lost[:shown]],
        [("rows", f"{len(before):,}"), ("data", ", ".join(f"{key} {value}" for key, value in first.data.items()))],
    )  # fmt: skip


def _change(measure: Any, name: str, before: Sequence[Any], after: Sequence[Any], rows: np.ndarray) -> Change:
    one, two = ([several[row]["stats"] for row in rows] for several in (before, after))
    clusters = [before[row]["cluster"] for row in rows]
    found = difference(measure, one, two, clusters)
    first, second = (score_of(measure, figure(measure, stats, clusters)) for stats in (one, two))
    return Change(name, first, second, score_of(measure, found), found.p, found.told)


def _raised(changes: Sequence[Change]) -> list[Change]:
    """The changes of a slice's values, the largest first, with p-values that allow for how many there are."""
    raised = holm([change.p if change.p is not None else math.nan for change in changes])
    together = [
        replace(change, p=None if math.isnan(p) else p, told=change.told and p < 0.05)
        for change, p in zip(changes, raised, strict=True)
    ]
    return sorted(together, key=lambda change: -change.gap.rows)
