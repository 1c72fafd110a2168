"""How high a ranking puts what is right, and how well a score tells matches from the rest. Ties are counted fairly.

A model that gives everything the same score gets what chance gives: of tied candidates each order is as likely as any.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DECIMALS = 6  # similarities that differ by less are a tie: float32 embeddings of one picture differ by as much


@dataclass(frozen=True)
class Place:
    """Where the best-placed right candidate of each query stands.

    Attributes:
        ahead: (queries,), wrong candidates with a higher score than the best right one.
        tied: (queries,), wrong candidates with the same score.
        right: (queries,), right candidates with that score, at least 1.
    """

    ahead: np.ndarray
    tied: np.ndarray
    right: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        """(queries,), its expected rank from 1, over all orders of the ties."""
        return self.ahead + 1 + self.tied / (self.right + 1)

    def hit(self, k: int) -> np.ndarray:
        """(queries,), the probability that a right candidate is among the first `k`, over all orders of the ties.

        Of `tied + right` candidates in a random order, with m = k - ahead places left, none of the first m is right
        with the probability C(tied, m) / C(tied + right, m).
        """
        places = k - self.ahead
        missed = np.ones(len(self.ahead))
        for drawn in range(k):
            left = self.tied + self.right - drawn
            factor = np.clip(self.tied - drawn, 0, None) / np.maximum(left, 1)
            missed = np.where(drawn < places, missed * factor, missed)
        return 1.0 - missed


def places_of(scores: np.ndarray, right: np.ndarray) -> Place:
    """Where each query's best right candidate stands.

    Args:
        scores: (queries, candidates), higher is better; all finite.
        right: (queries, candidates), bool; every query has a right candidate.

    Raises:
        ValueError: a score is not finite, or a query has no right candidate.
    """
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    if not right.any(axis=1).all():
        raise ValueError("a query has no right candidate")
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    level = scores == best
    return Place((scores > best).sum(1), (level & ~right).sum(1), (level & right).sum(1))


def chance_of(right: np.ndarray) -> Place:
    """As `places_of`, of a model that gives every candidate the same score."""
    count = right.sum(axis=1)
    return Place(np.zeros(len(right), dtype=int), right.shape[1] - count, count)


def placements(scores: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """(rows,): of a match, the share of the others with a lower score; of another, the share of matches with a higher.

    Ties count half. The mean over the matches is the area under the ROC curve (Mann and Whitney 1947), and so is the
    mean over the others; their variances give its standard error (DeLong et al. 1988). NaN where one side is empty.

    Args:
        scores: (rows,). matches: (rows,), bool.
    """
    result = np.full(len(scores), np.nan)
    yes, no = np.sort(scores[matches]), np.sort(scores[~matches])
    if len(yes) and len(no):
        below = np.searchsorted(no, scores[matches], "left") + np.searchsorted(no, scores[matches], "right")
        above = np.searchsorted(yes, scores[~matches], "left") + np.searchsorted(yes, scores[~matches], "right")
        result[matches], result[~matches] = below / (2 * len(no)), 1 - above / (2 * len(yes))
    return result


def precisions(scores: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """(rows,): of a match, the share of matches among the rows with its score or a higher one; of another row NaN.

    The mean over the matches is the average precision without interpolation: the sum over thresholds of (R_n - R_n-1)
    P_n, tied rows entering together, as scikit-learn's `average_precision_score` has it.

    Args:
        scores: (rows,). matches: (rows,), bool.
    """
    everything, yes = np.sort(scores), np.sort(scores[matches])
    taken = len(scores) - np.searchsorted(everything, scores, "left")
    found = len(yes) - np.searchsorted(yes, scores, "left")
    return np.where(matches, found / taken, np.nan)


def best_threshold(scores: np.ndarray, matches: np.ndarray) -> float:
    """The threshold from which on calling rows matches is right most often; of several the middle of the lowest gap.

    Args:
        scores: (rows,), at least one. matches: (rows,), bool.
    """
    levels = np.unique(scores)
    edges = np.concatenate([[levels[0] - 1.0], (levels[:-1] + levels[1:]) / 2, [levels[-1] + 1.0]])
    right = [(matches == (scores > edge)).sum() for edge in edges]
    return float(edges[int(np.argmax(right))])


def rounded(scores: np.ndarray, decimals: int = DECIMALS) -> np.ndarray:
    """Scores in which what differs by rounding alone is equal, float64."""
    return np.round(scores.astype(np.float64), decimals) + 0.0  # no negative zero
