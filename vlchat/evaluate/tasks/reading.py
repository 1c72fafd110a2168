"""Questions answered by reading: text in a picture, documents, charts, and how many of something there are."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vlchat.data import SourceConfig
from vlchat.data.formats import Message
from vlchat.errors import DataError
from vlchat.evaluate.items import Item, Reading, Reply, question_of
from vlchat.evaluate.measures import Measure, Sums, divided, mean_of, ratio_of
from vlchat.evaluate.metrics.counting import stated_number, whole_number
from vlchat.evaluate.metrics.packages import scorer
from vlchat.evaluate.metrics.reading import anls, plain_text, reading_errors, relaxed_accuracy
from vlchat.evaluate.tasks.vqa import BesideTraining, data_of, source_config, usable, vqa_item


class QuestionsTask(BesideTraining):
    """Rows of a data file with a question and an answer; a subclass says how a reply is scored.

    Args:
        data: a file, folder or Hub id in any format, or a full SourceConfig.
        floor: training data that the question-only floor is read from, and that the rows are looked for in; None prints
            no floor.
        format, images, split, limit: as in SourceConfig, for `data`; `format` and `images` also for `floor`.
        slices: fields of a row by which tables split, besides `answer_type`.
        instruction: put after every question on a line of its own, such as "Answer with a single word or number.";
            models that reply in sentences need one where the text is compared as a whole.

    Raises:
        DataError: a row cannot be used; all faults are listed.
    """

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        floor: str | SourceConfig | None = None,
        format: str | None = None,
        images: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        slices: Sequence[str] = (),
        instruction: str = "",
    ) -> None:
        config = source_config(data, format=format, images=images, split=split, limit=limit)
        items = [vqa_item(example, slices) for example in usable(config)]
        self._instruction = instruction.strip()
        self._items = [replace(item, messages=_instructed(item.messages, self._instruction)) for item in items]
        self.data = data_of(config)
        self.notes: list[str] = []
        self.knows(None if floor is None else source_config(floor, format=format, images=images))

    def items(self) -> list[Item]:
        return self._items

    def asked(self, item: Item) -> str:
        return question_of(item.messages).removesuffix(self._instruction)


class DocumentTask(QuestionsTask):
    """Questions about documents and text in scenes, scored by ANLS (Biten et al. 2019)."""

    protocol = "vlchat-document-1 (ANLS, threshold 0.5, the best of the answers, lower case, single spaces)"
    measures = (mean_of("ANLS", "ANLS"), mean_of("exact", "exact"))

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        said = " ".join(replies[0].text.lower().split())
        score = anls(said, item.answers)
        return Reading(said, score, {"ANLS": score, "exact": float(score == 1)})


class ChartTask(QuestionsTask):
    """Questions about charts, scored by ChartQA's relaxed accuracy (Masry et al. 2022)."""

    protocol = "vlchat-chart-1 (relaxed accuracy by pix2struct's rule: numbers within 5 %, other text the same)"
    measures = (mean_of("relaxed", "relaxed accuracy"), mean_of("exact", "exact"))

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        said = replies[0].text.strip()
        score = relaxed_accuracy(said, item.answers)
        exact = any(said.lower() == answer.strip().lower() for answer in item.answers)
        return Reading(said, score, {"relaxed": score, "exact": float(exact)})


class ReadingTask(QuestionsTask):
    """What does the text say: word and character error rates by jiwer, each all errors over all words or characters.

    With several answers the one with the fewest errors counts. A row's score is 1 - errors / words, at least 0. For
    writing without spaces between words only the character error rate means anything.

    Args:
        exact: compare case and punctuation too.
        others: as in `QuestionsTask`.
    """

    measures = (
        ratio_of("word errors", "words", "WER", better="lower"),
        ratio_of("character errors", "characters", "CER", better="lower"),
        mean_of("exact", "read without error"),
    )
    max_new_tokens = 256  # a page of text is longer than an answer

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        floor: str | SourceConfig | None = None,
        format: str | None = None,
        images: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        slices: Sequence[str] = (),
        instruction: str = "",
        exact: bool = False,
    ) -> None:
        scorer("jiwer", "jiwer", "Word error rates")  # before any question is asked
        super().__init__(
            data=data, floor=floor, format=format, images=images, split=split, limit=limit, slices=slices,
            instruction=instruction,
        )  # fmt: skip
        self.exact = exact
        how = "case and punctuation count" if exact else "lower case, no punctuation at the edges of words"
        version = importlib.metadata.version("jiwer")
        self.protocol = f"vlchat-reading-1 (WER and CER by jiwer {version}; NFC, single spaces, {how})"

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        said = plain_text(replies[0].text, exact=self.exact)
        found = [reading_errors(said, plain_text(answer, exact=self.exact)) for answer in item.answers]
        best = min(found, key=lambda errors: (errors.word_errors / max(errors.words, 1), errors.character_errors))
        score = max(0.0, 1 - best.word_errors / max(best.words, 1))
        stats = {
            "word errors": float(best.word_errors),
            "words": float(best.words),
            "character errors": float(best.character_errors),
            "characters": float(best.characters),
            "exact": float(best.character_errors == 0),
        }
        return Reading(said, score, stats)


def _root_mean_square(sums: Sums) -> np.ndarray:
    return np.sqrt(divided(sums["squared error"], sums["rows"]))


class CountingTask(QuestionsTask):
    """How many: the first number that a reply states (`metrics.counting.stated_number`) against the right one.

    Rows whose answer is no number are left out. A reply without a number is wrong, and lacks from the mean errors. The
    slice `count` is the right number, 11 and more as one.
    """

    protocol = "vlchat-counting-1 (the first number of the reply, by rule 1 of stated_number)"
    measures = (
        mean_of("exact", "accuracy"),
        mean_of("within one", "within one"),
        mean_of("absolute error", "mean absolute error", percent=False, better="lower"),
        Measure("RMSE", _root_mean_square, ("squared error",), percent=False, better="lower"),
        mean_of("states a number", "states a number"),
    )

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        floor: str | SourceConfig | None = None,
        format: str | None = None,
        images: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        slices: Sequence[str] = (),
        instruction: str = "",
    ) -> None:
        super().__init__(
            data=data, floor=floor, format=format, images=images, split=split, limit=limit, slices=slices,
            instruction=instruction,
        )  # fmt: skip
        rows = len(self._items)
        counted = [(item, count) for item in self._items if (count := whole_number(item.reference)) is not None]
        if not counted:
            first = self._items[0]
            raise DataError(
                f"{self.data['path']}: no row's answer is a number, so there is nothing to count; "
                f'row "{first.id}" has "{first.reference[:80]}"'
            )
        self._items = [replace(item, slices={**item.slices, "count": _bucket(count)}) for item, count in counted]
        if without := rows - len(counted):
            what = "is left out: its answer is" if without == 1 else "are left out: their answer is"
            self.notes.append(f"{without:,} of {rows:,} rows {what} no number.")
        self.notes.append("A reply without a number is wrong; the mean errors are over the replies that state one.")

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        said = stated_number(replies[0].text)
        if said is None:
            return Reading("", 0.0, {"exact": 0.0, "within one": 0.0, "states a number": 0.0})
        right = whole_number(item.reference)
        assert right is not None  # the other rows were left out
        error = abs(said - right)
        stats = {
            "exact": float(error == 0),
            "within one": float(error <= 1),
            "absolute error": error,
            "squared error": error * error,
            "states a number": 1.0,
        }
        return Reading(f"{said:g}", stats["exact"], stats)


def _bucket(count: float) -> str:
    return f"{count:g}" if count <= 10 else "11 and more"


def _instructed(messages: list[Message], instruction: str) -> list[Message]:
    if not instruction:
        return messages
    last = {**messages[-1], "content": [*messages[-1]["content"]]}
    if last["content"] and last["content"][-1]["type"] == "text":
        text = last["content"].pop()["text"]
        last["content"].append({"type": "text", "text": f"{text}\n{instruction}"})
    else:
        last["content"].append({"type": "text", "text": instruction})
    return [*messages[:-1], last]
