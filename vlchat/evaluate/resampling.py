"""Sums of rows' statistics within clusters, and what they become when clusters are drawn again and again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from vlchat.evaluate.measures import Measure

Stats = Sequence[Mapping[str, float]]  # one mapping a row

LEVEL = 0.95
CELLS = 4_000_000  # numbers drawn at once, 32 MB


class Columns:
    """The statistics that measures need as arrays, for one set of replies to the same rows or for two."""

    def __init__(self, measures: Sequence[Measure], replies: Sequence[Stats], clusters: Sequence[str]) -> None:
        sizes = {len(stats) for stats in replies} | {len(clusters)}
        if len(sizes) != 1:
            raise ValueError(f"every row needs its statistics and its cluster; there are {sorted(sizes)} of them")
        names = {name for measure in measures for name in measure.needs}
        self.values = [{name: _column(name, stats) for name in names} for stats in replies]
        self._cluster = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)[1]

    def counted(self, measure: Measure, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that have every statistic the measure needs."""
        has = np.ones(len(rows), dtype=bool)
        for values in self.values:
            for name in measure.needs:
                has &= np.isfinite(values[name][rows])
        return rows[has]

    def sums(self, measure: Measure, rows: np.ndarray) -> tuple[np.ndarray, int]:
        """Each set of replies' sums (clusters, statistics + 1) side by side, rows last; and the number of clusters."""
        found, cluster = np.unique(self._cluster[rows], return_inverse=True)
        parts = [[*(values[name][rows] for name in measure.needs), np.ones(len(rows))] for values in self.values]
        columns = [np.bincount(cluster, weights=part, minlength=len(found)) for side in parts for part in side]
        return np.stack(columns, axis=1), len(found)


def _column(name: str, stats: Stats) -> np.ndarray:
    found = (row.get(name) for row in stats)
    return np.array([math.nan if value is None else value for value in found], dtype=float)


def value_of(measure: Measure, sums: np.ndarray) -> np.ndarray:
    """The measure of each row of sums (any, statistics + 1)."""
    names = (*measure.needs, "rows")
    with np.errstate(divide="ignore", invalid="ignore"):
        value = measure.value({name: sums[:, column] for column, name in enumerate(names)})
    return np.asarray(value, dtype=float)


def resampled(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """The sums (resamples, statistics) of clusters drawn with replacement, as many as there are."""
    clusters = len(sums)
    if clusters == 0:
        return np.zeros((resamples, sums.shape[1]))
    generator = np.random.default_rng(seed)
    at_once = max(1, CELLS // max(1, clusters))
    drawn = []
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        cells = generator.integers(0, clusters, size=(count, clusters)) + clusters * np.arange(count)[:, None]
        weights = np.bincount(cells.ravel(), minlength=count * clusters).reshape(count, clusters)
        drawn.append(weights.astype(float) @ sums)
    return np.concatenate(drawn)


def interval(values: np.ndarray, clusters: int) -> tuple[float, float, float]:
    """Low, high and standard error from the values of resamples; NaN for a single cluster."""
    finite = values[np.isfinite(values)]  # a resample without, say, any positive row has no precision
    if clusters < 2 or not finite.size:
        return math.nan, math.nan, math.nan
    from scipy.stats import norm, t  # type: ignore[import-untyped]

    spread = math.sqrt(clusters / (clusters - 1))
    tail = float(norm.cdf(-spread * t.ppf((1 + LEVEL) / 2, clusters - 1)))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high), float(spread * finite.std())
