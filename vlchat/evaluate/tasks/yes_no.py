"""Yes/no questions, with what tells a model that sees from one that likes to say yes: precision, recall, yes ratio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlchat.data import SourceConfig
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.items import Item, Reading, Reply
from vlchat.evaluate.measures import mean_of
from vlchat.evaluate.metrics.choices import YES_NO_MEASURES, first_word_verdict, yes_no_reading
from vlchat.evaluate.tasks.base import Task
from vlchat.evaluate.tasks.vqa import data_of, source_config, usable, vqa_item

_LISTED = 20


class YesNoTask(Task):
    """Questions whose answers are yes or no (or true or false), read by the reply's first word.

    "yes" is the positive class. A reply that begins with neither word is wrong: it counts as not found where yes is
    right, and is no "yes" for precision and the yes ratio.

    Args:
        data, format, images, split, limit, slices: as for the task vqa.
        others: what to do with rows whose answer is neither yes nor no: "error" or "skip".

    Raises:
        DataError: a row cannot be used, or its answer is neither yes nor no.
    """

    protocol = "vlchat-yes-no-1 (yes/no or true/false by the reply's first word, anything else is wrong)"
    measures = [*YES_NO_MEASURES, mean_of("neither", "neither", better="lower")]

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        format: str | None = None,
        images: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        slices: Sequence[str] = (),
        others: str = "error",
    ) -> None:
        if others not in ("error", "skip"):
            raise ConfigError(f'others is "{others}"; it must be "error" or "skip"')
        config = source_config(data, format=format, images=images, split=split, limit=limit)
        examples = usable(config)
        found = [vqa_item(example, slices) for example in examples]
        self._items = [item for item in found if first_word_verdict(item.reference) is not None]
        other = [
            f'{example.called}: "{item.reference[:60]}"'
            for example, item in zip(examples, found, strict=True)
            if first_word_verdict(item.reference) is None
        ]
        if other and (others == "error" or not self._items):
            listed = "\n".join(f"  {line}" for line in other[:_LISTED])
            more = f"\n  and {len(other) - _LISTED:,} more" if len(other) > _LISTED else ""
            raise DataError(
                f"The answers of {len(other):,} of {len(found):,} rows are neither yes nor no, nor true nor false:\n"
                f"{listed}{more}\nAsk them with the task vqa, or leave them out here: others=skip."
            )
        self.data: dict[str, Any] = data_of(config)
        self.notes: list[str] = []
        if other:
            self.notes.append(f"{len(other):,} rows whose answer is neither yes nor no were left out.")

    def items(self) -> list[Item]:
        return self._items

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        said = None if replies[0].error is not None else first_word_verdict(replies[0].text)
        return yes_no_reading(said, first_word_verdict(item.reference) == "yes")
