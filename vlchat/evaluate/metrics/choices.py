"""Replies to questions whose answers are given: yes or no, or one of several choices, read from free text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from string import ascii_uppercase as LETTERS

from vlchat.evaluate.items import Reading, Reply
from vlchat.evaluate.measures import Measure, divided

_BRACKETED = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
_LEADING = re.compile(r"[\"'*]*([A-Z])[\"'*]*\s*(?:[.):]|-\s|,(?!\s*(?:and\s|or\s)?\s*[A-Z]\b))")
_STATED = re.compile(
    r"(?i:\b(?:answer|option|choice)\b(?:\s+is\b|\s*:)?\s*(?:option|choice)?\s*)[(\[\"'*]*([A-Z])(?![A-Za-z'’])"
)
_LEAD_IN = re.compile(r"(?i)^(?:the\s+)?(?:correct\s+|right\s+)?answer(?:\s+is|\s*:)\s*")


# As POPE reports them (Li et al. 2023); F1 as 2 tp / (2 tp + fp + fn), which is 0 where nothing positive is found.
YES_NO_MEASURES = (
    Measure("accuracy", lambda sums: divided(sums["tp"] + sums["tn"], sums["rows"]), ("tp", "tn")),
    Measure("precision", lambda sums: divided(sums["tp"], sums["tp"] + sums["fp"]), ("tp", "fp")),
    Measure("recall", lambda sums: divided(sums["tp"], sums["tp"] + sums["fn"]), ("tp", "fn")),
    Measure("F1", lambda sums: divided(2 * sums["tp"], 2 * sums["tp"] + sums["fp"] + sums["fn"]), ("tp", "fp", "fn")),
    Measure("yes ratio", lambda sums: divided(sums["tp"] + sums["fp"], sums["rows"]), ("tp", "fp")),
)


def pope_yes_no(reply: str) -> str:
    """`yes` or `no` by the parser of POPE (Li et al. 2023; github.com/AoiDragon/POPE, evaluate.py).

    Of the first sentence, without commas: `no` where "No", "no" or "not" is one of the words between its spaces, else
    `yes`. So "NO", "none" and an empty reply are `yes`.
    """
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def first_word_verdict(reply: str) -> str | None:
    """`yes` where the reply's first word is yes or true, `no` where it is no or false, else None."""
    first = re.match(r"\W*(yes|true|no|false)\b", reply.lower())
    return None if first is None else "yes" if first.group(1) in ("yes", "true") else "no"


def yes_no_reading(said: str | None, positive: bool) -> Reading:
    """`yes`, `no` or None as a reading with the statistics that `YES_NO_MEASURES` are made of.

    Args:
        said: how the reply was understood.
        positive: whether yes is right.
    """
    right = said == ("yes" if positive else "no")
    stats = {
        "tp": said == "yes" and positive,
        "fp": said == "yes" and not positive,
        "tn": said == "no" and not positive,
        "fn": said != "yes" and positive,
        "neither": said is None,
    }
    return Reading(said or "neither", float(right), {name: float(value) for name, value in stats.items()})


def probability(reply: Reply) -> float | None:
    """The probability of the words that were written, 0 to 1; None where the model does not say."""
    return None if reply.logprob is None or reply.error is not None else math.exp(min(0.0, reply.logprob))


def chosen(reply: str, options: Sequence[str]) -> int | None:
    """Which of the options a reply names: its position, or None where it names none or several.

    The first of these rules that finds something decides; a letter past the last option is none.

    1. Nothing but a letter, whatever stands around it: "B", "b", "(B)", "B.".
    2. The whole text of one option, in any case, with or without "the answer is" before it and a full stop after it;
       or a letter and its option's text: "lung", "The answer is lung.", "B lung". Options of the same text are none.
    3. A capital letter first, then a full stop, bracket, colon, comma or dash: "B. lung", "B: the lung", not "A, B".
       Or a letter in brackets first: "(b) lung", not "(A) or (B)".
    4. "answer", "option" or "choice", with or without "is" or a colon, then a capital letter: "The answer is B",
       "I choose option (C)". Different letters in one reply are none.
    5. A letter in brackets anywhere: "It must be (B)". Different letters are none.

    Args:
        reply: what the model wrote.
        options: their texts, in the order of their letters; at most 26.
    """
    letters = LETTERS[: len(options)]
    text = " ".join(reply.split())
    if alone := re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", text):
        return _place(alone.group(1), letters)
    said = _plain(_LEAD_IN.sub("", text))
    same = [
        place
        for place, option in enumerate(map(_plain, options))
        if said and said in (option, f"{letters[place].casefold()} {option}")
    ]
    if same:
        return same[0] if len(same) == 1 else None
    if first := _LEADING.match(text):
        return _place(first.group(1), letters)
    patterns = (_BRACKETED,) if _BRACKETED.match(text) else (_STATED, _BRACKETED)
    for pattern in patterns:
        if found := {letter.upper() for letter in pattern.findall(text)}:
            return _place(found.pop(), letters) if len(found) == 1 else None
    return None


def _place(letter: str, letters: str) -> int | None:
    place = letters.find(letter.upper())
    return None if place < 0 else place


def _plain(text: str) -> str:
    return " ".join(text.split()).strip("\"'* ").rstrip(".").casefold()
