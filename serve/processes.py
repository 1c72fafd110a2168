"""Commands of `vlchat` as processes of their own, behind the chat in the line for the processor."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import Any

from vlchat import runs

_NICE = 10  # the chat comes first
_LOOK_AGAIN = 0.1  # seconds
_AT_ONCE = 5.0  # seconds in which what has nothing to save must end


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        command: its words, to copy.
        code: 0, or what `vlchat` tells by another one.
        output, errors: what it printed.
    """

    command: str
    code: int
    output: str
    errors: str

    @property
    def sentence(self) -> str:
        """What a command that failed says of it."""
        told = self.errors.rpartition("vlchat: ")[2].strip()
        if self.code == 2 and told:
            return told
        if self.code < 0:
            return f"{self.command} was ended."
        last = (self.errors.strip() or self.output.strip()).rpartition("\n")[2]
        return f"{self.command} failed with code {self.code}. {last}".strip()


def shown(words: Sequence[str]) -> str:
    """A command as a terminal takes it."""
    return shlex.join(["vlchat", *words])


def ask(words: Sequence[str]) -> Popen[str]:
    """Begins a command whose output is waited for, see `outcome`."""
    process = Popen(
        _line(words), stdin=DEVNULL, stdout=PIPE, stderr=PIPE, text=True, errors="replace", start_new_session=True
    )
    _lower(process.pid)
    return process


def outcome(process: Popen[str], words: Sequence[str]) -> Outcome:
    """Waits for its end."""
    output, errors = process.communicate()
    return Outcome(shown(words), process.returncode, output, errors)


def begin(words: Sequence[str], output: Path, cwd: Path) -> Popen[bytes]:
    """Begins a command that goes on when nobody waits for it, even where this process dies.

    Args:
        output: what it prints is added to this file, after its words.
    """
    with output.open("ab") as file:
        file.write(f"$ {shown(words)}\n".encode(errors="replace"))
        file.flush()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = Popen(
            _line(words), stdin=DEVNULL, stdout=file, stderr=STDOUT, cwd=cwd, env=environment, start_new_session=True
        )
    _lower(process.pid)
    return process


def terminate(process: Mapping[str, Any]) -> None:
    """SIGTERM: a run saves and ends.

    Args:
        process: as `runs.process` tells it.
    """
    with contextlib.suppress(ProcessLookupError):
        if runs.runs_here(process):
            os.kill(process["pid"], signal.SIGTERM)


def patiently(process: Mapping[str, Any], patience: float) -> None:
    """Waits for the end of a process that was asked to, so many seconds; then it is killed with all that it began."""
    end = time.monotonic() + patience
    while runs.runs_here(process):
        if time.monotonic() > end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process["pid"], signal.SIGKILL)
            return
        time.sleep(_LOOK_AGAIN)


def end(process: Popen[str]) -> None:
    """Ends a command that has nothing to save, and what it began."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    told = runs.process(process.pid)
    patiently(told, _AT_ONCE)


def _line(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "vlchat.cli", *words]


def _lower(pid: int) -> None:
    # From here and not in the child between fork and exec, where no Python may run beside other threads.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _NICE)
