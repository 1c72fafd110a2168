"""Gradio's own routes, mended: what can't be asked is a sentence with a status of its own, and what nobody reads goes.

Gradio answers 500 to whatever it can't take, and keeps what it has to tell until somebody reads it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from gradio import queueing, route_utils
from gradio.block_function import BlockFunction
from gradio.blocks import Blocks
from gradio.server_messages import EventMessage
from starlette.types import Message, Receive, Scope, Send

from serve.guard import refusal
from serve.requests import RequestError

UNREAD = 60.0  # seconds for which what nobody reads is kept
MOST_SESSIONS = 1000  # pages, whose state is kept
MOST_WAITING = 256  # events that wait for one of forty threads; questions have a line of their own
MOST_UNREAD = 64  # events of one page
_CLOSED = ("/gradio_api/process_recording", "/gradio_api/deep_link")  # they write files, and one starts ffmpeg
_SENTENCES = {
    400: "This can't be asked so.",
    404: "There is no such thing here.",
    405: "It can't be asked for by this method.",
    413: "This is too large. Send less at once.",
    422: "A value is missing, or is not of the kind that is asked for.",
    503: "The server has too much to do. Ask again in a minute.",
}


_KINDS: dict[type[Any], Any] = {gr.Slider: int | float, gr.Textbox: str, gr.MultimodalTextbox: dict}


@dataclass
class _Values:
    """Of a request. Attributes: odd: whether they are not what the components take."""

    odd: bool = False


_values: ContextVar[_Values] = ContextVar("values")
_push, _preprocess, _get_fn = queueing.Queue.push, Blocks.preprocess_data, route_utils.get_fn


class GradioRoutes:
    """ASGI, around Gradio's app.

    Args:
        app: Gradio's.
    """

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        app.add_exception_handler(RequestValidationError, _invalid)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "/gradio_api/" not in scope["path"]:
            return await self.app(scope, receive, send)
        if scope["path"].startswith(_CLOSED):
            return await refusal(_sentence(404), scope["path"])(scope, receive, send)
        values, status = _Values(), 0
        token = _values.set(values)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            if status < 400:
                await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if 0 < status < 400 or not values.odd:
                raise
            status = 500  # Gradio's words about an odd value can't be sent: they quote it
        finally:
            _values.reset(token)
        if status >= 400:
            told = _sentence(422 if status == 500 and values.odd else status)
            await refusal(told, scope["path"])(scope, receive, send)


def mend_routes() -> None:
    """Once a process, before a page is made."""
    vars(route_utils).update(get_fn=_asked)
    vars(queueing).update(AsyncQueue=_Messages)
    for kind, name, mended in (
        (Blocks, "preprocess_data", _preprocessed),
        (queueing.Queue, "push", _pushed),
        (queueing.Queue, "compute_analytics_summary", lambda queue, records: {}),  # for a page that is closed here
    ):
        setattr(kind, name, mended)


class _Messages(asyncio.Queue[EventMessage]):
    """What a page is still to be told. Attributes: read: when it last asked, by `time.monotonic`."""

    def __init__(self) -> None:
        super().__init__()
        self.read = time.monotonic()

    async def get(self) -> EventMessage:
        self.read = time.monotonic()  # while it waits it asks every ten seconds
        return await super().get()


async def _pushed(queue: queueing.Queue, body: Any, request: Any, username: Any) -> Any:
    await _forget_unread(queue)
    if len(queue.pending_event_ids_session.get(body.session_hash, ())) >= MOST_UNREAD:
        return False, "", "queue_full"
    return await _push(queue, body=body, request=request, username=username)


async def _forget_unread(queue: queueing.Queue) -> None:
    sessions, waiting = queue.pending_messages_per_session, queue.pending_event_ids_session
    longest = time.monotonic() - UNREAD
    unread = [
        name for name, messages in sessions.items() if isinstance(messages, _Messages) and messages.read < longest
    ]
    for name in unread:
        sessions.pop(name, None)
    for name in [name for name in waiting if name not in sessions]:
        await queue.clean_events(session_hash=name)
        waiting.pop(name, None)


async def _preprocessed(blocks: Blocks, function: BlockFunction, *given: Any, **more: Any) -> Any:
    try:
        found = await _preprocess(blocks, function, *given, **more)
        if function.api_visibility == "public":
            _check(function.inputs, found)
        return found
    except Exception:
        with suppress(LookupError):  # of an event in the queue, whose request has its answer
            _values.get().odd = True
        raise


def _check(components: Sequence[Any], values: Sequence[Any]) -> None:
    """What Gradio lets through to functions that programs may call, for which these components always have a value.

    Raises:
        ValueError: a value is not of its component's kind.
    """
    for component, value in zip(components, values, strict=True):
        for kind, taken in _KINDS.items():
            if isinstance(component, kind) and not isinstance(value, taken):
                raise ValueError("a value of another kind")
        if isinstance(component, gr.Slider) and not component.minimum <= value <= component.maximum:
            raise ValueError("a number out of range")
        if isinstance(component, gr.MultimodalTextbox) and not isinstance(value.get("text"), str):
            raise ValueError("no text")


async def _invalid(request: Request, error: Exception) -> Response:
    """FastAPI's own quotes what was sent, and fails where that is no JSON."""
    return Response(status_code=422)


def _asked(*given: Any, **more: Any) -> Any:
    try:
        return _get_fn(*given, **more)
    except (KeyError, route_utils.FnIndexInferError):
        raise HTTPException(404) from None


def _sentence(status: int) -> RequestError:
    if status not in _SENTENCES and status >= 500:
        return RequestError("The server failed at this. Ask again.", status, "failed")
    return RequestError(_SENTENCES.get(status, _SENTENCES[400]), status, "invalid_request")
