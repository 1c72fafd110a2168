"""What is said of a model that looks, of one that does not, and of one that nothing can be said about."""

from __future__ import annotations

import re

import numpy as np
import pytest

from vlchat.evaluate.measures import Measure, mean_of, ratio_of
from vlchat.evaluate.verdicts import CONTROLS, beats_floor, interval_text, least_difference, looks, points

ACCURACY = mean_of("score", "accuracy")
WER = ratio_of("errors", "words", "WER", better="lower")
CLUSTERS = [f"picture {row // 4}" for row in range(400)]


def scores(share: float, seed: int) -> list[dict[str, float]]:
    right = np.random.default_rng(seed).random(400) < share
    return [{"score": float(value), "errors": float(not value), "words": 2.0} for value in right]


def test_a_model_that_looks_is_said_to() -> None:
    verdict = looks(ACCURACY, scores(0.8, 1), scores(0.4, 2), CLUSTERS)
    assert verdict.holds is True
    found = re.fullmatch(
        r"It looks at the picture: \+(\S+) points over shuffled pictures \(95 % interval (\S+) to (\S+)\)\.",
        str(verdict),
    )
    assert found is not None, verdict.sentence
    assert [float(part) for part in found.groups()] == [
        round(100 * value, 1) for value in (verdict.difference.value, verdict.difference.low, verdict.difference.high)
    ]


@pytest.mark.parametrize("control", CONTROLS)
def test_a_text_only_model_is_exposed(control: str) -> None:
    """It answers by the question, so that a control changes nothing, or only what chance changes."""
    same = looks(ACCURACY, scores(0.54, 1), scores(0.54, 1), CLUSTERS, name=control)
    near = looks(ACCURACY, scores(0.54, 1), scores(0.54, 2), CLUSTERS, name=control)
    for verdict in (same, near):
        assert verdict.holds is False
        assert verdict.sentence.startswith("Nothing shows that it looks at the picture: ")
        assert CONTROLS[control] in verdict.sentence and verdict.sentence.endswith("from the question alone.")
        assert verdict.difference.low <= 0 <= verdict.difference.high
    assert "+0.0 points" in same.sentence


def test_a_picture_that_leads_astray_and_measures_that_are_better_when_lower() -> None:
    assert str(looks(ACCURACY, scores(0.3, 1), scores(0.7, 2), CLUSTERS)).startswith("The picture leads it astray: -")
    reads = looks(WER, scores(0.9, 1), scores(0.2, 2), CLUSTERS, name="blurred")
    assert reads.holds and reads.difference.value > 0 and " points over blurred pictures" in reads.sentence


def test_what_cannot_be_told_is_not() -> None:
    one = looks(ACCURACY, scores(0.9, 1), scores(0.1, 2), ["the same"] * 400)
    assert one.holds is None
    assert str(one).startswith("Whether it looks at the picture cannot be told: its 400 rows are all of one group")
    none = beats_floor(ACCURACY, scores(0.9, 1), [{}] * 400, CLUSTERS)
    assert none.holds is None and "no row was scored both" in none.sentence
    two = looks(ACCURACY, scores(1, 1)[:8], scores(0, 1)[:8], CLUSTERS[:8])
    assert two.holds is None, "two pictures cannot show anything, however they come out"
    assert "cannot be told from these 8 rows: +" in two.sentence


def test_the_floor() -> None:
    assert str(beats_floor(ACCURACY, scores(0.8, 1), scores(0.5, 2), CLUSTERS)).startswith(
        "It knows more than the question gives away: +"
    )
    level = beats_floor(ACCURACY, scores(0.5, 1), scores(0.5, 2), CLUSTERS)
    assert level.holds is False and level.sentence.startswith("Nothing shows that it knows more")
    assert str(beats_floor(ACCURACY, scores(0.2, 1), scores(0.5, 2), CLUSTERS)).startswith("A guess from the question")


def test_numbers_as_people_say_them() -> None:
    cider = Measure("CIDEr", lambda sums: sums["cider"] / sums["rows"], ("cider",), percent=False)
    assert points(ACCURACY, 0.0312) == "+3.1 points" and points(ACCURACY, -0.0001) == "+0.0 points"
    assert points(cider, 0.5349) == "+0.535" and points(cider, -0.02, sign=False) == "-0.02"
    verdict = looks(ACCURACY, scores(0.8, 1), scores(0.4, 2), CLUSTERS)
    assert interval_text(ACCURACY, verdict.difference).startswith("95 % interval 3")
    said = least_difference(ACCURACY, verdict.difference)
    assert said.startswith("With these 400 rows in 100 independent groups, a difference under ")
    assert f"{100 * verdict.difference.detectable:.1f} points" in said
