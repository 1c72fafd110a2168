"""Too little memory: how it shows, and the same work with fewer rows at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from vlchat.errors import VLChatError

Row = TypeVar("Row")
Result = TypeVar("Result")


class LeftOthers(VLChatError):
    """A process has too little memory in the middle of a pass in which the others wait for it: only this one knows."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch had too little memory, on a device or on the CPU, which raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def halving(
    work: Callable[[Sequence[Row], int], list[Result]], rows: Sequence[Row], first: int, divisible: bool = True
) -> list[Result]:
    """`work(rows, first)`; where the memory is full, of each half by itself, down to single rows.

    Args:
        first: the number of the first row.
        divisible: False for rows that are compared with each other, which are no longer the same when they are fewer.
    """
    try:
        return work(rows, first)
    except RuntimeError as error:
        if len(rows) == 1 or not divisible or not is_out_of_memory(error):
            raise
    half = len(rows) // 2  # outside of the except block, whose error holds on to the memory
    return halving(work, rows[:half], first) + halving(work, rows[half:], first + half)
