"""Batches as a pure function of (seed, step): a resumed run sees what it would have seen."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from train.grouping import Budget, grouped
from vlchat.errors import ConfigError, VLChatError

Batch = dict[str, Any]


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


class Lengths(Protocol):
    """How many tokens the rows at some positions take, before they are read.

    Attributes:
        multiple: a tensor of such rows is so many tokens long, or a multiple of it.
    """

    multiple: int

    def __call__(self, positions: Sequence[int]) -> list[int]: ...


class BatchSource(Protocol):
    """Makes the rows at some positions of a run's endless row order into tensors.

    It may have `row_lengths`, `Lengths` or None; with them a step's rows are taken by their length. `packing` says that
    a micro-batch is one packed row.
    """

    def batch(self, positions: Sequence[int]) -> Batch: ...


@dataclass(frozen=True)
class Plan:
    """Who takes which rows of a step.

    Attributes:
        batch: rows of one optimizer step, over all processes.
        micro: rows at once on one process, where `tokens` is None.
        rank, processes: which process this is, of how many.
        tokens: tokens at once on one process, padding included; None sets no limit.
        by_length: rows of similar length are taken at once; False takes them as they come.
    """

    batch: int
    micro: int
    rank: int = 0
    processes: int = 1
    tokens: int | None = None
    by_length: bool = True

    @classmethod
    def of(
        cls,
        batch: int,
        micro: int | None,
        rank: int,
        processes: int,
        whole: bool,
        tokens: int | None = None,
        by_length: bool = True,
        countable: bool = False,
    ) -> Plan:
        """The plan of a run, checked.

        Args:
            micro: None takes all rows of a process at once.
            whole: the objective compares the rows of a batch with each other, so that it can't come in pieces.
            countable: the tokens of a row are known before it is read.

        Raises:
            ConfigError: fewer rows than processes, pieces of a batch that is to be whole, a limit on tokens that are
                not known, or two limits.
        """
        if tokens is not None and micro is not None:
            raise ConfigError("loop.micro_batch and loop.micro_tokens both say how much is taken at once: keep one.")
        if tokens is not None and (whole or not countable or not by_length):
            reason = (
                "the objective compares the rows of a batch with each other"
                if whole
                else "loop.by_length is false"
                if countable
                else "how many tokens a row has is not known beforehand"
            )
            raise ConfigError(
                f"loop.micro_tokens can't be used, for {reason}. Leave it out; loop.micro_batch bounds the rows."
            )
        if batch < processes:
            raise ConfigError(f"loop.batch is {batch}, for {processes} processes: give each at least one row.")
        most = -(-batch // processes)
        if whole and micro is not None and micro < most:
            raise ConfigError(
                f"loop.micro_batch is {micro}, and the objective compares all {batch} rows of a batch with each other: "
                "taken in pieces it would compare fewer. Leave loop.micro_batch out and lower loop.batch, or train on "
                "more processes, whose rows are compared with each other."
            )
        return cls(batch, min(micro or most, most), rank, processes, tokens, by_length)

    def halved(self) -> Plan:
        """Half as many rows, and tokens, at once."""
        tokens = None if self.tokens is None else (self.tokens + 1) // 2
        return replace(self, micro=(self.micro + 1) // 2, tokens=tokens)

    @property
    def at_once(self) -> tuple[int, str, str]:
        """How many are taken at once, of what, and the setting that says so."""
        if self.tokens is not None:
            return self.tokens, "tokens", "loop.micro_tokens"
        return self.micro, "rows", "loop.micro_batch"

    def micro_batches(self, step: int) -> list[range]:
        """The positions of this process's rows of a step, in pieces, as they come."""
        first, last = (step * self.batch + self.batch * r // self.processes for r in (self.rank, self.rank + 1))
        return [range(start, min(start + self.micro, last)) for start in range(first, last, self.micro)]

    def micro_batches_by_length(self, step: int, row_lengths: Lengths, packed: bool) -> list[list[int]]:
        """The same rows of the step over all processes, taken by length; another process may get other ones of them."""
        rows = range(step * self.batch, (step + 1) * self.batch)
        budget = Budget(self.micro, self.tokens, packed, row_lengths.multiple)
        shares = grouped(row_lengths(rows), budget, self.processes)
        return [[rows[number] for number in piece] for piece in shares[self.rank]]

    def gains_by_length(self, packed: bool) -> bool:
        """Whether the rows' lengths matter to how they are taken: in several pieces, or by several processes of which
        each has a packed row. Of padded rows in one piece each, one process would get all the long ones."""
        in_pieces = self.tokens is not None or self.micro < -(-self.batch // self.processes)
        return self.by_length and (in_pieces or (packed and self.processes > 1))


_LOST = (
    "A process that prepares rows has died; the system kills one when the memory is full. Nothing of this step was "
    "saved. --resume auto goes on from the newest checkpoint; lower loop.workers if it happens again."
)


class WorkerLost(VLChatError):
    """A process that prepares rows has died."""


@contextlib.contextmanager
def workers_named() -> Iterator[None]:
    """What torch raises in the middle of anything when a loader's process dies, as a sentence."""
    try:
        yield
    except RuntimeError as error:
        if re.match(r"DataLoader worker \(pid", str(error)) is None:
            raise
        raise WorkerLost(_LOST) from error


class _Steps(Dataset):
    def __init__(self, source: BatchSource, plan: Plan) -> None:
        self.source, self.plan = source, plan

    def __getitem__(self, step: int) -> list[Batch] | VLChatError:
        try:
            return [self.source.batch(positions) for positions in self._pieces(step)]
        except VLChatError as error:  # raised in a worker, its sentence would come with that worker's traceback
            return error

    def _pieces(self, step: int) -> Sequence[Sequence[int]]:
        row_lengths = getattr(self.source, "row_lengths", None)
        packed = getattr(self.source, "packing", False)
        if row_lengths is None or not self.plan.gains_by_length(packed):
            return self.plan.micro_batches(step)
        return self.plan.micro_batches_by_length(step, row_lengths, packed)


def _stand_back(worker: int) -> None:
    """A worker takes one core, and only what the training leaves: a step whose threads wait for each other is slow."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the run ends them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(10)


def stream(source: BatchSource, plan: Plan, start: int, stop: int, workers: int) -> Iterator[list[Batch] | VLChatError]:
    """The micro-batches of steps start .. stop - 1, made ahead in `workers` processes.

    In place of a step's micro-batches comes the error of a row that has something wrong with it.
    """
    loader: DataLoader = DataLoader(
        _Steps(source, plan),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        worker_init_fn=_stand_back,
        generator=torch.Generator(),  # its seed for workers is not drawn from the training's own randomness
    )
    try:
        yield from loader
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # as it takes a tensor that is its last one
        if not workers or "in DataLoader worker process" in str(error):  # an error of a row
            raise
        raise WorkerLost(_LOST) from error
