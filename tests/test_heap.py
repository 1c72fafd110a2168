"""Freed memory goes back to the system, in a process that allocates and frees as a training step does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.heap import give_back_memory

ROOT = Path(__file__).resolve().parent.parent
# Activations of unlike sizes, of which every second one stays while the others are freed: gaps lie between them.
STEPS = """
import contextlib, os, sys
from pathlib import Path
import torch
from vlchat.errors import ConfigError

MIB = 2**20

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if sys.argv[1] == "vlchat train":
    from train.__main__ import main
    with contextlib.suppress(ConfigError):
        main(["nowhere.yaml"])
torch.ones(31 * MIB, dtype=torch.uint8)  # from which glibc by itself learns that such blocks are not large
before = resident()
for step in range(4):
    made = [torch.ones((2 + number % 5) * MIB + step * MIB // 2, dtype=torch.uint8) for number in range(24)]
    kept = made[::2]
    del made
print(resident() - before - sum(one.nbytes for one in kept))
"""


def excess(program: str) -> int:
    """Bytes that a process keeps beyond its tensors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, program], env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    )
    return int(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's malloc is set")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a step's tensors are not malloc's")
def test_what_a_training_frees_goes_back_to_the_system() -> None:
    assert excess("vlchat train") < 4 * 2**20 < excess("another program")


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_a_persons_own_settings_are_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert not give_back_memory()
