"""One answer for the page or a program that speaks Gradio: asked of the engine, handed on as it grows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import gradio as gr

from serve.decoding import Decoder
from serve.logs import Line, Log
from serve.rates import Rates
from serve.requests import told
from serve.tickets import Backend, Closed, End, Likely, Options, Ticket
from serve.visits import Visit
from vlchat.conversation import Message
from vlchat.errors import VLChatError

_LOOK = 0.5  # seconds between two looks at who is before one in the line
_PACE = 0.04  # seconds between two looks of one reader at an answer that grows, times those that are answered


@dataclass(frozen=True)
class Answer:
    """An answer as it stands.

    Attributes:
        text: so far.
        place: in the line, from 1; 0 once it is being written.
        refused: why there is none, or no more of it.
        end: how it ended.
        likely: of its tokens, once it has ended, where the backend tells.
        first_seconds, seconds: from the question to the first word, and to now.
    """

    text: str = ""
    place: int = 0
    refused: str = ""
    end: End | None = None
    likely: tuple[Likely, ...] = ()
    first_seconds: float = 0.0
    seconds: float = 0.0


@dataclass
class Asking:
    """Asks the engine in the name of visitors.

    Args:
        engine: answers.
        decoder: opens pictures.
        rates: what a visitor may ask.
        log: where it is told what they asked.
    """

    engine: Backend
    decoder: Decoder
    rates: Rates = field(default_factory=Rates)
    log: Log = field(default_factory=Log)

    async def answers(
        self, messages: Callable[[], Sequence[Message]], options: Options, words: str, request: gr.Request | None
    ) -> AsyncGenerator[Answer]:
        """The answer as it grows; the last one has its `end` or was `refused`.

        Whoever stops reading cancels it, and async at that: Stop reaches the engine at once, not with the next word.

        Args:
            messages: opens the pictures; called in a thread.
            options: `scope` is filled in for the visitor.
            words: of the question, for the log.
            request: the visitor's; None within tests.
        """
        pieces, ended, news = list[str](), list[End](), asyncio.Event()
        loop, left, begun = asyncio.get_running_loop(), threading.Event(), list[Ticket]()
        visitor = request.state if request is not None else None
        tenant, caller = getattr(visitor, "tenant", ""), getattr(visitor, "caller", "")
        scope = f"page/{tenant}/{request.session_hash}" if request is not None else ""
        line = Line(self.log, route="page", key=tenant or None)
        asked, answer = time.monotonic(), Answer()
        visit: Visit | None = None

        def deliver(one: str | End) -> None:
            # Words wait until they are looked for: to wake the page for each one takes from the engine's time.
            if isinstance(one, str):
                pieces.append(one)
            if isinstance(one, End) or len(pieces) == 1:
                loop.call_soon_threadsafe(take, one)

        def take(one: str | End) -> None:
            assert visit is not None
            visit.came(one)
            if isinstance(one, End):
                ended.append(one)
            news.set()

        def begin() -> None:
            likely = 0 if self.engine.joins else None
            begun.append(self.engine.submit(messages(), replace(options, scope=scope, logprobs=likely), deliver))
            if left.is_set():  # meanwhile
                begun[0].cancel()

        try:
            line.words(words)
            visit = Visit(self.rates, caller, line)
            await self.decoder.apart(begin)
            while answer.end is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pace if answer.text else _LOOK):
                        await news.wait()
                news.clear()
                now, before = time.monotonic() - asked, answer
                if pieces and not answer.text:
                    answer = replace(answer, place=0, first_seconds=now)
                elif not pieces and not ended:
                    answer = replace(answer, place=begun[0].place)
                end = ended[0] if ended else None  # before the words, all of which came before it
                answer = replace(answer, end=end, text="".join(pieces), seconds=now)
                if end is None and (answer.text, answer.place) != (before.text, before.place):
                    yield answer
            assert answer.end is not None
            if answer.end.reason == "cancelled":
                raise Closed
            if answer.end.error is not None:
                raise answer.end.error
            yield replace(answer, likely=tuple(begun[0].likely))
        except VLChatError as error:
            if not begun:
                self.engine.metrics.refused(told(error)[1]["error"]["code"])
            line.fields.setdefault("end", "refused")
            yield replace(answer, refused=str(error))
        finally:
            left.set()
            for ticket in begun:
                ticket.cancel()
            if visit is not None and not begun:
                visit.refused()
            line.done()

    @property
    def _pace(self) -> float:
        # Every look costs the page's process some milliseconds, so that many readers look less often.
        return _PACE * max(1, self.engine.answering)


async def together(streams: Sequence[AsyncGenerator[Answer]]) -> AsyncGenerator[tuple[Answer, ...]]:
    """Several answers that grow at once, as they stand whenever one has grown. Closes them all."""
    latest = [Answer()] * len(streams)
    waiting: dict[asyncio.Future[Answer], int] = {}

    def wait_for(number: int) -> None:
        waiting[asyncio.ensure_future(anext(streams[number]))] = number

    try:
        for number in range(len(streams)):
            wait_for(number)
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                number = waiting.pop(one)
                try:
                    latest[number] = one.result()
                except StopAsyncIteration:
                    continue
                wait_for(number)
                yield tuple(latest)
    finally:
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
