"""The clients of `soak.py`: who asks, who leaves, who sends a bad picture, and whether each answer is the right one."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx
from soak_conversations import BAD, TURNS, Conversation

LEAVE, BAD_PICTURE = 0.10, 0.05  # of all requests
_LONG = 2000  # tokens of an answer that is left
_TRIES = 1000


@dataclass(frozen=True)
class Settings:
    """How much is asked.

    Attributes:
        tokens: of an answer.
        kill: requests after which the server is killed; None for never.
    """

    clients: int
    requests: int
    tokens: int
    kill: int | None = None
    seed: int = 0


class Wrong(Exception):
    """An answer that is not the model's own, or a refusal that should not be. Its words say which."""


class Load:
    """All clients.

    Args:
        client: HTTP's, whose address is the server's.

    Attributes:
        done: requests so far, tries apart.
        wrong: (what it is, "wrong", "mixed" or "failed"; which conversation and turn; what came).
    """

    def __init__(self, client: httpx.AsyncClient, pool: list[Conversation], settings: Settings) -> None:
        self.client, self.pool, self.settings = client, pool, settings
        counts = {"leave": int(LEAVE * settings.requests), "bad picture": int(BAD_PICTURE * settings.requests)}
        kinds = [kind for kind, count in counts.items() for _ in range(count)]
        kinds += ["ask"] * (settings.requests - len(kinds))
        self.chance = random.Random(settings.seed)
        self.chance.shuffle(kinds)
        self._kinds = iter(kinds)
        self.done = 0
        self.wrong: list[tuple[str, str, str]] = []
        self.kinds: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()
        self._began = time.monotonic()
        self._times: list[tuple[float, float, float | None]] = []  # ended, seconds, seconds to the first word

    async def run(self) -> None:
        """Until all requests are made."""
        async with asyncio.TaskGroup() as group:
            for number in range(self.settings.clients):
                group.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        conversation = self.pool[number % len(self.pool)]
        turn = 0
        for kind in self._kinds:
            self.kinds[kind] += 1
            try:
                if kind == "bad picture":
                    await self._bad_picture()
                else:
                    await self._ask(conversation, turn, kind == "leave")
                    turn = (turn + (kind == "ask")) % TURNS  # after the last one a new conversation begins
            except Wrong as error:
                found, told = error.args
                self.wrong.append((found, f"{conversation.canary}, turn {turn + 1}, {kind}", told))
            self.done += 1

    async def _ask(self, conversation: Conversation, turn: int, leaves: bool) -> None:
        stream = self.chance.random() < 0.5
        asked = {
            "messages": conversation.messages(turn), "temperature": 0, "stream": stream,
            "max_tokens": _LONG if leaves else self.settings.tokens,
        }  # fmt: skip
        if leaves:
            stay = self.chance.uniform(0.05, 1.0)  # seconds, in the line or in the batch
            answer = await self._tried(lambda: self._left(asked, stay) if stream else self._dropped(asked, stay))
        else:
            answer = await self._tried(lambda: self._streamed(asked) if stream else self._whole(asked))
        if verdict := judged(self.pool, conversation, turn, answer, whole=not leaves):
            raise Wrong(verdict, answer)

    async def _bad_picture(self) -> None:
        kind = self.chance.choice(sorted(BAD))
        content = [{"type": "image_url", "image_url": {"url": BAD[kind]}}, {"type": "text", "text": "What is it?"}]
        asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        answer = await self._tried(lambda: self._sent(asked))
        told = answer.json().get("error", {}).get("message")
        if not 400 <= answer.status_code < 429 or not told:
            raise Wrong("failed", f"{kind}: {answer.status_code} {answer.text[:200]}")

    async def _tried(self, work: Any) -> Any:
        """Its result; a full line, a server that is stopping or starting and a lost connection are tried again."""
        for _ in range(_TRIES):
            try:
                return await work()
            except _Later as later:
                self.tries[later.why] += 1
                await asyncio.sleep(later.seconds + self.chance.random())
            except httpx.TransportError as error:
                self.tries[type(error).__name__] += 1
                await asyncio.sleep(0.5 + self.chance.random())
        raise Wrong("failed", f"no answer after {_TRIES} tries")

    async def _sent(self, asked: dict[str, Any]) -> httpx.Response:
        answer = await self.client.post("/v1/chat/completions", json={"model": "model", **asked})
        _later(answer)
        return answer

    async def _whole(self, asked: dict[str, Any]) -> str:
        began = time.monotonic()
        answer = await self._sent(asked)
        if answer.status_code != 200:
            raise Wrong("failed", f"{answer.status_code} {answer.text[:200]}")
        self._time(began, None)
        return str(answer.json()["choices"][0]["message"]["content"])

    async def _dropped(self, asked: dict[str, Any], stay: float) -> str:
        """Leaves before there is an answer; nothing comes of it."""
        try:
            async with asyncio.timeout(stay):
                answer = await self._sent(asked)
        except TimeoutError:
            return ""
        raise Wrong("failed", f"{answer.status_code} before it was left: {answer.text[:200]}")

    async def _streamed(self, asked: dict[str, Any]) -> str:
        began, first = time.monotonic(), None
        text = ""
        async for piece in self._pieces(asked):
            first = time.monotonic() - began if first is None else first
            text += piece
        self._time(began, first)
        return text

    async def _left(self, asked: dict[str, Any], stay: float) -> str:
        """Leaves in the middle; what came until then."""
        text = ""
        try:
            async with asyncio.timeout(stay):
                async for piece in self._pieces(asked):
                    text += piece
        except TimeoutError:
            return text
        raise Wrong("failed", f"the answer ended before it was left: {text[-200:]}")

    async def _pieces(self, asked: dict[str, Any]) -> Any:
        body = {"model": "model", **asked}
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                _later(answer)
                raise Wrong("failed", f"{answer.status_code} {answer.text[:200]}")
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise Wrong("failed", str(event["error"])[:200])
                    for choice in event["choices"]:
                        if piece := choice["delta"].get("content"):
                            yield piece
            raise httpx.RemoteProtocolError("the stream has no end")

    def _time(self, began: float, first: float | None) -> None:
        now = time.monotonic()
        self._times.append((now - self._began, now - began, first))

    def counts(self) -> dict[str, Any]:
        """Of requests by kind, of tries, and of what went wrong."""
        found = Counter(kind for kind, _, _ in self.wrong)
        return {
            "requests": dict(self.kinds), "tried_again": dict(self.tries), "wrong": found["wrong"],
            "mixed": found["mixed"], "failed": found["failed"],
        }  # fmt: skip

    def latencies(self) -> dict[str, dict[str, float]]:
        """Percentiles in seconds, of the tries that were answered."""
        whole = [seconds for _, seconds, _ in self._times]
        first = [seconds for _, _, seconds in self._times if seconds is not None]
        return {"answer": percentiles(whole), "first_word": percentiles(first)}

    def series(self, parts: int = 60) -> list[list[float]]:
        """Rows of seconds, and of a sixtieth of the time the median and the 95th percentile of answers."""
        width = max((ended for ended, _, _ in self._times), default=0.0) / parts
        rows = []
        for part in range(parts):
            found = [seconds for ended, seconds, _ in self._times if part * width <= ended < (part + 1) * width]
            if len(found) > 1:
                told = percentiles(found)
                rows.append([round((part + 0.5) * width, 1), round(told["p50"], 3), round(told["p95"], 3)])
        return rows

    def told(self) -> str:
        """For people who watch."""
        return f"{len(self.wrong)} wrong, tried again: {dict(self.tries) or 'none'}"


class _Later(Exception):
    """The server asks to come again."""

    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(why)
        self.why, self.seconds = why, seconds


def _later(answer: httpx.Response) -> None:
    if answer.status_code in (429, 503):
        raise _Later(str(answer.status_code), float(answer.headers["Retry-After"]))


def judged(pool: list[Conversation], conversation: Conversation, turn: int, answer: str, whole: bool) -> str | None:
    """None for the model's own answer, "mixed" for what begins as another conversation's, else "wrong".

    Args:
        whole: it must be all of the answer; else it may be its beginning, or go on after its end.
    """
    if _same(answer, conversation.answers[turn], whole):
        return None
    others = (text for other in pool for text in other.answers)
    return "mixed" if any(_same(answer, text, whole) for text in others) else "wrong"


def _same(answer: str, expected: str, whole: bool) -> bool:
    answer, expected = answer.strip(), expected.strip()
    return answer == expected or (not whole and (expected.startswith(answer) or answer.startswith(expected)))


def percentiles(seconds: list[float]) -> dict[str, float]:
    """The 50th, 95th and 99th, of two numbers or more."""
    if len(seconds) < 2:
        return {}
    found = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": found[49], "p95": found[94], "p99": found[98]}
