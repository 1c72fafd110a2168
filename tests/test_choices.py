"""Yes, no and letters read from free text, against replies and counts worked by hand."""

from __future__ import annotations

import math

import pytest
from scripted import measured

from vlchat.evaluate.items import Reply
from vlchat.evaluate.metrics.choices import (
    YES_NO_MEASURES,
    chosen,
    first_word_verdict,
    pope_yes_no,
    probability,
    yes_no_reading,
)

LUNGS = ["left lung", "right lung", "heart", "E. coli"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Yes", "yes"), ("No", "no"), ("no", "no"), ("No, there is not.", "no"),
        ("There is not a dog in the image.", "no"),
        ("Yes. There is no cat though.", "yes"),  # only the first sentence counts
        ("I see a dog, not a cat", "no"),
        ("NO", "yes"), ("none", "yes"), ("Nothing there", "yes"), ("", "yes"),  # the published rule, as it is
        ("no!", "yes"), ("\nno", "yes"),  # words end at spaces alone
        ("No,", "no"),
    ],
)  # fmt: skip
def test_popes_parser_keeps_its_published_rules(reply: str, said: str) -> None:
    assert pope_yes_no(reply) == said


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("Yes, it is.", "yes"), ("TRUE", "yes"), ('"No"', "no"), ("false.", "no"), ("  no\n", "no"),
        ("Not really", None), ("nothing", None), ("There is no cat", None), ("", None), ("yesterday", None),
    ],
)  # fmt: skip
def test_the_first_word_is_the_verdict(reply: str, said: str | None) -> None:
    assert first_word_verdict(reply) == said


@pytest.mark.parametrize(
    ("reply", "place"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("B.", 1), ("**B**", 1), (" b) ", 1),
        ("B. right lung", 1), ("B: right lung", 1), ("(b) the right lung", 1), ("B - right", 1), ("B, because", 1),
        ("B right lung", 1), ("right lung", 1), ("Right  lung.", 1), ("The answer is right lung.", 1),
        ("E. coli", 3),  # a whole option, though it begins like a letter
        ("The answer is B", 1), ("the correct answer is (C).", 2), ("Answer: C", 2), ("I choose option B.", 1),
        ("The answer is not B. The answer is C.", 2), ("It must be (D), I think", 3),
    ],
)  # fmt: skip
def test_a_letter_or_an_options_text_is_found(reply: str, place: int) -> None:
    assert chosen(reply, LUNGS) == place


@pytest.mark.parametrize(
    "reply",
    ["", "lung", "A lung is shown", "A and B", "A, B", "F", "(F)", "The answer is F", "(A) or (B)",
     "The answer is A. No, the answer is B.", "neither", "I think so", "the answer is a lung"],
)  # fmt: skip
def test_no_choice_or_several_are_none(reply: str) -> None:
    assert chosen(reply, LUNGS) is None


def test_options_of_one_text_are_not_told_apart() -> None:
    assert chosen("red", ["Red", "red.", "blue"]) is None


def test_yes_no_measures_on_counts_worked_by_hand() -> None:
    # 3 tp, 1 fp, 4 tn, 1 fn, and of neither one where yes is right and one where no is.
    said = [("yes", True)] * 3 + [("yes", False)] + [("no", False)] * 4 + [("no", True)] + [(None, True), (None, False)]
    task = type("Table", (), {"measures": YES_NO_MEASURES})()
    found = measured(task, [yes_no_reading(*pair) for pair in said])
    assert found == pytest.approx({
        "accuracy": 7 / 11, "precision": 3 / 4, "recall": 3 / 5, "F1": 2 * 0.75 * 0.6 / (0.75 + 0.6),
        "yes ratio": 4 / 11,
    })  # fmt: skip


def test_measures_of_a_model_that_never_says_yes() -> None:
    task = type("Table", (), {"measures": YES_NO_MEASURES})()
    found = measured(task, [yes_no_reading("no", True), yes_no_reading("no", False)])
    assert math.isnan(found.pop("precision"))
    assert found == {"accuracy": 0.5, "recall": 0.0, "F1": 0.0, "yes ratio": 0.0}


def test_a_reply_has_the_probability_of_its_words() -> None:
    assert probability(Reply("x", logprob=math.log(0.25))) == pytest.approx(0.25)
    assert probability(Reply("x")) is None and probability(Reply(logprob=-1.0, error="gone")) is None
