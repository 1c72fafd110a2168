"""One server's answer to one question, as it streams in: its words, its end, and what its failures mean to people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import httpx

from serve.events import EventStream
from serve.requests import RequestError
from serve.tickets import End, Likely, Ticket
from serve.upstreams import Upstream
from vlchat.evaluate.endpoint import Complaint, complaint

_MOST_OF_AN_ERROR = 64 * 2**10  # bytes
_ABOUT_THE_REQUEST = {400, 413, 415, 422, 429}
_ELSEWHERE = {429, 502, 503}  # statuses with which a server says that another may do better
_KINDS = {"invalid_request_error": 400, "rate_limit_error": 429}  # of an error in a stream, where it has no number
_ADDRESS = re.compile(r"\b[a-z][a-z+.-]*://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")


class Passing(RequestError):
    """A failure that another server may not have."""


class Lost(RequestError):
    """An answer that broke off and can't be gone on with."""

    def __init__(self) -> None:
        super().__init__(
            "The server that was answering went away in the middle of its answer. Nothing else of the conversation is "
            "lost: ask again.", 502, "backend_lost",
        )  # fmt: skip


class Answer:
    """An answer on its way.

    Args:
        ticket: gets the words.
        told: of an answer that broke off; this one must begin with it, and only what follows is new.

    Attributes:
        told: all that was told.
    """

    def __init__(self, ticket: Ticket, told: str = "") -> None:
        self.ticket, self.told = ticket, told
        self._before = told  # what is still to be passed over
        self._reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._pieces = 0

    async def read(self, client: httpx.AsyncClient, upstream: Upstream, body: bytes) -> End:
        """Asks, and hands the words on.

        Raises:
            Passing: another server may be asked; after words were told, with `told` for it to begin with.
            RequestError: nobody should be.
        """
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        try:
            async with client.stream(
                "POST", f"{upstream.url}/v1/chat/completions", content=body, headers=headers
            ) as response:
                if response.status_code != 200:
                    raise _meaning(response.status_code, complaint(await _beginning(response)))
                await self._stream(response)
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            if self._reason is None:
                raise RequestError(
                    "The server behind this one said nothing for too long. Ask again later.", 503, "backend_timeout"
                ) from None
        except httpx.RequestError as error:  # refused, reset, cut, no such name, no connection in time
            if self._reason is None:
                upstream.doubt(str(error) or type(error).__name__)
                raise _gone() from None
        if self._reason is None or self._reason == "cancelled":  # it closed as if that were the end, or is stopping
            raise _gone()
        if self._before:
            raise Lost
        cached = (self._usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        return End(
            "length" if self._reason == "length" else "stop",
            int(self._usage.get("prompt_tokens") or 0),
            int(cached or 0),
            int(self._usage.get("completion_tokens") or self._pieces),
        )

    async def _stream(self, response: httpx.Response) -> None:
        if "event-stream" not in response.headers.get("content-type", ""):
            raise _foreign()
        events = EventStream()
        try:
            async for data in response.aiter_bytes():
                for event in events.add(data):
                    if event.strip() == "[DONE]":
                        return
                    self._take(json.loads(event))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, RequestError):
                raise
            raise _foreign() from None

    def _take(self, chunk: dict[str, Any]) -> None:
        if chunk.get("error"):
            told = complaint(json.dumps(chunk).encode())
            if told.code == "stopping":  # as if it had broken off: another one may go on
                raise _gone()
            number = int(told.code) if told.code.isdigit() else _KINDS.get(told.kind, 500)
            error = _meaning(number, told)
            raise RequestError(str(error), error.status, error.code, error.param)  # its work was begun: not elsewhere
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or []:
            for one in (choice.get("logprobs") or {}).get("content") or []:
                others = tuple((other["token"], float(other["logprob"])) for other in one.get("top_logprobs") or [])
                self.ticket.likely.append(Likely(one["token"], float(one["logprob"]), others))
            if text := choice["delta"].get("content"):
                self._pieces += 1
                self.ticket.token()
                self._tell(text)
            self._reason = choice.get("finish_reason") or self._reason

    def _tell(self, text: str) -> None:
        known = min(len(text), len(self._before))
        if text[:known] != self._before[:known]:
            raise Lost
        self._before, text = self._before[known:], text[known:]
        if text:
            self.told += text
            self.ticket.piece(text)


async def _beginning(response: httpx.Response) -> bytes:
    data = b""
    async for part in response.aiter_bytes():
        data += part
        if len(data) > _MOST_OF_AN_ERROR:
            break
    return data


def _meaning(status: int, told: Complaint) -> RequestError:
    """What a server's error is to whoever asked it."""
    kind = Passing if status in _ELSEWHERE else RequestError
    if status in _ABOUT_THE_REQUEST and told.shaped:
        said = _ADDRESS.sub("[address]", told.said)
        said = said if said.endswith((".", "!", "?")) else said + "."
        return kind(said, status, told.code or "backend_refused", told.parameter)
    if status == 413:
        return kind("The server behind this one takes no question so large. Send smaller pictures.", 413, "too_large")
    if status == 429:
        return kind("All servers behind this one have too much to do. Ask again in a minute.", 429, "queue_full")
    if status in _ELSEWHERE:
        return kind("The server behind this one takes no questions now. Ask again in a minute.", 503, "backend_busy")
    if status in (401, 403):
        return RequestError(
            "The server behind this one does not accept its key. Whoever runs this page can mend that "
            "(VLCHAT_BACKEND_KEY).", 502, "backend_key",
        )  # fmt: skip
    if status == 404:
        return RequestError(
            "The server behind this one no longer has this model. Choose another.", 502, "backend_model"
        )
    return RequestError("The server behind this one failed at its answer. Ask again.", 502, "backend_failed")


def _gone() -> Passing:
    return Passing("The server behind this one went away. Ask again in a minute.", 503, "backend_gone")


def _foreign() -> RequestError:
    return RequestError("The server behind this one answered with no chat completion.", 502, "backend_foreign")
