"""Training beside the chat: uploads are checked, runs planned, begun, watched and stopped, by `vlchat`'s own processes.

Every command is a process of its own, the one that the terminal would start, with its words to copy.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import yaml

import vlchat
from serve import processes, uploads
from serve.processes import Outcome
from serve.run_view import COMMAND, OUTPUT, Run, is_run, read_run, record_of, written
from serve.uploads import Limits, Upload
from vlchat import runs
from vlchat.errors import VLChatError
from vlchat.folders import replacing
from vlchat.starting.choices import FEWEST_STEPS

CONFIGS = Path(vlchat.__file__).parent.parent / "configs"
EMBEDDED_CHOICES = ("finetune-mini", "finetune-mini-questions", "finetune")  # the first is what it needs most often
OTHER_CHOICES = ("finetune",)
UPLOADS = "uploads"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
_LOOKS = 8  # at the rows kept aside, over a run
_POINTS = 200  # of the curve, over a run


@dataclass(frozen=True)
class Checked:
    """An upload, and what `vlchat check` says of it.

    Attributes:
        command: its words, to copy.
        report: of `vlchat check --json`.
        settled: pictures that were put where the rows look for them.
    """

    upload: Upload
    command: str
    report: Mapping[str, Any]
    settled: int = 0

    @property
    def usable(self) -> int:
        """Rows that can be trained on."""
        return int(self.report["rows"]) - int(self.report["bad_rows"])


@dataclass(frozen=True)
class Settings:
    """What people decide of a run.

    Attributes:
        choice: a name of `Trainings.choices`.
        steps: of the optimizer.
        aside: rows that are never trained on, and answered while it trains.
        max_bad: bad rows that may be left out.
    """

    data: Path
    choice: str
    steps: int
    aside: int
    max_bad: int = 0


class Trainings:
    """The runs of a folder, one of which may be under way.

    Args:
        folder: of the runs; uploads go to `uploads/` in it.
        model, revision, quantize: of the model that is trained on, as `vlchat serve` has them; None is the embedded
            one.
        choices: configurations by name; None takes those that are shipped and fit the model.
        limits: of an upload.
        patience: seconds in which a run that was asked to stop may save, before it is killed.
    """

    def __init__(
        self,
        folder: Path = Path("runs"),
        model: str | None = None,
        revision: str | None = None,
        quantize: str | None = None,
        choices: Mapping[str, Path] | None = None,
        limits: Limits | None = None,
        patience: float = 120.0,
    ) -> None:
        shipped = EMBEDDED_CHOICES if model is None else OTHER_CHOICES
        self.folder, self.model, self.revision, self.quantize = folder, model, revision, quantize
        self.choices = dict(choices) if choices else {name: _config(name) for name in shipped}
        self.limits, self.patience = limits or Limits(), patience
        self._starting, self._asking = threading.Lock(), threading.Lock()
        self._begun: list[Popen[bytes]] = []
        self._asked: Popen[str] | None = None
        self._known: dict[str, tuple[tuple[int, ...], Run]] = {}  # figures of a long run are not read at every look
        self._closed = False

    # -- before a run

    def check(self, files: Sequence[str | Path]) -> Checked:
        """Takes files in and has every row and picture looked at.

        Raises:
            VLChatError: they can't be taken in, or not be checked at all; bad rows are in the report.
        """
        upload = uploads.take_in(files, self.folder / UPLOADS, self.limits)
        try:
            data = ["check", str(upload.data)]
            quick = self._reported([*data, "--no-decode"])  # needs no model
            settled = uploads.settle(upload, quick["missing"])
            words = [*data, "--model", *([self.model] if self.model else [])]
            words += ["--revision", self.revision] if self.revision else []
            return Checked(upload, processes.shown(words), self._reported(words), settled)
        except BaseException:
            uploads.discard(upload)
            raise

    def _reported(self, words: Sequence[str]) -> dict[str, Any]:
        told = self._ask([*words, "--json"])
        try:
            return dict(json.loads(told.output))
        except ValueError as error:
            raise VLChatError(told.sentence) from error

    def suggested(self, checked: Checked, choice: str) -> tuple[int, int]:
        """Steps, and rows to keep aside, for data and a choice: by its own epochs, and no fewer than teach anything."""
        loop = yaml.safe_load(self.choices[choice].read_text(encoding="utf-8")).get("loop") or {}
        aside = max(1, min(200, checked.usable // 10))
        wanted = (checked.usable - aside) * float(loop.get("epochs", 1)) / int(loop.get("batch", 32))
        return loop.get("steps") or max(FEWEST_STEPS, math.ceil(wanted)), aside

    def plan(self, name: str, settings: Settings) -> Outcome:
        """What a run will take; the code is 0 where it fits and 1 where it does not.

        Raises:
            VLChatError: it can't be planned.
        """
        told = self._ask(["plan", *self._words(name, settings)])
        if told.code not in (0, 1) or not told.output.strip():
            raise VLChatError(told.sentence)
        return told

    def command(self, name: str, settings: Settings) -> str:
        """What a terminal would begin the run with."""
        return processes.shown(["train", *self._words(name, settings)])

    # -- a run

    def start(self, name: str, settings: Settings) -> Run:
        """Begins a run.

        Raises:
            VLChatError: one is under way, there is one of this name, or the name is none.
        """
        words = ["train", *self._words(name, settings)]
        with self._starting:
            self._refuse_second()
            folder = self.folder / name
            if folder.exists():
                before = self.run(name)
                if before.kind != "failed" or before.saved:
                    raise VLChatError(
                        f'There is a run "{name}" already, and nothing is overwritten: name it otherwise.'
                    )
            folder.mkdir(parents=True, exist_ok=True)
            self._begin(folder, words, Path.cwd())
        return self.run(name)

    def resume(self, name: str) -> Run:
        """Goes on with a run that stopped, was killed, or never came to train.

        Raises:
            VLChatError: there is nothing to go on with, or one is under way.
        """
        with self._starting:
            self._refuse_second()
            run = self.run(name)
            if not run.resumable:
                raise VLChatError(f'There is nothing to go on with in "{name}".')
            words, cwd = self._resuming(run)
            self._begin(run.folder, words, cwd)
        return self.run(name)

    def line(self, name: str) -> str:
        """What a terminal would go on with, or for one that needs it no more, was begun with; "" if nobody knows."""
        run = self.run(name)
        words = self._resuming(run)[0] if run.resumable else record_of(run.folder).get("words")
        return processes.shown(words) if words else ""

    def stop(self, name: str) -> None:
        """Asks a run to save and end; it is killed if it does not within `patience`.

        Raises:
            VLChatError: it is not under way, or was not begun here.
        """
        run, record = self.run(name), record_of(self.folder / name)
        if not run.under_way:
            raise VLChatError(f'"{name}" is not under way.')
        if not run.ours:
            raise VLChatError(f'"{name}" was begun in a terminal: stop it there, with Ctrl-C.')
        processes.terminate(record["process"])
        threading.Thread(target=processes.patiently, args=(record["process"], self.patience), daemon=True).start()

    def run(self, name: str) -> Run:
        """Raises VLChatError where there is none of this name."""
        self._begun = [process for process in self._begun if process.poll() is None]  # or they would stay as zombies
        folder = self.folder / _checked(name)
        if not is_run(folder):
            raise VLChatError(f'There is no run "{name}".')
        stamp, known = written(folder), self._known.get(name)
        if known is None or known[0] != stamp or known[1].under_way:
            known = self._known[name] = stamp, read_run(folder)
        return known[1]

    def listed(self) -> list[Run]:
        """All runs, those that were begun in a terminal too; the newest first."""
        found = [path for path in self.folder.glob("*") if _NAME.fullmatch(path.name) and is_run(path)]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        return [self.run(path.name) for path in found]

    def close(self, patience: float | None = None) -> None:
        """Ends what was begun here, and what a server that is gone has left: a run saves first.

        Args:
            patience: seconds in which it may; None is that of all.
        """
        self._closed = True
        if self._asked is not None:
            processes.end(self._asked)
        with contextlib.suppress(OSError):
            records = [record_of(run.folder) for run in self.listed() if run.ours]
            left = [one["process"] for one in records if self._answers_for(one)]
            for process in left:
                processes.terminate(process)
            for process in left:
                processes.patiently(process, self.patience if patience is None else patience)

    # -- how it is done

    def _words(self, name: str, settings: Settings) -> list[str]:
        """What follows `vlchat train`, and `vlchat plan`."""
        if settings.choice not in self.choices:
            raise VLChatError("Choose what is to be trained.")
        if settings.steps < 1 or settings.aside < 1:
            raise VLChatError("Steps and rows kept aside are whole numbers from 1.")
        keys: dict[str, Any] = {
            "run": self.folder / _checked(name),
            "data.0.path": settings.data,
            "objective.model": self.model,
            "objective.revision": self.revision,
            "objective.quantize": self.quantize,
            "loop.steps": settings.steps,
            "loop.log_every": max(1, settings.steps // _POINTS),
            "loop.sample_every": max(1, settings.steps // _LOOKS),
            "heldout.rows": settings.aside,
            "max_bad": settings.max_bad or None,
        }
        config = self.choices[settings.choice]
        return [str(config), *(f"{key}={_value(value)}" for key, value in keys.items() if value is not None)]

    def _resuming(self, run: Run) -> tuple[list[str], Path]:
        """The words of a command that goes on with a run, and the folder that its paths begin in."""
        record = record_of(run.folder)
        if record:
            words = [word for word in record["words"] if word not in ("--resume", "auto")]
            return [*words, "--resume", "auto"], Path(record["cwd"])
        about = runs.read_json(run.folder / runs.ABOUT) or {}
        begun = about.get("started_in")
        cwd = Path(begun) if isinstance(begun, str) and Path(begun).is_dir() else Path.cwd()
        return ["train", str(run.folder.absolute() / runs.CONFIG), "--resume", "auto"], cwd

    def _refuse_second(self) -> None:
        if self._closed:
            raise VLChatError("The server is stopping.")
        for run in self.listed():
            if run.ours:
                raise VLChatError(f'"{run.name}" is under way, and one run trains at a time: wait for it, or stop it.')

    def _begin(self, folder: Path, words: Sequence[str], cwd: Path) -> None:
        process = processes.begin(words, folder / OUTPUT, cwd)
        self._begun.append(process)
        record = {
            "words": list(words), "cwd": str(cwd), "process": runs.process(process.pid), "server": runs.this_process(),
        }  # fmt: skip
        with replacing(folder / COMMAND, flush=False) as stage:
            stage.write_text(json.dumps(record, indent=1), encoding="utf-8")

    def _ask(self, words: Sequence[str]) -> Outcome:
        if not self._asking.acquire(blocking=False):
            raise VLChatError("Another check or plan is being made. Ask again when it is done.")
        try:
            if self._closed:
                raise VLChatError("The server is stopping.")
            self._asked = processes.ask(words)
            return processes.outcome(self._asked, words)
        finally:
            self._asked = None
            self._asking.release()

    def _answers_for(self, record: Mapping[str, Any]) -> bool:
        server = record.get("server") or {}
        return server.get("pid") == os.getpid() or not runs.runs_here(server)


def _config(name: str) -> Path:
    """Of a shipped configuration, as short as it can be typed."""
    path = CONFIGS / f"{name}.yaml"
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _value(value: Any) -> str:
    """As `key=value` takes it, whose values are YAML: a file's name may look like more than a name."""
    text = str(value)
    try:
        plain = isinstance(value, int) or yaml.safe_load(text) == text
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name == UPLOADS or re.fullmatch(r"step-\d+", name):
        raise VLChatError(
            "A run's name is at most 60 letters from a to z, digits, - and _, and begins with a letter or digit."
        )
    return name
