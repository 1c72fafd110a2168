"""A SQLite file of the server's own: for its user alone, safe from several threads, its troubles told in sentences."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlchat.errors import VLChatError

Row = tuple[Any, ...]
_PATIENCE = 10.0  # seconds that a write waits for another process's


class Database:
    """One connection, one thread at a time.

    Args:
        file: where it is, or is made, in a folder of mode 0700; None keeps all in memory.
        schema: SQL that makes an empty file one of `version`.
        version: of the schema, kept as `PRAGMA user_version`.
        kind: a number that tells such a file from other programs', kept as `PRAGMA application_id`.

    Raises:
        VLChatError: the folder or the file can't be used; names it and says what to do.
    """

    def __init__(self, file: Path | None, schema: str, version: int, kind: int) -> None:
        self._lock = threading.RLock()
        self._open = True
        name = ":memory:" if file is None else str(file)
        try:
            if file is not None:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives its other files the same mode
            self._connection = sqlite3.connect(name, _PATIENCE, isolation_level=None, check_same_thread=False)
        except (OSError, ValueError, sqlite3.Error) as error:
            raise VLChatError(
                f"{name} can't be opened: {_reason(error)}. Name a folder that you may write to."
            ) from None
        try:
            for pragma in ("synchronous = NORMAL", "foreign_keys = ON", "secure_delete = ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            with self._transaction():
                self._prepare(name, schema, version, kind)
            self._connection.execute("PRAGMA journal_mode = WAL")  # stays with the file, so only now that it is ours
        except sqlite3.DatabaseError as error:
            self.close()
            raise VLChatError(
                f"{name} can't be used: {_reason(error)}. Move it away, make room on its disk, or name another folder."
            ) from None
        except VLChatError:
            self.close()
            raise

    def _prepare(self, name: str, schema: str, version: int, kind: int) -> None:
        found, known = (
            self._connection.execute(f"PRAGMA {of}").fetchone()[0] for of in ("application_id", "user_version")
        )
        if not found and not self._connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in schema.split(";\n\n"):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {kind}")
            self._connection.execute(f"PRAGMA user_version = {version}")
        elif found != kind:
            raise VLChatError(f"{name} is another program's file. Move it away, or name another folder.")
        elif known > version:
            raise VLChatError(
                f"{name} was written by a newer vlchat (its version {known}; this one knows {version}). Update vlchat, "
                "or name another folder."
            )

    def read(self, statement: str, *values: Any) -> list[Row]:
        """All rows of a query.

        Raises:
            VLChatError: the file can't be read.
        """
        with self._told():
            return self._connection.execute(statement, values).fetchall()

    def write(self, statement: str, *values: Any) -> int:
        """Runs a statement inside `writing`; the id of the row that it made."""
        return self._connection.execute(statement, values).lastrowid or 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """All that is done inside is kept as one, or none of it. Inside another one it is a part of that.

        Raises:
            VLChatError: it can't be kept.
        """
        with self._told():
            if self._connection.in_transaction:
                yield
            else:
                with self._transaction():
                    yield

    def size(self) -> int:
        """Bytes of what is in it."""
        (pages,), (free,), (size,) = (
            self.read(f"PRAGMA {of}")[0] for of in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def scrub(self) -> None:
        """Takes what was deleted out of the write-ahead log, too, as far as no other process reads there."""
        with self._told():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        with self._lock:
            self._open = False
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of SQLite as sentences for whoever asks, who need not know where the file is."""
        with self._lock:
            if not self._open:
                raise VLChatError("The server is stopping. Ask again in a minute.")
            try:
                yield
            except (sqlite3.IntegrityError, sqlite3.ProgrammingError):  # ours, not the disk's
                raise
            except sqlite3.DatabaseError as error:
                raise VLChatError(
                    f"The server's history can't be used now: {_reason(error)}. Whoever runs it can make room on its "
                    "disk or give it another folder; until then, switch your history off to go on."
                ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or "it is no place for a file").lower()
    return str(error)
