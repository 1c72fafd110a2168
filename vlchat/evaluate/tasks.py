"""What can be asked: a task gives questions and scores replies. To add one, write a class and name it in `TASKS`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlchat.data import Example, Source, SourceConfig, check, fingerprint, load_source
from vlchat.data.formats import Message, answer_of, text_of
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.metrics import exact_match, vqa_accuracy, vqa_normalize, yes_no

PEOPLE_FOR_SOFT_ACCURACY = 4  # with fewer answers the published formula cannot reach 1


@dataclass(frozen=True)
class Item:
    """One question. `messages` end in the user's turn; their pictures may be paths, which the runner decodes."""

    id: str
    messages: list[Message]
    reference: str
    group: str | None = None  # the line of the table it counts in, besides the overall one
    answers: list[str] = field(default_factory=list)
    source: Any = None


class Task(Protocol):
    """What the runner needs of a task."""

    protocol: str  # name and version of the way of scoring; a figure means nothing without it
    metric: str
    data: dict[str, Any]  # where the questions come from, for the result file
    notes: list[str]

    def items(self) -> list[Item]: ...

    def score(self, item: Item, reply: str) -> float: ...

    def extra_scores(self, item: Item, reply: str) -> dict[str, float]:
        """Scores by another reading, each an extra line of the table over the items that have it."""
        ...

    def floor(self, item: Item) -> str | None:
        """The answer that a guess from the question alone gives, or None where the task has no such floor."""
        ...


class ScenesTask:
    """Questions about freshly drawn scenes, scored by the fact that the reply states.

    Args:
        questions: how many, the kinds in turn.
        seed: draws the scenes and questions.
        phrasings: "seen" asks in the wordings used in training, "held" in those kept for testing.
    """

    protocol = "vlchat-scenes-3 (the reply states the fact asked for; wording is free)"
    metric = "right"

    def __init__(self, *, questions: int = 2000, seed: int = 0, phrasings: str = "seen") -> None:
        if questions < 1:
            raise ConfigError(f"questions is {questions}; it must be at least 1")
        self.questions, self.seed, self.phrasings = questions, seed, phrasings
        self.data = {"generator": "vlchat.scenes", "split": "test", "phrasings": phrasings, "questions": questions}
        self.notes: list[str] = []

    def items(self) -> list[Item]:
        from vlchat import scenes

        drawn = scenes.questions(self.questions, self.seed, split="test", phrasings=self.phrasings)
        return [Item(asked.id, asked.messages, asked.answer, asked.kind, asked.accepted, asked) for asked in drawn]

    def score(self, item: Item, reply: str) -> float:
        from vlchat import scenes

        return float(scenes.correct(item.source, reply))

    def extra_scores(self, item: Item, reply: str) -> dict[str, float]:
        return {}

    def floor(self, item: Item) -> str | None:
        return None


class ExamplesTask:
    """Examples at hand: the last assistant turn is the reference, the turns before it are context.

    Raises:
        DataError: an Example whose last answer follows no question.
    """

    metric = "score"

    def __init__(self, examples: Sequence[Example], data: dict[str, Any] | None = None) -> None:
        self._items = [_vqa_item(example) for example in examples]
        soft = sum(len(item.answers) >= PEOPLE_FOR_SOFT_ACCURACY for item in self._items)
        scoring = {0: "exact match", len(self._items): "VQA soft accuracy"}.get(
            soft, "VQA soft accuracy or exact match"
        )
        self.protocol = f"vlchat-vqa-1 ({scoring} after the VQA challenge's normalisation)"
        self.data: dict[str, Any] = data or {}
        self.notes = [f"{soft:,} rows scored by VQA soft accuracy, {len(self._items) - soft:,} by exact match."]

    def items(self) -> list[Item]:
        return self._items

    def score(self, item: Item, reply: str) -> float:
        if len(item.answers) >= PEOPLE_FOR_SOFT_ACCURACY:
            return vqa_accuracy(reply, item.answers)
        return exact_match(reply, item.answers)

    def extra_scores(self, item: Item, reply: str) -> dict[str, float]:
        reference = vqa_normalize(item.reference)
        return {"yes/no, by first word": float(yes_no(reply) == reference)} if reference in ("yes", "no") else {}

    def floor(self, item: Item) -> str | None:
        return None


class VqaTask(ExamplesTask):
    """Any data file in any format, scored as `ExamplesTask` says.

    Args:
        data: the file, folder or Hub id, or a full SourceConfig.
        floor: training data that the question-only floor is read from; None prints no floor.
        format, images, split, limit: as in SourceConfig, for `data`; `format` and `images` also for `floor`.

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
    ) -> None:
        config = data if isinstance(data, SourceConfig) else SourceConfig(data, format, images, split, limit=limit)
        super().__init__(
            _usable(config), {"path": config.path, "split": config.split, "sha256": fingerprint(config.path)}
        )
        self._floor: QuestionOnlyFloor | None = None
        if floor is not None:
            floor_config = floor if isinstance(floor, SourceConfig) else SourceConfig(floor, format, images)
            self._floor = QuestionOnlyFloor(load_source(floor_config))
            self.data["floor"] = {"path": floor_config.path, "sha256": fingerprint(floor_config.path)}
            self.notes.append(
                "floor: the most frequent answer to the same question text in the floor file, unseen picture."
            )

    def floor(self, item: Item) -> str | None:
        return None if self._floor is None else self._floor.guess(text_of(item.messages[-1]), item.group)


class QuestionOnlyFloor:
    """The best guess without looking: the most frequent answer to this question text in the training data.

    A question that was never asked there gets the most frequent answer of its group (`answer_type`), or of all.
    """

    def __init__(self, source: Source) -> None:
        self._by_question: dict[str, Counter[str]] = {}
        self._by_group: dict[str | None, Counter[str]] = {}
        for index in range(len(source)):
            example = source.example(index)
            for before, after in zip(example.messages, example.messages[1:], strict=False):
                if (before["role"], after["role"]) == ("user", "assistant"):
                    answer = vqa_normalize(text_of(after))
                    self._by_question.setdefault(_question_key(text_of(before)), Counter())[answer] += 1
                    for group in {_group(example), None}:
                        self._by_group.setdefault(group, Counter())[answer] += 1
        if None not in self._by_group:
            raise DataError(f"{source.name} has no question with an answer, so there is no floor to read from it")

    def guess(self, question: str, group: str | None) -> str:
        known = self._by_question.get(_question_key(question)) or self._by_group.get(group) or self._by_group[None]
        return known.most_common(1)[0][0]


TASKS: dict[str, Callable[..., Task]] = {"scenes": ScenesTask, "vqa": VqaTask}


def _usable(config: SourceConfig) -> list[Example]:
    source = load_source(config)
    report = check(source)
    # An id given twice confuses a training run; here it only appears twice among the replies.
    report.bad = [problem for problem in report.bad if problem.field != "id"]
    if not report.ok:
        raise DataError(report.render(most=20))
    return list(source)


def _vqa_item(example: Example) -> Item:
    last = max(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
    context = example.messages[:last]
    if not context or context[-1]["role"] != "user":
        raise DataError(f'Row "{example.id}": the answer to score must follow a user turn')
    reference = text_of(example.messages[last])
    given = example.meta.get("answers")
    named = enumerate(given) if isinstance(given, list) else ()
    answers = [answer_of(answer, f"answers[{number}]") for number, answer in named] or [reference]
    return Item(example.id, context, reference, _group(example), answers, example)


def _group(example: Example) -> str | None:
    kind = example.meta.get("answer_type")
    return None if kind is None else str(kind).lower()


def _question_key(text: str) -> str:
    return " ".join(text.lower().split())
