"""What figures mean, in sentences: does a model look at the picture, and know more than the question gives away?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlchat.evaluate.measures import Measure
from vlchat.evaluate.resampling import Stats
from vlchat.evaluate.statistics import Difference, Figure, difference

CONTROLS = {
    "none": "no picture",
    "shuffled": "shuffled pictures",
    "blurred": "blurred pictures",
    "floor": "the question-only floor",
}

_OPEN = 0.1  # where an interval that holds 0 reaches so far up, a gain was seen but the rows are too few to show it
CHANCE = "chance"  # stands beside the score where other tasks have their blind controls


@dataclass(frozen=True)
class Verdict:
    """A sentence, and what it rests on.

    Attributes:
        holds: whether the data show it; None where they cannot tell anything.
        difference: the score minus the control's; of a measure that is better when lower, the control's minus the
            score. So more is always better.
    """

    sentence: str
    holds: bool | None
    difference: Difference

    def __str__(self) -> str:
        return self.sentence


def looks(
    measure: Measure,
    with_picture: Stats,
    control: Stats,
    clusters: Sequence[str],
    *,
    name: str = "shuffled",
    seed: int = 0,
) -> Verdict:
    """Whether a model looks at the picture: does it score more with it than in a blind control, over the same rows?

    Args:
        name: of `CONTROLS`: what was shown instead.
    """
    return _verdict(
        measure,
        advantage(measure, control, with_picture, clusters, seed=seed),
        CONTROLS.get(name, name),
        "Whether it looks at the picture",
        ("It looks at the picture", "The picture leads it astray", "Nothing shows that it looks at the picture"),
        " What it gets right, it may get from the question alone.",
    )


def beats_floor(measure: Measure, shown: Stats, floor: Stats, clusters: Sequence[str], *, seed: int = 0) -> Verdict:
    """Whether a model scores more than the best guess from the question alone, over the same rows."""
    over = CONTROLS["floor"]
    return _verdict(
        measure,
        advantage(measure, floor, shown, clusters, seed=seed),
        over,
        f"Whether it beats {over}",
        (
            "It knows more than the question gives away",
            "A guess from the question alone does better",
            "Nothing shows that it knows more than the question gives away",
        ),
    )


def beats_chance(measure: Measure, shown: Stats, chance: Stats, clusters: Sequence[str], *, seed: int = 0) -> Verdict:
    """Whether a model scores more than one that cannot tell anything apart would in expectation, over the same rows."""
    return _verdict(
        measure,
        advantage(measure, chance, shown, clusters, seed=seed),
        CHANCE,
        "Whether it is better than chance",
        ("It is better than chance", "It is worse than chance", "Nothing shows that it is better than chance"),
    )


def _verdict(
    measure: Measure, gain: Difference, over: str, question: str, answers: tuple[str, str, str], then: str = ""
) -> Verdict:
    """The sentence that fits: one of `answers` (more, less, not told), or that the question cannot be told.

    Args:
        over: what the score is compared with.
        then: follows where nothing is shown.
    """
    interval = interval_text(measure, gain)
    if (unknown := _unknown(gain, over)) is not None:
        return Verdict(f"{question} cannot be told: {unknown}", None, gain)
    more, less, nothing = answers
    better = gain.told and gain.value > 0
    if better:
        sentence = f"{more}: {points(measure, gain.value)} over {over} ({interval})."
    elif gain.told:
        sentence = f"{less}: {points(measure, gain.value)} against {over} ({interval})."
    elif measure.percent and gain.value > 0 and gain.high > _OPEN:
        few = f"{question} cannot be told from these {gain.rows:,} rows"
        return Verdict(f"{few}: {points(measure, gain.value)} over {over} ({interval}).", None, gain)
    else:
        sentence = f"{nothing}: {points(measure, gain.value)} over {over} ({interval}).{then}"
    return Verdict(sentence, better, gain)


def advantage(measure: Measure, first: Stats, second: Stats, clusters: Sequence[str], *, seed: int = 0) -> Difference:
    """By how much the second is better: `difference`, turned round for a measure that is better when lower."""
    if measure.better == "lower":
        first, second = second, first
    return difference(measure, first, second, clusters, seed=seed)


def points(measure: Measure, value: float, *, sign: bool = True) -> str:
    """A difference as people say it: "+3.1 points" of a share, "+0.53" of another measure."""
    form = "+" if sign else ""
    if measure.percent:
        return f"{_rounded(100 * value, 1):{form}.1f} points"
    return f"{_rounded(value, 3):{form}.3g}"


def interval_text(measure: Measure, found: Difference | Figure) -> str:
    """The interval in words, such as "95 % interval 35.1 to 41.0"."""
    if math.isnan(found.low):
        return "no interval"
    scale, form = (100, ".1f") if measure.percent else (1, ".3g")
    low, high = (_rounded(scale * value, 3 if scale == 1 else 1) for value in (found.low, found.high))
    return f"95 % interval {low:{form}} to {high:{form}}"


def least_difference(measure: Measure, found: Difference) -> str:
    """What these rows could have shown at all, in a sentence."""
    if math.isnan(found.detectable):
        return ""
    return (
        f"With these {found.rows:,} rows in {found.clusters:,} independent groups, a difference under "
        f"{points(measure, found.detectable, sign=False)} is missed more than once in five times."
    )


def _unknown(gain: Difference, over: str) -> str | None:
    if gain.rows == 0:
        return f"no row was scored both with the picture and with {over}."
    if gain.clusters == 1:
        return f"its {gain.rows:,} rows are all of one group, such as one picture."
    return None if math.isfinite(gain.value) else "the score is not defined on these rows."


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # no "-0.0"
