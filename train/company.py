"""Company: beside each row others about the same pictures, so that a step learns more from each picture it encodes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from random import Random
from typing import Any

from train.heldout import shown_by_rows
from vlchat.data import Example, Mixture
from vlchat.data.formats import Message
from vlchat.errors import DataError

SHARED = "shares the pictures of"  # in an Example's meta: what names the rows that share


class Company:
    """Which rows accompany a row: as many as asked of those that show the same pictures, drawn anew each epoch.

    Args:
        mixture: the training rows.
        count: at most so many beside each.
    """

    def __init__(self, mixture: Mixture, count: int) -> None:
        self.mixture, self.count = mixture, count
        self._with: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        self._shown: dict[tuple[int, int], tuple[str, ...]] = {}
        for row, pictures in shown_by_rows(mixture):
            if pictures:
                self._shown[row] = tuple(pictures)
                self._with[tuple(pictures)].append(row)

    def beside(self, index: int, epoch: int, example: Example) -> list[Example]:
        """The row itself, marked, and its company, with the pictures as that row shows them.

        Args:
            index: its position in the epoch that the mixture is at.
            example: the row, its pictures varied or not.
        """
        row = self.mixture.locate(index)
        others = [other for other in self._with[self._shown[row]] if other != row] if row in self._shown else []
        if not others or not _leads(example.messages):
            return [example]
        drawn = Random(f"company {self.mixture.seed} {epoch} {index}").sample(others, len(others))
        mark = {SHARED: f"{epoch} {index}"}
        found = [replace(example, meta={**example.meta, **mark})]
        for source, number in drawn:
            if len(found) > self.count:
                break
            try:
                other = self.mixture.sources[source][number]
            except DataError:  # told where it is a row of its own
                continue
            if _leads(other.messages):
                messages = _with_pictures(other.messages, _pictures(example.messages))
                found.append(replace(other, messages=messages, meta={**other.meta, **mark}))
        return found


def _leads(messages: list[Message]) -> bool:
    """Whether all pictures stand at the start of the first user's turn, behind nothing but a system turn."""
    users = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        return False
    parts = [part["type"] for part in messages[users[0]]["content"]]
    first_text = parts.index("text") if "text" in parts else len(parts)
    later = [part["type"] for message in messages[users[0] + 1 :] for part in message["content"]]
    return "image" not in parts[first_text:] and "image" not in later and "video" not in parts + later


def _pictures(messages: list[Message]) -> list[Any]:
    return [part for message in messages for part in message["content"] if part["type"] == "image"]


def _with_pictures(messages: list[Message], pictures: list[Any]) -> list[Message]:
    waiting = iter(pictures)
    return [
        {**message, "content": [next(waiting) if part["type"] == "image" else part for part in message["content"]]}
        for message in messages
    ]
