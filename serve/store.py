"""The conversations of the page, kept in SQLite: every one is asked for by whose it is and by its id.

What is somebody else's is answered like what isn't there. Whose a thing is lies in the file as a digest, since a
browser's owner is the secret in its cookie.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from serve.database import Row
from serve.records import Absent as Absent
from serve.records import Conversation as Conversation
from serve.records import Picture as Picture
from serve.records import Rated as Rated
from serve.records import Role as Role
from serve.records import Turn as Turn
from serve.records import Vote as Vote
from serve.records import absent_turn, as_json
from serve.tables import Tables
from vlchat.errors import VLChatError
from vlchat.texts import joined

FILE = "history.sqlite"
_LONGEST_TITLE = 200
_MOST_LISTED = 500
_CONVERSATION = "id, title, pinned, changed, settings"


class Store:
    """Safe from several threads, and beside other processes on the same folder. Survives being killed at any moment.

    Every method may raise a `VLChatError`: what is asked for isn't there (`Absent`), or the file can't be used.

    Args:
        folder: where `history.sqlite` is, or is made, with mode 0700. None keeps all in memory, for people who
            switched history off.
        most: bytes. What is added beyond them takes the place of conversations that were changed longest ago.

    Raises:
        VLChatError: the folder can't be used, or its file is another program's or a newer vlchat's.
    """

    def __init__(self, folder: Path | None, most: int | None = None) -> None:
        self._tables = Tables(None if folder is None else folder / FILE)
        self._most = most

    def conversations(self, owner: str, words: str = "") -> list[Conversation]:
        """Pinned ones first, then the newest; at most 500, the others are found by their words.

        Args:
            words: each must stand in the title or in what was said, in any case and language; a part of a word will do.
        """
        wanted = _folded(words).split()
        said = "(SELECT group_concat(text, char(10)) FROM turn WHERE conversation = c.id)" if wanted else "''"
        rows = self._tables.read(
            f"SELECT {_CONVERSATION}, {said} "
            "FROM conversation AS c WHERE owner = ? AND listed ORDER BY pinned DESC, changed DESC, rowid DESC "
            + ("" if wanted else f"LIMIT {_MOST_LISTED}"),
            _key(owner),
        )
        found = ((row, _folded(f"{row[1]}\n{row[-1] or ''}") if wanted else "") for row in rows)
        listed = (_conversation(row[:-1]) for row, said in found if all(word in said for word in wanted))
        return list(islice(listed, _MOST_LISTED))

    def begin(self, owner: str, settings: Mapping[str, Any] = {}) -> Conversation:
        """A new conversation, which is empty and without a title."""
        id = secrets.token_urlsafe(16)
        with self._tables.writing():
            self._tables.begin(id, _key(owner), settings=as_json(settings))
            self._make_room(id)
        return self.conversation(owner, id)

    def conversation(self, owner: str, id: str) -> Conversation:
        rows = self._tables.read(
            f"SELECT {_CONVERSATION} FROM conversation WHERE id = ? AND owner = ? AND listed", joined(id), _key(owner)
        )
        if not rows:
            raise Absent("This conversation isn't here any more. Begin a new one.")
        return _conversation(rows[0])

    def turns(self, owner: str, conversation: str) -> list[Turn]:
        """In the order in which they were said."""
        self.conversation(owner, conversation)
        return self._tables.turns("conversation = ?", conversation)

    def add(
        self, owner: str, conversation: str, role: Role, text: str, pictures: Sequence[tuple[str, bytes]] = (),
        facts: Mapping[str, Any] = {},
    ) -> int:  # fmt: skip
        """Adds a turn; its id, which no other turn ever gets.

        The first question gives the conversation its title, unless people gave it one.

        Args:
            pictures: names and bytes, as they were uploaded.
        """
        files = [(Picture(name, hashlib.sha256(content).hexdigest()), content) for name, content in pictures]
        with self._tables.writing():
            id = self.conversation(owner, conversation).id
            turn = self._tables.add(_key(owner), id, role, text, as_json(facts), files)
            self._tables.write("UPDATE conversation SET changed = ? WHERE id = ?", time.time(), id)
            self._tables.title(id)
            self._make_room(id)
        return turn

    def _make_room(self, spared: str) -> None:
        while self._most is not None and self._tables.size() > self._most:
            oldest = self._tables.read("SELECT id FROM conversation WHERE id != ? ORDER BY changed LIMIT 1", spared)
            if not oldest:
                return
            self._tables.write("DELETE FROM conversation WHERE id = ?", oldest[0][0])

    def finish(self, owner: str, turn: int, text: str, facts: Mapping[str, Any]) -> None:
        """Replaces what a turn says, for an answer that grew."""
        with self._tables.writing():
            self._tables.own_turn(_key(owner), turn)
            self._tables.write("UPDATE turn SET text = ?, facts = ? WHERE id = ?", joined(text), as_json(facts), turn)

    def cut(self, owner: str, conversation: str, turn: int) -> None:
        """Takes a turn away and all that come after it. Answers of them that were rated stay as feedback."""
        with self._tables.writing():
            turns = self.turns(owner, conversation)
            places = [place for place, one in enumerate(turns) if one.id == turn]
            if not places:
                raise absent_turn()
            for place in range(places[0], len(turns)):
                if _is_rated(turns[place]):
                    self._keep_apart(_key(owner), conversation, turns[: place + 1], origin=conversation)
            self._tables.write("DELETE FROM turn WHERE conversation = ? AND id >= ?", conversation, turn)
            self._tables.write("UPDATE conversation SET changed = ? WHERE id = ?", time.time(), conversation)

    def replace(
        self, owner: str, conversation: str, turn: int, text: str, pictures: Sequence[tuple[str, bytes]]
    ) -> int:
        """A question in place of another and of all that came after it, as one change; its id."""
        with self._tables.writing():
            self.cut(owner, conversation, turn)
            return self.add(owner, conversation, "user", text, pictures)

    def picture(self, owner: str, digest: str) -> bytes:
        """The bytes of one that a turn of this owner shows."""
        return self._tables.content(_key(owner), digest)

    def settle(self, owner: str, conversation: str, settings: Mapping[str, Any]) -> None:
        """Replaces a conversation's settings."""
        self._change(owner, conversation, "settings = ?", as_json(settings))

    def rename(self, owner: str, conversation: str, title: str) -> None:
        """Gives it a title; a blank one is that of its first question again."""
        title = " ".join(joined(title).split())[:_LONGEST_TITLE]
        self._change(owner, conversation, "title = ?, renamed = ?", title, bool(title))
        with self._tables.writing():
            self._tables.title(conversation)

    def pin(self, owner: str, conversation: str, whether: bool = True) -> None:
        self._change(owner, conversation, "pinned = ?", whether)

    def delete(self, owner: str, conversation: str) -> None:
        """Takes it away with its feedback; nothing of it stays on the disk."""
        with self._tables.writing():
            id = self.conversation(owner, conversation).id
            self._tables.write("DELETE FROM conversation WHERE id = ?", id)
        self._tables.scrub()

    def erase(self, owner: str) -> None:
        """Takes away everything of somebody, feedback too; nothing of it stays on the disk."""
        with self._tables.writing():
            self._tables.write("DELETE FROM conversation WHERE owner = ?", _key(owner))
        self._tables.scrub()

    def keeps(self, owner: str) -> bool:
        """Whether somebody's history is kept."""
        rows = self._tables.read("SELECT keeps FROM person WHERE owner = ?", _key(owner))
        return not rows or bool(rows[0][0])

    def keep(self, owner: str, whether: bool) -> None:
        """Says whether it is. What was kept before stays until it is deleted."""
        with self._tables.writing():
            self._tables.write("INSERT OR REPLACE INTO person VALUES (?, ?)", _key(owner), whether)

    def rate(self, owner: str, turn: int, rating: int, correction: str = "") -> None:
        """Sets an answer's thumb and what it should have been; 0 and "" take both back."""
        if rating not in (-1, 0, 1):
            raise VLChatError(f"A rating is 1, -1 or 0, not {rating}.")
        correction = joined(correction).strip()
        with self._tables.writing():
            conversation, role, listed = self._tables.own_turn(_key(owner), turn)
            if role != "assistant":
                raise VLChatError("Only answers are rated.")
            self._tables.write(
                "UPDATE turn SET rating = ?, correction = ?, rated = ? WHERE id = ?",
                rating, correction, time.time(), turn,
            )  # fmt: skip
            if not (listed or rating or correction):
                self._tables.write("DELETE FROM conversation WHERE id = ?", conversation)

    def keep_rated(self, owner: str, aside: Store, turn: int) -> None:
        """Keeps of a conversation that isn't kept the one exchange that was rated, and only that.

        To call after each `aside.rate(owner, turn, ...)`; a rating that was taken back takes the exchange away. Of an
        exchange whose question shows no picture, the pictures shown last before it are kept with it.

        Args:
            aside: a store in memory, where the conversation is.
        """
        found = aside._tables.own_turn(_key(owner), turn)
        turns = aside._tables.turns("conversation = ? AND turn.id <= ?", found[0], turn)
        answer, asked = turns[-1], [one for one in turns if one.role == "user"][-1:]
        shown = next((one.pictures for one in reversed(turns) if one.pictures), ())
        question = [Turn(one.id, "user", one.text, one.pictures or shown, {}, 0, "") for one in asked]
        with self._tables.writing():
            self._tables.write(
                "DELETE FROM conversation WHERE id = ? AND owner = ?", _apart(found[0], turn), _key(owner)
            )
            if _is_rated(answer):
                self._keep_apart(_key(owner), found[0], [*question, answer], contents=aside._tables.content)

    def rated(self, owner: str | None) -> list[Rated]:
        """The answers with a thumb or a correction, oldest turn first; None: everybody's, for who runs the server."""
        found = self._tables.read(
            "SELECT owner, conversation, turn.id, rated FROM turn JOIN conversation AS c ON c.id = conversation "
            "WHERE (rating != 0 OR correction != '') AND (? IS NULL OR owner = ?) ORDER BY turn.id",
            *(2 * [None if owner is None else _key(owner)]),
        )
        return [
            Rated(whose, tuple(self._tables.turns("conversation = ? AND turn.id <= ?", conversation, turn)), when)
            for whose, conversation, turn, when in found
        ]

    def content(self, of: Rated | Vote, picture: Picture) -> bytes:
        """The bytes of a picture of what `rated` or `votes` gave."""
        return self._tables.content(of.owner, picture.digest)

    def vote(
        self, owner: str, conversation: str, question: int, answers: Mapping[str, str], chosen: str
    ) -> None:  # fmt: skip
        """Notes which of several answers to a question was better; a second vote on it replaces the first.

        Args:
            question: the id of the turn.
            answers: the model's name -> what it said.
            chosen: one of the names; "" for no difference.
        """
        if chosen and chosen not in answers:
            raise VLChatError("A vote is for one of the answers, or for none.")
        with self._tables.writing():
            found, role, _ = self._tables.own_turn(_key(owner), question)
            if (found, role) != (conversation, "user"):
                raise absent_turn()
            self._tables.write(
                "INSERT OR REPLACE INTO vote VALUES (?, ?, ?, ?)",
                question, as_json(answers), joined(chosen), time.time(),
            )  # fmt: skip

    def votes(self, owner: str | None) -> list[Vote]:
        """As `rated`."""
        found = self._tables.read(
            "SELECT owner, question, answers, chosen, voted FROM vote JOIN turn ON turn.id = question "
            "JOIN conversation AS c ON c.id = conversation WHERE ? IS NULL OR owner = ? ORDER BY question",
            *(2 * [None if owner is None else _key(owner)]),
        )
        return [
            Vote(whose, self._tables.turns("turn.id = ?", question)[0], json.loads(answers), chosen, when)
            for whose, question, answers, chosen, when in found
        ]

    def unvote(self, owner: str, question: int) -> None:
        """Takes a vote back."""
        with self._tables.writing():
            self._tables.own_turn(_key(owner), question)
            self._tables.write("DELETE FROM vote WHERE question = ?", question)

    def close(self) -> None:
        self._tables.close()

    def _keep_apart(
        self, owner: bytes, conversation: str, turns: Sequence[Turn], *, origin: str | None = None,
        contents: Callable[[bytes, str], bytes] | None = None,
    ) -> None:  # fmt: skip
        """Copies turns, of which the last was rated, into a conversation that is not listed."""
        answer, read = turns[-1], contents or self._tables.content
        id = _apart(conversation, answer.id)
        self._tables.begin(id, owner, listed=False, origin=origin)
        for turn in turns:
            files = [(picture, read(owner, picture.digest)) for picture in turn.pictures]
            copy = self._tables.add(owner, id, turn.role, turn.text, as_json(turn.facts), files)
        self._tables.write(
            "UPDATE turn SET rating = ?, correction = ?, rated = ? WHERE id = ?",
            answer.rating, answer.correction, time.time(), copy,
        )  # fmt: skip

    def _change(self, owner: str, conversation: str, what: str, *values: Any) -> None:
        with self._tables.writing():
            id = self.conversation(owner, conversation).id
            self._tables.write(f"UPDATE conversation SET {what} WHERE id = ?", *values, id)


def _key(owner: str) -> bytes:
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).digest()


def _apart(conversation: str, turn: int) -> str:
    """The id of the conversation that holds one rated answer of another."""
    return f"{conversation}.{turn}"


def _is_rated(turn: Turn) -> bool:
    return bool(turn.rating or turn.correction)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", joined(text)).casefold()


def _conversation(row: Row) -> Conversation:
    id, title, pinned, changed, settings = row
    return Conversation(id, title, bool(pinned), changed, json.loads(settings))
