"""Open and closed questions about pictures: exact match or soft accuracy, after the VQA challenge's normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlchat.data import Example, Source, SourceConfig, check, fingerprint, load_source
from vlchat.data.formats import answer_of, text_of
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.floor import QuestionOnlyFloor
from vlchat.evaluate.items import Item, Reading, Reply, question_of
from vlchat.evaluate.leakage import Leakage, leakage
from vlchat.evaluate.measures import mean_of
from vlchat.evaluate.metrics import exact_match, vqa_accuracy, vqa_normalize, yes_no
from vlchat.evaluate.tasks.base import Task

PEOPLE_FOR_SOFT_ACCURACY = 4  # with fewer answers the published formula cannot reach 1


class ExamplesTask(Task):
    """Examples at hand: the last assistant turn is the reference, the turns before it are context.

    Args:
        examples: the rows.
        data: where they come from.
        slices: fields of a row by which tables split, besides `answer_type`.

    Raises:
        DataError: an Example whose last answer follows no question.
    """

    measures = [mean_of("score", "accuracy"), mean_of("first word", "yes/no, by first word")]

    def __init__(
        self, examples: Sequence[Example], data: dict[str, Any] | None = None, slices: Sequence[str] = ()
    ) -> None:
        self._items = [vqa_item(example, slices) for example in examples]
        soft = sum(len(item.answers) >= PEOPLE_FOR_SOFT_ACCURACY for item in self._items)
        scoring = {0: "exact match", len(self._items): "VQA soft accuracy"}.get(
            soft, "VQA soft accuracy or exact match"
        )
        self.protocol = f"vlchat-vqa-1 ({scoring} after the VQA challenge's normalisation)"
        self.data = data or {}
        self.notes = [f"{soft:,} rows scored by VQA soft accuracy, {len(self._items) - soft:,} by exact match."]

    def items(self) -> list[Item]:
        return self._items

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        reply = replies[0].text
        soft = len(item.answers) >= PEOPLE_FOR_SOFT_ACCURACY
        score = (vqa_accuracy if soft else exact_match)(reply, item.answers)
        stats = {"score": score}
        if (reference := vqa_normalize(item.reference)) in ("yes", "no"):
            stats["first word"] = float(yes_no(reply) == reference)
        return Reading(vqa_normalize(reply), score, stats)


class BesideTraining(Task):
    """A task over questions that knows the data that the model was trained on: the floor, and what has leaked."""

    _floor: QuestionOnlyFloor | None = None
    _training: Source | None = None

    def knows(self, config: SourceConfig | None) -> None:
        """Takes the training data, where there are any. Call it once `data` and `notes` are there."""
        if config is None:
            return
        self._training = load_source(config)
        self._floor = QuestionOnlyFloor(self._training)
        self.data["floor"] = data_of(config)
        note = "floor: the most frequent answer to the same question text in the floor file, unseen picture."
        self.notes.append(note)

    def asked(self, item: Item) -> str:
        """The question as the training data would have it."""
        return question_of(item.messages)

    def floor(self, item: Item) -> str | None:
        return None if self._floor is None else self._floor.guess(self.asked(item), item.slices)

    def leakage(self, cache: Path | None = None) -> Leakage | None:
        if self._training is None:
            return None
        return leakage(self._training, [item.source for item in self.items()], cache=cache)


class VqaTask(BesideTraining, ExamplesTask):
    """Any data file in any format, scored as `ExamplesTask` says.

    Args:
        data: the file, folder or Hub id, or a full SourceConfig.
        floor: training data that the question-only floor is read from, and that the rows are looked for in; None prints
            no floor.
        format, images, split, limit: as in SourceConfig, for `data`; `format` and `images` also for `floor`.
        slices: fields of a row by which tables split, besides `answer_type`.

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
    ) -> None:
        config = source_config(data, format=format, images=images, split=split, limit=limit)
        super().__init__(usable(config), data_of(config), slices)
        self.knows(None if floor is None else source_config(floor, format=format, images=images))


def source_config(data: str | SourceConfig, **options: Any) -> SourceConfig:
    """Where rows come from: a path or Hub id with SourceConfig's options, or a SourceConfig as it is."""
    return data if isinstance(data, SourceConfig) else SourceConfig(data, **options)


def data_of(config: SourceConfig) -> dict[str, Any]:
    """What a result says of its data: path, split, limit and hash."""
    found = {"path": config.path, "split": config.split, "limit": config.limit, "sha256": fingerprint(config.path)}
    return {name: value for name, value in found.items() if value is not None}


def usable(source: Source | SourceConfig) -> list[Example]:
    """The examples of a source.

    Raises:
        DataError: a row cannot be used; all faults are listed.
    """
    if isinstance(source, SourceConfig):
        source = load_source(source)
    report = check(source)
    # An id given twice confuses a training run; here it only appears twice among the replies.
    report.bad = [problem for problem in report.bad if problem.field != "id"]
    if not report.ok:
        raise DataError(report.render(most=20))
    return list(source)


def vqa_item(example: Example, slices: Sequence[str] = ()) -> Item:
    """The row as an item: the last answer is the reference, `answers` beside it are the accepted ones.

    Raises:
        DataError: the answer follows no question. ConfigError: a slice that the row has no field for.
    """
    last = max(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
    context = example.messages[:last]
    if not context or context[-1]["role"] != "user":
        raise DataError(f'Row "{example.id}": the answer to score must follow a user turn')
    reference = text_of(example.messages[last])
    given = example.meta.get("answers")
    named = enumerate(given) if isinstance(given, list) else ()
    answers = [answer_of(answer, f"answers[{number}]") for number, answer in named] or [reference]
    found = {"answer_type": str(kind).lower()} if (kind := example.meta.get("answer_type")) is not None else {}
    for name in slices:
        if name not in example.meta:
            known = ", ".join(example.meta) or "none"
            raise ConfigError(f'{example.called} has no field "{name}" to split by; its other fields: {known}.')
        found[name] = str(example.meta[name])
    return Item(example.id, context, reference, tuple(answers), found, source=example)
