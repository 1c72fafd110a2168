"""Peers timed in turn in one process, so that none has the quieter machine; used by the benchmarks beside it."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

GIB = 2**30


def seconds(peers: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """How long each peer takes, round by round, after one that warms up; the order turns from round to round.

    Returns:
        By peer, `wall`, and `processor`: seconds of CPU time over all threads, which other work on the machine
        lengthens less.
    """
    found: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": []} for name in peers}
    for number in range(rounds + 1):
        for name in sorted(peers, key=list(peers).index, reverse=bool(number % 2)):
            wall, processor = time.perf_counter(), time.process_time()
            peers[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                found[name]["wall"].append(time.perf_counter() - wall)
                found[name]["processor"].append(time.process_time() - processor)
    return found


@dataclass
class Marks:
    """When optimizer steps ended, of whichever trainer makes them, and the gradients of the first one.

    Attributes:
        ends: the clock and CPU seconds.
        model: whose gradients are to be kept; None keeps none.
    """

    ends: list[tuple[float, float]] = field(default_factory=list)
    model: Any = None
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)

    def before(self, *_: Any) -> None:
        if self.model is not None and not self.gradients:
            named = self.model.named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}

    def after(self, *_: Any) -> None:
        self.ends.append((time.perf_counter(), processor_seconds()))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, steps are marked and trainers say nothing."""
        hooks = (register_optimizer_step_pre_hook(self.before), register_optimizer_step_post_hook(self.after))
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def times(self) -> dict[str, list[float]]:
        """Of each step but the first."""
        pairs = list(zip(self.ends, self.ends[1:], strict=False))
        return {"wall": [b[0] - a[0] for a, b in pairs], "processor": [b[1] - a[1] for a, b in pairs]}


def processor_seconds() -> float:
    """Of this process and of those that it started, whether they run or have ended."""
    mine = os.times()
    found = mine.user + mine.system + mine.children_user + mine.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            found += times.user + times.system
    return found


def ratios(times: Mapping[str, Mapping[str, list[float]]], slower: str, faster: str) -> dict[str, float]:
    """How many times as long `slower` takes: of the medians, and of the least."""
    return {
        f"{which}_{kind}": middle(times[slower][kind]) / middle(times[faster][kind])
        for kind in ("wall", "processor")
        for which, middle in (("median", statistics.median), ("best", min))
    }


def told(times: Mapping[str, Mapping[str, list[float]]]) -> str:
    """A line a peer."""
    return "\n".join(
        f"{name:32} median {statistics.median(found['wall']):7.3f} s, best {min(found['wall']):7.3f} s, "
        f"CPU time {statistics.median(found['processor']):7.3f} s"
        for name, found in times.items()
    )


def largest_difference(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> float:
    """Of tensors by name, relative to each one's largest number; ends the benchmark where the names differ."""
    if one.keys() != two.keys():
        raise SystemExit(f"Different tensors: {sorted(one.keys() ^ two.keys())[:4]}")
    pairs = [(one[name].float(), two[name].float()) for name in one]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies, by name; and none are left."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def surroundings(command: str, *packages: str) -> dict[str, Any]:
    """Date, hardware in words, how busy it was, and versions; no names of machines or folders."""
    memory = psutil.virtual_memory().total / GIB
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{memory:.0f} GiB memory{gpu}",
        "load_average_of_5_minutes": os.getloadavg()[1],
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", *packages)},
    }


def write(out: Path | None, result: dict[str, Any]) -> None:
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")
