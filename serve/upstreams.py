"""The servers behind a gateway: whether each lives, what it serves, and to which of them a conversation goes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import httpx

from vlchat.errors import ConfigError
from vlchat.evaluate.endpoint import split_url

_log = logging.getLogger(__name__)

ALWAYS = 8  # conversations that a server gets however idle the others are: it answers so many in one batch
FAR_MORE = 2.0  # times the mean of conversations under way, above which the next ones go elsewhere
_CHECK_TIMEOUT = 10.0  # seconds
_PAUSE = 0.2  # seconds between two checks at least


class _Amiss(Exception):
    """Why a server is not to be asked."""


@dataclass(eq=False)
class Upstream:
    """An OpenAI-compatible server.

    Attributes:
        url: without `/v1`.
        alive: whether it answered its last check, and no question failed at it since.
        models: that it lists; None where it keeps no list, and so takes any name.
        under_way: conversations that it is answering for this gateway.
        amiss: for its owner, why it is not alive.
    """

    url: str
    alive: bool = False
    models: tuple[str, ...] | None = ()
    under_way: int = 0
    amiss: str = "not asked yet"
    _doubt: asyncio.Event = field(default_factory=asyncio.Event)

    def serves(self, model: str) -> bool:
        return self.models is None or model in self.models

    def doubt(self, reason: str) -> None:
        """It failed at a question: no more of them before it has answered a check, which is made at once."""
        self._turn(False, reason)
        self._doubt.set()

    async def check(self, client: httpx.AsyncClient) -> None:
        """Asks it how it is, and for its models."""
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT):  # wait_for of Python 3.11 may pass over being cancelled
                await self._check(client)
        except TimeoutError:
            self._turn(False, f"it said nothing for {_CHECK_TIMEOUT:.0f} seconds")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._turn(False, str(error) or type(error).__name__)
        except _Amiss as error:
            self._turn(False, str(error))
        else:
            self._turn(True, "")

    async def watch(self, client: httpx.AsyncClient, every: float) -> None:
        """Checks it every so many seconds, and whenever it is doubted."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._doubt.wait()
            self._doubt.clear()
            await self.check(client)
            await asyncio.sleep(_PAUSE)

    async def _check(self, client: httpx.AsyncClient) -> None:
        health = await client.get(f"{self.url}/health")
        listed = await client.get(f"{self.url}/v1/models")
        if {health.status_code, listed.status_code} & {401, 403}:
            raise _Amiss("it does not accept the key: give the right one in the variable VLCHAT_BACKEND_KEY")
        if not health.is_success and health.status_code not in (404, 405):  # it may have no such page
            raise _Amiss(f"its /health answers {health.status_code}")
        if listed.status_code == 404 and health.is_success:
            self.models = None
            return
        try:
            self.models = tuple(str(entry["id"]) for entry in listed.raise_for_status().json()["data"])
        except (ValueError, KeyError, TypeError, httpx.HTTPStatusError):
            raise _Amiss("it lists no models at /v1/models: is it the URL of an OpenAI-compatible server?") from None

    def _turn(self, alive: bool, reason: str) -> None:
        if alive and not self.alive:
            _log.info("%s answers", self.url)
        elif not alive and self.alive:
            _log.warning("%s is left out: %s", self.url, reason)
        self.alive, self.amiss = alive, reason


def parsed(urls: Sequence[str]) -> list[Upstream]:
    """The servers at these URLs, given with or without `/v1`.

    Raises:
        ConfigError: one is no URL, holds more than an address, or is given twice.
    """
    found: dict[str, Upstream] = {}
    for url in urls:
        parts = split_url(url)
        if parts.username is not None or parts.query:
            raise ConfigError(
                f"--base-url {parts.scheme}://{parts.hostname}... holds a user or a query: give the address alone, and "
                "the key in the variable VLCHAT_BACKEND_KEY."
            )
        root = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        if root in found:
            raise ConfigError(f"--base-url names {root} twice; name each server once.")
        found[root] = Upstream(root)
    return list(found.values())


def chosen(key: bytes, upstreams: Collection[Upstream]) -> Upstream | None:
    """Who answers: for equal keys the same server as long as it lives and has not far more to do than the others.

    Rendezvous hashing (Thaler and Ravishankar, 1998): when a server comes or goes, no conversation moves but its own.
    Loads are bounded as by Mirrokni, Thorup and Zadimoghaddam (2018): what is too much goes to the next in its order.
    """
    order = sorted(upstreams, key=lambda one: hashlib.sha256(key + one.url.encode()).digest())
    mean = (sum(one.under_way for one in order) + 1) / max(len(order), 1)
    most = max(ALWAYS, FAR_MORE * mean)
    return next((one for one in order if one.under_way < most), None)
