"""What people see of a run while it trains: progress, metrics, sample answers."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from train.checkpoint import Progress, generators, set_generators
from train.config import RunConfig
from train.step import Outcome


class Watch:
    """Progress bar, metrics and sample answers of a run; only the first process shows and writes anything.

    Args:
        progress: where the run begins.
    """

    def __init__(
        self, config: RunConfig, objective: Any, steps: int, accelerator: Accelerator, progress: Progress
    ) -> None:
        self.config, self.objective, self.accelerator = config, objective, accelerator
        self.run, self.steps = Path(config.run), steps
        self.best_step: int | None = None
        self._bar = tqdm(
            total=steps,
            initial=progress.step,
            dynamic_ncols=True,
            mininterval=2,
            disable=not accelerator.is_main_process,
        )
        self._since, self._counted = time.monotonic(), progress.step  # since when and which step the rate is taken

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def stepped(self, progress: Progress, outcome: Outcome, rate: float, final: bool) -> bool:
        """After each step. Returns whether the run should stop early, the same on every process.

        Args:
            rate: the first group's learning rate.
            final: this was the last step.
        """
        loop = self.config.loop
        self._bar.update()
        if loop.minutes is not None:
            self._bar.total = min(self.steps, round(progress.step / min(1.0, progress.seconds / 60 / loop.minutes)))
        if progress.step % loop.log_every == 0 or final:
            now = time.monotonic()
            speed = loop.batch * (progress.step - self._counted) / (now - self._since)
            self._since, self._counted = now, progress.step
            self._bar.set_postfix_str(f"loss {outcome.loss:.3f} lr {rate:.1e} {speed:.0f} rows/s")
            self._log(
                {
                    "step": progress.step,
                    "loss": outcome.loss,
                    **outcome.terms,
                    "grad_norm": outcome.norm,
                    "lr": rate,
                    "rows_per_second": speed,
                    "seconds": progress.seconds,
                }
            )
        if progress.step % loop.sample_every == 0 or final:
            self._look(progress)
        return False

    def state(self) -> dict[str, Any]:
        """What a resumed run must know to decide the same, as JSON."""
        return {}

    def stopped(self, reason: str, progress: Progress) -> None:
        """The run ends: writes down why."""

    def _look(self, progress: Progress) -> None:
        if not self.accelerator.is_main_process:
            return
        before = generators(self.accelerator.device)
        self.objective.eval()
        with self.accelerator.autocast():
            scores, shown = self.objective.sample()
        self.objective.train()
        set_generators(before, self.accelerator.device)  # looking changes nothing of the run
        self._since, self._counted = time.monotonic(), progress.step
        if scores:
            self._log({"step": progress.step, **scores})
        head = f"step {progress.step}  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self._bar.write("\n".join([head, *(f"    {text}" for text in shown)]))

    def _log(self, line: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
        finite = {k: v for k, v in rounded.items() if not isinstance(v, float) or math.isfinite(v)}
        with (self.run / "metrics.jsonl").open("a") as handle:
            handle.write(json.dumps(finite) + "\n")
