"""What the C library keeps of memory that a training gives back, on Linux with glibc."""

from __future__ import annotations

import ctypes
import os
import sys

MIB = 2**20
TRIM_THRESHOLD, MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h's names of what mallopt sets
_CHOSEN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # a person's own settings, or another malloc


def give_back_memory() -> bool:
    """Lets freed tensors go back to the system at once, in this process and in those forked from it later.

    glibc takes large blocks from the system and gives them back when they are freed, but what is large grows with what
    was freed, up to 32 MiB. Tensors of a training step then lie in a heap whose gaps fit no other tensor and are kept.
    From here on a block of 1 MiB and more is always a mapping of its own. Nothing is changed on other systems, or where
    the environment sets something for malloc.

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
    mallopt = ctypes.CDLL(None).mallopt
    set_to = {MMAP_THRESHOLD: MIB, TRIM_THRESHOLD: 16 * MIB, _ARENA_MAX: 2}
    return all(mallopt(name, value) == 1 for name, value in set_to.items())
