"""Everything that looks at a run: progress, figures, plot, sample answers, held-out scores, early stop, trackers."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from train import opening, plot
from train.bar import Bar
from train.best import Best
from train.checkpoint import Progress
from train.config import RunConfig
from train.heldout import Heldout
from train.randomness import undrawn
from train.records import append, truncate, write
from train.scores import Looked, look, unmoved
from train.sharding import is_sharded, working
from train.step import Outcome
from train.trackers import Trackers
from train.trackers import check as check_trackers
from vlchat import runs
from vlchat.errors import ConfigError, nearest
from vlchat.folders import step_of

_SHOWN = 4  # answers that are printed at a look
_BETWEEN_PLOTS = 20.0  # seconds, at least


class Watch:
    """What the loop tells its figures to, as a context manager around the steps of a run.

    Entering drops what a killed run wrote after its checkpoint, says what is going to happen, and looks at the held-out
    rows of a run that begins. All processes call all methods, for the work of a look is divided among them; only the
    first one writes and shows anything.

    Args:
        objective: the model and its loss; with `tensors`, `model` and `processor` where rows are held out.
        steps: optimizer steps of the whole run.
        progress: where the run begins; `progress.watch` is the `state` of the checkpoint that it goes on from.
        heldout: of `train.heldout.hold_out`.
        table: what trains at which rate, for people.

    Attributes:
        best: of the looks at the held-out rows.

    Raises:
        ConfigError: a tracker that is not known or not installed; other rows are held out than before, so that some of
            them were trained on.
    """

    def __init__(
        self,
        config: RunConfig,
        objective: Any,
        steps: int,
        accelerator: Accelerator,
        progress: Progress,
        heldout: Heldout | None = None,
        table: str = "",
    ) -> None:
        self.run, self.config, self.objective, self.steps = Path(config.run), config, objective, steps
        self.accelerator, self.heldout, self.table, self.begins = accelerator, heldout, table, progress
        self.first = bool(accelerator.is_main_process)
        self.best = Best(config.heldout)
        self.looked = -1  # the step of the last look
        self.said: set[str] = set()
        self.every = config.heldout.every or config.loop.sample_every
        self.last = progress
        self._drawn = 0.0
        self.bar: Bar | None = None
        self.trackers: Trackers | None = None
        check_trackers(config.trackers)
        self._restore(progress.watch)

    def __enter__(self) -> Watch:
        step = self.begins.step
        try:
            if self.first:
                self._open(step)
            self.bar = Bar(self.steps, step, self.first)
            if self.heldout is not None and step % self.every == 0 and self.looked != step:
                self._judge(self.begins)  # before the first step, or where a run that was stopped had no time to
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        self._since, self._counted = time.monotonic(), step  # since when and which step the rate is taken
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.first:
            if error is not None and not (self.run / runs.STOPPED).exists():
                self.stopped(str(error) or type(error).__name__, self.last)
            self._draw()
            if self.best.value is not None:
                self._say(f"{self.run}: {self.best}")
            if self.trackers is not None:
                self.trackers.close()
            with self._told():
                (self.run / runs.RUNNING).unlink(missing_ok=True)
        if self.bar is not None:
            self.bar.close()

    def stepped(
        self, progress: Progress, outcome: Outcome | None, rate: float, final: bool, hurry: bool = False
    ) -> bool:
        """After each step. Returns whether the run should stop early, for `best.reason`, the same on every process.

        Args:
            outcome: `loss`, `terms` by name, and the gradient's `norm` of the step; None where no row could be used.
            rate: the first group's learning rate.
            final: this was the last step.
            hurry: the run was asked to stop: there is no time to look. A resumed run looks when it begins.
        """
        loop, step = self.config.loop, progress.step
        self.last = progress
        total = self.steps
        if loop.minutes is not None:
            total = min(total, round(step / min(1.0, max(1e-9, progress.seconds / 60 / loop.minutes))))
        if self.bar is not None:
            self.bar.advance(step, step if final else max(step, total))
        if outcome is not None and (step % loop.log_every == 0 or final):
            self._log_step(progress, outcome, rate)
        judged = self.heldout is not None and (step % self.every == 0 or final) and not hurry
        if judged:
            self._judge(progress)
        sampled = (step % loop.sample_every == 0 or final) and not hurry
        if sampled and not (judged and self.config.heldout.generate):
            self._sample(progress)
        if judged or sampled:
            self._since, self._counted = time.monotonic(), step  # looking is no training
        return self.best.reason is not None

    def saved(self, folder: Path) -> None:
        """After a checkpoint was written to `folder` and is safe: notes the best one, draws the plot."""
        self._since, self._counted = time.monotonic(), self.last.step  # saving is no training
        if self.first:
            if step_of(folder) == self.best_step:
                with self._told():
                    self._write_best()
            if time.monotonic() - self._drawn > _BETWEEN_PLOTS:
                self._draw()

    def stopped(self, reason: str, progress: Progress) -> None:
        """The run ends: writes down why. `early` stands for what this watch gave as its reason."""
        if self.first:
            told = self.best.reason if reason == "early" and self.best.reason else reason
            with self._told():
                write(self.run / runs.STOPPED, {"reason": told, "step": progress.step, "at": time.time()})
            if told is self.best.reason:
                self._say(f"Stopped early: {told}")

    def state(self) -> dict[str, Any]:
        """What a resumed run must know to decide the same, as JSON."""
        digest = self.heldout.digest if self.heldout else None
        return self.best.state() | {"looked": self.looked, "heldout": digest}

    @property
    def best_step(self) -> int | None:
        """The step whose checkpoint is to be written and kept; None where there is none yet."""
        return self.best.step

    # -- how it is done

    def _open(self, step: int) -> None:
        """The run's folder as it is at `step`, and what is going to happen, in words."""
        self.run.mkdir(parents=True, exist_ok=True)
        for name in (runs.METRICS, runs.SAMPLES):
            truncate(self.run / name, step)
        for name in (runs.STOPPED, *(() if step else (runs.PLOT,))):
            (self.run / name).unlink(missing_ok=True)
        self._write_best()
        processes, device = self.accelerator.num_processes, str(self.accelerator.device)
        about = opening.facts(self.config, self.objective, self.steps, processes, device, self.heldout, self.table)
        write(self.run / runs.ABOUT, about)
        write(self.run / runs.RUNNING, runs.this_process())
        self._say(opening.paragraph(about, self.config, step))
        with undrawn():
            self.trackers = Trackers(self.config.trackers, self.run, self.config.to_dict(), self._say)

    def _restore(self, state: dict[str, Any]) -> None:
        digest = self.heldout.digest if self.heldout else None
        if state.get("heldout", digest) != digest:
            raise ConfigError(
                "heldout: the checkpoint held out other rows than this configuration does, so that rows to look at "
                "would have been trained on. Give the run the heldout, data and seed that it began with."
            )
        self.best.restore(state)
        if state.get("metric") == self.best.metric:
            self.looked = state["looked"]

    def _log_step(self, progress: Progress, outcome: Outcome, rate: float) -> None:
        now = time.monotonic()
        speed = self.config.loop.batch * (progress.step - self._counted) / max(1e-9, now - self._since)
        self._since, self._counted = now, progress.step
        terms = outcome.terms if len(outcome.terms) > 1 else {}  # the only one is the loss
        self._log(
            {
                "step": progress.step,
                "loss": outcome.loss,
                **terms,
                "grad_norm": outcome.norm,
                "lr": rate,
                "rows_per_second": speed,
                "seconds": progress.seconds,
            }
        )
        if self.bar is not None:
            self.bar.note(f"loss {outcome.loss:.3f}  lr {rate:.1e}  {speed:.3g} rows/s")

    def _log(self, line: dict[str, Any]) -> None:
        if self.first:
            with self._told():
                append(self.run / runs.METRICS, line)
            if self.trackers is not None:
                with undrawn():
                    self.trackers.log(line, line["step"])

    def _judge(self, progress: Progress) -> None:
        assert self.heldout is not None
        wanted = self.config.heldout
        looked = look(
            self.objective,
            self.heldout,
            self.accelerator,
            batch=wanted.batch,
            generate=wanted.generate,
            tokens=wanted.tokens,
        )
        if wanted.metric not in looked.scores:
            raise ConfigError(
                f'heldout.metric is "{wanted.metric}"; this run has {", ".join(looked.scores)}'
                f"{nearest(wanted.metric, looked.scores) or '.'}"
            )
        self.looked = progress.step
        named = {f"heldout_{name}": value for name, value in looked.scores.items()}
        self._log({"step": progress.step, **named})
        for reason in looked.bad.values():
            self._say_once(f"Left out of the held-out rows: {reason}")
        if self.first:
            with self._told():
                for answer in looked.answers[:_SHOWN]:
                    append(self.run / runs.SAMPLES, {"step": progress.step, **answer})
            self._say(_shown(progress.step, named, looked))
        self.best.add(progress.step, looked.scores[wanted.metric], wanted.metric in looked.losses)

    def _sample(self, progress: Progress) -> None:
        if not self.first and not is_sharded(self.objective):
            return
        with unmoved(self.objective), self.accelerator.autocast():
            scores, lines = working(self.objective, self.objective.sample)
        self._log({"step": progress.step, **scores})
        head = f"step {progress.step:,}  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self._say("\n".join([head.rstrip(), *(f"    {line}" for line in lines)]))

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if told := plot.draw(self.run):
            self._say_once(told)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What cannot be noted down is told once: a full disk ends a run where a checkpoint is to be written."""
        try:
            yield
        except OSError as error:
            self._say_once(f"Figures could not be written to {self.run}: {error.strerror}.")

    def _say_once(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self._say(text)

    def _write_best(self) -> None:
        if self.best_step is None:
            (self.run / runs.BEST).unlink(missing_ok=True)
            return
        best = self.best
        about = {"step": best.step, "metric": best.metric, "value": best.value, "before": best.before}
        write(self.run / runs.BEST, about)

    def _say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.say(text)
        elif self.first:
            print(text, flush=True)


def _shown(step: int, scores: dict[str, float], looked: Looked) -> str:
    """The scores of a look and a few answers, for people."""
    head = f"step {step:,}  " + "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
    short = [
        {key: textwrap.shorten(answer[key], 120) for key in ("question", "reply", "reference")}
        for answer in looked.answers[:_SHOWN]
    ]
    return "\n".join([head, *(f"    {a['question']} -> {a['reply']} (right: {a['reference']})" for a in short)])
