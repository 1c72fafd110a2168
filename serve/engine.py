"""Many conversations answered at once: a line to wait in, a batch that they join and leave, nothing computed twice.

A thread of its own runs the model. Between two steps of the batch it takes in the next of those that wait, a piece of
its prompt at a time, so that a long prompt does not stop the others' words. What was computed of a conversation is kept
for its next turn and for whoever begins alike.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from serve.batch import Batch, Row
from serve.gate import Gate
from serve.metrics import Metrics
from serve.prefixes import Pictures, Prefixes
from serve.tickets import Busy, Closed, End, Options, Ticket
from vlchat.chat import Chat
from vlchat.conversation import Message
from vlchat.errors import VLChatError

MIB = 2**20


class Engine:
    """Answers for many at once, by a model and its adapters.

    A model whose conversations can't be answered together (`Batch.joins`) answers one after another.

    Args:
        chat: whose model answers.
        most: conversations that are answered at once.
        waiting: places in the line.
        memory: bytes for what is kept of conversations.
        pictures: bytes for what is kept of pictures.
        piece: tokens of prompts that are computed between two steps of the others.

    Attributes:
        metrics: what it counts and times.
    """

    def __init__(
        self, chat: Chat, *, most: int = 8, waiting: int = 64, memory: int = 512 * MIB, pictures: int = 64 * MIB,
        piece: int = 256,
    ) -> None:  # fmt: skip
        self.chat, self.most, self.waiting, self.piece = chat, most, waiting, piece
        self.prefixes, self.pictures = Prefixes(memory), Pictures(pictures)
        self._batches = {
            name: Batch(each, name, most, self.prefixes, self.pictures)
            for name, each in {"": chat, **chat.adapters}.items()
        }
        self._line: deque[Row] = deque()
        self._coming: Row | None = None
        self._changed = threading.Condition()
        self._gate = Gate(self._changed)
        self._closing = False
        self.metrics = Metrics(
            running=lambda: self.answering, waiting=lambda: len(self._line), kept=lambda: self.prefixes.bytes,
            pictures=lambda: self.pictures.bytes,
        )  # fmt: skip
        self._thread = threading.Thread(target=torch.inference_mode()(self._live), name="vlchat-engine", daemon=True)
        self._thread.start()

    def submit(
        self, messages: Sequence[Message], options: Options | None = None,
        deliver: Callable[[str | End], object] | None = None,
    ) -> Ticket:  # fmt: skip
        """Takes a conversation into the line.

        Args:
            messages: as of `Chat.stream`.
            options: the defaults, if there are none.
            deliver: is called by the engine's thread with each piece and at last with an `End`, in place of iterating.

        Raises:
            Busy: all places are taken.
            VLChatError: the conversation can't be answered; as `Chat.stream`.
        """
        options = options or Options()
        if options.adapter is not None:
            self.chat.with_adapter(options.adapter)  # or it is told that there is none
        batch = self._batches[options.adapter or ""]
        if options.logprobs is not None and not batch.joins:
            raise VLChatError("This model does not tell how likely its tokens are. Leave logprobs out.")
        asked = time.monotonic()
        with self._changed:
            self._refuse()
        inputs, config = batch.chat.prepare(
            messages, max_new_tokens=options.max_new_tokens, temperature=options.temperature, top_p=options.top_p
        )
        ticket = Ticket(self, deliver, asked)
        row = batch.row(ticket, options, inputs, config)
        with self._changed:
            self._refuse()
            self._line.append(row)
            self._changed.notify()
        return ticket

    def _refuse(self) -> None:
        if self._closing:
            raise Closed
        if len(self._line) >= self.waiting:
            raise Busy(f"All {self.waiting} places in the line are taken. Ask again in a minute.")

    def beside(self, adapter: str | None, left: threading.Event) -> Chat:
        """The model, or one of its adapters, for work that writes no answer; see `serve.tickets.Backend.beside`."""
        answers = self.chat if adapter is None else self.chat.with_adapter(adapter)
        chat = copy.copy(answers)
        chat.turn = self._gate.turn(answers.turn, left)
        return chat

    def place_of(self, ticket: Ticket) -> int:
        """See `Ticket.place`."""
        with self._changed:
            before = [row.ticket for row in self._line]
        return before.index(ticket) + 1 if ticket in before else 0

    def wake(self) -> None:
        """Has the engine look at its tickets now. Who left the line gives the place back at once."""
        with self._changed:
            gone = [row for row in self._line if row.ticket.left.is_set()]
            for row in gone:
                self._line.remove(row)
            self._changed.notify()
        for row in gone:
            row.finish("cancelled")

    @property
    def description(self) -> dict[str, Any]:
        """The model's, see `Chat.description`."""
        return self.chat.description

    def described(self, name: str | None) -> dict[str, Any]:
        """The same of an adapter, and the `context_length` in tokens, if it is known."""
        chat = self.chat if name is None else self.chat.with_adapter(name)
        return {**chat.description, "context_length": chat.context_length}

    @property
    def names(self) -> list[str]:
        """The model and its adapters."""
        return [str(self.chat.description.get("name") or "vlchat"), *self.chat.adapters]

    @property
    def joins(self) -> bool:
        """Whether conversations are answered together; else one after another."""
        return all(batch.joins for batch in self._batches.values())

    @property
    def open(self) -> bool:
        """Whether it takes conversations."""
        return not self._closing

    @property
    def answering(self) -> int:
        """Conversations that are being answered or on their way there."""
        return self._running + (self._coming is not None)

    @property
    def _running(self) -> int:
        return sum(len(batch.rows) for batch in self._batches.values())

    def close(self, wait: float | None = 10.0) -> None:
        """Takes no more, ends what is being answered after `wait` seconds (None: not before it is done), and stops."""
        with self._changed:
            self._closing = True
            refused, self._line = list(self._line), deque()
            self._changed.notify()
        for row in refused:
            row.finish("cancelled", Closed())
        self._thread.join(wait)
        rows = [row for batch in self._batches.values() for row in batch.rows]
        for one in [*rows, *([self._coming] if self._coming else [])]:
            one.ticket.cancel()
        self._thread.join(None if wait is None else 10.0)

    def _live(self) -> None:
        try:
            self._run()
        finally:  # also where it broke, so that nobody waits for what does not come
            self._gate.close()
            with self._changed:
                self._closing = True
                left, self._line = [*self._line, *([self._coming] if self._coming else [])], deque()
                self._coming = None
                for batch in self._batches.values():
                    left += batch.rows
                    batch.rows = []
            for row in left:
                row.finish("cancelled", Closed())

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._line or self._coming or self._running or self._closing or self._gate.waiting):
                    self._changed.wait()
                if self._closing and not (self._coming or self._running):
                    return
            computed = 0
            while computed < self.piece and (row := self._next()):
                computed += self._take_in(row)
            for batch in self._batches.values():
                batch.drop_left()
                if batch.rows:
                    self._guarded(batch, batch.rows[-1:], batch.rows, batch.step)
            self._gate.let_in(busy=self.answering > 0)

    def _next(self) -> Row | None:
        """The conversation that is coming; the first in the line is, if there is room."""
        with self._changed:
            if self._line and self._coming is None and self._running < self.most:
                self._coming = self._line.popleft()
            if self._coming is not None and self._coming.ticket.left.is_set():
                row, self._coming = self._coming, None
                row.finish("cancelled")
        return self._coming

    def _take_in(self, row: Row) -> int:
        """A piece of the prompt of the conversation that is coming, of so many tokens."""
        if not row.batch.joins:
            row.batch.alone(row)
            self._coming = None
            return self.piece
        computed = self._guarded(row.batch, [row], [row], lambda: row.batch.take_in(row, self.piece))
        if row.ticket.end is not None or row in row.batch.rows:
            self._coming = None
        return computed or 1

    def _guarded(self, batch: Batch, largest: Sequence[Row], concerned: Sequence[Row], work: Callable[[], int]) -> int:
        """Some work on the model, and its result. A failure is told to those whom it concerns; the others go on.

        Args:
            largest: who ends where memory is short and nothing more can be given back.
        """
        concerned, largest = list(concerned), list(largest)
        try:
            with batch.chat.turn:
                return work()
        except torch.OutOfMemoryError as error:
            if self.prefixes.bytes:
                self.prefixes.clear()  # and the same work once more
                if self._coming is not None:
                    self._coming.cache = None
            else:
                batch.fail(largest, error)
        except Exception as error:
            batch.fail(concerned, error)
        return 0
