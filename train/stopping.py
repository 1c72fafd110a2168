"""SIGTERM and Ctrl-C: the step is finished, the run saved, and only then it ends."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from vlchat.errors import VLChatError


class Interrupted(VLChatError):
    """A run that was asked to stop and has saved.

    Attributes:
        code: the exit code that shells expect: 128 and the signal's number.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class StoppedAtOnce(KeyboardInterrupt):
    """A second Ctrl-C: the run ends where it is."""


class Stop:
    """Whether, and by which signal, the run was asked to stop. A second Ctrl-C stops it at once, unsaved."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise StoppedAtOnce("stopped at once by a second Ctrl-C, without a save")
        if self.signal is None:
            name = signal.Signals(number).name
            print(f"\n{name}: the run saves after this step and stops.", file=sys.stderr, flush=True)
        self.signal = number

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Takes SIGTERM and SIGINT while the block runs. In a thread beside the main one there are no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
