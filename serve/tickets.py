"""What is handed to those who wait for an answer of the engine: a ticket, its pieces, its end."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serve.metrics import Metrics
from vlchat.chat import Chat
from vlchat.conversation import Message
from vlchat.errors import VLChatError


class Busy(VLChatError):
    """The line is full."""


class Closed(VLChatError):
    """The engine takes no more."""

    def __init__(self) -> None:
        super().__init__("The server is stopping. Ask again in a minute.")


class Failed(VLChatError):
    """The model failed at an answer. Why is its cause, for whoever runs the server, not for whoever asks.

    Attributes:
        status, code: as of `serve.requests.RequestError`.
    """

    def __init__(self, cause: BaseException, memory: bool = False) -> None:
        told = "The server's memory is full. Send fewer pictures or less text, or ask again in a minute."
        super().__init__(told if memory else "The model failed at this answer. Ask again, or ask something else.")
        self.status, self.code = (503, "memory_full") if memory else (500, "failed")
        self.__cause__ = cause


@dataclass(frozen=True)
class Options:
    """How an answer is to be written, as of `Chat.stream`.

    Attributes:
        logprobs: how many of the likeliest tokens are told beside each one; None tells none, see `Ticket.likely`.
        scope: of whose conversations what was computed may be used again; others never see it.
        beams: of a search for the likeliest answer, which comes in one piece; 1 for none.
        stop: words that end it, for a backend on another machine; here whoever reads the answer cuts it.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    adapter: str | None = None
    scope: str = ""
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    beams: int = 1


@dataclass(frozen=True)
class Likely:
    """How likely a token was.

    Attributes:
        text: of the token.
        logprob: by the model itself, before temperature and top-p.
        others: the likeliest tokens at its place, and their logprobs.
    """

    text: str
    logprob: float
    others: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class End:
    """How an answer ended.

    Attributes:
        reason: "stop" (the model ended it), "length" (it was as long as it may be) or "cancelled".
        prompt_tokens, cached_tokens, new_tokens: of the conversation; of those, known before; of the answer.
        error: why there is none, or no more of it.
    """

    reason: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    error: BaseException | None = None


class Line(Protocol):
    """What a ticket asks of the engine."""

    metrics: Metrics

    def place_of(self, ticket: Ticket) -> int: ...

    def wake(self) -> None: ...


class Ticket:
    """An answer that is being waited for. Iterating gives its pieces as they come; leaving the loop cancels it.

    Args:
        asked: when, by `time.monotonic`; now by default.

    Attributes:
        end: how it ended; None before.
        likely: of the tokens that have come, where `Options.logprobs` asks for it; whoever reads takes them out.
    """

    def __init__(self, engine: Line, deliver: Callable[[str | End], object] | None, asked: float | None = None) -> None:
        self._engine = engine
        self._came: queue.SimpleQueue[str | End] = queue.SimpleQueue()
        self._deliver = deliver or self._came.put
        self._begun = False
        self.left = threading.Event()
        self.ending = "cancelled"  # an `End.reason`, where it is left
        self.end: End | None = None
        self.likely: deque[Likely] = deque()
        self._asked = self._last = time.monotonic() if asked is None else asked
        self._tokens = 0

    @property
    def place(self) -> int:
        """Its place in the line, from 1; 0 once it is being answered."""
        return self._engine.place_of(self)

    def cancel(self) -> None:
        """Nobody wants the answer any more: its slot is free before the next step."""
        self.left.set()
        self._engine.wake()

    def enough(self) -> None:
        """As `cancel`, for an answer that has come to its stop word: it counts as ended by itself."""
        self.ending = "stop"
        self.cancel()

    def __iter__(self) -> Iterator[str]:
        """Its pieces.

        Raises:
            VLChatError: it can't be answered, or not to its end.
        """
        try:
            while not isinstance(came := self._came.get(), End):
                yield came
        finally:
            self.cancel()
        if came.error is not None:
            raise came.error

    def token(self) -> None:
        """A token came."""
        now = time.monotonic()
        self._engine.metrics.token(now - self._last, first=not self._tokens)
        self._last, self._tokens = now, self._tokens + 1

    def piece(self, text: str) -> None:
        """Hands on what was written; of an answer's beginning nothing but letters."""
        text = text if self._begun else text.lstrip()
        if text:
            self._begun = True
            self._hand_on(text)

    def finish(self, end: End) -> None:
        """The answer has ended. Called once."""
        if self.end is None:
            self.end = end
            reason = "error" if end.error is not None else end.reason
            self._engine.metrics.ended(
                reason, end.prompt_tokens, end.cached_tokens, end.new_tokens, time.monotonic() - self._asked
            )
            self._hand_on(end)

    def _hand_on(self, came: str | End) -> None:
        try:
            self._deliver(came)
        except Exception:  # whoever listened is gone, such as with an event loop; that ends no other's answer
            self.left.set()


class Backend(Protocol):
    """Who answers: all that the page and the API ask of `serve.engine.Engine`, or of a `serve.gateway.Gateway`."""

    @property
    def metrics(self) -> Metrics:
        """What it counts and times."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What people should know of it, as `vlchat.chat.Chat.description`."""

    def described(self, name: str | None) -> Mapping[str, Any]:
        """The same of one of its models, as `Options.adapter` calls it.

        Raises:
            VLChatError: there is none of this name.
        """

    @property
    def joins(self) -> bool:
        """Whether its models answer several at once, and tell how likely their tokens are."""

    @property
    def names(self) -> Sequence[str]:
        """The models to choose from. The first answers where `Options.adapter` is None; the others go by their name."""

    @property
    def open(self) -> bool:
        """Whether it takes conversations."""

    @property
    def answering(self) -> int:
        """Conversations that it is answering."""

    def submit(
        self, messages: Sequence[Message], options: Options | None = None,
        deliver: Callable[[str | End], object] | None = None,
    ) -> Ticket:  # fmt: skip
        """Begins to answer a conversation, without waiting for a word of it.

        Args:
            messages: as of `Chat.stream`.
            options: the defaults, if there are none.
            deliver: is called by another thread with each piece and at last with an `End`, in place of iterating.

        Raises:
            Busy, Closed: it takes no more.
            VLChatError: the conversation can't be answered. What is found out later is the `End`'s error.
        """

    def beside(self, adapter: str | None, left: threading.Event) -> Chat | None:
        """The model that answers, to be looked into while others are answered; None where it is not here.

        Its `turn` comes between two steps, and raises `serve.gate.Left` once `left` is set. Hold it for one pass at a
        time: nobody's words come meanwhile.

        Raises:
            VLChatError: there is no such adapter. The turn raises `Closed` where the engine stops.
        """

    def close(self, wait: float | None = 10.0) -> None:
        """Takes no more, ends what is being answered after `wait` seconds (None: not before it is done), and stops."""
