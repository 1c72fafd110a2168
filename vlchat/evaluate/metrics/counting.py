"""The number that a reply states, for questions of how many."""

from __future__ import annotations

import re

LARGEST = 1e9  # beyond it a number is no count of things in a picture

_SMALL = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUES = {word: value for value, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, start=2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}

# A number stands alone: "2nd", "3D" and the 19 of "COVID-19" are none. A comma groups three digits.
_DIGITS = r"(?<![\w.,])(?<!\w[-\u2212])[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w%]|[.,]\d)"
_WORD = "|".join([*_VALUES, *_SCALES])
_WORDS = rf"(?<![\w-])(?:{_WORD})(?:(?:[\s-]+|\s+and\s+)(?:{_WORD}))*(?![\w-])"
_NUMBER = re.compile(rf"(?P<digits>{_DIGITS})|(?P<words>{_WORDS})")
_NOTHING = re.compile(r"\b(?:no|none|nothing|nobody)\b")


def stated_number(text: str) -> float | None:
    """The first number in a text, or None.

    The rule, version 1: digits ("3", "1,000", "2.5", "-1") or English number words ("twenty-one", "one hundred and
    five"), whichever comes first; without any, "no", "none", "nothing" or "nobody" is 0. Articles, ordinals ("2nd",
    "second"), shares ("50%") and numbers above `LARGEST` count as no number.
    """
    lowered = text.lower()
    for found in _NUMBER.finditer(lowered):
        value = _from_digits(found["digits"]) if found["digits"] else _from_words(found["words"])[0]
        if abs(value) <= LARGEST:
            return value
    return 0.0 if _NOTHING.search(lowered) else None


def whole_number(text: str) -> float | None:
    """The number that a text is and nothing else ("3", "Three."), or None: how a reference has to be written."""
    stripped = text.strip().rstrip(".").lower()
    found = _NUMBER.fullmatch(stripped)
    if found and found["words"] and not _from_words(found["words"])[1]:
        return None  # "two three"
    return stated_number(stripped) if found or _NOTHING.fullmatch(stripped) else None


def _from_digits(text: str) -> float:
    return float(text.replace(",", "").replace("\u2212", "-"))


def _from_words(text: str) -> tuple[float, bool]:
    """Number words as one number, and whether all of them went into it: of "two three" it is the first."""
    total, part, last = 0, 0, 0  # thousands and above; below; the value of the word before
    for word in re.findall(r"[a-z]+", text):
        if word == "and":
            continue
        value = _VALUES.get(word) or _SCALES.get(word) or 0
        if word == "hundred":
            fits = last == 0 or last < 100
        elif word in _SCALES:
            fits = last == 0 or last <= 100
        else:
            fits = last == 0 or last >= 100 or (last >= 20 and value < 10)
        if not fits or (value == 0 and text.strip() != word):
            return float(total + part), False
        if word == "hundred":
            part = max(part, 1) * 100
        elif word in _SCALES:
            total, part = total + max(part, 1) * value, 0
        else:
            part += value
        last = value
    return float(total + part), True
