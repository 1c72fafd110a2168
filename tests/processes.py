"""Real processes that talk over gloo, for tests that compare several with one.

A new process imports torch and transformers for five to ten seconds. So one does that for all tests, and each of theirs
is forked from it (`multiprocessing`'s fork server): a process of its own, with its own signals, memory and sockets.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing

ROOT = Path(__file__).resolve().parent.parent
Work = Callable[[int, int], dict[str, torch.Tensor]]

_FORKED = get_context("forkserver")
# All but what is run itself. Models are imported by transformers only when they are asked for.
_FORKED.set_forkserver_preload(
    ["train.loop", "train.objectives", "train.planning.command", "transformers.models.llama.modeling_llama",
     "transformers.models.clip.modeling_clip"]
)  # fmt: skip


class Launched:
    """A running command of Python, as of `subprocess.Popen`: both of its streams in one text.

    Args:
        command: a script or `-m` and a module, and its arguments.
        environment: its variables, besides those of this process.
    """

    def __init__(self, command: tuple[str, ...], environment: dict[str, str]) -> None:
        handle, name = tempfile.mkstemp(suffix=".told")
        os.close(handle)
        self._file, self._told = Path(name), ""
        self._process = _FORKED.Process(target=_command, args=(command, {**os.environ, **environment}, name))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        if self.returncode is None:
            self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Waits for its end. Returns what it has written, and None as there are not two streams.

        Raises:
            subprocess.TimeoutExpired: it does not end within so many seconds.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        if self._file.exists():
            self._told = self._file.read_text()
            self._file.unlink()
        return self._told, None


def _command(command: tuple[str, ...], environment: dict[str, str], told: str) -> None:
    _begin(environment)
    os.chdir(ROOT)
    with open(told, "w") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    if command[0] == "-m":
        sys.argv = list(command[1:])
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(command)
        runpy.run_path(command[0], run_name="__main__")


def launched(ranks: int, *command: str) -> list[Launched]:
    """The command as so many processes of one run, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = str(ranks)
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "OMP_NUM_THREADS": "1"}  # fmt: skip
    return [Launched(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)]


def _begin(environment: dict[str, str]) -> None:
    """The variables of the test that asks, not of the one that asked first."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)


def _one(rank: int, ranks: int, folder: str, work: Work, environment: dict[str, str]) -> None:
    _begin(environment)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    try:
        save_file(work(rank, ranks), f"{folder}/rank-{rank}.safetensors")
    finally:
        distributed.destroy_process_group()


def together(work: Work, ranks: int, folder: Path) -> list[dict[str, torch.Tensor]]:
    """What `work(rank, ranks)`, a function of a module, gives in each of `ranks` new processes."""
    given = (ranks, str(folder), work, dict(os.environ))
    multiprocessing.start_processes(_one, given, nprocs=ranks, start_method="forkserver")
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(ranks)]
