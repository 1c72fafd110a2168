"""The VQA challenge's normalisation and accuracy against its own script's behaviour, and Wilson's interval."""

from __future__ import annotations

import math
import statistics

import pytest

from vlchat.evaluate.metrics import exact_match, vqa_accuracy, vqa_normalize, wilson, yes_no


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        # Expected values: what processDigitArticle(processPunctuation(answer)) of the official vqaEval.py returns.
        ("The cat", "cat"),
        ("an apple a day", "apple day"),
        ("none", "0"),
        ("Ten", "10"),
        ("twenty one", "twenty 1"),
        ("yes.", "yes"),
        ("NO!", "no"),
        ("2.5", "2.5"),
        ("1,000", "1000"),
        ("1,000; more", "1000 more"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("x-ray", "x ray"),
        ("left -right", "left right"),
        ("a/b", "b"),
        ("U.S.A.", "usa"),
        ("it's", "it's"),
        ("its", "its"),
        ("dont", "don't"),
        ("isnt it", "isn't it"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("Im here", "im here"),
        ("twas", "'twas"),
        ("ow's'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("let's", "let's"),
        ("y'allll", "y'all'll"),
        ("line\none\ttwo", "line 1 2"),
        ("  spaced   out ", "spaced out"),
        ("the", ""),
        ("10:30", "10:30"),
        ("$5", "$5"),
        ("." * 40, "." * 8),
    ],
)
def test_normalisation_is_the_published_one(answer: str, normal: str) -> None:
    assert vqa_normalize(answer) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("yes", ["yes"] * 10, 1.0),
        ("yes", ["no"] * 10, 0.0),
        # One person agrees: left out herself she has none beside her, seen by the nine others 1/3.
        ("red", ["red"] + ["blue"] * 9, 9 * (1 / 3) / 10),
        ("red", ["red"] * 2 + ["blue"] * 8, (2 * (1 / 3) + 8 * (2 / 3)) / 10),
        ("red", ["red"] * 3 + ["blue"] * 7, (3 * (2 / 3) + 7 * 1) / 10),
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("Two.", ["2", "two", "the two", "2"] + ["3"] * 6, 1.0),
    ],
)
def test_soft_accuracy_is_the_mean_over_leaving_one_out(prediction: str, answers: list[str], expected: float) -> None:
    assert math.isclose(vqa_accuracy(prediction, answers), expected)


def test_soft_accuracy_needs_answers() -> None:
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy("x", [])


def test_exact_match_after_normalisation() -> None:
    assert exact_match("The lung.", ["Lung"]) == 1.0
    assert exact_match("two", ["3", "2"]) == 1.0
    assert exact_match("It is the lung.", ["Lung"]) == 0.0


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("Yes, there is.", "yes"), (" no", "no"), ("No.", "no"), ("Nothing", None), ("It is, yes", None), ("", None)],
)
def test_yes_no_is_the_first_word(reply: str, verdict: str | None) -> None:
    assert yes_no(reply) == verdict


def test_wilsons_ends_are_the_shares_that_the_score_test_just_keeps() -> None:
    # The interval's definition (Wilson 1927): |share - p| = z * sqrt(p * (1 - p) / count) at both ends p.
    z = statistics.NormalDist().inv_cdf(0.975)
    for successes, count in ((5, 10), (540, 1000), (1, 3), (1999, 2000)):
        for end in wilson(successes, count):
            distance = abs(successes / count - end)
            assert math.isclose(distance, z * math.sqrt(end * (1 - end) / count), rel_tol=1e-5)


@pytest.mark.parametrize("count", [1, 10, 2000])
def test_wilsons_interval_stays_between_0_and_1(count: int) -> None:
    z2 = statistics.NormalDist().inv_cdf(0.975) ** 2
    assert wilson(0, count) == pytest.approx((0.0, z2 / (count + z2)), rel=1e-5)
    assert wilson(count, count) == pytest.approx((count / (count + z2), 1.0), rel=1e-5)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
