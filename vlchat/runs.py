"""The folder of a run: how far it is, how good, and what is saved. Training writes it, `info` reads it."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from vlchat.errors import CheckpointError
from vlchat.folders import TRAINING_STATE, read_manifest, steps

METRICS, SAMPLES, QUARANTINE = "metrics.jsonl", "samples.jsonl", "quarantine.jsonl"
ABOUT, BEST, RUNNING, STOPPED = "about.json", "best.json", "running.json", "stopped.json"
CONFIG, PLOT = "run.json", "loss.png"
PROGRESS = f"{TRAINING_STATE}/progress.json"  # of a save
DAMAGED = "damaged-"  # before the name of a save that was set aside


def lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of metrics, those of a killed process left out; an empty list where there is none."""
    try:
        text = file.read_bytes() if file.is_file() else b""  # a device would be read without end
    except OSError:
        return []
    found = []
    for line in text.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:  # half of a line, as a kill leaves it
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found


def this_process() -> dict[str, Any]:
    """What RUNNING holds while a process trains."""
    return process(os.getpid())


def process(pid: int) -> dict[str, Any]:
    """What tells a process of this machine from any other, as JSON."""
    return {"pid": pid, "host": socket.gethostname(), "began": time.time(), "start": process_start(pid)}


def runs_here(told: Any) -> bool:
    """Whether what `process` told once is a process that still runs, on this machine."""
    if not isinstance(told, dict) or told.get("host") != socket.gethostname():
        return False
    pid = told.get("pid")
    return isinstance(pid, int) and alive(pid, told.get("start"))


def taken(run: Path) -> str | None:
    """Why this process may not write to a run's folder now, or None. Of other machines' processes nothing is known."""
    told = read_json(run / RUNNING)
    if not runs_here(told) or told["pid"] == os.getpid():
        return None
    return f"Process {told['pid']} trains in {run} now. Wait for it, stop it, or add run=OTHER/FOLDER."


def alive(pid: int, start: Any) -> bool:
    """Whether a process runs, and is the one that began at `start` (`process_start`; None does not ask)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    return start is None or process_start(pid) == start


def process_start(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None where there is none, or nothing tells."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state[0] in "ZX" else state[19]  # dead, and nobody has asked for its exit code yet
    except (OSError, IndexError):
        return None


def read_json(file: Path) -> Any:
    """What a JSON file holds; None where it is not there or cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, or of one of its saves, however broken."""
    if (folder / TRAINING_STATE).is_dir():
        return True
    named = any((folder / name).is_file() for name in (METRICS, CONFIG, ABOUT, STOPPED))
    return not (folder / "config.json").is_file() and (named or bool(steps(folder)))


def problem_of(save: Path) -> str | None:
    """Why a save is not whole, or None. Hashes are not compared: that would read every byte of it."""
    try:
        manifest = read_manifest(save)
    except CheckpointError as error:
        return str(error)
    if manifest is None:
        return "it has no manifest"
    for name in manifest.get("files", {}):
        if not (save / name).is_file():
            return f"{name} is missing"
        if name.endswith(".safetensors") and not _complete(save / name):
            return f"{name} is cut short"
    return None


def clock(seconds: float) -> str:
    """Seconds as people read them: 0:42, 12:05, 3:07:00, 2 days 3:00:00."""
    days, rest = divmod(round(seconds), 86_400)
    hours, rest = divmod(rest, 3600)
    text = f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours or days else f"{rest // 60}:{rest % 60:02}"
    return f"{days} day{'s' if days > 1 else ''} {text}" if days else text


def _complete(file: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length)) if length < 1 << 27 else {}
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return file.stat().st_size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
