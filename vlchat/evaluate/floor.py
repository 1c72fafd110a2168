"""The question-only floor: what a guess without any picture gets, read from the training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from vlchat.data import Source
from vlchat.data.formats import text_of
from vlchat.errors import DataError
from vlchat.evaluate.metrics import vqa_normalize


class QuestionOnlyFloor:
    """The best guess without looking: the most frequent answer to this question text in the training data.

    A question that was never asked there gets the most frequent answer of its `answer_type`, or of all.
    """

    def __init__(self, source: Source) -> None:
        self._by_question: dict[str, Counter[str]] = {}
        self._by_type: dict[str | None, Counter[str]] = {}
        for index in range(len(source)):
            example = source.example(index)
            kind = example.meta.get("answer_type")
            for before, after in zip(example.messages, example.messages[1:], strict=False):
                if (before["role"], after["role"]) == ("user", "assistant"):
                    answer = vqa_normalize(text_of(after))
                    self._by_question.setdefault(_key(text_of(before)), Counter())[answer] += 1
                    for group in {None if kind is None else str(kind).lower(), None}:
                        self._by_type.setdefault(group, Counter())[answer] += 1
        if None not in self._by_type:
            raise DataError(f"{source.name} has no question with an answer, so there is no floor to read from it")

    def guess(self, question: str, slices: Mapping[str, str]) -> str:
        """The answer to a question, given the slices of its item."""
        known = self._by_question.get(_key(question)) or self._by_type.get(slices.get("answer_type"))
        return (known or self._by_type[None]).most_common(1)[0][0]


def _key(text: str) -> str:
    return " ".join(text.lower().split())
