"""Asks every request of a task, in batches, on one process or several, and asks nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlchat.data.collate import decode_images
from vlchat.data.formats import Message
from vlchat.errors import DataError, VLChatError
from vlchat.evaluate.answerers import Answerer, one_by_one
from vlchat.evaluate.blind import images_of, opened
from vlchat.evaluate.cache import AnswerCache
from vlchat.evaluate.identity import request_key
from vlchat.evaluate.items import Item, Reply, Request
from vlchat.evaluate.sharing import Processes
from vlchat.evaluate.tasks.base import Task

Change = Callable[[int, list[Message]], list[Message]]  # (which item, a request's messages) -> what is asked instead


@dataclass
class Asker:
    """Asks one model, and counts.

    Attributes:
        answerer: the model.
        batch_size: requests at once.
        max_new_tokens: the longest reply of a request that does not say.
        cache: what was answered before; None remembers nothing.
        processes: who shares the work.
        asked: how many requests the model answered.
        known: how many were answered before.
    """

    answerer: Answerer
    batch_size: int = 16
    max_new_tokens: int = 64
    cache: AnswerCache | None = None
    processes: Processes = Processes()
    progress: bool = True
    asked: int = 0
    known: int = 0

    def rounds(
        self, task: Task, items: Sequence[Item], rows: Sequence[int], label: str, change: Change | None = None
    ) -> dict[int, list[Reply]]:
        """All replies to the items `rows` names, as the task asks for them.

        Args:
            change: turns a request's conversation into the one that is shown, for a blind control.

        Raises:
            VLChatError: the model answers nothing at all; the first reason is told. Under a control it may not: some
                models take no question without a picture.
        """
        replies: dict[int, list[Reply]] = {row: [] for row in rows}
        waiting = list(rows)
        while waiting:
            wanted = [(row, request) for row in waiting for request in task.requests(items[row], replies[row])]
            if not wanted:
                break
            shown = [
                request if change is None else replace(request, messages=change(row, request.messages))
                for row, request in wanted
            ]
            names = [items[row].id for row, _ in wanted]
            for (row, _), reply in zip(wanted, self._answers(shown, names, label), strict=True):
                replies[row].append(reply)
            waiting = list(dict.fromkeys(row for row, _ in wanted))
        found = [reply for several in replies.values() for reply in several]
        if change is None and found and all(reply.error is not None for reply in found):
            raise VLChatError(f"the model answered none of the {len(found):,} questions. The first: {found[0].error}")
        return replies

    def _answers(self, requests: Sequence[Request], names: Sequence[str], label: str) -> list[Reply]:
        processes = self.processes
        keys = [self._key(request) for request in requests] if self.cache is not None else []
        known = processes.agreed(lambda: self.cache.find(keys) if self.cache is not None else {})
        answers = [known.get(key) for key in keys] if keys else [None] * len(requests)
        left = [number for number, answer in enumerate(answers) if answer is None]
        self.known += len(requests) - len(left)
        self.asked += len(left)
        # Requests of like length together need the least padding.
        left.sort(key=lambda number: _length(requests[number].messages))
        batches = [left[start : start + self.batch_size] for start in range(0, len(left), self.batch_size)]
        advance, close = _progress(len(requests), len(requests) - len(left), label if self.progress else None)

        def ask(batch: list[int]) -> list[Reply]:
            replies = self._ask([requests[number] for number in batch], [names[number] for number in batch])
            if self.cache is not None:
                self.cache.keep({keys[number]: reply for number, reply in zip(batch, replies, strict=True)})
            advance(len(batch) * processes.count)
            return replies

        try:
            answered = processes.shared(batches, ask)
        finally:
            close()
        for batch, replies in zip(batches, answered, strict=True):
            for number, reply in zip(batch, replies, strict=True):
                answers[number] = reply
        return [answer for answer in answers if answer is not None]

    def _ask(self, requests: Sequence[Request], names: Sequence[str]) -> list[Reply]:
        """The replies to one batch; a picture that is gone by now costs its own row alone."""
        decoded: list[Request | None] = []
        faults: dict[int, str] = {}
        for number, (request, name) in enumerate(zip(requests, names, strict=True)):
            try:
                decoded.append(replace(request, messages=decode_images(opened(request.messages), f'Row "{name}"')))
            except DataError as error:
                decoded.append(None)
                faults[number] = str(error)
        given = [request for request in decoded if request is not None]
        replies = iter(one_by_one(self.answerer, given, self.max_new_tokens) if given else [])
        return [
            next(replies) if request is not None else Reply(error=faults[number])
            for number, request in enumerate(decoded)
        ]

    def _key(self, request: Request) -> str:
        said = replace(request, max_new_tokens=request.max_new_tokens or self.max_new_tokens)
        return f"{self.answerer.identity} {request_key(said)}"


def _length(messages: list[Message]) -> tuple[int, int]:
    text = sum(len(part["text"]) for message in messages for part in message["content"] if part["type"] == "text")
    return len(images_of(messages)), text


def _progress(total: int, done: int, label: str | None) -> tuple[Callable[[int], Any], Callable[[], Any]]:
    if label is None:
        return lambda count: None, lambda: None
    from tqdm import tqdm  # type: ignore[import-untyped]

    bar = tqdm(total=total, initial=done, desc=label, unit="question")
    return lambda count: bar.update(min(count, total - bar.n)), bar.close
