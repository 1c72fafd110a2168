"""The page and the API in front of other servers: vLLM, SGLang, another vlchat. No model is loaded here.

A question is sent again only where that is safe:

- before a word of its answer was told, when its server can't be reached, breaks off, or says 429, 502 or 503: to
  another server, each at most once;
- after that, when an answer breaks off that another server would give again (temperature 0, or a seed): what was told
  is left out of the other's answer, which must begin with exactly that. So what people read is always the whole answer
  of one server, or ends with a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import ssl
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import httpx

import vlchat
from serve.answers import Answer, Lost, Passing
from serve.guard import LONGEST_BODY
from serve.metrics import Metrics
from serve.requests import RequestError
from serve.tickets import Busy, Closed, End, Options, Ticket
from serve.upstreams import Upstream, chosen, parsed
from vlchat.conversation import Message
from vlchat.errors import ConfigError, VLChatError, nearest
from vlchat.evaluate.endpoint import bearer
from vlchat.evaluate.items import Request
from vlchat.evaluate.wire import wire

_CONNECT = 5.0  # seconds


class Gateway:
    """Answers by asking one of several servers; a `serve.tickets.Backend`.

    Args:
        urls: of the servers, with or without `/v1`.
        model: the only one to ask for; by default all that the servers list.
        key: for all of them; goes into their Authorization header and nowhere else.
        patience: seconds that a server may be silent, before its first word and between two.
        every: seconds between two checks of a server.
        most: conversations under way at a time.
        cache_salt: whether the servers are told whose conversations may share what was computed, as a digest. vLLM,
            SGLang and vlchat take this field; others may refuse it.

    Raises:
        ConfigError: a URL or the key can't be one, no server answers (and no `model` says what to offer), or none
            lists the model.
    """

    def __init__(
        self, urls: Sequence[str], *, model: str | None = None, key: str | None = None, patience: float = 300.0,
        every: float = 5.0, most: int = 256, cache_salt: bool = False,
    ) -> None:  # fmt: skip
        self.upstreams = parsed(urls)
        self.model, self.patience, self.every, self.most = model, patience, every, most
        self.salt = secrets.token_bytes(32) if cache_salt else None
        self._headers = {"User-Agent": f"vlchat/{vlchat.__version__}"}
        if key:
            self._headers["Authorization"] = bearer(key)
        self._asked: set[_Asked] = set()
        self._closing = False
        self.metrics = Metrics(running=lambda: self.answering, waiting=lambda: 0)
        self.loop = asyncio.new_event_loop()
        began: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(began,), name="vlchat-gateway", daemon=True)
        self._thread.start()
        try:
            began.result()
            self._check_start()
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """The models to choose from: of those that live now or did before."""
        if self.model is not None:
            return [self.model]
        return list(dict.fromkeys(name for one in self.upstreams for name in one.models or ()))

    @property
    def description(self) -> dict[str, Any]:
        """`name` alone; servers tell no more of their models."""
        first, *others = self.names
        return {"name": first + (f" and {len(others)} more" if others else "")}

    def described(self, name: str | None) -> dict[str, Any]:
        """The name of one of them."""
        return {"name": name or self.names[0]}

    @property
    def joins(self) -> bool:
        """Not known of other servers."""
        return False

    @property
    def open(self) -> bool:
        """Whether it takes conversations: there is a server that lives."""
        return not self._closing and any(one.alive for one in self.upstreams)

    @property
    def answering(self) -> int:
        """Conversations under way."""
        return len(self._asked)

    def submit(
        self, messages: Sequence[Message], options: Options | None = None,
        deliver: Callable[[str | End], object] | None = None,
    ) -> Ticket:  # fmt: skip
        """As of `serve.tickets.Backend`.

        Raises:
            Busy: too many are under way.
            RequestError: no server has this model; the pictures are too large together.
        """
        if self._closing:
            raise Closed
        if self.answering >= self.most:
            raise Busy(f"All {self.most} places are taken. Ask again in a minute.")
        options = options or Options()
        names = self.names
        model = options.adapter or names[0]
        if model not in names:
            raise RequestError(
                f'There is no model "{model}" here{nearest(model, names) or "."}', 404, "model_not_found"
            )
        asked = _Asked(self, model, messages, options, deliver)
        try:
            self.loop.call_soon_threadsafe(asked.begin)
        except RuntimeError:  # closed meanwhile
            raise Closed from None
        return asked.ticket

    def beside(self, adapter: str | None, left: threading.Event) -> None:
        """Nothing: the models are not here."""

    def close(self, wait: float | None = 10.0) -> None:
        """As of `serve.tickets.Backend`."""
        self._closing = True
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(wait), self.loop)
        self._thread.join()

    async def answer(self, asked: _Asked) -> End:
        """Asks one server after another, as far as that is safe.

        Raises:
            RequestError: why there is no answer.
        """
        tried: set[Upstream] = set()
        failure: RequestError | None = None
        while upstream := chosen(asked.key, self._candidates(asked.model) - tried):
            tried.add(upstream)
            answer = Answer(asked.ticket, asked.told)
            upstream.under_way += 1
            try:
                return await answer.read(self.client, upstream, asked.body)
            except Passing as error:
                asked.told = answer.told
                if asked.told and not asked.repeatable:
                    raise Lost from None
                failure = failure if failure is not None and failure.status == 429 else error
            finally:
                upstream.under_way -= 1
        if asked.told:
            raise Lost
        raise failure or RequestError(
            "None of the servers behind this one answers at the moment. Ask again in a minute.", 503, "no_backend"
        )

    def _candidates(self, model: str) -> set[Upstream]:
        return {one for one in self.upstreams if one.alive and one.serves(model)}

    def _check_start(self) -> None:
        alive = [one for one in self.upstreams if one.alive]
        if not self.names:
            told = "; ".join(f"{one.url}: {one.amiss or 'it keeps no list of models'}" for one in self.upstreams)
            raise ConfigError(
                f"There is nobody to ask at --base-url ({told}). Start a server or correct the URL. With --model NAME "
                "the page begins all the same, and answers as soon as a server does."
            )
        if self.model is not None and alive and not self._candidates(self.model):
            listed = sorted({name for one in alive for name in one.models or ()})
            raise ConfigError(
                f'No server at --base-url lists the model "{self.model}"; they list: {", ".join(listed) or "none"}'
                + (nearest(self.model, listed) or ".")
            )

    def _run(self, began: Future[None]) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._begin())
            began.set_result(None)
        except BaseException as error:
            began.set_exception(error)
            return
        self.loop.run_forever()
        self.loop.close()

    async def _begin(self) -> None:
        self.client = httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(self.patience, connect=_CONNECT, pool=None),
            # A connection of its own for each question: none that the other side has just closed, none to clean up.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,  # questions and the key go to the addresses that were given, through no proxy
            verify=ssl.create_default_context(),
        )
        await asyncio.gather(*(one.check(self.client) for one in self.upstreams))
        self._watching = [asyncio.ensure_future(one.watch(self.client, self.every)) for one in self.upstreams]

    async def _end(self, wait: float | None) -> None:
        tasks = [asked.task for asked in self._asked if asked.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=wait)
        for task in (*tasks, *self._watching):
            task.cancel()
        await asyncio.gather(*tasks, *self._watching, return_exceptions=True)
        await self.client.aclose()
        self.loop.stop()


class _Asked:
    """A question on its way; of its ticket the line to wait in.

    Attributes:
        key: by which its server is chosen: who asks, the model, and the conversation up to its first question, so that
            the next turn goes where keys and values of this one are.
        told: text that was delivered.
        repeatable: whether another server may be expected to say the same.
    """

    def __init__(
        self, gateway: Gateway, model: str, messages: Sequence[Message], options: Options,
        deliver: Callable[[str | End], object] | None,
    ) -> None:  # fmt: skip
        self.gateway, self.model, self.told, self.metrics = gateway, model, "", gateway.metrics
        turns = wire(Request([dict(one) for one in messages]))
        payload: dict[str, Any] = {
            "model": model, "messages": turns, "max_tokens": options.max_new_tokens, "temperature": options.temperature,
            "top_p": options.top_p, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if options.seed is not None:
            payload["seed"] = options.seed
        if options.stop:
            payload["stop"] = list(options.stop)
        if options.logprobs is not None:
            payload.update(logprobs=True, top_logprobs=options.logprobs)
        if gateway.salt is not None:
            payload["cache_salt"] = hmac.digest(gateway.salt, options.scope.encode(), "sha256").hex()
        self.body = json.dumps(payload).encode()
        if len(self.body) > LONGEST_BODY:
            raise RequestError(
                f"The pictures of this conversation take more than {LONGEST_BODY // 2**20} MiB together. Start a new "
                "one, or send smaller pictures.", 413, "too_large",
            )  # fmt: skip
        first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), 0)
        self.key = hashlib.sha256(json.dumps([options.scope, model, turns[: first + 1]]).encode()).digest()
        self.repeatable = (options.temperature == 0 or options.seed is not None) and options.logprobs is None
        self.task: asyncio.Task[None] | None = None
        self.ticket = Ticket(self, deliver)

    def begin(self) -> None:
        """In the gateway's thread, as all that follows."""
        if self.gateway._closing:  # and does not wait for it any more
            self.ticket.finish(End("cancelled", error=Closed()))
            return
        self.gateway._asked.add(self)
        self.task = asyncio.ensure_future(self._answer())
        self.task.add_done_callback(self._done)
        self._look()

    def place_of(self, ticket: Ticket) -> int:
        """Whoever waits does so at the server, which does not tell how long."""
        return 0

    def wake(self) -> None:
        """Ends it, and closes the connection to its server, when nobody wants it any more. From any thread."""
        if self.ticket.end is None:
            with contextlib.suppress(RuntimeError):  # the gateway has ended, and this with it
                self.gateway.loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        # Once: a second time would break off the closing of the connection, and its server would write to nobody.
        if self.ticket.left.is_set() and self.task is not None and not self.task.cancelling():
            self.task.cancel()

    async def _answer(self) -> None:
        try:
            self.ticket.finish(await self.gateway.answer(self))
        except VLChatError as error:
            self.ticket.finish(End("stop", error=error))

    def _done(self, task: asyncio.Task[None]) -> None:
        self.gateway._asked.discard(self)
        if task.cancelled():  # perhaps before its first step
            self.ticket.finish(End("cancelled", error=Closed() if not self.ticket.left.is_set() else None))
        elif error := task.exception():
            self.ticket.finish(End("stop", error=error))
