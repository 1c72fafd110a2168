"""A run of the training room, read from its folder: how it stands, its curve, its answers, its output."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlchat import run_info, runs
from vlchat.folders import steps

COMMAND, OUTPUT = "command.json", "output.txt"  # beside what a run leaves
_POINTS = 400  # of a curve
_TAIL = 2**14  # bytes of output that are shown


@dataclass(frozen=True)
class Run:
    """A run of the folder.

    Attributes:
        kind: as of `run_info.Standing`, or "preparing" (nothing is trained yet), "ending" (all is said and saved), or
            "failed" (nothing was ever trained).
        ours: it was begun here, so that it can be stopped here.
        best, metric: its best score so far; None before the first look.
    """

    name: str
    folder: Path
    kind: str
    standing: run_info.Standing
    ours: bool
    saved: bool
    best: float | None = None
    metric: str = ""

    @property
    def under_way(self) -> bool:
        return self.kind in ("preparing", "training", "ending")

    @property
    def resumable(self) -> bool:
        return self.kind in ("killed", "stopped", "unfinished", "failed")


@dataclass
class Sample:
    """A row that is kept aside, and its answers.

    Attributes:
        reference: the right one.
        before: at the first look; None where the last is the first.
    """

    question: str
    reference: str
    reply: str
    before: str | None = None


@dataclass(frozen=True)
class RunView:
    """What a run shows while it trains.

    Attributes:
        losses, kept_aside: (step, loss) of the training rows, and of those kept aside.
        speed: rows a second; None before the first figures.
        samples, looked: answers at the last look, and its step.
        output: the end of what the command has printed.
    """

    run: Run
    losses: list[tuple[int, float]] = field(default_factory=list)
    kept_aside: list[tuple[int, float]] = field(default_factory=list)
    speed: float | None = None
    samples: list[Sample] = field(default_factory=list)
    looked: int = 0
    output: str = ""


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run, which may have left nothing yet but the command that began it."""
    return folder.is_dir() and ((folder / COMMAND).is_file() or runs.is_run(folder))


def read_run(folder: Path) -> Run:
    """How a run stands."""
    record, standing = record_of(folder), run_info.standing(folder)
    ours = runs.runs_here(record.get("process"))
    kind = standing.kind
    if ours and kind != "training":
        kind = "ending" if _ended(folder, record) else "preparing"
    elif kind == "unfinished" and record and not standing.step:
        kind = "failed"
    best = runs.read_json(folder / runs.BEST) or {}
    saved = bool(steps(folder))
    return Run(folder.name, folder, kind, standing, ours, saved, best.get("value"), best.get("metric", ""))


def written(folder: Path) -> tuple[int, ...]:
    """When each of the files that tell how a run stands was written, in nanoseconds; 0 for one that isn't there."""
    names = (".", runs.METRICS, runs.STOPPED, runs.RUNNING, runs.BEST, runs.CONFIG, runs.ABOUT, COMMAND)
    found = []
    for name in names:
        try:
            found.append((folder / name).stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


def record_of(folder: Path) -> dict[str, Any]:
    """How a run was begun here; nothing for one that was begun in a terminal."""
    found = runs.read_json(folder / COMMAND)
    return found if isinstance(found, dict) and {"words", "cwd", "process"} <= found.keys() else {}


def _ended(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a run whose process is still there has said how it ended."""
    told = runs.read_json(folder / runs.STOPPED) or {}
    return float(told.get("at") or 0) > float(record["process"]["began"])


def view(run: Run) -> RunView:
    """Reads what the run has left so far; what isn't there yet is empty."""
    logged = runs.lines(run.folder / runs.METRICS)
    speeds = [line["rows_per_second"] for line in logged if "rows_per_second" in line]
    samples, looked = _samples(run.folder)
    return RunView(
        run,
        _thinned(_series(logged, "loss")),
        _thinned(_series(logged, "heldout_loss")),
        speeds[-1] if speeds else None,
        samples,
        looked,
        _tail(run.folder / OUTPUT),
    )


def _series(logged: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in logged if isinstance(line.get(name), int | float)]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """No more than are seen; the last one stays."""
    every = -(-len(points) // _POINTS) or 1
    return points[::every] + (points[-1:] if points and (len(points) - 1) % every else [])


def _samples(run: Path) -> tuple[list[Sample], int]:
    told = runs.lines(run / runs.SAMPLES)
    if not told:
        return [], 0
    first, last = told[0]["step"], told[-1]["step"]
    before = {str(line.get("id")): str(line.get("reply")) for line in told if line["step"] == first}
    samples = [
        Sample(
            str(line.get("question")),
            str(line.get("reference")),
            str(line.get("reply")),
            before.get(str(line.get("id"))) if first < last else None,
        )
        for line in told
        if line["step"] == last
    ]
    return samples, last


def _tail(file: Path) -> str:
    try:
        with file.open("rb") as output:
            size = output.seek(0, 2)
            output.seek(max(0, size - _TAIL))
            text = output.read().decode(errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[2] if size > _TAIL else text
