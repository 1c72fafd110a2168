"""Looking inside an answer while others are answered: where it came from, what the model saw, how sure it was."""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from serve.tickets import Backend, Busy, Failed
from vlchat.chat import Chat
from vlchat.data.formats import Message
from vlchat.errors import VLChatError
from vlchat.evaluate import trust
from vlchat.evidence import Deletion, Evidence, NoMap, Saw, deletion_check, evidence, saw

# The best of the methods whose passes are short (docs/evaluation.md), then the one that any model has.
METHODS = ("integrated", "occlusion")
_AT_ONCE = 4  # covered pictures in one pass: the others' words wait for it
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Facts:
    """What is kept of how an answer was written.

    Attributes:
        prompt_tokens, cached_tokens, new_tokens, reason: of `serve.tickets.End`.
        first_token, seconds: from the question to the first token, and to the end; None where nobody looked.
        context: tokens that the model reads at most, `Chat.context_length`.
        tokens: each one's text and log-probability, of `Ticket.likely`; none where the backend does not tell.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    reason: str = "stop"
    first_token: float | None = None
    seconds: float | None = None
    context: int | None = None
    tokens: tuple[tuple[str, float], ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Facts:
        content: dict[str, Any] = json.loads(text)
        tokens = tuple((str(token), float(logprob)) for token, logprob in content.pop("tokens"))
        return cls(**content, tokens=tokens)

    @property
    def rate(self) -> float | None:
        """Tokens a second, from the first one on."""
        if self.seconds is None or self.first_token is None or self.new_tokens < 2:
            return None
        took = self.seconds - self.first_token
        return (self.new_tokens - 1) / took if took > 0 else None

    @property
    def likelihood(self) -> float | None:
        """The product of the tokens' probabilities; None where they are not known, or the answer was cut off."""
        if not self.tokens or self.reason != "stop":
            return None
        return math.exp(sum(logprob for _, logprob in self.tokens))


@dataclass(frozen=True)
class Word:
    """A word of an answer, from the letter `begin` to before `end`, and how likely it was; None where nobody knows."""

    text: str
    begin: int
    end: int
    likelihood: float | None


def words(answer: str, facts: Facts) -> list[Word]:
    """The words of an answer, Chinese and Japanese ones letter by letter."""
    written = "".join(text for text, _ in facts.tokens)
    start = written.find(answer) if answer else -1
    told: list[float | None] = []  # for each letter of `written`, the token's log-probability at its first one
    for text, logprob in facts.tokens:
        told += [logprob, *[None] * (len(text) - 1)] if text else []
    found = []
    for match in _WORD.finditer(answer):
        likelihood = None
        if start >= 0:  # else a token is half a letter, say, and nobody knows whose
            begin, end = start + match.start(), start + match.end()
            while begin > 0 and told[begin] is None:  # a token that began before the word says it, too
                begin -= 1
            likelihood = math.exp(sum(value for value in told[begin:end] if value is not None))
        found.append(Word(match[0], match.start(), match.end(), likelihood))
    return found


class Inside:
    """Looks into the models of a backend, one look at a time.

    Args:
        backend: where its models are not here, `here` says so and nothing else may be asked.
        most: looks that are under way or waiting.
        kept: maps, with their checks, that are not drawn again.
    """

    def __init__(self, backend: Backend, *, most: int = 16, kept: int = 64) -> None:
        self.backend, self.most, self.kept = backend, most, kept
        self._looking = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="vlchat-inside")
        self._found: OrderedDict[Hashable, Any] = OrderedDict()

    async def look(self, work: Callable[[threading.Event], Found]) -> Found:
        """Does `work` in the thread of the looks; it ends at its next pass when whoever waits for it leaves.

        Args:
            work: takes the event that says so, and hands it to the methods below.

        Raises:
            Busy: too many wait.
        """
        if self._looking >= self.most:
            raise Busy(f"{self.most} others are looking into their answers. Try again in a minute.")
        self._looking += 1
        left = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work, left)
        finally:
            left.set()
            self._looking -= 1

    def close(self) -> None:
        """Looks no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def here(self) -> bool:
        """Whether there is a model to look into."""
        return self.backend.beside(None, threading.Event()) is not None

    def trust(self, adapter: str | None) -> trust.Trust | None:
        """What is known of how far to trust the likelihood of a model's answers."""
        chat = self.backend.beside(adapter, threading.Event())
        path = None if chat is None else chat.description.get("path")
        return None if path is None else trust.read(Path(path))

    def saw(self, messages: Sequence[Message], adapter: str | None, left: threading.Event) -> list[Saw]:
        """As `vlchat.evidence.saw`."""
        return self._told(lambda chat: saw(chat, messages), adapter, left)

    def explain(
        self, key: Hashable, messages: Sequence[Message], answer: str, word: tuple[int, int] | None,
        adapter: str | None, left: threading.Event,
    ) -> Evidence:  # fmt: skip
        """Where an answer came from, or a word of it: by the first of `METHODS` that the model has.

        Args:
            key: of the answer, and of nobody else's: what was drawn for it is shown again.
            word: where it begins and ends in `answer`.

        Raises:
            Left, Closed: of the engine's gate.
            VLChatError: there is no map, and why.
        """

        def drawn(chat: Chat) -> Evidence:
            for method in METHODS[:-1]:
                try:
                    return evidence(chat, messages, answer, word=word, method=method)
                except NoMap:
                    continue
            return evidence(chat, messages, answer, word=word, method=METHODS[-1])

        whole = ("map", key, _texts(messages), answer, word, adapter)
        return self._known(whole, lambda: self._told(drawn, adapter, left))

    def check(
        self, key: Hashable, messages: Sequence[Message], answer: str, word: tuple[int, int] | None,
        adapter: str | None, left: threading.Event,
    ) -> Deletion:  # fmt: skip
        """Whether that map tells the truth: covering the places it shows against others; arguments as of `explain`."""

        def checked(chat: Chat) -> Deletion:
            return deletion_check(chat, messages, found, at_once=_AT_ONCE)

        found = self.explain(key, messages, answer, word, adapter, left)
        whole = ("check", key, _texts(messages), answer, word, adapter)
        return self._known(whole, lambda: self._told(checked, adapter, left))

    def _told(self, work: Callable[[Chat], Found], adapter: str | None, left: threading.Event) -> Found:
        chat = self.backend.beside(adapter, left)
        if chat is None:
            raise VLChatError("The model that answered is on another server, which cannot be looked into.")
        try:
            return work(chat)
        except VLChatError:
            raise
        except Exception as error:
            raise Failed(error, isinstance(error, torch.OutOfMemoryError)) from error

    def _known(self, key: Hashable, work: Callable[[], Found]) -> Found:
        """Only the looks' own thread comes here."""
        if key not in self._found:
            self._found[key] = work()
            while len(self._found) > self.kept:
                self._found.popitem(last=False)
        self._found.move_to_end(key)
        found: Found = self._found[key]
        return found


def _texts(messages: Sequence[Message]) -> str:
    """What was said: an answer that is given once more, to other words, has other maps."""
    parts = [
        [one["role"], content if isinstance(content := one["content"], str) else [part.get("text") for part in content]]
        for one in messages
    ]
    return json.dumps(parts, ensure_ascii=False)
