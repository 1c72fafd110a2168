"""What `serve.store` keeps: its shapes in Python, and the tables that they lie in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlchat.texts import joined

Role = Literal["user", "assistant"]
TITLE = 60  # characters of a title that is made from a question


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


VERSION = 1
KIND = 0x766C6368  # "vlch"
# A conversation that is not listed holds one rated answer, kept when its exchange was taken back (`origin` is where it
# was) or was never kept. A picture is there while a turn shows it.
SCHEMA = """
CREATE TABLE person (
    owner BLOB PRIMARY KEY,
    keeps INTEGER NOT NULL
);

CREATE TABLE conversation (
    id TEXT PRIMARY KEY,
    owner BLOB NOT NULL,
    title TEXT NOT NULL DEFAULT '',
    renamed INTEGER NOT NULL DEFAULT 0,
    pinned INTEGER NOT NULL DEFAULT 0,
    changed REAL NOT NULL,
    settings TEXT NOT NULL DEFAULT '{}',
    listed INTEGER NOT NULL DEFAULT 1,
    origin TEXT REFERENCES conversation ON DELETE CASCADE
);

CREATE INDEX conversation_owner ON conversation (owner);

CREATE INDEX conversation_origin ON conversation (origin);

CREATE TABLE turn (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation TEXT NOT NULL REFERENCES conversation ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
    text TEXT NOT NULL,
    facts TEXT NOT NULL,
    rating INTEGER NOT NULL DEFAULT 0 CHECK (rating IN (-1, 0, 1)),
    correction TEXT NOT NULL DEFAULT '',
    rated REAL
);

CREATE INDEX turn_conversation ON turn (conversation);

CREATE TABLE picture (
    owner BLOB NOT NULL,
    digest TEXT NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (owner, digest)
);

CREATE TABLE shown (
    turn INTEGER NOT NULL REFERENCES turn ON DELETE CASCADE,
    place INTEGER NOT NULL,
    name TEXT NOT NULL,
    owner BLOB NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (turn, place),
    FOREIGN KEY (owner, digest) REFERENCES picture (owner, digest)
);

CREATE INDEX shown_picture ON shown (owner, digest);

CREATE TRIGGER unseen AFTER DELETE ON shown
WHEN NOT EXISTS (SELECT 1 FROM shown WHERE owner = old.owner AND digest = old.digest)
BEGIN
    DELETE FROM picture WHERE owner = old.owner AND digest = old.digest;
END;

CREATE TABLE vote (
    question INTEGER PRIMARY KEY REFERENCES turn ON DELETE CASCADE,
    answers TEXT NOT NULL,
    chosen TEXT NOT NULL,
    voted REAL NOT NULL
)
"""


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
