"""Everything that looks at a run: progress, figures, plot, sample answers, held-out scores, early stop, trackers."""

from __future__ import annotations

import json
import math
import os
import textwrap
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from train import plot
from train.bar import Bar
from train.checkpoint import Progress
from train.config import RunConfig
from train.heldout import Heldout
from train.scores import Looked, look, unmoved
from train.trackers import Trackers
from train.trackers import check as check_trackers
from vlchat import runs
from vlchat.data import fingerprint
from vlchat.errors import ConfigError, nearest

_SHOWN = 4  # answers that are printed at a look
_KEPT = ("best_step", "best", "before", "waited")  # over a resume


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
        best_step: the step with the best held-out score so far, whose checkpoint is to be written and kept; None where
            there is none.
        reason: why `stepped` said to stop early.

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
        self.best_step: int | None = None
        self.best: float | None = None
        self.before: float | None = None  # the score at step 0
        self.waited = 0  # looks since the best one
        self.reason: str | None = None
        self.every = config.heldout.every or config.loop.sample_every
        self.last = progress
        self.bar: Bar | None = None
        self.trackers: Trackers | None = None
        check_trackers(config.trackers)
        self._restore(getattr(progress, "watch", {}))

    def __enter__(self) -> Watch:
        step = self.begins.step
        try:
            if self.first:
                self._open(step)
            self.bar = Bar(self.steps, step, self.first)
            if self.heldout is not None and step == 0:
                self._judge(self.begins)
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
            if self.best is not None:
                self._say(f"{self.run}: {self._best_in_words()}")
            if self.trackers is not None:
                self.trackers.close()
            (self.run / runs.RUNNING).unlink(missing_ok=True)
        if self.bar is not None:
            self.bar.close()

    def stepped(self, progress: Progress, outcome: Any, rate: float, final: bool) -> bool:
        """After each step. Returns whether the run should stop early, for `reason`, the same on every process.

        Args:
            outcome: `loss`, `terms` by name, and the gradient's `norm` of the step.
            rate: the first group's learning rate.
            final: this was the last step.
        """
        loop, step = self.config.loop, progress.step
        self.last = progress
        total = self.steps
        if loop.minutes is not None:
            total = min(total, round(step / min(1.0, max(1e-9, progress.seconds / 60 / loop.minutes))))
        if self.bar is not None:
            self.bar.advance(step, step if final else max(step, total))
        if step % loop.log_every == 0 or final:
            self._log_step(progress, outcome, rate)
        judged = self.heldout is not None and (step % self.every == 0 or final)
        stop = judged and self._judge(progress)
        sampled = step % loop.sample_every == 0 or final
        if sampled and not (judged and self.config.heldout.generate):
            self._sample(progress)
        if judged or sampled:
            self._since, self._counted = time.monotonic(), step  # looking is no training
        return bool(stop)

    def saved(self, folder: Path) -> None:
        """After a checkpoint was written to `folder` and is safe: notes the best one, draws the plot."""
        if self.first:
            if folder.name == f"step-{self.best_step}":
                self._write_best()
            self._draw()

    def stopped(self, reason: str, progress: Progress) -> None:
        """The run ends: writes down why. `early` stands for what this watch gave as its reason."""
        if self.first:
            told = self.reason if reason == "early" and self.reason else reason
            write(self.run / runs.STOPPED, {"reason": told, "step": progress.step, "at": time.time()})
            if told is self.reason:
                self._say(f"Stopped early: {told}")

    def state(self) -> dict[str, Any]:
        """What a resumed run must know to decide the same, as JSON."""
        kept = {name: getattr(self, name) for name in _KEPT}
        return kept | {"metric": self.metric, "heldout": self.heldout.digest if self.heldout else None}

    @property
    def metric(self) -> str:
        return f"heldout_{self.config.heldout.metric}"

    # -- how it is done

    def _open(self, step: int) -> None:
        """The run's folder as it is at `step`, and what is going to happen, in words."""
        self.run.mkdir(parents=True, exist_ok=True)
        for name in (runs.METRICS, runs.SAMPLES):
            truncate(self.run / name, step)
        for name in (runs.STOPPED, *(() if step else (runs.PLOT,))):
            (self.run / name).unlink(missing_ok=True)
        self._write_best()
        about = self._describe()
        write(self.run / runs.ABOUT, about)
        write(self.run / runs.RUNNING, runs.this_process())
        self._say(self._paragraph(about))
        self.trackers = Trackers(self.config.trackers, self.run, self.config.to_dict(), self._say)

    def _restore(self, state: dict[str, Any]) -> None:
        digest = self.heldout.digest if self.heldout else None
        if state.get("heldout", digest) != digest:
            raise ConfigError(
                "heldout: the checkpoint held out other rows than this configuration does, so that rows to look at "
                "would have been trained on. Give the run the heldout, data and seed that it began with."
            )
        if state.get("metric", self.metric) == self.metric:  # by another metric, what was best is not known
            for name in _KEPT:
                setattr(self, name, state.get(name, getattr(self, name)))

    def _log_step(self, progress: Progress, outcome: Any, rate: float) -> None:
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
            self.bar.note(f"loss {outcome.loss:.3f}  lr {rate:.1e}  {speed:.0f} rows/s")

    def _log(self, line: dict[str, Any]) -> None:
        if self.first:
            append(self.run / runs.METRICS, line)
            if self.trackers is not None:
                self.trackers.log(line, line["step"])

    def _judge(self, progress: Progress) -> bool:
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
        named = {f"heldout_{name}": value for name, value in looked.scores.items()}
        self._log({"step": progress.step, **named})
        if self.first:
            for answer in looked.answers[:_SHOWN]:
                append(self.run / runs.SAMPLES, {"step": progress.step, **answer})
            self._say(_shown(progress.step, named, looked))
        return self._decide(progress.step, looked)

    def _decide(self, step: int, looked: Looked) -> bool:
        """Whether it has not become better for too long. The first look, before any training, is no candidate."""
        wanted = self.config.heldout
        value = looked.scores[wanted.metric]
        if step == 0:
            self.before = value if math.isfinite(value) else None
            return False
        sign = -1 if wanted.metric in looked.losses else 1
        if math.isfinite(value) and (self.best is None or sign * (value - self.best) > wanted.least):
            self.best_step, self.best, self.waited = step, value, 0
            return False
        self.waited += 1
        if wanted.patience is None or self.waited < wanted.patience:
            return False
        looks = "look" if self.waited == 1 else f"{self.waited} looks"
        self.reason = f"{self.metric} has not become better for {looks}; {self._best_in_words()}"
        return True

    def _best_in_words(self) -> str:
        if self.best is None:
            return "it never was a number."
        before = f", {self.before:.4g} before training" if self.before is not None else ""
        return f"the best {self.metric} was {self.best:.4g} at step {self.best_step:,}{before}."

    def _sample(self, progress: Progress) -> None:
        if not self.first:
            return
        with unmoved(self.objective), self.accelerator.autocast():
            scores, lines = self.objective.sample()
        self._log({"step": progress.step, **scores})
        head = f"step {progress.step:,}  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self._say("\n".join([head.rstrip(), *(f"    {line}" for line in lines)]))

    def _draw(self) -> None:
        if told := plot.draw(self.run):
            self._say(told)

    def _paragraph(self, about: dict[str, Any]) -> str:
        loop, step = self.config.loop, self.begins.step
        base = ", ".join(str(path or "the embedded model") for path in about["base"].values()) or "from nothing"
        data = "; ".join(f"{part['name']} ({part['rows']:,} rows)" for part in about["data"]) or "drawn as it goes"
        lines = [f"{about['objective']} on {base}. Data: {data}."]
        if self.heldout is not None:
            often = f"looked at every {self.every:,} steps"
            lines.append(f"Held out: {len(self.heldout):,} rows ({self.heldout.origin}), {often}.")
        epochs = f"{about['epochs']:.3g} epochs = " if about["epochs"] else ""
        minutes = f", at most {loop.minutes:g} minutes" if loop.minutes else ""
        going = f", from step {step:,} on" if step else ""
        lines.append(f"{epochs}{self.steps:,} steps of {loop.batch:,} rows{minutes}{going}.")
        lines.append(f"Everything goes to {self.run}; the plot is {self.run / runs.PLOT}.")
        return " ".join(lines)

    def _describe(self) -> dict[str, Any]:
        """What is trained on what, for people and for `vlchat info`."""
        mixture = getattr(self.objective, "mixture", None)
        base = getattr(self.objective, "base", {})
        data = []
        if mixture is not None:
            digests = {_name_of(spec): _digest(spec) for spec in self.config.data}
            data = [
                {"name": source.name, "rows": len(source), "shown": shown, "sha256": digests.get(source.name)}
                for source, shown in zip(mixture.sources, mixture.counts, strict=True)
            ]
        batch = self.config.loop.batch
        return {
            "objective": str(getattr(self.objective, "name", type(self.objective).__name__)),
            "base": {name: None if path is None else str(path) for name, path in base.items()},
            "data": data,
            "heldout": self.heldout and {"rows": len(self.heldout), "origin": self.heldout.origin},
            "trainable": self.table.splitlines(),
            "steps": self.steps,
            "batch": batch,
            "epochs": self.steps * batch / len(mixture) if mixture is not None else None,
            "minutes": self.config.loop.minutes,
            "processes": int(self.accelerator.num_processes),
            "device": str(self.accelerator.device),
        }

    def _write_best(self) -> None:
        if self.best_step is None:
            (self.run / runs.BEST).unlink(missing_ok=True)
            return
        about = {"step": self.best_step, "metric": self.metric, "value": self.best, "before": self.before}
        write(self.run / runs.BEST, about)

    def _say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.say(text)
        elif self.first:
            print(text, flush=True)


def append(file: Path, line: dict[str, Any]) -> None:
    """Adds one JSON object as one line; a number that is none is written as null, which JSON has a word for.

    A line without any figure is not written. One write call a line: a kill leaves at most the last one unfinished.
    """
    if not line.keys() - {"step"}:
        return
    text = json.dumps({key: _plain(value) for key, value in line.items()}, ensure_ascii=False, allow_nan=False)
    with file.open("ab") as handle:
        handle.write((text + "\n").encode("utf-8", errors="backslashreplace"))


def truncate(file: Path, step: int) -> None:
    """Drops the lines after `step`, and lines that a kill left unfinished: the run goes on from there.

    At step 0 the whole file goes. The rest replaces the file at once, or nothing does.
    """
    if not file.is_file():
        return
    if step == 0:
        file.unlink()
        return
    kept = [line for line in runs.lines(file) if line["step"] <= step]
    stage = file.with_name(f".{file.name}.partial")
    stage.unlink(missing_ok=True)
    stage.touch()
    for line in kept:
        append(stage, line)
    with stage.open("rb") as handle:
        os.fsync(handle.fileno())
    stage.replace(file)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def write(file: Path, content: Any) -> None:
    stage = file.with_name(f".{file.name}.partial")
    stage.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    stage.replace(file)


def _name_of(spec: dict[str, Any]) -> str:
    return str(spec.get("name") or Path(str(spec.get("path", ""))).name)


def _digest(spec: dict[str, Any]) -> str | None:
    return fingerprint(spec["path"]) if "path" in spec else None


def _shown(step: int, scores: dict[str, float], looked: Looked) -> str:
    """The scores of a look and a few answers, for people."""
    head = f"step {step:,}  " + "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
    short = [
        {key: textwrap.shorten(answer[key], 120) for key in ("question", "reply", "reference")}
        for answer in looked.answers[:_SHOWN]
    ]
    return "\n".join([head, *(f"    {a['question']} -> {a['reply']} (right: {a['reference']})" for a in short)])
