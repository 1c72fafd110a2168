"""The folder of a run: how far it is, how good, and what is saved. Training writes it, `info` reads it."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
ABOUT, BEST, RUNNING, STOPPED = "about.json", "best.json", "running.json", "stopped.json"
CONFIG, PLOT = "run.json", "loss.png"


def lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of metrics, those of a killed process left out; an empty list where there is none."""
    try:
        text = file.read_bytes()
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
    return {"pid": os.getpid(), "host": socket.gethostname(), "began": time.time(), "start": process_start(os.getpid())}


def process_start(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None where there is none, or nothing tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def read_json(file: Path) -> Any:
    """What a JSON file holds; None where it is not there or cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
