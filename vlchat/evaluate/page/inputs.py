"""What a report page shows, apart from how it looks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlchat.evaluate.plots import Bin

_LONGEST_ANSWER = 28  # letters; longer ones are no classes to confuse


@dataclass(frozen=True)
class Score:
    """A figure with its 95 % interval; `low` and `high` are None where there is none.

    Attributes:
        percent: shown times 100, as a share is.
        better: "higher" or "lower".
        rows: how many rows it is of.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    percent: bool = True
    better: str = "higher"
    rows: int = 0

    @property
    def text(self) -> str:
        return number(self.value, self.percent)

    @property
    def interval(self) -> str:
        """Such as `61.2 to 67.9`, or nothing."""
        if self.low is None or self.high is None or not (math.isfinite(self.low) and math.isfinite(self.high)):
            return ""
        return f"{number(self.low, self.percent, '')} to {number(self.high, self.percent, '')}"


@dataclass(frozen=True)
class Beside:
    """What the score is compared with: a blind control, or the floor.

    Attributes:
        name, meaning: such as "shuffled" and "shown other rows' pictures".
        score: over the rows that were asked again.
        seen: the model's own score over these rows.
        gap: what `seen` has more than `score`, with its interval; None where nobody worked it out.
        verdict: that in a sentence; empty for none.
        told: whether the rows tell the two apart; None leaves it open.
    """

    name: str
    meaning: str
    score: Score
    seen: Score
    gap: Score | None = None
    verdict: str = ""
    told: bool | None = None


@dataclass(frozen=True)
class Line:
    """A line of a slice's table: its name, its score, and the controls' scores in the order of `Report.beside`."""

    name: str
    score: Score
    beside: tuple[Score | None, ...] = ()


@dataclass(frozen=True)
class Said:
    """A reply: everything the model wrote, and what was read from it."""

    reply: str
    answer: str
    score: float


@dataclass(frozen=True)
class Row:
    """A question with everything that was said about it.

    Attributes:
        pictures: PIL pictures, bytes or paths; drawn small.
        overlays: the evidence maps over them, PIL pictures; empty where there are none. `overlay_note` says how they
            were made, or why there are none.
        controls: what was said under each blind control, by name.
        error: why there is no reply.
    """

    id: str
    question: str
    reference: str
    said: Said
    confidence: float | None = None
    slices: Mapping[str, str] = field(default_factory=dict)
    controls: Mapping[str, Said] = field(default_factory=dict)
    pictures: Sequence[Any] = ()
    overlays: Sequence[Any] = ()
    overlay_note: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Calibration:
    """How far the model's confidence can be believed.

    Attributes:
        bins: of the reliability diagram.
        curve: (coverage, risk) by rising coverage.
        error: the expected calibration error, 0 to 1.
        sentences: what that means, and the threshold to abstain below.
        chosen: the threshold's point on the curve.
    """

    bins: Sequence[Bin]
    curve: Sequence[tuple[float, float]]
    error: Score | None = None
    sentences: Sequence[str] = ()
    chosen: tuple[float, float] | None = None


@dataclass(frozen=True)
class Confusion:
    """How often each reference got each answer.

    Attributes:
        answers: the columns; the last one is what is none of them.
        lines: reference -> counts, one a column.
        left_out: rows whose reference has no line.
    """

    answers: Sequence[str]
    lines: Mapping[str, Sequence[int]]
    left_out: int = 0


@dataclass
class Report:
    """One task's part of a page.

    Attributes:
        scores: every measure, the headline first.
        beside: the blind controls, then the floor.
        verdicts: sentences that stand under the headline.
        slices: name of a slice -> its lines.
        worst: rows to be shown as cards, the worst first; `right` a sample of those that were right.
        listed: rows of the table of all rows, or as many as fit.
        total: how many rows there are.
        facts: what a reader must know: (what, how it was).
        settings, certificate: shown as they are.
    """

    task: str
    protocol: str
    model: str
    scores: Sequence[Score]
    beside: Sequence[Beside] = ()
    verdicts: Sequence[str] = ()
    notes: Sequence[str] = ()
    slices: Mapping[str, Sequence[Line]] = field(default_factory=dict)
    calibration: Calibration | None = None
    confusion: Confusion | None = None
    worst: Sequence[Row] = ()
    right: Sequence[Row] = ()
    listed: Sequence[Row] = ()
    total: int = 0
    refused: Sequence[Row] = ()
    facts: Sequence[tuple[str, str]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None


def number(value: float | None, percent: bool, unit: str = " %") -> str:
    """A figure as people read it: a share in percent with one decimal, anything else with four digits."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{100 * value:.1f}{unit}" if percent else f"{value:.4g}"


def confusion(pairs: Sequence[tuple[str, str]], most: int = 8) -> Confusion | None:
    """Of (reference, answer) pairs; None where references are no few classes, as free text has them.

    Args:
        most: so many of the most frequent references have a line and a column each.
    """
    told = [(_class(reference), _class(answer)) for reference, answer in pairs]
    counts = Counter(reference for reference, _ in told)
    names = [name for name, _ in counts.most_common(most)]
    covered = sum(counts[name] for name in names)
    if len(counts) < 2 or covered < 0.5 * len(told) or max(map(len, names)) > _LONGEST_ANSWER:
        return None
    if len(told) / len(counts) < 3:  # each reference about once: a list of rows, no table of classes
        return None
    names.sort()
    lines = {
        name: [sum(pair == (name, answer) for pair in told) for answer in names]
        + [sum(reference == name and answer not in names for reference, answer in told)]
        for name in names
    }
    return Confusion([*names, "another"], lines, len(told) - covered)


def _class(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!?\"'")
