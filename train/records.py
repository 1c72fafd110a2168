"""The files that a run leaves to read: lines of figures that survive a kill, and JSON that is whole or not there."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from vlchat import runs


def append(file: Path, line: dict[str, Any]) -> None:
    """Adds one JSON object as one line; a number that is none is written as null, which JSON has a word for.

    A line without any figure is not written. One write call a line: a kill leaves at most the last one unfinished, and
    what follows it begins on a new one.
    """
    if not line.keys() - {"step"}:
        return
    text = json.dumps({key: _plain(value) for key, value in line.items()}, ensure_ascii=False, allow_nan=False)
    with file.open("ab+") as handle:
        if handle.seek(0, os.SEEK_END):
            handle.seek(-1, os.SEEK_END)
            text = text if handle.read(1) == b"\n" else "\n" + text
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
    try:
        stage.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        stage.replace(file)
    except OSError:
        stage.unlink(missing_ok=True)
        raise
