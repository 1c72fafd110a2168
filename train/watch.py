"""Everything that looks at a run: progress, figures, plot, sample answers, held-out scores, early stop, trackers."""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train import plot, trackers
from train.bar import Bar
from train.checkpoint import Progress
from train.config import RunConfig
from train.heldout import Heldout
from train.scores import Looked, look, unmoved
from vlchat import runs
from vlchat.data import fingerprint
from vlchat.errors import ConfigError, nearest

_SHOWN = 4  # answers that are printed at a look


class Watch:
    """What the loop tells its figures to.

    The loop calls `begin` once, then for each step `stepped`, and where it is due `logged`, `looked` and `saved`; at
    the end, however it ends, `close`. All processes call `begin` and `looked`, for the work of a look is divided among
    them; only the first one writes.

    Args:
        run: the folder of the run.
        objective: the bare model and its loss; `tensors`, `model` and `processor` where rows are held out.
        steps: optimizer steps of the whole run.
        heldout: of `train.heldout.hold_out`.
        table: what trains at which rate, for people.

    Attributes:
        best_step: the step with the best held-out score so far, whose checkpoint is to be kept; None without one.
        alive: called between the batches of a look, for a watchdog.
        reason: why `looked` said to stop.

    Raises:
        ConfigError: a tracker that is not known or not installed.
    """

    def __init__(
        self,
        run: Path,
        config: RunConfig,
        objective: Any,
        steps: int,
        accelerator: Any,
        heldout: Heldout | None = None,
        table: str = "",
    ) -> None:
        self.run, self.config, self.objective, self.steps = run, config, objective, steps
        self.accelerator, self.heldout, self.table = accelerator, heldout, table
        self.first = bool(accelerator.is_main_process)
        self.best_step: int | None = None
        self.best: float | None = None
        self.before: float | None = None  # the score at step 0
        self.waited = 0  # looks since the best one
        self.reason: str | None = None
        self.alive: Callable[[], None] = lambda: None
        self.bar: Bar | None = None
        self.trackers: trackers.Trackers | None = None
        self.every = config.heldout.every or config.loop.sample_every
        trackers.check(config.trackers)

    @property
    def metric(self) -> str:
        return f"heldout_{self.config.heldout.metric}"

    # -- what a checkpoint keeps, so that a resumed run decides the same

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        kept = {name: getattr(self, name) for name in ("best_step", "best", "before", "waited")}
        return kept | {"metric": self.metric, "heldout": self.heldout.digest if self.heldout else None}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state()` of a checkpoint. Before `begin`.

        Raises:
            ConfigError: other rows are held out than before: some of them were trained on.
        """
        digest = self.heldout.digest if self.heldout else None
        if state.get("heldout", digest) != digest:
            raise ConfigError(
                "heldout: the checkpoint held out other rows than this configuration does, so that rows to look at "
                "would have been trained on. Give the run the heldout, data and seed that it began with."
            )
        if state.get("metric", self.metric) == self.metric:  # by another metric, what was best is not known
            for name in ("best_step", "best", "before", "waited"):
                setattr(self, name, state.get(name, getattr(self, name)))

    # -- the course of a run

    def begin(self, progress: Progress) -> None:
        """Before the first step: drops what a killed run wrote after its checkpoint, says what is going to happen,
        and looks at the held-out rows of a run that begins.

        Raises:
            VLChatError: a held-out row cannot be used, or `heldout.metric` names no score of this run.
        """
        if self.first:
            self.run.mkdir(parents=True, exist_ok=True)
            for name in (runs.METRICS, runs.SAMPLES):
                truncate(self.run / name, progress.step)
            for name in (runs.STOPPED, *(() if progress.step else (runs.PLOT, runs.BEST))):
                (self.run / name).unlink(missing_ok=True)
            if progress.step:
                self._write_best()
            self.about = self._describe()
            _write(self.run / runs.ABOUT, self.about)
            _write(self.run / runs.RUNNING, runs.this_process())
        self.bar = Bar(self.steps, progress.step, self.first)
        if self.first:
            self._say(self._paragraph(progress))
            self.trackers = trackers.Trackers(self.config.trackers, self.run, self.config.to_dict(), self._say)
        if self.heldout is not None and progress.step == 0:
            self._judge(progress)

    def stepped(self, progress: Progress, share: float | None = None) -> None:
        """After every step; `share` of the run that is done, where `loop.minutes` and not the steps decide."""
        if self.bar is not None:
            total = min(self.steps, round(progress.step / share)) if share else self.steps
            self.bar.advance(progress.step, max(progress.step, total))

    def logged(self, line: dict[str, Any]) -> None:
        """Every `loop.log_every` steps: figures of a step, with its number as `step`."""
        if not self.first:
            return
        append(self.run / runs.METRICS, line)
        if self.trackers is not None:
            self.trackers.log(line, line["step"])
        if self.bar is not None:
            named = {"loss": ("loss", ".3f"), "lr": ("lr", ".1e"), "rows_per_second": ("rows/s", ".0f")}
            self.bar.note("  ".join(f"{label} {line[key]:{how}}" for key, (label, how) in named.items() if key in line))

    def due(self, step: int, final: bool = False) -> bool:
        """Whether `looked` is to be called after this step."""
        return final or step % self.config.loop.sample_every == 0 or self._judges(step)

    def looked(self, progress: Progress, final: bool = False) -> bool:
        """Sample answers, held-out scores. True: stop early, for `reason`. Every process gets the same answer."""
        judged = self._judges(progress.step) or (final and self.heldout is not None)
        stop = self._judge(progress) if judged else False
        sampled = final or progress.step % self.config.loop.sample_every == 0
        if sampled and not (judged and self.config.heldout.generate):
            self._samples(progress)
        return stop

    def saved(self, folder: Path) -> None:
        """After a checkpoint was written to `folder` and is safe: notes the best one, draws the plot."""
        if not self.first:
            return
        if self.best_step is not None and folder.name == f"step-{self.best_step}":
            self._write_best()
        self.draw()

    def draw(self) -> None:
        """The plot of the run, RUN/loss.png; a note where it cannot be drawn."""
        told = plot.draw(self.run) if self.first else None
        if told:
            self._say(told)

    def close(self) -> None:
        """At the end of a run, and when it is stopped."""
        if self.first and self.bar is not None:
            self.draw()
            if self.best_step is not None and self.best is not None:
                self._say(self._best_in_words())
            if self.trackers is not None:
                self.trackers.close()
            (self.run / runs.RUNNING).unlink(missing_ok=True)
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    # -- how it is done

    def _judges(self, step: int) -> bool:
        return self.heldout is not None and step % self.every == 0

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
            alive=self.alive,
        )
        if wanted.metric not in looked.scores:
            raise ConfigError(
                f'heldout.metric is "{wanted.metric}"; this run has {", ".join(looked.scores)}'
                f"{nearest(wanted.metric, looked.scores) or '.'}"
            )
        if self.first:
            named = {f"heldout_{name}": value for name, value in looked.scores.items()}
            append(self.run / runs.METRICS, {"step": progress.step, **named})
            if self.trackers is not None:
                self.trackers.log(named, progress.step)
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

    def _samples(self, progress: Progress) -> None:
        if not self.first:
            return
        with unmoved(self.objective), self.accelerator.autocast():
            scores, lines = self.objective.sample()
        if scores:
            append(self.run / runs.METRICS, {"step": progress.step, **scores})
            if self.trackers is not None:
                self.trackers.log(scores, progress.step)
        head = f"step {progress.step:,}  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self._say("\n".join([head.rstrip(), *(f"    {line}" for line in lines)]))

    def _paragraph(self, progress: Progress) -> str:
        about, loop = self.about, self.config.loop
        base = ", ".join(str(path or "the embedded model") for path in about["base"].values()) or "from nothing"
        data = "; ".join(f"{part['name']} ({part['rows']:,} rows)" for part in about["data"]) or "drawn as it goes"
        lines = [f"{about['objective']} on {base}. Data: {data}."]
        if self.heldout is not None:
            often = f"looked at every {self.every:,} steps"
            lines.append(f"Held out: {len(self.heldout):,} rows ({self.heldout.origin}), {often}.")
        epochs = f"{about['epochs']:.3g} epochs = " if about["epochs"] else ""
        minutes = f", at most {loop.minutes:g} minutes" if loop.minutes else ""
        going = f", from step {progress.step:,} on" if progress.step else ""
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
        _write(self.run / runs.BEST, about)

    def _say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.say(text)


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


def _write(file: Path, content: Any) -> None:
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
