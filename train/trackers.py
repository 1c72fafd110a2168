"""A run's figures for trackers: the same as in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from train.config import flat
from vlchat import trackers
from vlchat.trackers import TRACKERS as TRACKERS
from vlchat.trackers import check as check


class Trackers(trackers.Trackers):
    """The trackers of a run; the training goes on without one that fails."""

    def __init__(self, names: Sequence[str], run: Path, config: dict[str, Any], say: Callable[[str], Any]) -> None:
        super().__init__(names, run, flat(config), say)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Sends finite numbers: `heldout_loss` as `heldout/loss`, the others as `train/NAME`."""
        named = {
            f"heldout/{key.removeprefix('heldout_')}" if key.startswith("heldout_") else f"train/{key}": value
            for key, value in values.items()
            if key != "step"
        }
        self.send(named, step)
