"""Freed memory goes back to the system, in a process that allocates and frees as a training step does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.heap import settle

ROOT = Path(__file__).resolve().parent.parent
# Activations of unlike sizes, of which every second one stays while the others are freed: gaps lie between them.
STEPS = """
import os, resource, sys
from pathlib import Path
import torch
from train.heap import settle

MIB = 2**20

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] != "glibc":
    assert settle(large=sys.argv[1] == "large")
torch.ones(31 * MIB, dtype=torch.uint8)  # from which glibc by itself learns that such blocks are not large
before = resident()
for step in range(4):
    made = [torch.ones((2 + number % 5) * MIB + step * MIB // 2, dtype=torch.uint8) for number in range(24)]
    kept = made[::2]
    del made
excess = resident() - before - sum(one.nbytes for one in kept)
for step in range(6):  # glibc before 2.38 fits an aligned block into no gap of its own size: the second may be new
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(100 * MIB, dtype=torch.uint8)
    cleared = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
print(excess, cleared)
"""


def kept(program: str) -> tuple[int, int]:
    """Bytes that a process keeps beyond its tensors, and pages of a step's large tensor that are cleared once more."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, program], env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    )
    excess, cleared = done.stdout.splitlines()[-1].split()
    return int(excess), int(cleared)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's malloc is set")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a step's tensors are not malloc's")
def test_a_large_models_training_gives_back_what_it_frees_and_a_small_ones_keeps_it() -> None:
    (least, _), (glibcs, anew), (_, none) = kept("large"), kept("glibc"), kept("small")
    assert least < 4 * 2**20 < glibcs
    assert none < 100 < 25_000 < anew


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_a_persons_own_settings_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert not settle(large=True)
