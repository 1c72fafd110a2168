"""What `serve.store` keeps, as Python has it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlchat.errors import VLChatError
from vlchat.texts import joined

Role = Literal["user", "assistant"]
TITLE = 60  # characters of a title that is made from a question


class Absent(VLChatError):
    """It isn't there, or it is somebody else's."""


@dataclass(frozen=True)
class Picture:
    """One that a turn shows.

    Attributes:
        name: of its file, as it was uploaded.
        digest: the SHA-256 of its bytes as they were uploaded, in hexadecimal.
    """

    name: str
    digest: str


@dataclass(frozen=True)
class Turn:
    """What one side said.

    Attributes:
        facts: JSON. Of an answer the model, tokens, seconds, stop reason and such; `{"refused": reason}` of one that
            was refused.
        rating: 1 for a thumb up, -1 for one down, 0 for none.
        correction: what the answer should have been; "" where nobody said.
    """

    id: int
    role: Role
    text: str
    pictures: tuple[Picture, ...]
    facts: Mapping[str, Any]
    rating: int
    correction: str


@dataclass(frozen=True)
class Conversation:
    """One of the list.

    Attributes:
        id: 22 characters that nobody guesses.
        changed: seconds since 1970 when something was said last.
        settings: JSON; whatever the page keeps.
    """

    id: str
    title: str
    pinned: bool
    changed: float
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Rated:
    """An answer with a thumb or a correction, its conversation before it.

    Attributes:
        owner: whose, as a digest.
        turns: up to the answer, which is the last.
        when: seconds since 1970.
    """

    owner: bytes
    turns: tuple[Turn, ...]
    when: float

    @property
    def answer(self) -> Turn:
        return self.turns[-1]


@dataclass(frozen=True)
class Vote:
    """Answers side by side, and which was better.

    Attributes:
        owner: as of `Rated`.
        question: the turn that they answer.
        answers: the model's name -> what it said.
        chosen: one of the names; "" for no difference.
        when: seconds since 1970.
    """

    owner: bytes
    question: Turn
    answers: Mapping[str, str]
    chosen: str
    when: float


def as_json(value: Mapping[str, Any]) -> str:
    """JSON that UTF-8 can hold."""
    return joined(json.dumps(dict(value), ensure_ascii=False))


def title_of(text: str, pictures: Sequence[str]) -> str:
    """A question's words in one line, cut at a word; a picture's name where there are none."""
    words = " ".join(text.split()) or next(iter(pictures), "")
    if len(words) <= TITLE:
        return words
    cut = words[:TITLE].rsplit(" ", 1)[0] if " " in words[TITLE // 2 : TITLE] else words[: TITLE - 1]
    return f"{cut}…"


def absent_turn() -> Absent:
    return Absent("This part of the conversation isn't here any more. Open the conversation again.")


def absent_picture() -> Absent:
    return Absent("This picture isn't here any more. Add it again.")
