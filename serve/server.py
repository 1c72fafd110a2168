"""The server of page and API: listens, lets running answers end, and stops."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.guard import Guard
from serve.logs import Log, Logged
from serve.metrics import Metrics
from serve.policy import Policy
from serve.tickets import Backend
from vlchat.errors import VLChatError

LONGEST_HEAD = 32 * 2**10  # bytes of a request's line and headers
HEAD_PATIENCE = 30.0  # seconds in which they must come
_LAST_WORDS = 2.0  # seconds for what is written to reach those who asked


class Protocol(H11Protocol):
    """HTTP/1.1, and whoever has a connection for long without asking anything loses it.

    uvicorn waits without end for the head of a request, and reads without end what follows after a refusal.
    """

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._patience is not None:
            self._patience.cancel()

    def _wait(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self.loop.call_later(HEAD_PATIENCE, self._lose)

    def _lose(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server:
    """Listens in a thread of its own.

    Args:
        app: page and API.
        policy: see `serve.policy`.
        log: where requests are told of.
        host, port: where.
        metrics: where refusals are counted.

    Raises:
        VLChatError: the address can't be listened on.
    """

    def __init__(self, app: Starlette, policy: Policy, log: Log, host: str, port: int, metrics: Metrics) -> None:
        self.guard = Guard(app, policy, host, metrics.refused)
        config = uvicorn.Config(
            Logged(self.guard, log),
            http=Protocol,
            ws="none",
            log_level="critical",  # `serve.logs` tells of requests, failed ones too, and quotes none
            access_log=False,
            server_header=False,
            proxy_headers=bool(policy.proxies),
            forwarded_allow_ips=list(policy.proxies),
            h11_max_incomplete_event_size=LONGEST_HEAD,
            timeout_graceful_shutdown=1,  # the page's open streams never end by themselves
        )
        try:
            self._socket = socket.create_server((host, port), backlog=config.backlog)
        except (OSError, UnicodeError) as error:
            raise VLChatError(
                f"Cannot listen on {host}, port {port}. Choose another with --host and --port."
            ) from error
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="vlchat-server", daemon=True
        )

    def start(self) -> None:
        """Returns when questions are taken."""
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise VLChatError("The server did not start.")
            time.sleep(0.01)

    def drain(self, engine: Backend, grace: float) -> None:
        """Takes no more questions; returns when the running answers have ended, at most `grace` seconds later."""
        self.guard.stopping = True
        engine.close(grace)
        end = time.monotonic() + _LAST_WORDS
        while self.guard.answering and time.monotonic() < end:
            time.sleep(0.02)

    def close(self) -> None:
        """Stops listening and ends what is open."""
        self._server.should_exit = True
        self._thread.join(5)
