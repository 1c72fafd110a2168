"""Freed memory goes back to the system, in a process that allocates and frees as a training step does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from train.heap import give_back_memory

# Activations of unlike sizes, every second of which stays while the others are freed: what is left lies between gaps.
STEPS = """
import os, sys
from pathlib import Path
import torch
from train.heap import MIB, give_back_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.ones(31 * MIB, dtype=torch.uint8)  # glibc learns that this is not large
if sys.argv[1] == "set":
    assert give_back_memory()
before = resident()
kept = []
for step in range(4):
    made = [torch.ones((2 + number % 5) * MIB + step * MIB // 2, dtype=torch.uint8) for number in range(24)]
    kept = made[::2]
    del made
held = sum(one.nbytes for one in kept)
print(resident() - before - held)
"""


def excess(mode: str, **changes: str) -> int:
    """Bytes that the process keeps beyond its tensors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, mode], env=environment | changes, check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's malloc is set")
def test_freed_tensors_go_back_to_the_system() -> None:
    given_back, as_glibc = excess("set"), excess("unset")
    assert given_back < 4 * 2**20 < as_glibc


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_a_persons_own_settings_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert not give_back_memory()
