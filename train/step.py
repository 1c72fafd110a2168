"""One optimizer step: micro-batches in, summed over processes, checked, and applied or refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed
from torch.distributed.tensor import DTensor

from train.batches import Batch, on_device
from train.memory import LeftOthers, is_out_of_memory
from train.randomness import random_state, set_random_state
from train.ranks import exchange, rank, sum_gradients, world_size
from train.sharding import is_sharded, local
from train.terms import Term, add, loss_of
from vlchat.errors import VLChatError

_NAMED = 8  # rows in a message


class TrainingStopped(VLChatError):
    """A run that cannot go on, such as one whose loss is no number any more."""


class OutOfMemory(Exception):
    """Some process had too little memory for a micro-batch. Weights and random generators are as before the step."""


@dataclass(frozen=True)
class Outcome:
    """What a step was: its loss, each term as a mean over the whole batch, and the norm of its gradient."""

    loss: float
    terms: dict[str, float]
    norm: float


class Stepper:
    """Makes optimizer steps.

    The loss is each term's sum over all micro-batches and processes, divided by its count over all of them: it does
    not depend on how the batch is split.

    Args:
        objective: see `train.loop.Objective`; its parameters are on the accelerator's device.
        clip: the gradient's largest norm.
    """

    def __init__(self, objective: Any, optimizer: Any, accelerator: Accelerator, clip: float) -> None:
        self.objective, self.optimizer, self.accelerator, self.clip = objective, optimizer, accelerator, clip
        self.trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self.whole = [p for p in self.trained.values() if not isinstance(p, DTensor)]
        self.sharded = is_sharded(objective)

    def __call__(
        self, step: int, batches: Sequence[Batch], counts: dict[str, float], others: Sequence[Batch] = ()
    ) -> Outcome:
        """Step number `step` (from 0).

        Args:
            batches: this process's micro-batches; their `ids` name the rows.
            counts: of the whole batch, by term.
            others: passes that count for nothing: of a sharded model all processes make equally many.

        Raises:
            TrainingStopped: the loss or its gradient is no number, on any process. Nothing was changed. Or the memory
                is too little for rows that must come together.
            LeftOthers: too little memory for what the others wait for.
            OutOfMemory: see there.
        """
        before = random_state(self.accelerator.device)
        terms: dict[str, list[float]] = {}
        broken: list[dict[str, Any]] = []
        short = False
        try:
            for batch in batches:
                ids = batch["ids"]
                found = self._backward(batch, counts)
                for name, (total, count, weight) in found.items():
                    sums = terms.setdefault(name, [0.0, 0.0, weight])
                    sums[0] += total
                    sums[1] += count
                if not all(math.isfinite(total) for total, _, weight in found.values() if weight):
                    broken.append({"ids": ids, "terms": {name: total for name, (total, _, _) in found.items()}})
            for batch in others:
                self._backward(batch, counts, 0.0)
        except RuntimeError as error:
            if is_out_of_memory(error) and self.sharded:
                raise LeftOthers(
                    f"Process {rank()} has too little memory for its rows of step {step + 1}, and the others wait for "
                    "its shards, so that they can't be taken again in smaller pieces. Lower loop.micro_batch, and "
                    "--resume auto goes on."
                ) from error
            if not is_out_of_memory(error):
                raise
            if self.objective.whole_batch:
                several = world_size() > 1
                raise (LeftOthers if several else TrainingStopped)(
                    f"{f'Process {rank()} has' if several else 'There is'} too little memory for the "
                    f"{sum(len(batch['ids']) for batch in batches)} rows of step {step + 1}, which are compared with "
                    "each other and so can't come in pieces. Lower loop.batch, or train on more processes, whose rows "
                    "are compared as well."
                ) from error
            short = True
        told = exchange({"short": short, "broken": broken[:1], "terms": terms})
        if any(one["short"] for one in told):
            self.optimizer.zero_grad(set_to_none=True)
            set_random_state(before, self.accelerator.device)
            raise OutOfMemory
        for number, one in enumerate(told):
            for bad in one["broken"]:
                figures = ", ".join(f"{name} {value}" for name, value in bad["terms"].items())
                raise TrainingStopped(
                    f"The loss of step {step + 1} is no finite number on process {number}: {figures}. "
                    f"{_rows(bad['ids'])} Nothing of this step was saved; look at these rows, or lower the learning "
                    "rate."
                )
        norm = self._apply(step, batches)
        totals = add({name: sums[0] for name, sums in one["terms"].items()} for one in told)
        tries = add({name: sums[1] for name, sums in one["terms"].items()} for one in told)
        weights = {name: sums[2] for one in told for name, sums in one["terms"].items()}
        means = {name: total / (counts.get(name, tries[name]) or 1.0) for name, total in totals.items()}
        return Outcome(sum(weights[name] * value for name, value in means.items()), means, norm)

    def _backward(
        self, batch: Batch, counts: dict[str, float], share: float = 1.0
    ) -> dict[str, tuple[float, float, float]]:
        device = self.accelerator.device
        with self.accelerator.autocast():
            inputs = on_device({key: value for key, value in batch.items() if key != "ids"}, device)
            terms: dict[str, Term] = self.objective(inputs)
        loss = loss_of(terms, counts)
        if loss.requires_grad:  # words alone teach nothing where only a connector trains
            self.accelerator.backward(loss if share == 1.0 else loss * share)
        return {name: (term.total.item(), float(term.count), term.weight) for name, term in terms.items()}

    def _apply(self, step: int, batches: Sequence[Batch]) -> float:
        sum_gradients(self.whole)  # FSDP has summed those of shards
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        total = self._norm()
        norm = float(total)
        if math.isfinite(norm):
            share = (self.clip / (total + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grads_with_norm_
            for parameter in self.trained.values():
                if parameter.grad is not None:
                    local(parameter.grad).mul_(share)
        if scaler is not None:  # a gradient that overflows is left out, and the scale lowered, by the scaler
            scaler.step(self.optimizer)
            scaler.update()
            if scaler.get_scale() < 1e-6:
                raise TrainingStopped(f"The gradient of step {step + 1} overflows at any scale. Train with bf16.")
        elif math.isfinite(norm):
            self.optimizer.step()
        else:
            found = [n for n, p in self.trained.items() if p.grad is not None and not local(p.grad).isfinite().all()]
            told = exchange({"ids": [name for batch in batches for name in batch["ids"]], "bad": found[:1]})
            rows, bad = ([name for one in told for name in one[key]] for key in ("ids", "bad"))
            raise TrainingStopped(
                f"The gradient of step {step + 1} is no finite number, first in {bad[0] if bad else 'its norm'}. "
                f"{_rows(rows)} Nothing of this step was saved; look at these rows, or lower the learning rate."
            )
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _norm(self) -> torch.Tensor:
        """Of the whole gradient, on every process."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.whole if p.grad is not None])
        if not self.sharded:
            return norm
        shards = [local(p.grad) for p in self.trained.values() if isinstance(p.grad, DTensor)]
        squares = torch.nn.utils.get_total_norm(shards).to(self.accelerator.device).square()
        distributed.all_reduce(squares)
        return (norm.to(squares.device).square() + squares).sqrt()


def _rows(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"Rows: {', '.join(ids[:_NAMED])}{more}."
