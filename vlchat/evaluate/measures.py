"""Measures: what a table shows, each a function of sums over rows, so that any of them can be bootstrapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Sums = Mapping[str, np.ndarray]  # the sum of each statistic over the rows; `rows` is their number; any shape


@dataclass(frozen=True)
class Measure:
    """A score of many rows.

    Attributes:
        name: as the literature calls it: accuracy, F1, CIDEr, WER.
        value: from the sums of the rows' statistics, elementwise: the sums of a thousand resamples give a thousand
            values. NaN where it is not defined (no rows).
        needs: the statistics it is made of; a row that lacks one is not counted.
        percent: shown times 100.
        better: "higher" or "lower".
    """

    name: str
    value: Callable[[Sums], np.ndarray]
    needs: tuple[str, ...]
    percent: bool = True
    better: str = "higher"


def mean_of(statistic: str, name: str, *, percent: bool = True, better: str = "higher") -> Measure:
    """The mean of a statistic over the rows that have it."""
    return ratio_of(statistic, "rows", name, percent=percent, better=better)


def ratio_of(upper: str, lower: str, name: str, *, percent: bool = True, better: str = "higher") -> Measure:
    """One sum over another: errors over words, hits over tries. `rows` is the number of rows."""
    needs = tuple(part for part in (upper, lower) if part != "rows")
    return Measure(name, lambda sums: divided(sums[upper], sums[lower]), needs, percent, better)


def divided(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """`upper / lower`, NaN where `lower` is 0."""
    upper, lower = np.asarray(upper, dtype=float), np.asarray(lower, dtype=float)
    return np.divide(upper, lower, out=np.full(np.broadcast(upper, lower).shape, np.nan), where=lower != 0)
