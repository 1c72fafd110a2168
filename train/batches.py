"""Batches as a pure function of (seed, step): a resumed run sees what it would have seen."""

import os
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from vlchat.errors import VLChatError


class BatchSource(Protocol):
    """Makes the batch of one step."""

    def batch(self, step: int) -> dict[str, Any]: ...


class _Steps(Dataset):
    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __getitem__(self, step: int) -> dict[str, Any] | VLChatError:
        try:
            return self.source.batch(step)
        except VLChatError as error:  # raised in a worker, its sentence would come with that worker's traceback
            return error


def _stand_back(worker: int) -> None:
    """A worker takes one core, and only what the training leaves: a step whose threads wait for each other is slow."""
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(10)


def stream(source: BatchSource, start: int, stop: int, workers: int) -> Iterator[dict[str, Any]]:
    """The batches of steps start .. stop - 1, made ahead in `workers` processes.

    Raises:
        VLChatError: what a row of the batch that is due has wrong with it.
    """
    loader: DataLoader = DataLoader(
        _Steps(source),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        worker_init_fn=_stand_back,
        generator=torch.Generator(),  # its seed for workers is not drawn from the training's own randomness
    )
    for batch in loader:
        if isinstance(batch, VLChatError):
            raise batch
        yield batch
