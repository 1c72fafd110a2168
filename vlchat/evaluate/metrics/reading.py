"""Scores of what a model reads: ANLS for documents, relaxed accuracy for charts, word and character errors for text."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from vlchat.evaluate.metrics.packages import scorer


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one reply: 1 - distance / longer length, to the nearest answer.

    From Biten et al. 2019, "Scene Text Visual Question Answering", by the rules of the script that scores ST-VQA and
    DocVQA: both sides in lower case with single spaces, the best of the answers, 0 below the threshold. What is exactly
    at the threshold keeps its value, as in the script (the paper's formula gives 0 there). The script divides by the
    length with surplus spaces, by which trailing blanks raise a score; here they count on neither side.

    Args:
        prediction: the model's reply.
        answers: every accepted answer.
        threshold: similarities below it count 0: that text was not misread, it is another one.

    Returns:
        0 to 1.

    Raises:
        ValueError: no answers. ConfigError: `rapidfuzz` is missing.
    """
    if not answers:
        raise ValueError("ANLS needs at least one answer")
    distance = scorer("rapidfuzz.distance", "rapidfuzz", "Edit distances").Levenshtein.distance
    said = " ".join(prediction.lower().split())
    best = 0.0
    for answer in answers:
        right = " ".join(answer.lower().split())
        longer = max(len(said), len(right))
        best = max(best, 1 - distance(said, right) / longer if longer else 1.0)
    return best if best >= threshold else 0.0


def relaxed_accuracy(prediction: str, answers: Sequence[str], tolerance: float = 0.05) -> float:
    """1.0 where the reply is an answer, numbers to within a share of it, else 0.0: the rule of ChartQA.

    From Masry et al. 2022, "ChartQA", by pix2struct's code (`relaxed_correctness` in metrics.py): where both sides are
    numbers, |said - right| / |right| is at most the tolerance; "12%" is 0.12; anything else, and an answer of 0, must
    be the same text but for its case. So 2010 passes for 2012, "1,000" is text, and "10" is not "10%". Surrounding
    space counts on neither side; "nan" and "inf" are text.

    Args:
        prediction: the model's reply.
        answers: every accepted answer; one of them suffices.
        tolerance: the largest relative difference, 0.05 in the paper.

    Raises:
        ValueError: no answers.
    """
    if not answers:
        raise ValueError("Relaxed accuracy needs at least one answer")
    return float(any(_relaxed_match(prediction.strip(), answer.strip(), tolerance) for answer in answers))


def _relaxed_match(said: str, right: str, tolerance: float) -> bool:
    said_number, right_number = _number(said), _number(right)
    if said_number is not None and right_number:
        return abs(said_number - right_number) / abs(right_number) <= tolerance
    return said.lower() == right.lower()


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Errors:
    """Edits between a reply and the text that stands in the picture: substitutions, deletions and insertions.

    Attributes:
        word_errors, words: errors over words, and the words of the right text.
        character_errors, characters: the same over characters, spaces between words included.
    """

    word_errors: int
    words: int
    character_errors: int
    characters: int


def reading_errors(prediction: str, reference: str) -> Errors:
    """What word and character error rates are made of, by jiwer. Normalise both sides first (`plain_text`).

    Raises:
        ConfigError: jiwer is missing.
    """
    jiwer = scorer("jiwer", "jiwer", "Word error rates")
    words = jiwer.process_words(reference, prediction)
    characters = jiwer.process_characters(reference, prediction)
    return Errors(
        words.substitutions + words.deletions + words.insertions,
        words.hits + words.substitutions + words.deletions,
        characters.substitutions + characters.deletions + characters.insertions,
        characters.hits + characters.substitutions + characters.deletions,
    )


def plain_text(text: str, *, exact: bool = False) -> str:
    """A text as its reading is compared: composed characters (Unicode NFC), single spaces, in lower case, without the
    punctuation at the edges of words (inside words it stays: "don't", "3.50", "x-ray").

    Args:
        exact: keep case and all punctuation.
    """
    composed = unicodedata.normalize("NFC", text)
    if exact:
        return " ".join(composed.split())
    stripped = (_stripped(word) for word in composed.lower().split())
    return " ".join(word for word in stripped if word)


def _stripped(word: str) -> str:
    kept = [position for position, sign in enumerate(word) if unicodedata.category(sign)[0] != "P"]
    return word[kept[0] : kept[-1] + 1] if kept else ""
