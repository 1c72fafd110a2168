"""Calibration on rows worked by hand, the published formulas written out, and the promise of a threshold simulated."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from vlchat.errors import ConfigError
from vlchat.evaluate.calibration import (
    BINS,
    abstain_threshold,
    calibration,
    clopper_pearson_upper,
    effective_rows,
)


def test_rows_worked_by_hand() -> None:
    """0.95 and 0.97 share the last bin (one right), 0.5 and 0.3 have one each; the fifth row has no confidence."""
    found = calibration([0.95, 0.97, 0.5, 0.3, None], [1, 0, 1, 0, 1])
    assert (found.rows, found.without) == (4, 1)
    assert found.ece == pytest.approx((abs(0.95 + 0.97 - 1) + abs(0.5 - 1) + abs(0.3 - 0)) / 4)
    assert found.brier == pytest.approx((0.05**2 + 0.97**2 + 0.5**2 + 0.3**2) / 4)
    assert [(b.rows, b.confidence, b.score) for b in found.bins] == [
        (1, 0.3, 0.0),
        (1, 0.5, 1.0),
        (2, pytest.approx(0.96), 0.5),
    ]
    assert [(p.threshold, p.coverage, p.risk) for p in found.curve] == [
        (0.97, 0.25, 1.0),
        (0.95, 0.5, 0.5),
        (0.5, 0.75, pytest.approx(1 / 3)),
        (0.3, 1.0, 0.5),
    ]
    assert found.aurc == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert found.aurc_best == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert found.sentences()[0] == "1 of 5 rows have no confidence and are left out."
    assert json.loads(json.dumps(found.to_dict()))["bins"][2]["rows"] == 2


def test_the_published_formula() -> None:
    """Guo et al.'s own loop: |mean confidence - accuracy| of the rows in (lower, upper], times their share."""
    generator = np.random.default_rng(0)
    sure, right = generator.random(500), generator.integers(0, 2, 500).astype(float)
    sure[:15] = np.arange(1, 16) / 15  # on the edges, which belong to the bin below
    total = 0.0
    for number in range(BINS):
        inside = (sure > number / BINS) & (sure <= (number + 1) / BINS)
        if inside.any():
            total += abs(sure[inside].mean() - right[inside].mean()) * inside.mean()
    assert calibration(list(sure), list(right)).ece == pytest.approx(total, abs=1e-12)


def test_bins_of_equally_many_rows() -> None:
    sure = np.linspace(0.01, 0.3, 30)  # 15 bins of two rows, where equal width has five bins
    right = np.tile([1.0, 0.0], 15)
    pairs = np.abs((sure - right).reshape(15, 2).sum(axis=1)).sum() / 30
    assert calibration(list(sure), list(right)).ece_mass == pytest.approx(pairs)


def test_rows_of_one_confidence_may_stand_in_any_order() -> None:
    """The area is its mean over all orders of the ties, and the same however the rows are given."""
    sure, loss = [0.9, 0.5, 0.5, 0.5, 0.1], [0, 1, 0, 1, 1]
    areas = []
    for ties in itertools.permutations(loss[1:4]):
        order = np.array([loss[0], *ties, loss[4]])
        areas.append((order.cumsum() / np.arange(1, 6)).mean())
    for order in ([0, 1, 2, 3, 4], [4, 2, 3, 0, 1]):
        found = calibration([sure[row] for row in order], [1 - loss[row] for row in order])
        assert found.aurc == pytest.approx(np.mean(areas))
    assert len(found.curve) == 3


def test_a_calibrated_model_shows_what_chance_gives_and_an_overconfident_one_more() -> None:
    generator = np.random.default_rng(3)
    sure = generator.uniform(0.3, 1, 1000)
    right = (generator.random(1000) < sure).astype(float)
    fine = calibration(list(sure), list(right))
    assert fine.ece == pytest.approx(fine.ece_by_chance, rel=0.5) and "no more than chance" in fine.sentences()[0]
    boasting = calibration(list(np.sqrt(sure)), list(right))
    assert boasting.ece > 3 * boasting.ece_by_chance
    assert "more sure than it is right by" in boasting.sentences()[0]
    timid = calibration(list(sure**2), list(right))
    assert "less sure than it is right by" in timid.sentences()[0]


def test_nothing_to_go_by_and_what_is_no_share() -> None:
    none = calibration([None, None], [1, 0])
    assert none.sentences() == [
        "2 of 2 rows have no confidence and are left out.",
        "Nothing can be said of calibration.",
    ]
    assert json.loads(json.dumps(none.to_dict()))["ece"] is None
    assert abstain_threshold([None], [1], 0.1).threshold is None
    with pytest.raises(ConfigError, match="Row 2: its confidence is 1.5"):
        calibration([0.5, 1.5], [1, 0])
    with pytest.raises(ConfigError, match="Row 1: its score is -1"):
        calibration([None], [-1])
    with pytest.raises(ConfigError, match="target_risk is 10"):
        abstain_threshold([0.5], [1], 10)
    with pytest.raises(ConfigError, match="2 confidences and 1 scores"):
        calibration([0.5, 0.5], [1])


def test_a_threshold_is_the_last_step_whose_bound_holds() -> None:
    """The upper 60 % of 1,000 rows are right but for 1 in 50, the others but for 1 in 2."""
    sure = np.linspace(0.999, 0.001, 1000)
    right = np.array([float(row % 50 != 7) if row < 600 else float(row % 2) for row in range(1000)])
    found = abstain_threshold(list(sure), list(right), 0.05)
    assert found.threshold is not None and found.coverage == 0.6
    shown = sure >= found.threshold
    assert shown.mean() == found.coverage and found.risk == pytest.approx(1 - right[shown].mean())
    assert found.bound == pytest.approx(clopper_pearson_upper((1 - right[shown]).sum(), shown.sum(), 0.05 / 3))
    assert found.bound <= 0.05
    beyond = sure >= sure[round(1000 * found.coverage) + 19]
    assert clopper_pearson_upper((1 - right[beyond]).sum(), beyond.sum(), 0.05 / 3) > 0.05
    assert found.sentence.startswith(f"From a confidence of {found.threshold:.3f} on, at most 5 % of the answers shown")
    assert "60.0 % of the 1,000 rows are answered" in found.sentence
    none = abstain_threshold(list(sure), list(right), 0.001)
    assert none.threshold is None and none.coverage == 0 and none.sentence.startswith("No confidence is high enough")
    holes = abstain_threshold([*sure, *[None] * 1000], [*right, *[1.0] * 1000], 0.05)
    assert holes.threshold == found.threshold and holes.coverage == 0.3, "what has no confidence is not answered"


def test_equal_confidences_are_shown_together_or_not_at_all() -> None:
    found = abstain_threshold([0.9] * 100 + [0.2] * 100, [1.0] * 100 + [0.0] * 100, 0.1)
    assert (found.threshold, found.coverage) == (0.9, 0.5)


def test_the_promise_is_kept_on_new_rows() -> None:
    """Risk is 1 - confidence, so that the risk above a threshold t is (1 - t) / 2: at most 10 % from 0.8 on."""
    generator = np.random.default_rng(1)
    broken = given = 0
    for _ in range(100):
        sure = generator.random(1500)
        found = abstain_threshold(list(sure), list((generator.random(1500) < sure).astype(float)), 0.1, certainty=0.7)
        if found.threshold is not None:
            given += 1
            broken += (1 - found.threshold) / 2 > 0.1
    assert given > 75
    assert 0 < broken / 100 < 0.3, "a promise that is never broken asks for too much"


def test_rows_of_one_picture_count_for_fewer() -> None:
    losses = np.array([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    alone = np.arange(8).astype(str)
    assert effective_rows(losses, alone) == 8
    four = effective_rows(np.repeat(losses, 4), np.repeat(alone, 4))
    assert 4 < four <= 8, "every row four times over, under the same picture, is no more than eight rows"
    assert effective_rows(np.zeros(32), np.repeat(alone, 4)) == 8
    sure = np.repeat(np.linspace(0.999, 0.001, 500), 4)
    right = np.repeat([float(row % 50 != 7) if row < 300 else float(row % 2) for row in range(500)], 4)
    pictures = [str(row // 4) for row in range(2000)]
    rows, clustered = (abstain_threshold(list(sure), list(right), 0.1, clusters=each) for each in (None, pictures))
    assert clustered.coverage < rows.coverage and clustered.bound <= 0.1
