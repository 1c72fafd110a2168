"""ANLS, relaxed accuracy, word and character errors and counts on rows worked by hand from the published rules."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import pytest

from vlchat.errors import ConfigError
from vlchat.evaluate.metrics import anls, relaxed_accuracy
from vlchat.evaluate.metrics.counting import stated_number, whole_number
from vlchat.evaluate.metrics.reading import Errors, plain_text, reading_errors


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("paris", ["paris"], 1.0),
        ("Paris ", ["paris"], 1.0),
        ("the  Eiffel\ntower", ["The Eiffel Tower"], 1.0),
        ("pariz", ["paris"], 1 - 1 / 5),
        ("pari", ["paris"], 1 - 1 / 5),
        ("pariss", ["paris"], 1 - 1 / 6),
        ("café", ["cafe"], 1 - 1 / 4),
        ("ITC LTD.", ["itc limited", "ITC Ltd"], 1 - 1 / 8),  # the nearest answer
        ("abcdef", ["abcxyz"], 0.5),  # the script keeps what is exactly at the threshold
        ("abcdefg", ["abcwxyz"], 0.0),  # 3/7 alike
        ("abcdefg", ["abcwxyz", "abcdefh"], 1 - 1 / 7),
        ("the answer is paris", ["paris"], 0.0),  # 14 of 19 letters too many
        ("", ["paris"], 0.0),
        ("", [""], 1.0),
        ("   ", [""], 1.0),
        ("x" + " " * 99, ["paris"], 0.0),  # blanks make no text longer
        ("2,000", ["2000"], 1 - 1 / 5),
        ("\ud800aris", ["paris"], 1 - 1 / 5),
    ],
)
def test_anls(prediction: str, answers: list[str], expected: float) -> None:
    assert anls(prediction, answers) == pytest.approx(expected)


def test_anls_takes_another_threshold() -> None:
    assert anls("abcdefg", ["abcwxyz"], threshold=0.4) == pytest.approx(3 / 7)
    assert anls("pariz", ["paris"], threshold=0.9) == 0.0
    with pytest.raises(ValueError, match="at least one answer"):
        anls("x", [])


def edits(first: str, second: str) -> int:
    """Levenshtein's distance by the textbook's table."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, start=1):
        last, row[0] = row[0], number
        for position, other in enumerate(second, start=1):
            last, row[position] = row[position], min(row[position] + 1, row[position - 1] + 1, last + (letter != other))
    return row[-1]


def test_anls_is_the_scripts_formula_on_any_text() -> None:
    draw = random.Random(0)
    seen = set()
    for _ in range(300):
        said, *answers = ("".join(draw.choices("abé1", k=draw.randint(1, 7))) for _ in range(draw.randint(2, 4)))
        values = [edits(answer, said) / max(len(answer), len(said)) for answer in answers]
        expected = 1 - min(values) if 1 - min(values) >= 0.5 else 0.0
        seen.add(expected)
        assert anls(said, answers) == pytest.approx(expected)
    assert len(seen) > 5


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("105", ["100"], 1.0),  # 5 % is within 5 %
        ("95", ["100"], 1.0),
        ("105.1", ["100"], 0.0),
        ("94.9", ["100"], 0.0),
        ("100", ["105"], 1.0),  # relative to the answer: 5/105
        ("100", ["95"], 0.0),  # 5/95
        ("2012", ["2010"], 1.0),  # years are numbers to this rule
        ("1900", ["2010"], 0.0),
        ("10%", ["10%"], 1.0),
        ("10.4%", ["10%"], 1.0),
        ("10%", ["0.1"], 1.0),
        ("10", ["10%"], 0.0),
        ("10 %", ["10%"], 1.0),
        ("-95", ["-100"], 1.0),
        ("95", ["-100"], 0.0),
        ("0", ["0"], 1.0),  # nothing is within a share of 0: the text must be the same
        ("0.0", ["0"], 0.0),
        ("0.001", ["0"], 0.0),
        ("1,000", ["1,000"], 1.0),
        ("1000", ["1,000"], 0.0),  # the comma makes it text
        ("1e3", ["1000"], 1.0),
        (" 3.0\n", ["3"], 1.0),
        ("Yes", ["yes"], 1.0),
        ("Yes.", ["yes"], 0.0),
        ("yes", ["no", "YES"], 1.0),
        ("", ["yes"], 0.0),
        ("", ["3"], 0.0),
        ("%", ["3"], 0.0),
        ("three", ["3"], 0.0),
        ("nan", ["nan"], 1.0),
        ("nan", ["3"], 0.0),
        ("inf", ["3"], 0.0),
        ("3", ["inf"], 0.0),
        ("9" * 400, ["3"], 0.0),
        ("É", ["é"], 1.0),
        ("\ud800", ["3"], 0.0),
    ],
)
def test_relaxed_accuracy(prediction: str, answers: list[str], expected: float) -> None:
    assert relaxed_accuracy(prediction, answers) == expected


def test_relaxed_accuracy_takes_another_tolerance() -> None:
    assert relaxed_accuracy("110", ["100"], tolerance=0.1) == 1.0
    assert relaxed_accuracy("101", ["100"], tolerance=0.0) == 0.0
    with pytest.raises(ValueError, match="at least one answer"):
        relaxed_accuracy("x", [])


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # "sit" for "sat", "the" left out with its space.
        ("the cat sit on mat", "the cat sat on the mat", Errors(2, 6, 5, 22)),
        ("stop", "stop", Errors(0, 1, 0, 4)),
        ("", "no parking", Errors(2, 2, 10, 10)),
        ("no parking here", "no parking", Errors(1, 2, 5, 10)),
        ("a b c d", "stop", Errors(4, 1, 7, 4)),  # more errors than words
        ("", "", Errors(0, 0, 0, 0)),
        ("x", "", Errors(1, 0, 1, 0)),
        ("\ud800", "a", Errors(1, 1, 1, 1)),
    ],
)
def test_reading_errors(prediction: str, reference: str, expected: Errors) -> None:
    assert reading_errors(prediction, reference) == expected


@pytest.mark.parametrize(
    ("text", "plain", "exact"),
    [
        (" NO  Parking!\n", "no parking", "NO Parking!"),
        ("“Don't” — (x-ray)", "don't x-ray", "“Don't” — (x-ray)"),
        ("$3.50, 1,000.", "$3.50 1,000", "$3.50, 1,000."),
        ("cafe\u0301", "caf\u00e9", "caf\u00e9"),
        ("...", "", "..."),
        ("¿Qué?", "qué", "¿Qué?"),
        ("", "", ""),
    ],
)
def test_texts_are_compared_plainly(text: str, plain: str, exact: str) -> None:
    assert plain_text(text) == plain
    assert plain_text(text, exact=True) == exact


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3), ("3.", 3), ("There are 3 cats and 2 dogs.", 3), ("1,000", 1000), ("12,345,678", 12345678),
        ("2.5", 2.5), ("-2", -2), ("\u22122", -2), ("- 2 cats", 2), ("10-12", 10), ("(4)", 4), ("٣", 3),
        ("Two", 2), ("There are twenty-one.", 21), ("twenty one dogs", 21), ("one hundred and five", 105),
        ("two thousand three hundred", 2300), ("nineteen hundred", 1900), ("three million", 3000000),
        ("two three", 2), ("two or 3", 2), ("3 or two", 3), ("zero", 0),
        ("No.", 0), ("None", 0), ("There are no dogs", 0), ("No, I see 3", 3), ("nobody", 0),
        ("a dog", None), ("someone", None), ("2nd", None), ("the second of 4", 4), ("3D", None), ("50%", None),
        ("50% of 4", 4), ("COVID-19", None), ("one-way street", None), ("1,00", None), ("many", None), ("", None),
        ("...", None), ("\ud800", None), ("9" * 5000, None), ("1" + "0" * 12 + " or 4", 4), ("hundred " * 5000, 100),
    ],
)  # fmt: skip
def test_the_number_that_a_reply_states(text: str, number: float | None) -> None:
    assert stated_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("3", 3), (" Three. ", 3), ("none", 0), ("twenty-one", 21), ("1,000", 1000), ("no dogs", None), ("3 cats", None),
     ("two three", None), ("many", None), ("", None)],
)  # fmt: skip
def test_a_reference_is_a_number_and_nothing_else(text: str, number: float | None) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize("reply", ["a" * 100_000, "1," * 20_000, "two" + " " * 50_000, "1 " * 20_000, "\0", "½", "--"])
def test_no_reply_breaks_a_score(reply: str) -> None:
    assert 0 <= anls(reply, ["x", reply]) <= 1
    assert relaxed_accuracy(reply, ["x"]) == 0.0
    stated_number(reply)
    for exact in (False, True):
        assert reading_errors(plain_text(reply, exact=exact), "two words").words == 2


@pytest.mark.parametrize(
    ("package", "call", "said"),
    [
        ("jiwer", lambda: reading_errors("a", "b"), "Word error rates need the package `jiwer`"),
        ("rapidfuzz", lambda: anls("a", ["b"]), "Edit distances need the package `rapidfuzz`"),
    ],
)
def test_a_missing_package_is_a_sentence(
    package: str, call: Callable[[], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=said):
        call()
