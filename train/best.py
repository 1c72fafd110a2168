"""Which step was the best on the held-out rows, and when a run has waited too long for a better one."""

from __future__ import annotations

import math
from typing import Any

from train.config import HeldoutConfig


class Best:
    """What the looks at the held-out rows decide.

    Attributes:
        metric: the figure's name in the run's metrics.
        step, value: the best look so far; None where there is none.
        before: the figure at step 0, before any training, which is no candidate.
        mark: the figure that a look must be better than, by more than `least`, for patience to begin anew.
        waited: looks since then.
        reason: why the run should stop early, or None.
    """

    def __init__(self, config: HeldoutConfig) -> None:
        self.metric = f"heldout_{config.metric}"
        self.patience, self.least = config.patience, config.least
        self.step: int | None = None
        self.value: float | None = None
        self.before: float | None = None
        self.mark: float | None = None
        self.waited = 0
        self.reason: str | None = None

    def add(self, step: int, value: float, lower_is_better: bool) -> None:
        """One look more."""
        if step == 0:
            self.before = value if math.isfinite(value) else None
            return
        sign = -1 if lower_is_better else 1
        if math.isfinite(value) and (self.value is None or sign * (value - self.value) > 0):
            self.step, self.value = step, value
        if math.isfinite(value) and (self.mark is None or sign * (value - self.mark) > self.least):
            self.mark, self.waited = value, 0
            return
        self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            looks = "one look" if self.waited == 1 else f"{self.waited} looks"
            self.reason = f"{self.metric} has not become better for {looks}; {self}"

    def __str__(self) -> str:
        if self.value is None:
            return "it never was a number."
        before = f", {self.before:.4g} before training" if self.before is not None else ""
        return f"the best {self.metric} was {self.value:.4g} at step {self.step:,}{before}."

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {
            "metric": self.metric,
            "best_step": self.step,
            "best": self.value,
            "before": self.before,
            "mark": self.mark,
            "waited": self.waited,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`; by another metric what was best is not known."""
        if state.get("metric") == self.metric:
            self.step, self.value, self.before = state["best_step"], state["best"], state["before"]
            self.mark, self.waited = state["mark"], state["waited"]
