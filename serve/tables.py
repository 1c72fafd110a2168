"""The tables in which `serve.store` keeps conversations, and their rows; whose is checked above."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.database import Database, Row
from serve.records import Picture, Role, Turn, absent_picture, absent_turn, title_of
from vlchat.texts import joined

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
_TURN = "turn.id, role, text, facts, rating, correction"


class Tables(Database):
    """As `Database`; `owner` is a digest everywhere."""

    def __init__(self, file: Path | None) -> None:
        super().__init__(file, SCHEMA, VERSION, KIND)

    def begin(
        self, id: str, owner: bytes, *, settings: str = "{}", listed: bool = True, origin: str | None = None
    ) -> None:
        self.write(
            "INSERT INTO conversation (id, owner, changed, settings, listed, origin) VALUES (?, ?, ?, ?, ?, ?)",
            id, owner, time.time(), settings, listed, origin,
        )  # fmt: skip

    def add(
        self, owner: bytes, conversation: str, role: Role, text: str, facts: str, files: Sequence[tuple[Picture, bytes]]
    ) -> int:
        turn = self.write(
            "INSERT INTO turn (conversation, role, text, facts) VALUES (?, ?, ?, ?)",
            conversation, role, joined(text), facts,
        )  # fmt: skip
        for place, (picture, content) in enumerate(files):
            self.write("INSERT OR IGNORE INTO picture VALUES (?, ?, ?)", owner, picture.digest, content)
            self.write(
                "INSERT INTO shown VALUES (?, ?, ?, ?, ?)", turn, place, joined(picture.name), owner, picture.digest
            )
        return turn

    def turns(self, which: str, *values: Any) -> list[Turn]:
        shown: dict[int, list[Picture]] = {}
        for turn, name, digest in self.read(
            "SELECT turn.id, name, digest FROM shown JOIN turn ON turn.id = shown.turn "
            f"WHERE {which} ORDER BY turn.id, place",
            *values,
        ):
            shown.setdefault(turn, []).append(Picture(name, digest))
        rows = self.read(f"SELECT {_TURN} FROM turn WHERE {which} ORDER BY turn.id", *values)
        return [
            Turn(id, role, text, tuple(shown.get(id, ())), json.loads(facts), rating, correction)
            for id, role, text, facts, rating, correction in rows
        ]

    def own_turn(self, owner: bytes, turn: int) -> Row:
        """Its conversation, its role, and whether the conversation is listed."""
        rows = self.read(
            "SELECT conversation, role, listed FROM turn JOIN conversation AS c ON c.id = conversation "
            "WHERE turn.id = ? AND owner = ?",
            turn if abs(turn) < 2**63 else 0,  # more than SQLite takes
            owner,
        )
        if not rows:
            raise absent_turn()
        return rows[0]

    def content(self, owner: bytes, digest: str) -> bytes:
        rows = self.read("SELECT content FROM picture WHERE owner = ? AND digest = ?", owner, joined(digest))
        if not rows:
            raise absent_picture()
        content: bytes = rows[0][0]
        return content

    def title(self, conversation: str) -> None:
        """That of the first question, unless people gave it one."""
        first = self.turns(
            "turn.id = (SELECT min(id) FROM turn WHERE conversation = ? AND role = 'user')", conversation
        )
        title = title_of(first[0].text, [picture.name for picture in first[0].pictures]) if first else ""
        self.write("UPDATE conversation SET title = ? WHERE id = ? AND NOT renamed", title, conversation)
