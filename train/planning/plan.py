"""What a run will take, before anything is loaded: memory, time, money."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from train.config import RunConfig
from train.planning.step import Step, watch
from train.planning.target import Target

_CLEARLY = 1.1  # a run is stopped where its plan is so much over the memory
_SHARDED = ("weights", "gradients", "optimizer state")  # what FSDP and ZeRO split over processes


@dataclass(frozen=True)
class RunPlan:
    """What a run will take on a machine.

    Attributes:
        step: what was seen of its step.
        ranks: processes.
        shard: kinds of memory that are split over them.
    """

    config: RunConfig
    target: Target
    step: Step
    ranks: int = 1
    shard: tuple[str, ...] = ()

    @property
    def at_peak(self) -> dict[str, int]:
        """Bytes by kind on one process when their sum is the largest; "program" is what the program itself takes."""
        split = {kind: size // self.ranks if kind in self.shard else size for kind, size in self.step.at_peak.items()}
        return {"program": self.target.taken, **split}

    @property
    def peak(self) -> int:
        """Bytes on one process."""
        return sum(self.at_peak.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.target.memory

    @property
    def clearly_too_large(self) -> bool:
        """Too large by more than the plan may be wrong."""
        return self.peak > _CLEARLY * self.target.memory

    @property
    def seconds_a_step(self) -> float:
        return self.step.seconds(self.target.rate, self.target.bandwidth)

    @property
    def seconds(self) -> float | None:
        """Of the whole run; None where its data, and so its steps, are not known."""
        limit = self.config.loop.minutes and self.config.loop.minutes * 60
        if self.step.steps is None:
            return limit
        found = self.step.steps * self.seconds_a_step
        return min(found, limit) if limit else found

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints that the run keeps, the best one and the one being written among them."""
        return self.step.checkpoint * (self.config.loop.keep + 1 + self.config.heldout.on)

    def to_dict(self, price: float | None = None) -> dict[str, Any]:
        """For `--json`: bytes, seconds, and money where a price an hour is given."""
        step, seconds = self.step, self.seconds
        lengths = step.lengths
        return {
            "fits": self.fits,
            "target": {"name": self.target.name, "device": self.target.device, "memory": self.target.memory,
                       "rate": self.target.rate, "bandwidth": self.target.bandwidth},
            "ranks": self.ranks,
            "peak": self.peak,
            "at_peak": self.at_peak,
            "bytes": {**step.held, "activations and logits": self._moving(), "checkpoint": step.checkpoint,
                      "checkpoints on disk": self.disk, "feature cache on disk": step.feature_cache},
            "parameters": {part: {"all": many, "trained": some} for part, (many, some) in step.parameters.items()},
            "tokens": None if lengths is None else {
                "row": dict(zip(("median", "p95", "longest"), lengths.tokens, strict=True)),
                "image": dict(zip(("median", "p95", "longest"), lengths.image_tokens, strict=True)),
                "assumed": lengths.assumed, "left_out": lengths.left_out, "sampled": lengths.count,
            },
            "rows": step.rows,
            "steps": step.steps,
            "flops": {"step": step.flops, "run": None if step.steps is None else step.flops * step.steps},
            "seconds": {"step": self.seconds_a_step, "run": seconds},
            "price": None if price is None or seconds is None else price * self.ranks * seconds / 3600,
        }  # fmt: skip

    def _moving(self) -> int:
        return sum(self.step.at_peak.get(kind, 0) for kind in ("activations", "logits"))


def plan(config: RunConfig, target: Target, ranks: int = 1, sharded: bool = False) -> RunPlan:
    """What a run will take.

    Args:
        ranks: processes that share each step's rows.
        sharded: weights, gradients and optimizer state are split over them, as FSDP and ZeRO-3 do.

    Raises:
        VLChatError: what in the configuration, the data or the models is wrong, in a sentence.
    """
    return RunPlan(config, target, watch(config, target.device, ranks), ranks, _SHARDED if sharded else ())
