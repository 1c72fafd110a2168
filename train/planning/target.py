"""What a run is planned for: how much memory there is, and how fast it computes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # accelerate brings it
import torch

from vlchat.errors import ConfigError
from vlchat.starting.machines import GIB, GPUS, known_gpu

REACHED = 0.5  # share of a matrix product's rate that the products of a training step reach
_CONTEXT = 1 * GIB  # what a GPU's driver, torch's workspaces and gaps between blocks take
_SIDE = 1024


@dataclass(frozen=True)
class Target:
    """A machine for one process of a run.

    Attributes:
        name: for people.
        device: "cpu" or "cuda".
        memory: bytes that the process may have.
        taken: bytes of it that the program itself takes.
        rate: floating-point operations a second that a step's products reach; 0 where it is not known yet.
        bandwidth: bytes a second that operations read and write.
        measured: how the rate is known, for people.
        bf16: whether it computes in bfloat16.
    """

    name: str
    device: str
    memory: int
    taken: int
    rate: float = 0.0
    bandwidth: float = 0.0
    measured: str = ""
    bf16: bool = True


def target(
    gpu: str | None = None, memory: float | None = None, rate: float | None = None, half: bool = False
) -> Target:
    """The machine that is named, else this one.

    Args:
        gpu: a name of `vlchat.starting.machines.GPUS`.
        memory: GiB, in place of what the machine has.
        rate: TFLOP/s that a run reaches, in place of a measurement.
        half: the products are in 16 bits.

    Raises:
        VLChatError: an unknown GPU, or a number that is not above 0.
    """
    for option, value in (("--memory", memory), ("--rate", rate)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{option} is {value:g}; it must be a number above 0.")
    if gpu is not None:
        name = known_gpu(gpu, "for another one give --memory and --rate")
        known = GPUS[name]
        told = "as stated" if rate else f"{REACHED:.0%} of its data sheet's {known.rate:g}"
        if not rate and not half:
            told += " in 16 bits; in float32 it is several times slower"
        reached = (rate or known.rate * REACHED) * 1e12
        room = int((memory or known.memory) * GIB)
        return Target(name, "cuda", room, _CONTEXT, reached, known.bandwidth * 1e9, told, known.bf16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    room = int(memory * GIB) if memory else _room(device)
    name = torch.cuda.get_device_name() if device == "cuda" else "this machine's CPU"
    taken = _CONTEXT if device == "cuda" else psutil.Process().memory_info().rss
    if rate is not None:
        return Target(name, device, room, taken, rate * 1e12, rate * 1e12 / 20, "as stated")
    products, copies = measure(device, torch.bfloat16 if half else torch.float32)
    return Target(name, device, room, taken, products * REACHED, copies, f"{REACHED:.0%} of a matrix product's here")


def _room(device: str) -> int:
    """Bytes that this process may have, what it has already included."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    found = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found = min(found, int(text))
    return found


def measure(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Floating-point operations a second of a matrix product, and bytes a second of a sum, each the best of a few."""
    one = torch.randn(_SIDE, _SIDE, device=device, dtype=dtype)
    long = torch.zeros(2**24 if device == "cuda" else 2**22, device=device)

    def best(work: object) -> float:
        times = []
        for _ in range(3):
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            work()  # type: ignore[operator]
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return max(min(times), 1e-7)

    return 2 * _SIDE**3 / best(lambda: one @ one), 3 * long.nbytes / best(lambda: long + long)
