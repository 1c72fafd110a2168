"""What the runner needs of a task, with what most tasks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlchat.evaluate.items import Item, Reading, Reply, Request
from vlchat.evaluate.leakage import Leakage
from vlchat.evaluate.measures import Measure


class Task:
    """Gives items, asks for each one or several things, and reads the replies.

    To add one: subclass, give it `protocol`, `measures`, `items` and `read`, and name it in `TASKS`. The constructor's
    keyword arguments are the task's options on the command line and in a suite's YAML.

    Attributes:
        protocol: name and version of the way of scoring, then in brackets what it does; a figure means nothing without.
        measures: what the table shows, the headline first.
        data: where the items come from, with hashes, for results and certificates.
        notes: sentences for the reader of the result.
        max_new_tokens: the longest reply this task needs.
        read_by: modules and packages, besides the task's own, whose code decides how a reply is read.
    """

    protocol: str
    measures: Sequence[Measure]
    data: dict[str, Any]
    notes: list[str]
    max_new_tokens: int = 64
    read_by: Sequence[str] = ("vlchat.evaluate.metrics",)

    def items(self) -> list[Item]:
        """Every row, in a fixed order."""
        raise NotImplementedError

    def requests(self, item: Item, replies: Sequence[Reply]) -> list[Request]:
        """What to ask next, given the replies so far; an empty list ends the item.

        By default one request: the item's messages. A task that asks several things at once returns them in its first
        call; one whose next question depends on a reply returns one at a time.
        """
        return [] if replies else [Request(item.messages)]

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        """The replies to all of an item's requests, understood and scored."""
        raise NotImplementedError

    def finish(self, items: Sequence[Item], readings: Sequence[Reading]) -> list[Reading]:
        """A last look over all rows, for statistics that need them all (CIDEr's document frequencies)."""
        return list(readings)

    def floor(self, item: Item) -> str | None:
        """The answer that a guess from the question alone gives, or None where the task has no such floor."""
        return None

    def leakage(self, cache: Path | None = None) -> Leakage | None:
        """What of the items is in the training data; None where the task knows none of these.

        Args:
            cache: the folder that keeps what pictures are compared by; None keeps nothing.
        """
        return None
