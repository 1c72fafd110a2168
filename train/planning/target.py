"""What a run is planned for: how much memory there is, and how fast it computes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # accelerate brings it
import torch

from vlchat.errors import ConfigError, nearest
from vlchat.starting.machines import gpu_name

GIB = 2**30
REACHED = 0.5  # share of a matrix product's rate that the products of a training step reach
_CONTEXT = 1 * GIB  # what a GPU's driver, torch's workspaces and gaps between blocks take
_SIDE = 1024

# Name -> memory in GiB, dense bfloat16 TFLOP/s, memory bandwidth in GB/s, of the makers' data sheets.
GPUS: dict[str, tuple[float, float, float]] = {
    "t4": (15, 65, 320),  # fp16: it has no bfloat16
    "rtx-3060": (12, 51, 360),
    "rtx-3090": (24, 71, 936),
    "rtx-4060ti-16": (16, 88, 288),
    "rtx-4090": (24, 165, 1008),
    "rtx-5090": (32, 210, 1792),
    "a10": (23, 70, 600),
    "l4": (23, 121, 300),
    "l40s": (45, 362, 864),
    "a100-40": (40, 312, 1555),
    "a100-80": (80, 312, 2039),
    "h100": (80, 989, 3350),
    "h200": (140, 989, 4800),
    "b200": (180, 2250, 8000),
}


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
    """

    name: str
    device: str
    memory: int
    taken: int
    rate: float = 0.0
    bandwidth: float = 0.0
    measured: str = ""


def target(
    gpu: str | None = None, memory: float | None = None, rate: float | None = None, half: bool = False
) -> Target:
    """The machine that is named, else this one.

    Args:
        gpu: a name of `GPUS`.
        memory: GiB, in place of what the machine has.
        rate: TFLOP/s that a run reaches, in place of a measurement.
        half: the products are to be measured in bfloat16.

    Raises:
        ConfigError: an unknown GPU, or a number that is not above 0.
    """
    for option, value in (("--memory", memory), ("--rate", rate)):
        if value is not None and not value > 0:
            raise ConfigError(f"{option} is {value:g}; it must be above 0.")
    if gpu is not None:
        name = gpu_name(gpu)
        if name not in GPUS:
            raise ConfigError(
                f"--gpu {gpu} is not known{nearest(name, GPUS)} Known: {', '.join(GPUS)}. For another one give "
                "--memory and --rate."
            )
        size, peak, speed = GPUS[name]
        reached = rate or peak * REACHED
        told = "as stated" if rate else f"{REACHED:.0%} of its data sheet's {peak:g}"
        return Target(name, "cuda", int((memory or size) * GIB), _CONTEXT, reached * 1e12, speed * 1e9, told)
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
