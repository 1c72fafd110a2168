"""The processes of a run: what they tell each other, and who has gone."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed

from vlchat.errors import VLChatError

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)  # of this thread: signs of life go on
_BUCKET = 1 << 25  # bytes of gradients that are summed at once
_BEAT = 2.0  # seconds between two signs of life
_SILENCE = 30.0  # seconds without one before a process counts as gone
_WAIT = timedelta(hours=2)  # for the others at a meeting point: one of them may be writing a large checkpoint


class RankLost(VLChatError):
    """A process of the run has died or stands still."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this thread's process counts as the only one: rows are compared with its own, and nothing is exchanged.

    For looking at rows while the other processes look at others, and at another number of them.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def world_size() -> int:
    """How many processes train together."""
    if _ALONE.get():
        return 1
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0; the first one writes and prints."""
    if _ALONE.get():
        return 0
    return distributed.get_rank() if distributed.is_initialized() else int(os.environ.get("RANK", "0"))


def join() -> None:
    """Meets the other processes, where `torchrun` or `accelerate launch` started several."""
    PartialState(cpu=not torch.cuda.is_available(), timeout=_WAIT)


def exchange(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Tells every process the JSON-able `message` of each, in the order of their numbers. All must call it."""
    if world_size() == 1:
        return [message]
    device = _device()
    data = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8).to(device)
    size = torch.tensor([len(data)], device=device)
    sizes = [torch.zeros_like(size) for _ in range(world_size())]
    distributed.all_gather(sizes, size)
    longest = max(int(one) for one in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    found = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(found, padded)
    return [
        json.loads(bytes(one[: int(length)].tolist()).decode()) for one, length in zip(found, sizes, strict=True)
    ]


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Adds the gradients of all processes, in place. A parameter that has one nowhere keeps none."""
    if world_size() == 1:
        return
    there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8, device=_device())
    distributed.all_reduce(there, distributed.ReduceOp.MAX)
    used = [parameter for parameter, used in zip(parameters, there.tolist(), strict=True) if used]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    bucket: list[torch.Tensor] = []
    for number, parameter in enumerate(used):
        assert parameter.grad is not None
        bucket.append(parameter.grad)
        following = used[number + 1].grad if number + 1 < len(used) else None
        full = sum(gradient.nbytes for gradient in bucket) >= _BUCKET
        if full or following is None or following.dtype != parameter.grad.dtype:
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            distributed.all_reduce(flat)
            for gradient, summed in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))
            bucket = []


def _device() -> torch.device:
    gpu = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


class Heartbeat:
    """Ends this process when another one is gone or stands still, and says which.

    Each process leaves a sign of life in the group's store every two seconds. One that has left none for half a minute
    is dead, stopped or cut off: what waits for it would wait for hours.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}
        self._answered = time.monotonic()  # when the store last did

    @contextlib.contextmanager
    def beating(self) -> Iterator[Heartbeat]:
        """Signs of life while the block runs. Errors of a broken connection inside it become `RankLost`."""
        if world_size() == 1:
            yield self
            return
        store = distributed.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]  # a connection of its own
        store.set_timeout(timedelta(seconds=10))
        self._answered = time.monotonic()
        for work in (self._beat, self._watch_store):
            threading.Thread(target=work, args=(store,), daemon=True).start()
        try:
            yield self
            store.set(f"vlchat/{rank()}", "done")
        except (RuntimeError, distributed.DistError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "onnection" not in str(error):
                raise
            # Some other process broke the connection: give the thread time to find out which, and to end this one.
            self._over.wait(_SILENCE + 3 * _BEAT)
            raise RankLost(f"Process {rank()} lost its connection to the others: {error}") from error
        finally:
            self._over.set()

    def _beat(self, store: Any) -> None:
        beats = 0
        while not self._over.wait(_BEAT):
            beats += 1
            try:
                store.set(f"vlchat/{rank()}", str(beats))
                silent = self._silent(store)
            except (RuntimeError, distributed.DistError):  # the store's own process, the first one, is gone
                silent = 0
            self._answered = time.monotonic()
            if silent is not None:
                self._end(silent)

    def _watch_store(self, store: Any) -> None:
        """A store whose process stands still takes connections and never answers."""
        while not self._over.wait(_BEAT):
            if time.monotonic() - self._answered > _SILENCE:
                self._end(0)

    def _end(self, silent: int) -> None:
        if self._over.is_set():
            return
        print(
            f"\nProcess {silent} of {world_size()} has died or stands still: process {rank()} has had no sign of life "
            "from it. The run ends. --resume auto goes on from the newest checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread waits for that process and cannot be woken

    def _silent(self, store: Any) -> int | None:
        now = time.monotonic()
        for other in range(world_size()):
            key = f"vlchat/{other}"
            if other == rank():
                continue
            beat = store.get(key).decode() if store.check([key]) else ""
            if beat == "done" or self._seen.get(other, ("", 0.0))[0] != beat or other not in self._seen:
                self._seen[other] = (beat, now)
            elif now - self._seen[other][1] > _SILENCE:
                return other
        return None
