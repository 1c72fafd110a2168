"""Whether a checkpoint is of the run that would go on from it, and what of the configuration is another one now."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from torch import nn

from train import ranks
from train.config import RunConfig, flat
from vlchat import runs
from vlchat.errors import CheckpointError

_BOOKKEEPING = ("steps", "epochs", "minutes", "workers", "log_every", "sample_every", "save_every", "keep")
_FREE = ("run", "data", "trackers", "heldout", "max_bad", *(f"loop.{name}" for name in _BOOKKEEPING))


def refuse_another_order(folder: Path, before: dict[str, Any], rows: dict[str, Any]) -> None:
    """Raises CheckpointError where the rows would come in another order than before.

    Args:
        before, rows: what the order of the rows depends on, by name: of the checkpoint, and of this run.
    """
    for name in sorted(before.keys() & rows.keys()):
        if before[name] != json.loads(json.dumps(rows[name])):
            what = {"data": "the training data", "bad": "which rows are left out as bad"}.get(name, name)
            raise CheckpointError(
                f"{folder} cannot be resumed: {what} has changed since, so that the run would see some rows twice and "
                f"others never. Bring it back, or begin a new run: {_short(before[name])} -> {_short(rows[name])}."
            )


def refuse_other_draws(folder: Path, processes: int, objective: nn.Module) -> None:
    """Raises CheckpointError where the model draws random numbers in training, and other processes would draw them.

    Args:
        processes: how many wrote the checkpoint.
    """
    if processes != ranks.world_size() and _draws(objective):
        raise CheckpointError(
            f"{folder} was written by {processes} processes, and {ranks.world_size()} would go on from it. "
            "The model has dropout, whose random numbers belong to each process, so that the run would not be the "
            f"same. Start {processes}, or begin a new run."
        )


def refuse_other_optimizer(folder: Path, config: RunConfig) -> None:
    """Raises CheckpointError where another `optim.name` wrote the checkpoint: its state means nothing to this one."""
    told = runs.read_json(folder / runs.CONFIG)
    optim = told.get("optim") if isinstance(told, dict) else None
    before = optim.get("name") if isinstance(optim, dict) else None
    if before is not None and before != config.optim.name:
        raise CheckpointError(
            f"{folder} was trained with optim.name={before}, whose state {config.optim.name} can't go on from. Give "
            "the run the optimizer that it began with, or begin a new run from its weights."
        )


def changes(folder: Path, config: RunConfig) -> list[str]:
    """What of the configuration is another than in the checkpoint, such as `optim.clip: 1.0 -> 0.5`.

    How long the run is, and what is shown and saved of it, is left out.
    """
    file = folder / runs.CONFIG
    before = flat(json.loads(file.read_text())) if file.is_file() else {}
    now = flat(json.loads(json.dumps(config.to_dict())))
    return [
        f"{key}: {_short(before.get(key))} -> {_short(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(_FREE)
    ]


def _short(value: Any) -> str:
    return textwrap.shorten(json.dumps(value), 120)


def _draws(objective: nn.Module) -> bool:
    """Whether a forward pass in training draws random numbers; an objective with `draws` says so itself."""
    if getattr(objective, "draws", False):
        return True
    for module in objective.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            return True
        if any(isinstance(rate, float) and rate > 0 and "drop" in name for name, rate in vars(module).items()):
            return True  # of the attention, by the names that families give it
    return False
