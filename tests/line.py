"""The smallest objective: planes fitted to points. A script, so that several processes can run it.

python tests/line.py RUN [resume=auto|FOLDER] [memory=MiB] [loop.batch=8 ...] [bad=ROW] [dropout=0.2] [width=N]
    [hungry=N] [whole=1]

Tests whose run is to die, to meet a full disk or to have little memory start it as a process of its own, which imports
torch and transformers for five to ten seconds; the others call `main`.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from train import checkpoint
from train.config import LoopConfig, OptimConfig, RunConfig
from train.loop import fit
from train.ranks import Heartbeat, join
from train.stopping import Interrupted
from train.terms import Term
from vlchat.errors import VLChatError
from vlchat.folders import writing


class Line(nn.Module):
    """Least squares over points in eight dimensions; each counts as often as its `weight` says.

    Args:
        bad: the row whose value is beyond float32's square, if any.
        dropout: of the inputs.
        width: outputs, for a larger checkpoint.
        hungry: float32 numbers that a row takes in the forward pass.
        whole: 1 says that a batch can't come in pieces.
    """

    name = "line"
    whole_batch = False

    def __init__(
        self, bad: int | None = None, dropout: float = 0.0, width: int = 1, hungry: int = 0, whole: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plane = nn.Linear(8, width)
        self.dropout = nn.Dropout(dropout)
        self.bad, self.hungry, self.whole_batch = bad, hungry, bool(whole)

    def batch(self, positions: Sequence[int]) -> dict[str, Any]:
        points = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(row)) for row in positions])
        if self.bad in positions:
            points[list(positions).index(self.bad)] = 1e30
        return {
            "points": points,
            "weight": torch.tensor([1.0 + row % 3 for row in positions]),
            "ids": [f"point {row}" for row in positions],
        }

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        return {"squares": float(batch["weight"].sum())}

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return [self.plane], []

    def forward(self, batch: dict[str, Any]) -> dict[str, Term]:
        points = batch["points"]
        if self.hungry:
            points = points + torch.ones(len(points), self.hungry).mean(1, keepdim=True) * 0.0
        error = self.plane(self.dropout(points)).mean(1) - points.sum(1).sin()
        counted = batch["weight"]
        near = Term((error.abs() < 1).float().sum(), float(len(points)), 0.0)
        return {"squares": Term((error.square() * counted).sum(), float(counted.sum())), "near": near}

    def sample(self) -> tuple[dict[str, float], list[str]]:
        return {}, []

    def save(self, folder: Path, extra: Callable[[Path], None]) -> None:
        with writing(folder, {"trained_on": "points"}) as stage:
            save_file(dict(self.plane.state_dict()), stage / "model.safetensors")
            extra(stage)


def main(run: str, *options: str) -> int:
    given = dict(option.split("=") for option in options)
    if "memory" in given:  # MiB of address space beyond what the libraries take
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + int(given.pop("memory")) * 2**20,) * 2)
    loop = {"steps": 12, "batch": 8, "workers": 0, "save_every": 3, "sample_every": 1000, "log_every": 1, "keep": 100}
    loop |= {key.removeprefix("loop."): int(value) for key, value in given.items() if key.startswith("loop.")}
    kinds: dict[str, Any] = {"bad": int, "dropout": float, "width": int, "hungry": int, "whole": int}
    line = {name: kind(given[name]) for name, kind in kinds.items() if name in given}
    steps = loop["steps"]
    config = RunConfig(run, {"type": "line"}, trainable={".*": 0.05}, optim=OptimConfig(weight_decay=0.01),
                       loop=LoopConfig(**loop))  # fmt: skip
    join()
    try:
        with Heartbeat().beating():
            fit(Line(**line), config, steps, checkpoint.begin_from(Path(run), given.get("resume")))
    except Interrupted as error:
        print(error, file=sys.stderr)
        return error.code
    except VLChatError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
