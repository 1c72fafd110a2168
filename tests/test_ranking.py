"""Rankings, against exhaustive counting over orders and pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vlchat.evaluate.metrics.ranking import best_threshold, chance_of, placements, places_of, precisions


def counted(scores: list[float], right: list[bool], k: int) -> tuple[float, float]:
    """(probability of a hit among the first k, expected rank), over every order that sorts by score."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[one] >= scores[two] for one, two in itertools.pairwise(order))
    ]
    first = [next(place for place, row in enumerate(order, 1) if right[row]) for order in orders]
    return sum(place <= k for place in first) / len(first), sum(first) / len(first)


@pytest.mark.parametrize("seed", range(12))
def test_hits_and_ranks_are_those_of_all_orders_of_the_ties(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 3, (4, 6)).astype(float)
    right = random.random((4, 6)) < 0.4
    right[:, 0] = True
    place = places_of(scores, right)
    for k in (1, 2, 5, 10):
        expected = [counted(list(scores[row]), list(right[row]), k) for row in range(4)]
        assert place.hit(k) == pytest.approx([hit for hit, _ in expected], abs=1e-12)
        assert place.rank == pytest.approx([rank for _, rank in expected], abs=1e-12)


def test_a_worked_case_with_ties() -> None:
    # Right: columns 1 and 4. The best of them ties at 0.7 with column 2, and column 0 is ahead.
    place = places_of(np.array([[0.9, 0.7, 0.7, 0.1, 0.2]]), np.array([[False, True, False, False, True]]))
    assert place.rank == 2.5
    assert [place.hit(k)[0] for k in (1, 2, 3, 10)] == [0.0, 0.5, 1.0, 1.0]


def test_a_constant_score_gets_chance_and_no_more() -> None:
    right = np.zeros((3, 40), dtype=bool)
    right[0, :5] = right[1, 7] = right[2, 39] = True
    place = places_of(np.full((3, 40), 0.3), right)
    for k in (1, 5, 10):
        chance = [1 - math.comb(40 - own, k) / math.comb(40, k) for own in (5, 1, 1)]
        assert place.hit(k) == pytest.approx(chance, abs=1e-12)
        assert chance_of(right).hit(k) == pytest.approx(chance, abs=1e-12)


def test_what_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        places_of(np.array([[np.nan, 1.0]]), np.array([[True, False]]))
    with pytest.raises(ValueError, match="no right"):
        places_of(np.array([[2.0, 1.0]]), np.array([[False, False]]))


@pytest.mark.parametrize("seed", range(6))
def test_the_area_under_the_curve_is_that_of_counting_every_pair(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, matches = random.integers(0, 5, 23).astype(float), random.random(23) < 0.4
    pairs = [(one, two) for one in scores[matches] for two in scores[~matches]]
    area = sum(1.0 if one > two else 0.5 if one == two else 0.0 for one, two in pairs) / len(pairs)
    found = placements(scores, matches)
    assert found[matches].mean() == pytest.approx(area, abs=1e-12)
    assert found[~matches].mean() == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_the_sum_over_thresholds(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, matches = random.integers(0, 5, 23).astype(float), random.random(23) < 0.4
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        reached = (matches & taken).sum() / matches.sum()
        area += (reached - recall) * (matches & taken).sum() / taken.sum()
        recall = reached
    found = precisions(scores, matches)
    assert found[matches].mean() == pytest.approx(area, abs=1e-12)
    assert np.isnan(found[~matches]).all()


def test_one_side_alone_has_no_area() -> None:
    assert np.isnan(placements(np.array([1.0, 2.0]), np.array([True, True]))).all()


def test_the_best_threshold() -> None:
    scores = np.array([0.1, 0.2, 0.6, 0.8])
    assert best_threshold(scores, np.array([False, False, True, True])) == pytest.approx(0.4)
    assert best_threshold(scores, np.array([True, True, True, True])) < 0.1  # everything is a match
    assert best_threshold(scores, np.array([False, False, False, False])) > 0.8
