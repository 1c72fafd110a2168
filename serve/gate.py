"""The way to an engine's model for work that writes no answer: between two of its steps, one at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from serve.tickets import Closed
from vlchat.errors import VLChatError

_LOOK = 0.05  # seconds between two looks at whether somebody who waits has left


class Left(VLChatError):
    """Nobody waits any more for what was to be computed."""

    def __init__(self) -> None:
        super().__init__("Nobody waits for this any more.")


class _Guest:
    def __init__(self) -> None:
        self.entered, self.done = threading.Event(), threading.Event()
        self.refused = False


class Gate:
    """Lets others use an engine's model while its thread waits.

    While answers are written, guests have at most half of the time: after each the engine goes on for as long as that
    took.

    Args:
        changed: wakes the engine's thread.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._line: deque[_Guest] = deque()
        self._closed = False
        self._next = 0.0

    @property
    def waiting(self) -> bool:
        """Whether somebody wants in."""
        return bool(self._line)

    def let_in(self, busy: bool) -> None:
        """Lets one of those that wait in, and waits until they are done. Called by the engine's thread.

        Args:
            busy: answers are being written.
        """
        began = time.monotonic()
        if busy and began < self._next:
            return
        with self._changed:
            guest = self._line.popleft() if self._line else None
        if guest is not None:
            guest.entered.set()
            guest.done.wait()
            ended = time.monotonic()
            self._next = ended + (ended - began)

    def close(self) -> None:
        """Lets nobody in any more."""
        with self._changed:
            self._closed = True
            refused, self._line = self._line, deque()
        for guest in refused:
            guest.refused = True
            guest.entered.set()

    def turn(self, turn: Any, left: threading.Event) -> Turn:
        """For a `Chat` that is used through this gate.

        Args:
            turn: of the engine's own chat, held as well.
            left: calls the waiting off.
        """
        return Turn(self, turn, left)

    def enter(self, left: threading.Event) -> _Guest:
        """Waits to be let in.

        Raises:
            Left, Closed: meanwhile it was called off, or the engine stopped.
        """
        guest = _Guest()
        with self._changed:
            if self._closed:
                raise Closed
            self._line.append(guest)
            self._changed.notify()
        while not guest.entered.wait(_LOOK):
            if left.is_set():
                with self._changed:
                    if guest in self._line:
                        self._line.remove(guest)
                        raise Left
        if guest.refused:
            raise Closed
        return guest


class Turn:
    """A `Chat.turn` that comes between two steps of an engine."""

    def __init__(self, gate: Gate, turn: Any, left: threading.Event) -> None:
        self._gate, self._turn, self._left = gate, turn, left
        self._guest: _Guest | None = None

    def __enter__(self) -> None:
        if self._left.is_set():
            raise Left
        guest = self._gate.enter(self._left)
        try:
            self._turn.__enter__()
        except BaseException:
            guest.done.set()
            raise
        self._guest = guest

    def __exit__(self, *error: object) -> None:
        guest, self._guest = self._guest, None
        assert guest is not None
        try:
            self._turn.__exit__(*error)
        finally:
            guest.done.set()
