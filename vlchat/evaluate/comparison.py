"""Before and after: two results over the same rows, what changed, where, and whether that can be told from chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from vlchat.errors import VLChatError
from vlchat.evaluate.measures import Measure, ratio_of
from vlchat.evaluate.pairing import check_same, differing
from vlchat.evaluate.result import Result
from vlchat.evaluate.statistics import Difference, Figure, difference, figure, holm, split
from vlchat.evaluate.verdicts import interval_text, least_difference, points

RIGHT = 0.5  # from this score on a row counts as right, where scores are graded


@dataclass(frozen=True)
class Change:
    """A measure over the same rows, before and after.

    Attributes:
        name: of the measure, or of the slice's value.
        p: of the permutation test, raised where several tests stand together (Holm 1979).
    """

    name: str
    measure: Measure
    before: Figure
    after: Figure
    difference: Difference
    p: float

    @property
    def told(self) -> bool:
        """Whether the rows tell the two apart."""
        return self.difference.told and self.p < 0.05

    @property
    def better(self) -> bool:
        """Whether the second's value is the better one, told or not."""
        gap = self.difference.value
        return gap > 0 if self.measure.better == "higher" else gap < 0

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "cannot be told"."""
        return ("better" if self.better else "worse") if self.told else "cannot be told"


@dataclass(frozen=True)
class Comparison:
    """Two results of one task.

    Attributes:
        task: its name in the report.
        before, after: the results; their rows are the same, in the same order.
        changes: one a measure, the headline first.
        slices: name of a slice -> a change of the headline for each of its values, the largest first; their p-values
            allow for all of them together.
        gained, lost: numbers of the rows that the second scores higher, and lower, the greatest change first.
        replay: whether it asks for what the first could do before, so that losses are things forgotten.
        differing: what of model and settings is not the same: (what, before, after).
        notes: sentences for the reader.
    """

    task: str
    before: Result
    after: Result
    changes: Sequence[Change]
    slices: Mapping[str, Sequence[Change]]
    gained: Sequence[int]
    lost: Sequence[int]
    replay: bool = False
    differing: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are of each kind."""
        changed = {*self.gained, *self.lost}
        same = [row["score"] for number, row in enumerate(self.before.rows) if number not in changed]
        right = sum(score >= RIGHT for score in same)
        return {
            "gained": len(self.gained), "lost": len(self.lost), "both right": right, "both wrong": len(same) - right,
        }  # fmt: skip

    @property
    def verdict(self) -> str:
        """Better, worse or cannot be told, with the figures, in a short paragraph."""
        return verdict(self.changes[0])


@dataclass(frozen=True)
class Forgotten:
    """What was known before and is not after, over the rows of replay tasks.

    Attributes:
        tasks: their names.
        known, lost: rows that were right before, and those of them that are wrong after.
        unknown, learned: rows that were wrong before, and those of them that are right after.
        share: `lost` of `known` with its interval.
    """

    tasks: Sequence[str]
    known: int
    lost: int
    unknown: int
    learned: int
    share: Figure

    @property
    def sentence(self) -> str:
        if not self.known:
            return f"Nothing of {_listed(self.tasks)} was right before, so nothing could be forgotten."
        interval = interval_text(_FORGOTTEN, self.share)
        return (
            f"Forgotten: of {self.known:,} rows of {_listed(self.tasks)} that were right before, {self.lost:,} are "
            f"wrong after ({100 * self.share.value:.1f} %, {interval}); of {self.unknown:,} that were wrong, "
            f"{self.learned:,} are right."
        )


_FORGOTTEN = ratio_of("lost", "known", "forgotten", better="lower")


@dataclass(frozen=True)
class Comparisons:
    """Two models on one task, or on the tasks of a suite.

    Attributes:
        names: what the two are called.
        parts: a comparison a task.
        forgotten: over the replay tasks; None where there are none.
        notes: sentences for the reader: what is only in one of the two.
    """

    names: tuple[str, str]
    parts: Sequence[Comparison]
    forgotten: Forgotten | None = None
    notes: Sequence[str] = field(default_factory=list)


def compare(
    before: Result,
    after: Result,
    *,
    names: tuple[str, str] = ("the first", "the second"),
    task: str | None = None,
    replay: bool = False,
) -> Comparison:
    """Two results over the same rows, paired row by row.

    Args:
        names: what messages call the two.
        task: its name in the report; None takes the results' own.
        replay: see `Comparison`.

    Raises:
        VLChatError: they were not asked the same rows in the same way; the message says what differs.
    """
    check_same(before, after, names)
    everything = np.arange(len(before.rows))
    changes = [_change(measure, measure.name, before, after, everything) for measure in before.measures]
    found = split([row["slices"] for row in before.rows], len(before.rows)).items()
    tested = raised([_change(before.measures[0], value, before, after, rows) for (_, value), rows in found])
    slices: dict[str, list[Change]] = {}
    for ((name, _), _), change in zip(found, tested, strict=True):
        slices.setdefault(name, []).append(change)
    gains = np.array([two["score"] - one["score"] for one, two in zip(before.rows, after.rows, strict=True)])
    order = [int(number) for number in np.argsort(-np.abs(gains), kind="stable")]
    return Comparison(
        task or before.task,
        before,
        after,
        changes,
        {name: sorted(values, key=lambda one: -one.difference.rows) for name, values in slices.items()},
        [number for number in order if gains[number] > 0],
        [number for number in order if gains[number] < 0],
        replay,
        list(differing(before, after)),
        list(_notes(before, after, names)),
    )


def compare_suites(
    before: Mapping[str, Result],
    after: Mapping[str, Result],
    *,
    names: tuple[str, str] = ("the first", "the second"),
    replay: Sequence[str] = (),
) -> Comparisons:
    """The tasks of two suites, paired by name.

    Where there are several tasks, the p-value of each headline allows for their number, as do their verdicts.

    Args:
        before, after: results by task, as `vlchat.evaluate.stored.read_results` gives them.
        replay: the tasks that ask for what was known before. Without any, those with "replay" in their name; without
            any of these, every task but the first.

    Raises:
        VLChatError: no task is in both, there is no such task to replay, or two results cannot be compared.
    """
    both = [name for name in before if name in after]
    if not both:
        raise VLChatError(
            f"No task is in both: {names[0]} has {_listed(list(before))}, {names[1]} has {_listed(list(after))}. "
            "Evaluate both on the same tasks."
        )
    for name in replay:
        if name not in both:
            raise VLChatError(f'There is no task "{name}" in both to replay; they share {_listed(both)}.')
    notes = [f"Only in {names[0]}: {name}." for name in before if name not in after]
    notes += [f"Only in {names[1]}: {name}." for name in after if name not in before]
    replayed = list(replay) or [name for name in both if "replay" in name.lower()]
    if not replayed and len(both) > 1:
        replayed = both[1:]
        notes.append(
            f"What was forgotten is counted over every task but the first, {both[0]}; --replay NAME names others."
        )
    parts = []
    for name in both:
        called = (f"{names[0]}/{name}", f"{names[1]}/{name}") if len(both) > 1 else names
        parts.append(compare(before[name], after[name], names=called, task=name, replay=name in replayed))
    headlines = raised([part.changes[0] for part in parts])
    parts = [
        replace(part, changes=[headline, *part.changes[1:]]) for part, headline in zip(parts, headlines, strict=True)
    ]
    return Comparisons(names, parts, forgotten([part for part in parts if part.replay]), notes)


def raised(changes: Sequence[Change]) -> list[Change]:
    """The changes with p-values that allow for how many there are."""
    adjusted = holm([change.difference.p for change in changes])
    return [replace(change, p=p) for change, p in zip(changes, adjusted, strict=True)]


def verdict(change: Change) -> str:
    """What a change means, with the figures."""
    measure, gap = change.measure, change.difference
    if gap.rows == 0 or not math.isfinite(gap.value):
        return f"It cannot be told whether it is better: no row has {measure.name} in both."
    from_to = f"{measure.name} goes from {_value(measure, change.before)} to {_value(measure, change.after)}"
    tests = [interval_text(measure, gap), p_text(change.p)]
    if gap.mcnemar is not None:
        tests.append(f"McNemar's {p_text(gap.mcnemar)}")
    figures = f"{from_to}, {points(measure, gap.value)} ({'; '.join(tests)})"
    if change.told:
        return f"{'Better' if change.better else 'Worse'}: {figures}."
    if gap.clusters == 1:
        return f"It cannot be told whether it is better: {figures}. Its rows are all of one group, such as one picture."
    sentences = [f"It cannot be told whether it is better: {figures}.", least_difference(measure, gap)]
    if (needed := gap.rows_needed()) is not None and needed > gap.rows:
        sentences.append(f"To show a difference of this size it takes about {_rounded(needed):,} rows like these.")
    return " ".join(sentence for sentence in sentences if sentence)


def forgotten(parts: Sequence[Comparison]) -> Forgotten | None:
    """Over the rows of several comparisons; None for none. A row is right from a score of `RIGHT` on."""
    if not parts:
        return None
    stats, clusters, learned = [], [], 0
    for part in parts:
        for one, two in zip(part.before.rows, part.after.rows, strict=True):
            was, now = one["score"] >= RIGHT, two["score"] >= RIGHT
            stats.append({"known": float(was), "lost": float(was and not now)})
            clusters.append(f"{part.task} {one['cluster']}")
            learned += now and not was
    known, lost = (int(sum(row[name] for row in stats)) for name in ("known", "lost"))
    share = figure(_FORGOTTEN, stats, clusters)
    return Forgotten([part.task for part in parts], known, lost, len(stats) - known, learned, share)


def p_text(p: float) -> str:
    """Such as "p = 0.012", or "p < 0.001"."""
    if math.isnan(p):
        return "no p"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _change(measure: Measure, name: str, before: Result, after: Result, rows: np.ndarray) -> Change:
    one, two = ([result.rows[row]["stats"] for row in rows] for result in (before, after))
    clusters = [before.rows[row]["cluster"] for row in rows]
    found = difference(measure, one, two, clusters)
    return Change(name, measure, figure(measure, one, clusters), figure(measure, two, clusters), found, found.p)


def _notes(before: Result, after: Result, names: tuple[str, str]) -> Iterator[str]:
    yield from dict.fromkeys([*before.notes, *after.notes])
    for name, result in zip(names, (before, after), strict=True):
        if refused := sum("error" in row for row in result.rows):
            yield f"{refused:,} rows of {name} got no reply and count as wrong."


def _value(measure: Measure, found: Figure) -> str:
    return f"{100 * found.value:.1f} %" if measure.percent else f"{found.value:.3g}"


def _rounded(count: int) -> int:
    """To two digits: an estimate of an estimate."""
    step = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / step) * step


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if names[:-1] else "") + names[-1]
