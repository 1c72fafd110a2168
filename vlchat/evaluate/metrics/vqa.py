"""Scores for short answers: the published VQA normalisation and accuracy, exact match, yes/no, and intervals.

The rules are those of the VQA challenge's own script (github.com/GT-Vision-Lab/VQA, vqaEval.py), its oddities included,
so that a figure here can be held against a published one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")

# The script maps each spelling that lacks one apostrophe to the full one. These are the full ones; a few whose bare
# spelling is a word of its own (he'll, we're, it's) are absent there too. Its keys with a capital I never match the
# lower-cased text.
_FULL_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't
    must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
""".split()
_CONTRACTIONS = {
    full[:position] + full[position + 1 :]: full
    for full in _FULL_CONTRACTIONS
    for position, letter in enumerate(full)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def vqa_normalize(answer: str) -> str:
    """An answer as the VQA challenge compares it: punctuation, digits, articles and contractions in one form."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    cleaned = text
    for mark in _PUNCTUATION:
        glued = mark + " " not in text and " " + mark not in text and not _DIGIT_COMMA_DIGIT.search(text)
        cleaned = cleaned.replace(mark, " " if glued else "")
    # The script passes re.UNICODE (32) where `sub` expects a count: no more than 32 full stops go.
    cleaned = _PERIOD.sub("", cleaned, count=32)
    words = (_NUMBERS.get(word, word) for word in cleaned.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA soft accuracy: the mean, over leaving out each person, of min(1, matches among the others / 3).

    Both sides are normalised, always (the script leaves unanimous answers as they are written).

    Args:
        prediction: the model's reply.
        answers: one answer a person, ten in VQA; with fewer than four the best possible score is below 1.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("VQA accuracy needs at least one answer")
    return soft_accuracy(vqa_normalize(prediction), [vqa_normalize(answer) for answer in answers])


def soft_accuracy(said: str, answers: Sequence[str]) -> float:
    """The formula of `vqa_accuracy` over answers as they are compared, at least one."""
    matches = [answer == said for answer in answers]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(answers)


def exact_match(prediction: str, accepted: Sequence[str]) -> float:
    """1.0 where the prediction equals one of the accepted answers after the VQA normalisation, else 0.0.

    An answer of which nothing is left ("A", the letter of a choice, is an article) is compared as it is written.
    """
    said = vqa_normalize(prediction)
    plain = prediction.strip().rstrip(".").lower()
    return float(any((vqa_normalize(answer) or answer.strip().lower()) == (said or plain) for answer in accepted))


def yes_no(reply: str) -> str | None:
    """`yes` or `no` where the reply's first word is one of them, else None. For replies in whole sentences."""
    first = re.match(r"\W*(yes|no)\b", reply.lower())
    return first.group(1) if first else None


def wilson(successes: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927), 95 % by default; (0, 1) for no observations.

    `successes` may be a sum of scores between 0 and 1: their variance is never above that of hits and misses with the
    same mean, so that the interval is then wider than need be, never narrower.
    """
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    scale = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
