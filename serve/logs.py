"""One line on stderr for each request: who asked what kind of thing, how long it took, how it ended.

Never a prompt, a picture or a key; prompts where the operator asks for them.
"""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
import uuid
from datetime import UTC, datetime
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The page's own files, probes and polls; told of only where they fail.
_QUIET = re.compile(r"/(assets|static|svelte)/|/(health|ready|metrics|favicon\.ico|theme\.css|manifest\.json)$")
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_PLAIN = re.compile(r"[^\s\"=\\]+")
_LONGEST_PATH = 80


class Log:
    """Where lines go.

    Args:
        format: one of `serve.policy.LOG_FORMATS`.
        prompts: whether the words of questions are told.
        stream: stderr, where none is given.
    """

    def __init__(self, format: str = "logfmt", prompts: bool = False, stream: TextIO | None = None) -> None:
        self._json, self.prompts, self._stream = format == "json", prompts, stream

    def write(self, fields: dict[str, Any]) -> None:
        """A line of what is not None."""
        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        told = {name: value for name, value in told.items() if value is not None}
        line = json.dumps(told) if self._json else " ".join(f"{name}={_word(value)}" for name, value in told.items())
        print(line, file=self._stream or sys.stderr, flush=True)


class Line:
    """A line that is written when the last of those who have something to tell for it is done.

    Args:
        log: where to.
        fields: what is known by now.
    """

    def __init__(self, log: Log, **fields: Any) -> None:
        self._log, self.fields, self._open, self._began = log, fields, 1, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was begun."""
        return round(time.monotonic() - self._began, 4)

    def hold(self) -> None:
        """One more has something to tell; each calls `done` once."""
        self._open += 1

    def done(self) -> None:
        """Nothing more is told by one of them."""
        self._open -= 1
        if not self._open:
            self._log.write(self.fields | {"seconds": self.seconds})

    def words(self, words: str) -> None:
        """The question's, told where the operator asks for it."""
        if self._log.prompts:
            self.fields["prompt"] = words

    def failed(self, error: BaseException) -> None:
        """What went wrong: its kind and its place. Its message may quote what was asked."""
        error = error.__cause__ or error
        places = traceback.extract_tb(error.__traceback__)
        at = f"{places[-1].name}:{places[-1].lineno}" if places else "?"
        self.fields["error"] = f"{type(error).__name__} in {at}" + (f": {error}" if self._log.prompts else "")


class Logged:
    """ASGI: a line for each request, which gets a name that its response tells as `x-request-id`.

    `scope["state"]["line"]` is the line, for those who know more.

    Args:
        app: what answers.
        log: where to.
    """

    def __init__(self, app: ASGIApp, log: Log) -> None:
        self.app, self.log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        name = given if _NAME.fullmatch(given) else uuid.uuid4().hex
        line = Line(self.log, request=name, method=scope["method"])
        scope.setdefault("state", {})["line"] = line
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self.app(scope, receive, named)
        except Exception as error:
            line.failed(error)  # the server has answered with a 500, or cuts the connection
            status = status or 500
        finally:
            path = scope["path"]
            if status >= 400 or not _QUIET.search(path):
                line.fields |= {"route": _route(path), "status": status or 499}
                line.done()


def _route(path: str) -> str:
    """A path without what people put into it: names of files, sessions and events."""
    path = re.split("=|/file/", path)[0]
    parts = [":" if len(part) > 7 and re.search("[0-9]", part) else part for part in path.split("/")]
    return "/".join(parts)[:_LONGEST_PATH]


def _word(value: Any) -> str:
    """A value of logfmt, in quotes where it needs them."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)
