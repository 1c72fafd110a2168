"""An objective and its optimizer without weights, and the micro-batches of a step that are watched with them."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import torch
from torch import nn

from train.config import RunConfig
from train.optim import optimizer as optimizer_of
from train.planning.trace import Costs, Watcher
from train.terms import loss_of
from vlchat.weightless import Weightless

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_INTEGERS = (torch.uint8, torch.int8)


class Rehearsal:
    """What `train.loop.fit` sets up, with nothing in it, and steps of it, watched.

    Attributes:
        parameters: by part: how many there are, and how many train.
        held: bytes by kind that are there all the time, and the gradients.
        at_peak: bytes by kind when their sum was the largest.
        checkpoint: bytes of one checkpoint on disk.
    """

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
        self.at_peak: dict[str, int] = {}
        self.checkpoint = 0
        self._keep = False

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

    def update(self, keep: bool) -> None:
        """An optimizer step that is not the first: its state is there from now on.

        Args:
            keep: gradients of an earlier micro-batch are there as well when one is watched.
        """
        watcher, self._keep = self.watcher, keep
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
        self.at_peak = watcher.at_peak
        self.checkpoint = 2 * sum(parameter.numel() * 4 for parameter in self.trained) + self.held["optimizer state"]

    def watched(self, batch: dict[str, Any], precision: str) -> Costs:
        """Forward and backward of a micro-batch, after `update`. Where it takes the most so far, `at_peak` is its."""
        objective, watcher = self.objective, self.watcher
        objective.train()
        batch = {
            name: self.mode.empty_like(value)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for name, value in batch.items()
            if name != "ids"
        }
        if not self._keep:
            for parameter in self.trained:
                parameter.grad = None
        watcher.restart()
        with watcher:
            with _autocast(precision):
                terms = objective(batch)
            loss_of(terms, objective.counts(batch)).backward()
            del terms
        if watcher.peak > sum(self.at_peak.values()):
            self.at_peak = watcher.at_peak
        return watcher.costs


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
