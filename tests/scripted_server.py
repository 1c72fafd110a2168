"""A server of OpenAI's streaming API that says what a test tells it to, and breaks off as real ones do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted"


class Server(ThreadingHTTPServer):
    """Attributes:
    answers: to the next POSTs, one each, the last one for all that follow: a list of words, in which None cuts the
        connection; or (status, body).
    key: what the Authorization header must be; None lets everybody in.
    seen: the bodies of the POSTs.
    paths: (status, body) of the GETs; by default there is a list of models and no health.
    checks: GETs so far.
    """

    daemon_threads = True

    def __init__(self, *answers: Any, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.key = key
        self.seen: list[dict[str, Any]] = []
        self.paths: dict[str, tuple[int, Any]] = {"/v1/models": (200, {"data": [{"id": MODEL}]})}
        self.checks = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that is cut is what a test wants."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.key is not None and self.headers.get("Authorization") != self.server.key:
            self._send(401, b"{}")
        else:
            self.server.checks += 1
            status, body = self.server.paths.get(self.path, (404, {}))
            self._send(status, json.dumps(body).encode())

    def do_POST(self) -> None:
        self.server.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if isinstance(answer, tuple):
            self._send(answer[0], json.dumps(answer[1]).encode())
            return
        if answer and answer[0] is None:
            return
        self._send(200, b"", "text/event-stream")
        for word in answer:
            if word is None:
                return
            if isinstance(word, dict):
                return self._event(word)
            self._event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(answer)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, told: Any) -> None:
        self.wfile.write(f"data: {json.dumps(told)}\n\n".encode())

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def scripted(*answers: Any, key: str | None = None) -> Iterator[Server]:
    with Server(*answers, key=key) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
