"""Chat completions as OpenAI's clients ask for them, on the page's port and by the page's engine.

`POST /v1/chat/completions`, `GET /v1/models`, `/health` (the process lives), `/ready` (it takes questions) and
`/metrics`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serve import requests
from serve.decoding import Decoder
from serve.fetching import Hosts
from serve.guard import refusal
from serve.metrics import CONTENT_TYPE
from serve.rates import Rates
from serve.requests import ChatRequest, RequestError, Until
from serve.tickets import Backend, Closed, End, Ticket
from serve.visits import Visit
from vlchat.errors import VLChatError

_STARTED = int(time.time())
T = TypeVar("T")


class Api:
    """The routes over one engine.

    Args:
        engine: the page's.
        decoder: the page's.
        rates: what a caller may ask, here and on the page.
        hosts: where pictures may be fetched from.
    """

    def __init__(self, engine: Backend, decoder: Decoder, rates: Rates, hosts: Hosts) -> None:
        self.engine, self.decoder, self.rates, self.hosts = engine, decoder, rates, hosts

    @property
    def models(self) -> dict[str, str | None]:
        """The names that a request may give, and the adapter of each; the first is the model itself."""
        first, *others = self.engine.names
        return {first: None, **{name: name for name in others}}

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        """200 as long as the process lives."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """200 where a question would be taken, else 503."""
        if self.engine.open:
            return JSONResponse({"status": "ok"})
        return _refusal(RequestError("No question is taken now. Ask again in a minute.", 503, "not_ready"))

    async def metrics(self, request: Request) -> Response:
        """What was counted and timed, for Prometheus."""
        return Response(self.engine.metrics.text(), media_type=CONTENT_TYPE)

    async def list_models(self, request: Request) -> Response:
        """The model and its adapters."""
        rows = [{"id": name, "object": "model", "created": _STARTED, "owned_by": "vlchat"} for name in self.models]
        return JSONResponse({"object": "list", "data": rows})

    async def complete(self, request: Request) -> Response:
        """An answer, whole or as it comes."""
        try:
            visit = Visit(self.rates, request.state.caller, request.state.line)
        except VLChatError as error:
            return self._refused(error)
        answer = None
        try:
            asked, models = await asyncio.to_thread(requests.read, await _body(request)), self.models
            request.state.line.words(asked.words)
            if asked.model not in models:
                known = ", ".join(models)
                raise RequestError(f"There is no such model here; known: {known}.", 404, "model_not_found", "model")
            answer = _Answer(asked, visit)
            await self.decoder.apart(self._submit, asked, models[asked.model], answer, request.state.caller)
        except VLChatError as error:
            return self._refused(error)
        except ClientDisconnect:
            return Response(status_code=499)
        finally:
            if answer is None or answer.ticket is None:
                visit.refused()
        return await (answer.streamed(request) if asked.stream else answer.whole(request))

    def _refused(self, error: VLChatError) -> Response:
        self.engine.metrics.refused(requests.told(error)[1]["error"]["code"])
        return _refusal(error)

    def _submit(self, asked: ChatRequest, adapter: str | None, answer: _Answer, caller: str) -> None:
        messages = asked.conversation(self.decoder, self.hosts)
        options = asked.options(adapter, scope=f"api/{caller}")
        answer.ticket = self.engine.submit(messages, options, answer.deliver)
        if answer.left:  # meanwhile
            answer.ticket.cancel()


class _Answer:
    """An answer on its way to a client."""

    def __init__(self, asked: ChatRequest, visit: Visit) -> None:
        self.asked, self.until, self.visit = asked, Until(asked.stops), visit
        self.loop = asyncio.get_running_loop()
        self.came: asyncio.Queue[str | End] = asyncio.Queue()
        self.ticket: Ticket | None = None
        self.left = False
        self._told = self._spelt = 0  # letters of the text that was told, and of the tokens
        self.name, self.made = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def deliver(self, came: str | End) -> None:
        """Called by the engine's thread."""
        self.loop.call_soon_threadsafe(self._take, came)

    def _take(self, came: str | End) -> None:
        self.visit.came(came)
        self.came.put_nowait(came)

    def leave(self) -> None:
        """Whatever is still being written is no longer wanted."""
        self.left = True
        if self.ticket is not None:
            self.ticket.cancel()

    async def pieces(self) -> AsyncIterator[str | End]:
        """Its text up to a stop word, then how it ended."""
        try:
            while not isinstance(one := await self.came.get(), End):
                if text := self.until.add(one):
                    self._told += len(text)
                    yield text
                if self.until.reached and self.ticket is not None:
                    self.ticket.enough()
            if text := self.until.rest():
                self._told += len(text)
                yield text
            stopping = one.reason == "cancelled" and not self.left and not self.until.reached
            yield replace(one, error=Closed()) if stopping else one
        finally:
            self.leave()

    async def whole(self, request: Request) -> Response:
        """All of it at once; ended when the client leaves."""

        async def collected() -> tuple[str, End]:
            text = ""
            async for one in self.pieces():
                if isinstance(one, End):
                    return text, one
                text += one
            raise AssertionError("an answer without an end")

        try:
            found = await _unless_left(request, collected())
        finally:
            self.leave()
        if found is None:
            return Response(status_code=499)
        text, end = found
        if end.error is not None:
            return _refusal(end.error)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": self._logprobs(), "finish_reason": self._reason(end)}
        return JSONResponse({**self._head("chat.completion"), "choices": [choice], "usage": _usage(end)})

    async def streamed(self, request: Request) -> Response:
        """It as it comes. What ends it before its first word is told by a status, as of a whole one."""
        pieces = self.pieces()
        first = await _unless_left(request, anext(pieces))
        if first is None:
            self.leave()
            return Response(status_code=499)
        if isinstance(first, End) and first.error is not None:
            return _refusal(first.error)
        return _Events(self, first, pieces)

    async def events(self, first: str | End, pieces: AsyncIterator[str | End]) -> AsyncIterator[str]:
        """Server-sent events, a piece each."""
        head = self._head("chat.completion.chunk")
        with_usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage
        yield _event({**head, "choices": [_delta({"role": "assistant", "content": ""})]})
        async for one in _chained(first, pieces):
            if not isinstance(one, End):
                yield _event({**head, "choices": [{**_delta({"content": one}), "logprobs": self._logprobs()}]})
            elif one.error is not None:
                yield _event(requests.told(_sentence(one.error))[1])
            else:
                yield _event({**head, "choices": [_delta({}, self._reason(one))]})
                if with_usage:
                    yield _event({**head, "choices": [], "usage": _usage(one)})
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.name, "object": kind, "created": self.made, "model": self.asked.model}

    def _logprobs(self) -> dict[str, Any] | None:
        """Of the tokens that came since the last time, where they are asked for; none that a stop word cut off."""
        if not self.asked.logprobs or self.ticket is None:
            return None
        content, likely = [], self.ticket.likely
        while likely:
            self._spelt += len(likely[0].text if self._spelt else likely[0].text.lstrip())
            if self.until.reached and self._spelt > self._told:
                break
            one = likely.popleft()
            others = [_token(text, value) for text, value in one.others]
            content.append({**_token(one.text, one.logprob), "top_logprobs": others})
        return {"content": content, "refusal": None}

    def _reason(self, end: End) -> str:
        return "stop" if self.until.reached else end.reason


class _Events(StreamingResponse):
    """An answer as server-sent events. However it ends, and if it never begins, the answer is no longer wanted then."""

    def __init__(self, answer: _Answer, first: str | End, pieces: AsyncIterator[str | End]) -> None:
        super().__init__(
            answer.events(first, pieces), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.leave()


async def _unless_left(request: Request, work: Awaitable[T]) -> T | None:
    """What comes of some work; None, and the work is ended, when the client leaves before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _chained(first: T, others: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for one in others:
        yield one


async def _body(request: Request) -> bytes:
    """The body of a request, whose size and time are `serve.guard`'s matter.

    Raises:
        RequestError: it is packed.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError("Send the body as it is: no Content-Encoding is taken.", code="unsupported_encoding")
    return await request.body()


def _refusal(error: BaseException) -> Response:
    return refusal(_sentence(error))


def _sentence(error: BaseException) -> VLChatError:
    """What of an error is told: nothing of one that is no sentence."""
    return error if isinstance(error, VLChatError) else RequestError("The answer failed. Ask again.", 500, "failed")


def _event(told: dict[str, Any]) -> str:
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n"


def _delta(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _usage(end: End) -> dict[str, Any]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.new_tokens,
        "total_tokens": end.prompt_tokens + end.new_tokens,
        "prompt_tokens_details": {"cached_tokens": end.cached_tokens},
    }
