"""One optimizer step of a run, with its own code and real shapes, and without weights: nothing is read or computed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.batches import Plan
from train.config import RunConfig, construct
from train.loop import precision_of
from train.objectives import OBJECTIVES
from train.optim import optimizer as optimizer_of
from train.optim import parameter_groups
from train.planning.rows import Lengths, assumed_data, lengths, micro_batches, sample
from train.planning.trace import Watcher
from train.terms import loss_of
from vlchat.errors import ConfigError
from vlchat.weightless import Weightless, weightless

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_INTEGERS = (torch.uint8, torch.int8)


@dataclass(frozen=True)
class Step:
    """What was seen.

    Attributes:
        parameters: by part: how many there are, and how many train.
        held: bytes by kind that are there all the time, and the gradients.
        at_peak: bytes by kind when their sum is the largest.
        checkpoint: bytes of one checkpoint on disk.
        flops: of an optimizer step, on average.
        costs: of the watched micro-batch, see `Watcher.seconds`.
        share: an average micro-batch as a share of the watched one.
        pieces: micro-batches of a step on one process.
        divisible: the rows of a step may come in pieces.
        rows: the data's rows, where it has a number of them.
        lengths: tokens of a row, where the objective has rows.
        table: what trains, as `vlchat train` prints it.
    """

    parameters: dict[str, tuple[int, int]]
    held: dict[str, int]
    at_peak: dict[str, int]
    checkpoint: int
    flops: float
    costs: Watcher
    share: float
    pieces: int
    divisible: bool
    rows: int | None
    steps: int | None
    lengths: Lengths | None
    table: str


def watch(config: RunConfig, device: str, ranks: int = 1) -> Step:
    """A run's step on one process of `ranks`, on a machine whose models go to `device`.

    The micro-batch is the largest of those that rows like the data's make. Where a step has several, gradients of
    earlier ones are there already.

    Raises:
        VLChatError: what in the configuration or the data is wrong, in a sentence, as `vlchat train` has it.
    """
    with contextlib.ExitStack() as stack:
        assumed = bool(config.data) and not _is_there(config.data)
        data = stack.enter_context(assumed_data()) if assumed else config.data
        mode = stack.enter_context(weightless(device))
        given = {"data": data} if data else {}
        objective = construct(OBJECTIVES, config.objective, "objective", seed=config.seed, **given)
        rules: Any = config.trainable
        if rules is None:
            rules = objective.default_trainable() if hasattr(objective, "default_trainable") else {".*": 1e-3}
        groups, table = parameter_groups(objective, rules, config.optim)
        precision = precision_of(config.loop.precision, objective)
        plan = Plan.of(config.loop.batch, config.loop.micro_batch, 0, ranks, objective.whole_batch)
        positions, share, found = micro_batch(objective, plan.micro, assumed)
        batch = objective.batch(positions)
        batch.pop("ids")
        seen = _Run(objective, mode, groups, config)
        pieces = len(plan.micro_batches(0))
        seen.step(batch, precision, pieces > 1)
        steps = config.loop.steps
        if steps is None and hasattr(objective, "steps") and not assumed:
            steps = objective.steps(config.loop.epochs, config.loop.batch)
        return Step(
            parameters=seen.parameters,
            held=seen.held,
            at_peak=seen.watcher.at_peak,
            checkpoint=seen.checkpoint,
            flops=seen.watcher.flops * share * pieces,
            costs=seen.watcher,
            share=share,
            pieces=pieces,
            divisible=not objective.whole_batch,
            rows=len(objective.mixture) if hasattr(objective, "mixture") and not assumed else None,
            steps=steps,
            lengths=found,
            table=table,
        )


def _is_there(data: Sequence[dict[str, Any]]) -> bool:
    return all("path" not in spec or Path(str(spec["path"])).exists() for spec in data)


def micro_batch(objective: Any, size: int, assumed: bool = False) -> tuple[list[int], float, Lengths | None]:
    """The positions of a large micro-batch's rows, an average one as a share of it, and the rows' lengths.

    Raises:
        ConfigError: none of the rows that were looked at can be used.
    """
    if not hasattr(objective, "mixture"):
        return list(range(size)), 1.0, None
    rows, longer = sample(objective, objective.max_length)
    if not rows:
        raise ConfigError(
            f"None of {longer or 'the'} rows looked at fits objective.max_length={objective.max_length} or can be "
            "read: vlchat check says what is wrong with each."
        )
    positions, share = micro_batches(rows, size, bool(getattr(objective, "packing", False)))
    return positions, share, lengths(rows, longer, assumed)


class _Run:
    """What `train.loop.fit` sets up, and one step of it, watched."""

    def __init__(self, objective: Any, mode: Weightless, groups: list[dict[str, Any]], config: RunConfig) -> None:
        self.objective, self.mode = objective, mode
        others = [teacher.model for teacher in getattr(objective, "_teacher", [])]
        placed = mode.run(objective, *others)
        groups = [{**group, "params": [placed[id(one)] for one in group["params"]]} for group in groups]
        self.trained = [one for group in groups for one in group["params"]]
        self.optimizer: Any = optimizer_of(groups, config.optim)
        model = objective.model
        self.watcher = Watcher({_vocabulary(one) for one in (model, *others)})
        self.parameters = _by_part(objective)
        for module in (objective, *others):
            self._hold(module)
        self.watcher.watch_gradients(objective)
        self.held = {kind: size for kind, size in self.watcher.live.items() if size}
        self.checkpoint = 0

    def _hold(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            kind = "adapters" if "lora_" in name else "weights"
            kind = "quantized weights" if parameter.dtype in _INTEGERS else kind
            self.watcher.hold(parameter, kind)
            state = getattr(parameter, "quant_state", None)
            nested = getattr(state, "state2", None)
            for scales in (getattr(state, "absmax", None), getattr(nested, "absmax", None)):
                if scales is not None:
                    self.watcher.hold(scales, "quantized weights")
        for buffer in module.buffers():
            self.watcher.hold(buffer, "weights")

    def step(self, batch: dict[str, Any], precision: str, gradients: bool) -> None:
        """Forward, backward and update. Optimizer state is that of a step that is not the first.

        Args:
            gradients: those of an earlier micro-batch are there.
        """
        objective, watcher = self.objective, self.watcher
        objective.train()
        batch = {
            name: self.mode.empty_like(value)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for name, value in batch.items()
        }
        with watcher:
            for parameter in self.trained:
                parameter.grad = torch.zeros_like(parameter)
                watcher.hold(parameter.grad, "gradients")
            self.held["gradients"] = watcher.live["gradients"]
            self.optimizer.step()
            for state in self.optimizer.state.values():
                for value in state.values():
                    if isinstance(value, torch.Tensor):
                        watcher.hold(value, "optimizer state")
            self.held["optimizer state"] = watcher.live["optimizer state"]
            if not gradients:
                for parameter in self.trained:
                    parameter.grad = None
            update = (watcher.peak, watcher.at_peak)
            watcher.restart()
            with _autocast(precision):
                terms = objective(batch)
            loss_of(terms, objective.counts(batch)).backward()
            del terms
            if update[0] > watcher.peak:
                watcher.peak, watcher.at_peak = update
        trained = sum(parameter.numel() * 4 for parameter in self.trained)
        self.checkpoint = 2 * trained + self.held["optimizer state"]


def _autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", _DTYPES[precision]) if precision in _DTYPES else contextlib.nullcontext()


def _vocabulary(model: Any) -> int:
    config = model.config.get_text_config()
    return int(getattr(config, "vocab_size", 0) or 0)


def logical_size(parameter: Any) -> int:
    """How many numbers a parameter stands for: a byte of a 4-bit one for two."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else int(parameter.numel())


def _by_part(objective: nn.Module) -> dict[str, tuple[int, int]]:
    """Parameters of each part, and how many of them train."""
    found: dict[str, Counter[str]] = {}
    for name, parameter in objective.named_parameters():
        counts = found.setdefault(part_of(name), Counter())
        counts["all"] += logical_size(parameter)
        counts["trained"] += logical_size(parameter) if parameter.requires_grad else 0
    return {part: (counts["all"], counts["trained"]) for part, counts in found.items()}


def part_of(name: str) -> str:
    """tower, connector, language model, adapter or heads, by a parameter's name."""
    for part, words in (
        ("adapter", ("lora_",)),
        ("heads", ("heads.", "cell_projections", "text_side", "logit_scale")),
        ("connector", ("connector", "projector", "merger", "language_projection", "qformer")),
        ("tower", ("vision", "visual", "text_model", "text_projection")),
    ):
        if any(word in name for word in words):
            return part
    return "language model"
