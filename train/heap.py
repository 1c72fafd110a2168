"""What the C library keeps of memory that a training frees, on Linux with glibc."""

from __future__ import annotations

import ctypes
import os
import sys

MIB = 2**20
# malloc.h's names of what mallopt sets
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -2, -3, -4, -8
GLIBCS_OWN = {TRIM_THRESHOLD: 64 * MIB, TOP_PAD: 0, MMAP_THRESHOLD: 32 * MIB, MMAP_MAX: 2**16}  # as it grows to be
_GIVEN_BACK = {TRIM_THRESHOLD: 16 * MIB, TOP_PAD: 0, MMAP_THRESHOLD: MIB, MMAP_MAX: 2**16, ARENA_MAX: 2}
_KEPT = {TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 256 * MIB, MMAP_MAX: 0, ARENA_MAX: 2}
_CHOSEN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # a person's own settings, or another malloc


def settle(large: bool) -> bool:
    """Sets what becomes of freed tensors, in this process and in those forked from it later.

    By itself glibc gives a step's largest tensors back to the system, which clears every page of them when they come
    again, and keeps the others in a heap whose gaps fit no other tensor. A small model computes little on each number,
    so that the clearing is a good part of its time: its memory is kept. A large model's matrices outweigh it: each of
    its tensors of a MiB and more is a mapping of its own, so that the process takes what its tensors take.
    `benchmarks/heap.py` measures both. Nothing is changed on other systems, or where the environment sets malloc.

    Returns:
        Whether it was set.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(_CHOSEN) for name in os.environ):
        return False
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
    except ValueError:  # another C library has no such name
        return False
    return set_malloc(_GIVEN_BACK if large else _KEPT)


def set_malloc(settings: dict[int, int]) -> bool:
    """mallopt of each; whether glibc took them all."""
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
