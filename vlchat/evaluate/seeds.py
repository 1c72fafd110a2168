"""The same recipe with other seeds: how far its scores swing, and whether two recipes differ by more than that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlchat.errors import ConfigError, VLChatError
from vlchat.evaluate.comparison import p_text
from vlchat.evaluate.measures import Measure
from vlchat.evaluate.pairing import check_same
from vlchat.evaluate.resampling import LEVEL
from vlchat.evaluate.result import Result
from vlchat.evaluate.statistics import figure, plain
from vlchat.evaluate.verdicts import points


@dataclass(frozen=True)
class Spread:
    """The scores of several runs.

    Attributes:
        deviation: the standard deviation of a single run (n - 1); NaN for one run.
        low, high: the 95 % interval of the mean, by Student's t; NaN for one run.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float
    low: float
    high: float

    def sentence(self, measure: Measure) -> str:
        """What a reader should know."""
        runs = f"{measure.name} {_value(measure, self.mean)} on average over {len(self.values)} runs"
        if math.isnan(self.deviation):
            return f"{measure.name} {_value(measure, self.mean)} in one run: how far another seed swings is not known."
        swing = points(measure, max(self.values) - min(self.values), sign=False)
        deviation = points(measure, self.deviation, sign=False)
        return (
            f"{runs} (95 % interval {_value(measure, self.low)} to {_value(measure, self.high)}); the same recipe with "
            f"another seed swings by {swing} (standard deviation {deviation})."
        )


@dataclass(frozen=True)
class Between:
    """The second recipe's mean minus the first's.

    Attributes:
        low, high: the 95 % interval; NaN where either has one run.
        p: of Welch's test, which lets the two swing by different amounts (Welch 1947).
        degrees: of freedom, by the Welch-Satterthwaite equation.
    """

    first: Spread
    second: Spread
    value: float
    low: float
    high: float
    p: float
    degrees: float

    def sentence(self, measure: Measure) -> str:
        """Better, worse or cannot be told, with the figures."""
        gap = points(measure, self.value)
        if math.isnan(self.p):
            return f"It cannot be told whether it is better: {gap}, and either has only one run, or no run differs."
        scale = 100 if measure.percent else 1
        interval = f"95 % interval {scale * self.low:.3g} to {scale * self.high:.3g}"
        figures = f"{gap} on average ({interval}; Welch's {p_text(self.p)})"
        if self.p >= 1 - LEVEL:
            return f"It cannot be told whether it is better: {figures}. More runs would narrow the interval."
        better = self.value > 0 if measure.better == "higher" else self.value < 0
        return f"{'Better' if better else 'Worse'}: {figures}."


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and t-interval of the scores of several runs.

    Raises:
        ConfigError: there is no score, or one that is no number.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    if not values or not all(math.isfinite(value) for value in values):
        raise ConfigError(f"The scores of runs must be numbers, and these are {list(values)}.")
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Spread(tuple(values), mean, math.nan, math.nan, math.nan)
    deviation = float(np.std(values, ddof=1))
    reach = float(t.ppf((1 + LEVEL) / 2, count - 1)) * deviation / math.sqrt(count)
    return Spread(tuple(values), mean, deviation, mean - reach, mean + reach)


def between(first: Sequence[float], second: Sequence[float]) -> Between:
    """Whether the second recipe is another than the first, by more than seeds swing; runs are not paired.

    Raises:
        ConfigError: as `spread`.
    """
    from scipy.stats import ttest_ind  # type: ignore[import-untyped]

    one, two = spread(first), spread(second)
    value = two.mean - one.mean
    if not one.deviation > 0 and not two.deviation > 0 or min(len(first), len(second)) < 2:
        return Between(one, two, value, math.nan, math.nan, math.nan, math.nan)
    test = ttest_ind(second, first, equal_var=False)
    interval = test.confidence_interval(LEVEL)
    return Between(one, two, value, float(interval.low), float(interval.high), float(test.pvalue), float(test.df))


@dataclass(frozen=True)
class Runs:
    """One recipe's runs, or two recipes', by measure."""

    measures: Sequence[Measure]
    first: Mapping[str, Spread]
    second: Mapping[str, Spread] | None = None
    difference: Mapping[str, Between] | None = None

    def sentences(self) -> list[str]:
        """A line a recipe and measure, and what lies between the two."""
        told = []
        for measure in self.measures:
            told.append(f"First: {self.first[measure.name].sentence(measure)}" if self.second else
                        self.first[measure.name].sentence(measure))  # fmt: skip
            if self.second is not None and self.difference is not None:
                told.append(f"Second: {self.second[measure.name].sentence(measure)}")
                told.append(self.difference[measure.name].sentence(measure))
        return told

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        found: dict[str, Any] = {"first": {name: plain(one) for name, one in self.first.items()}}
        if self.second is not None and self.difference is not None:
            found["second"] = {name: plain(one) for name, one in self.second.items()}
            parts = ("value", "low", "high", "p", "degrees")
            found["difference"] = {
                name: {part: plain(one)[part] for part in parts} for name, one in self.difference.items()
            }
        return found | {"sentences": self.sentences()}


def compare_runs(first: Sequence[str | Path], second: Sequence[str | Path] = ()) -> Runs:
    """Result folders of one recipe with several seeds, or of two.

    All must be scored in the same way on the same data; questions that were drawn may be drawn by another seed.

    Raises:
        VLChatError: a folder holds no result, is given twice, or two are not of the same evaluation.
    """
    from vlchat.evaluate.stored import read_result

    folders = [*first, *second]
    for folder in folders:
        if folders.count(folder) > 1:
            raise VLChatError(f"{folder} is given twice, and one run is no two seeds.")
    results = [read_result(folder) for folder in folders]
    for folder, result in zip(folders[1:], results[1:], strict=True):
        check_same(results[0], result, (str(folders[0]), str(folder)), but=("seed",))
    measures = [one for one in results[0].measures if all(math.isfinite(_score(one, result)) for result in results)]
    values = {one.name: [_score(one, result) for result in results] for one in measures}
    count = len(first)
    spreads = {name: spread(scores[:count]) for name, scores in values.items()}
    if not second:
        return Runs(measures, spreads)
    others = {name: spread(scores[count:]) for name, scores in values.items()}
    gaps = {name: between(scores[:count], scores[count:]) for name, scores in values.items()}
    return Runs(measures, spreads, others, gaps)


def _score(measure: Measure, result: Result) -> float:
    stats, clusters = [row["stats"] for row in result.rows], [row["cluster"] for row in result.rows]
    return figure(measure, stats, clusters, resamples=1).value


def _value(measure: Measure, value: float) -> str:
    return f"{100 * value:.1f} %" if measure.percent else f"{value:.3g}"
