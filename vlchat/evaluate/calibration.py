"""Whether a model knows when it is right: calibration, the risk at each coverage, and from when on to trust answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlchat.errors import ConfigError

BINS = 15  # as Guo et al. (2017)
_DRAWS = 200
_STEPS = 50  # coverages at which a threshold is looked for
_STARTS = (0.0, 0.25, 0.5)  # shares of the target's risk


@dataclass(frozen=True)
class Bin:
    """The rows whose confidence lies above `low` and up to `high`, with their mean confidence and score."""

    low: float
    high: float
    rows: int
    confidence: float
    score: float


@dataclass(frozen=True)
class Point:
    """The risk (one minus the mean score) of the rows with a confidence of `threshold` or more, `coverage` of all."""

    threshold: float
    coverage: float
    risk: float


@dataclass(frozen=True)
class Calibration:
    """How well confidence tells what is right. Shares are between 0 and 1.

    Attributes:
        rows: that have a confidence; `without` have none and are left out.
        ece: expected calibration error over 15 bins of equal width (Guo et al. 2017): how far mean confidence and mean
            score of a bin are apart, weighted by rows. `ece_mass`: over bins of equally many rows (Nguyen & O'Connor
            2015).
        ece_by_chance: the `ece` that a perfectly calibrated model shows on average with these confidences, for few rows
            scatter (Broecker & Smith 2007). What lies near it is no miscalibration.
        brier: mean squared distance of confidence and score (Brier 1950); 0.25 is what saying 0.5 always gets.
        bins: the reliability table; bins without rows are left out.
        curve: risk and coverage at every confidence there is, the most confident first (El-Yaniv & Wiener 2010).
        aurc: the area under it, the mean risk over all coverages (Geifman et al. 2019); rows of the same confidence
            are in any order. `aurc_best` is that of an order which knows what is right, and `risk` that of one which
            knows nothing.
    """

    rows: int
    without: int
    confidence: float
    risk: float
    ece: float
    ece_mass: float
    ece_by_chance: float
    brier: float
    aurc: float
    aurc_best: float
    bins: tuple[Bin, ...]
    curve: tuple[Point, ...]

    def sentences(self) -> list[str]:
        """What a reader should know."""
        told = []
        if self.without:
            told.append(f"{self.without:,} of {self.rows + self.without:,} rows have no confidence and are left out.")
        if not self.rows:
            return [*told, "Nothing can be said of calibration."]
        score = 1 - self.risk
        gap = self.confidence - score
        side = "more sure than it is right" if gap > 0 else "less sure than it is right"
        if self.ece <= 1.5 * self.ece_by_chance:
            judged = "no more than chance gives on so many rows"
        else:
            judged = f"it is {side} by {100 * abs(gap):.1f} points on average" if abs(gap) > 0.005 else "on both sides"
        told.append(
            f"Expected calibration error {100 * self.ece:.1f} % (chance alone: {100 * self.ece_by_chance:.1f} %): "
            f"{judged}. Brier score {self.brier:.3f}."
        )
        if self.risk - self.aurc_best > 0:
            share = (self.risk - self.aurc) / (self.risk - self.aurc_best)
            told.append(
                f"Area under the risk-coverage curve {100 * self.aurc:.1f} %: its confidence tells right from wrong "
                f"{100 * share:.0f} % as well as possible (0 % is a coin)."
            )
        return told

    def to_dict(self, points: int = 100) -> dict[str, Any]:
        """For JSON; the curve thinned to about so many points."""
        step = max(1, math.ceil(len(self.curve) / points))
        kept = [point for number, point in enumerate(self.curve, start=1) if number % step == 0]
        if self.curve and kept[-1:] != [self.curve[-1]]:
            kept.append(self.curve[-1])
        lists = {"bins": [vars(entry) for entry in self.bins], "curve": [vars(point) for point in kept]}
        plain = {name: value for name, value in vars(self).items() if name not in lists}
        finite = {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in plain.items()
        }
        return finite | lists


@dataclass(frozen=True)
class Abstention:
    """From which confidence on answers can be shown.

    Attributes:
        threshold: show an answer with at least this confidence; None where no threshold keeps the promise.
        target, certainty: the risk that was asked for, and how surely it is kept on rows like these.
        coverage: the share of rows that is answered. `risk` is theirs here, and `bound` its upper bound.
    """

    threshold: float | None
    target: float
    certainty: float
    coverage: float
    risk: float
    bound: float
    rows: int

    @property
    def sentence(self) -> str:
        asked = f"at most {100 * self.target:g} % of the answers shown are wrong"
        if self.threshold is None:
            return f"No confidence is high enough to say that {asked}, with {100 * self.certainty:g} % certainty."
        return (
            f"From a confidence of {self.threshold:.3f} on, {asked} (here {100 * self.risk:.1f} %; bound "
            f"{100 * self.bound:.1f} %, with {100 * self.certainty:g} % certainty): {100 * self.coverage:.1f} % of the "
            f"{self.rows:,} rows are answered."
        )


def calibration(confidences: Sequence[float | None], scores: Sequence[float], *, seed: int = 0) -> Calibration:
    """Holds each row's confidence against its score.

    Args:
        confidences: between 0 and 1, or None where the model does not say.
        scores: between 0 and 1; right answers have 1.
        seed: fixes what chance alone gives.

    Raises:
        ConfigError: a confidence or score that is no share; the message says which row.
    """
    sure, right = _pairs(confidences, scores)
    rows, without = len(sure), len(scores) - len(sure)
    if not rows:
        none = math.nan
        return Calibration(0, without, none, none, none, none, none, none, none, none, bins=(), curve=())
    width = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)  # bins are open below; 0 belongs to the first
    mass = np.searchsorted(np.sort(sure), sure) * BINS // rows  # equal confidences stay together
    luck = np.random.default_rng(seed).random((_DRAWS, rows)) < sure
    best = np.sort(1 - right).cumsum() / np.arange(1, rows + 1)
    thresholds, counts, losses = _by_confidence(sure, right)
    before = np.concatenate([[0.0], losses.cumsum()[:-1]])
    first = np.concatenate([[0], counts.cumsum()[:-1]])
    within = np.arange(rows) - np.repeat(first, counts) + 1
    expected = np.repeat(before, counts) + within * np.repeat(losses / counts, counts)
    curve = zip(thresholds, counts.cumsum() / rows, losses.cumsum() / counts.cumsum(), strict=True)
    return Calibration(
        rows=rows,
        without=without,
        confidence=float(sure.mean()),
        risk=float(1 - right.mean()),
        ece=_gap(width, sure, right),
        ece_mass=_gap(mass, sure, right),
        ece_by_chance=float(np.mean([_gap(width, sure, drawn) for drawn in luck])),
        brier=float(np.mean((sure - right) ** 2)),
        aurc=float((expected / np.arange(1, rows + 1)).mean()),
        aurc_best=float(best.mean()),
        bins=tuple(_bin(number, sure[width == number], right[width == number]) for number in np.unique(width)),
        curve=tuple(Point(*map(float, point)) for point in curve),
    )


def abstain_threshold(
    confidences: Sequence[float | None],
    scores: Sequence[float],
    target_risk: float,
    *,
    clusters: Sequence[str] | None = None,
    certainty: float = 0.95,
) -> Abstention:
    """The lowest confidence from which on the answers' risk is at most `target_risk`, on new rows like these.

    Fixed-sequence testing with several starts, of Learn then Test (Angelopoulos et al. 2021): coverages are tried in
    50 steps that do not depend on what is right, the most confident rows first, each by the Clopper-Pearson upper
    bound, up to the first that fails. It starts three times, where no failure, a quarter and half of the target's risk
    would pass, at a third of 1 - certainty each. So the promise fails with a probability of 1 - certainty at most,
    however many were tried. Rows that share a cluster count for fewer (Korn & Graubard 1998), and graded scores
    as so many hits: both are approximations, the second mostly a wide one.

    Args:
        confidences, scores: as for `calibration`. Rows without a confidence are left out: they would not be answered.
        target_risk: one minus the mean score that is accepted, between 0 and 1.
        clusters: what rows share, such as their picture; None takes them for independent.

    Raises:
        ConfigError: a target or certainty that is no share between 0 and 1, or a confidence or score that is none.
    """
    from scipy.stats import beta  # type: ignore[import-untyped]

    for name, value in (("target_risk", target_risk), ("certainty", certainty)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} is {value:g}; it must lie between 0 and 1, such as 0.1.")
    sure, right = _pairs(confidences, scores)
    if not len(sure):
        return Abstention(None, target_risk, certainty, 0.0, math.nan, math.nan, len(scores))
    names = [str(number) for number in range(len(scores))] if clusters is None else list(clusters)
    order = np.argsort(-sure, kind="stable")
    group = np.array([name for name, value in zip(names, confidences, strict=True) if value is not None])[order]
    losses, sure = 1 - right[order], sure[order]
    ends = np.flatnonzero(np.append(np.diff(sure) != 0, True)) + 1  # equal confidences stay together
    steps = np.unique(ends[np.searchsorted(ends, np.arange(1, _STEPS + 1) * len(sure) / _STEPS - 1e-9)])
    groups = [len(np.unique(group[:end])) for end in steps]
    error = (1 - certainty) / len(_STARTS)

    def passes(risk: float, rows: float) -> bool:  # as the upper bound being at most the target, but quicker
        return risk < 1 and beta.cdf(1 - target_risk, rows - risk * rows, risk * rows + 1) <= error

    last = -1
    for share in _STARTS:
        start = next((step for step, count in enumerate(groups) if passes(share * target_risk, count)), len(steps))
        for step in range(start, len(steps)):
            shown = losses[: steps[step]]
            if not passes(float(shown.mean()), effective_rows(shown, group[: steps[step]], 1 - error)):
                break
            last = max(last, step)
    if last < 0:
        return Abstention(None, target_risk, certainty, 0.0, math.nan, math.nan, len(scores))
    end = int(steps[last])
    risk, rows = float(losses[:end].mean()), effective_rows(losses[:end], group[:end], 1 - error)
    bound = clopper_pearson_upper(risk * rows, rows, error)
    return Abstention(float(sure[end - 1]), target_risk, certainty, end / len(scores), risk, bound, len(scores))


def clopper_pearson_upper(failures: float, tries: float, error: float) -> float:
    """The upper bound of a rate that errs with probability `error` at most (Clopper & Pearson 1934).

    Numbers may be fractions: an effective number of tries (Korn & Graubard 1998), or a sum of losses between 0 and 1.
    """
    from scipy.stats import beta  # type: ignore[import-untyped]

    if tries <= 0 or failures >= tries:
        return 1.0
    return float(beta.ppf(1 - error, failures + 1, tries - failures))


def effective_rows(losses: np.ndarray, clusters: np.ndarray, certainty: float = 0.95) -> float:
    """How many independent rows would tell the mean as well as these, of which some share a cluster.

    Korn & Graubard (1998): the rows over the design effect, and less for few clusters; where no row or every row is
    lost there is no design effect to be seen, and the clusters are counted.
    """
    from scipy.stats import t  # type: ignore[import-untyped]

    rows, mean = len(losses), float(losses.mean())
    found, group = np.unique(clusters, return_inverse=True)
    count = len(found)
    if count == rows or rows < 2:
        return float(rows)
    if count < 2 or not 0 < mean < 1:
        return float(count)
    residual = np.bincount(group, weights=losses - mean)
    variance = count / (count - 1) * float((residual**2).sum()) / rows**2
    design = variance / (mean * (1 - mean) / (rows - 1))
    fewer = float(t.ppf(certainty, rows - 1) / t.ppf(certainty, count - 1)) ** 2
    return min(float(rows), rows / design * fewer) if design > 0 else float(count)


def _pairs(confidences: Sequence[float | None], scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and score of the rows that have both."""
    if len(confidences) != len(scores):
        raise ConfigError(f"there are {len(confidences):,} confidences and {len(scores):,} scores; each row needs both")
    pairs = [(sure, right) for sure, right in zip(confidences, scores, strict=True) if sure is not None]
    for number, (sure, right) in enumerate(zip(confidences, scores, strict=True), start=1):
        for name, value in (("confidence", sure), ("score", right)):
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"Row {number}: its {name} is {value:g}, and must lie between 0 and 1.")
    return np.array([sure for sure, _ in pairs], dtype=float), np.array([right for _, right in pairs], dtype=float)


def _by_confidence(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each confidence there is, the highest first, with its rows and the sum of their losses."""
    found, group, counts = np.unique(-sure, return_inverse=True, return_counts=True)
    return -found, counts, np.bincount(group, weights=1 - right)


def _gap(bins: np.ndarray, sure: np.ndarray, right: np.ndarray) -> float:
    """Mean over rows of how far their bin's confidence and score are apart."""
    return float(np.abs(np.bincount(bins, weights=sure - right)).sum() / len(sure))


def _bin(number: int, sure: np.ndarray, right: np.ndarray) -> Bin:
    return Bin(number / BINS, (number + 1) / BINS, len(sure), float(sure.mean()), float(right.mean()))
