"""How far a score can be trusted: intervals and differences, with rows that share a picture drawn together.

Everything works on sums of rows' statistics within clusters, so that any `Measure` is resampled by one matrix product:
counts of drawn clusters (resamples, clusters) times sums (clusters, statistics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlchat.evaluate.measures import Measure
from vlchat.evaluate.metrics import wilson
from vlchat.evaluate.resampling import CELLS, LEVEL, Columns, Stats, interval, resampled, value_of

POWER = 0.8
RESAMPLES = 2_000
PERMUTATIONS = 10_000
_ENUMERATED = 16  # clusters up to which all 2^n swaps are tried


@dataclass(frozen=True)
class Figure:
    """A measure's value with its 95 % interval; NaN where there is none.

    Attributes:
        rows, clusters: how many were counted; a row that lacks one of the measure's statistics is not.
        error: the standard error over clusters.
    """

    value: float
    low: float
    high: float
    rows: int
    clusters: int
    error: float = math.nan

    @property
    def detectable(self) -> float:
        """The least difference that two such scores of different models would show with a power of 80 %.

        For two sets of rows of this size, or one whose answers by two models have nothing to do with each other;
        mostly they have, and a paired `Difference` then shows less.
        """
        return detectable(math.sqrt(2) * self.error, self.clusters)

    def to_dict(self) -> dict[str, float | int | None]:
        return plain(self)


@dataclass(frozen=True)
class Difference:
    """The second score minus the first, over the same rows.

    Attributes:
        low, high: the 95 % interval; NaN for a single cluster.
        p: of the two-sided permutation test: how often the two would differ so much if each cluster's two answers were
            handed to them by the toss of a coin.
        mcnemar: p of McNemar's exact test where scores are 0 or 1, else None. It takes rows for independent, so that
            `p` is the one to go by where rows share pictures.
        gained, lost: rows that the second scores higher, and lower, in a measure of one statistic.
        error: the standard error over clusters.
    """

    value: float
    low: float
    high: float
    p: float
    rows: int
    clusters: int
    mcnemar: float | None = None
    gained: int = 0
    lost: int = 0
    error: float = math.nan

    @property
    def told(self) -> bool:
        """Whether the data tell the two apart, by the interval and by the test."""
        return self.p < 1 - LEVEL and (self.low > 0 or self.high < 0)

    @property
    def detectable(self) -> float:
        """The least difference that so many clusters show with a power of 80 %; NaN where no row differs."""
        return detectable(self.error, self.clusters)

    def rows_needed(self) -> int | None:
        """How many rows like these would show this difference with a power of 80 %; None for no difference."""
        if not self.value or not math.isfinite(self.detectable):
            return None
        return math.ceil(self.rows * (self.detectable / self.value) ** 2)

    def to_dict(self) -> dict[str, float | int | None]:
        return plain(self)


@dataclass(frozen=True)
class Table:
    """Figures by measure: of all rows, and by name and value of each slice."""

    overall: dict[str, Figure]
    slices: dict[str, dict[str, dict[str, Figure]]] = field(default_factory=dict)


def figure(
    measure: Measure, rows_stats: Stats, clusters: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Figure:
    """A measure over rows with its bootstrap interval.

    The interval takes percentiles of the measure over resampled clusters (Efron & Tibshirani 1993, chapter 13; whole
    clusters as Field & Welsh 2007), widened for few clusters as Hesterberg (2015, section 5.1) does: each tail is
    Phi(-sqrt(n / (n - 1)) t(n - 1)).

    Where all resamples give the same value (every answer right, or every one wrong), that would be a point, as if a
    thousand further rows could bring no surprise. Shares then get Wilson's interval, for the number of clusters;
    other measures get none. A single cluster says nothing of others, and has no interval either.

    Args:
        rows_stats: the statistics of each row, as `Reading` has them.
        clusters: what each row shares with others that are not independent of it, such as its picture.
        resamples: how often clusters are drawn.
        seed: fixes the draws. The order of the rows changes nothing.

    Raises:
        ValueError: not one cluster a row.
    """
    return figures([measure], rows_stats, clusters, resamples=resamples, seed=seed).overall[measure.name]


def figures(
    measures: Sequence[Measure],
    rows_stats: Stats,
    clusters: Sequence[str],
    slices: Sequence[Mapping[str, str]] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Table:
    """Many measures at once, each as `figure` gives it, over all rows and over the rows of each slice.

    Args:
        slices: for each row the name and value of each slice that it is in.

    Raises:
        ValueError: not one cluster, or one mapping of slices, a row.
    """
    columns = Columns(measures, [rows_stats], clusters)
    everything = np.arange(len(rows_stats))
    table = Table(_figures(columns, measures, everything, resamples, seed))
    for (name, value), rows in split(slices, len(rows_stats)).items():
        table.slices.setdefault(name, {})[value] = _figures(columns, measures, rows, resamples, seed)
    return table


def difference(
    measure: Measure,
    first: Stats,
    second: Stats,
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Difference:
    """The second's score minus the first's, row by row the same questions; rows that lack a statistic are left out.

    The interval is that of `figure`, both scores taken from the same draws. The test swaps the two within whole
    clusters: every way of doing so for up to 16 of them, else `permutations` at random, the observed one counted
    (Phipson & Smyth 2010). Where no row differs at all, a share's interval is as wide as Wilson's for that many
    clusters without a difference.

    Raises:
        ValueError: not the same number of rows and clusters.
    """
    columns = Columns([measure], [first, second], clusters)
    rows = columns.counted(measure, np.arange(len(first)))
    sums, count = columns.sums(measure, rows)  # (clusters, 2 (statistics + rows))
    width = sums.shape[1] // 2
    if count == 0:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0, 0)

    def values(totals: np.ndarray) -> np.ndarray:
        return value_of(measure, totals[:, width:]) - value_of(measure, totals[:, :width])

    value = float(values(sums.sum(axis=0, keepdims=True))[0])
    low, high, error = _bounds(value, values(resampled(sums, resamples, seed)), count, measure.percent)
    if value == 0 and math.isnan(error):
        low = -high  # no cluster differs: others might, either way
    p = _permutation_test(sums, values, permutations, seed)
    mcnemar, gained, lost = None, 0, 0
    if len(measure.needs) == 1:
        before, after = columns.values[0][measure.needs[0]][rows], columns.values[1][measure.needs[0]][rows]
        gained, lost = int((after > before).sum()), int((after < before).sum())
        if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
            mcnemar = mcnemar_exact(gained, lost)
    return Difference(value, low, high, p, len(rows), count, mcnemar, gained, lost, error)


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's test: would a fair coin part the rows that changed so unevenly (McNemar 1947)?"""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    return 1.0 if gained == lost else float(binomtest(gained, gained + lost).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p-values of several tests, raised so that all together err as often as one would (Holm 1979). NaN stays NaN."""
    order = sorted((p, number) for number, p in enumerate(values) if not math.isnan(p))
    adjusted = [math.nan] * len(values)
    least = 0.0
    for rank, (p, number) in enumerate(order):
        adjusted[number] = least = max(least, min(1.0, p * (len(order) - rank)))
    return adjusted


def detectable(error: float, clusters: int) -> float:
    """The least difference found with a power of 80 % at the 5 % level, given its standard error (Bloom 1995)."""
    if not error > 0 or clusters < 2:
        return math.nan
    from scipy.stats import t  # type: ignore[import-untyped]

    return error * float(t.ppf([(1 + LEVEL) / 2, POWER], clusters - 1).sum())


def split(slices: Sequence[Mapping[str, str]] | None, rows: int) -> dict[tuple[str, str], np.ndarray]:
    """The positions of the rows of each slice, by its name and value, in alphabetical order."""
    if slices is None:
        return {}
    if len(slices) != rows:
        raise ValueError(f"there are {rows} rows and slices for {len(slices)}")
    found: dict[tuple[str, str], list[int]] = {}
    for row, named in enumerate(slices):
        for name, value in named.items():
            found.setdefault((name, value), []).append(row)
    return {key: np.array(found[key]) for key in sorted(found)}


def plain(value: Any) -> dict[str, Any]:
    """A dataclass's fields for JSON, which knows no NaN."""
    return {
        name: None if isinstance(entry, float) and not math.isfinite(entry) else entry
        for name, entry in vars(value).items()
    }


def _figures(
    columns: Columns, measures: Sequence[Measure], rows: np.ndarray, resamples: int, seed: int
) -> dict[str, Figure]:
    counted = {measure.name: columns.counted(measure, rows) for measure in measures}
    together: dict[bytes, list[Measure]] = {}  # measures over the same rows share their draws
    for measure in measures:
        together.setdefault(counted[measure.name].tobytes(), []).append(measure)
    found: dict[str, Figure] = {}
    for group in together.values():
        has = counted[group[0].name]
        sums, clusters = zip(*(columns.sums(measure, has) for measure in group), strict=True)
        ends = np.cumsum([part.shape[1] for part in sums])[:-1]
        drawn = np.split(resampled(np.concatenate(sums, axis=1), resamples, seed), ends, axis=1)
        for measure, part, totals in zip(group, sums, drawn, strict=True):
            value = float(value_of(measure, part.sum(axis=0, keepdims=True))[0]) if len(has) else math.nan
            bounds = _bounds(value, value_of(measure, totals), clusters[0], measure.percent)
            found[measure.name] = Figure(value, bounds[0], bounds[1], len(has), clusters[0], bounds[2])
    return {measure.name: found[measure.name] for measure in measures}


def _bounds(value: float, drawn: np.ndarray, clusters: int, share: bool) -> tuple[float, float, float]:
    """Low, high and standard error; where resamples all give `value`, by Wilson's interval for that many clusters."""
    low, high, error = interval(drawn, clusters)
    if math.isnan(low) or high - low > 1e-12 * max(1.0, abs(value)) or error > 1e-12:
        return low, high, error
    if not share or abs(value) > 1:
        return math.nan, math.nan, math.nan
    low, high = wilson(abs(value) * clusters, clusters)
    return (low, high, math.nan) if value >= 0 else (-high, -low, math.nan)


def _permutation_test(
    sums: np.ndarray, values: Callable[[np.ndarray], np.ndarray], permutations: int, seed: int
) -> float:
    """Two-sided p of the difference, when the two sides of whole clusters are swapped."""
    clusters, width = len(sums), sums.shape[1] // 2
    gap = sums[:, width:] - sums[:, :width]
    swing = np.concatenate([gap, -gap], axis=1)  # what swapping a cluster does to the sums
    total = sums.sum(axis=0)
    observed = abs(float(values(total[None])[0]))
    if math.isnan(observed):
        return math.nan
    enumerated = clusters <= _ENUMERATED
    generator = np.random.default_rng([seed, 1])
    tries = 2**clusters if enumerated else permutations
    at_once = max(1, CELLS // clusters)
    extreme = 0
    for start in range(0, tries, at_once):
        count = min(at_once, tries - start)
        if enumerated:
            swaps = np.arange(start, start + count)[:, None] >> np.arange(clusters) & 1
        else:
            swaps = generator.integers(0, 2, size=(count, clusters), dtype=np.int8)
        reached = np.abs(values(total + swaps.astype(float) @ swing))
        extreme += int((reached >= observed - 1e-12).sum())
    return extreme / tries if enumerated else (extreme + 1) / (tries + 1)
