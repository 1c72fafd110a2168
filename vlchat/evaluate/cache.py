"""Answers that were given before: nothing is asked twice, and an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from vlchat.errors import VLChatError
from vlchat.evaluate.items import Reply

FILE = "answers.sqlite"


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/vlchat`, or `~/.cache/vlchat`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlchat"


class AnswerCache:
    """Replies by the hash of who was asked what. It holds no prompts and no pictures; several processes may share it.

    Args:
        folder: where `answers.sqlite` is, or is made.

    Raises:
        VLChatError: the folder cannot be written to, or the file there is no such cache.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=60)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise VLChatError(
                f"Answers can't be kept in {self.path}: {error}. Name another folder with --cache, or use --no-cache."
            ) from error

    def find(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies that are known, by key. One that cannot be read is not known.

        Raises:
            VLChatError: the file is damaged, or another process keeps it for itself.
        """
        found: dict[str, Reply] = {}
        for key in dict.fromkeys(keys):
            try:
                row = self._database.execute("SELECT reply FROM answers WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                raise VLChatError(
                    f"Answers can't be read from {self.path}: {error}. Remove the file, or use --no-cache."
                ) from error
            if row is not None:
                try:
                    found[key] = _reply(json.loads(row[0]))
                except (ValueError, TypeError, KeyError):
                    continue
        return found

    def keep(self, replies: Mapping[str, Reply]) -> None:
        """Writes replies down, safe against a crash of this process. Refusals are not kept: they may be mended."""
        rows = [(key, json.dumps(asdict(reply))) for key, reply in replies.items() if reply.error is None]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise VLChatError(
                f"Answers can't be written to {self.path}: {error}. Make room there, or use --no-cache."
            ) from error

    def close(self) -> None:
        self._database.close()


def _reply(found: dict[str, object]) -> Reply:
    reply = Reply(**found)  # type: ignore[arg-type]
    return Reply(reply.text, reply.logprob, reply.tokens, tuple(reply.choices), tuple(reply.choice_tokens), reply.error)
