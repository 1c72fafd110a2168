"""Scores for trackers, under names like `eval/vqa/accuracy`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlchat.trackers import Trackers

# What a result's folder may hold for people and programs; the replies stay, for they may be private, and many.
_FILES = ("result.md", "report.html", "report.md", "result.json", "certificate.json")


def log_result(
    result: Mapping[str, Any],
    trackers: Sequence[str],
    folder: str | Path,
    *,
    step: int = 0,
    say: Callable[[str], Any] = print,
) -> None:
    """Sends a result to trackers by name. One that fails is told by a sentence, and costs nothing else.

    Args:
        result: `Result.to_dict()`, or the content of result.json.
        trackers: names of `vlchat.trackers.TRACKERS`; `vlchat.trackers.check` says beforehand which are there.
        folder: of the result; its report and tables go along where a tracker takes files. What trackers write on this
            machine lies in `trackers` there.
        step: of the training that the model had, for the axis of their plots.
        say: tells people a sentence.
    """
    place = Path(folder)
    opened = Trackers(trackers, place, chosen(result), say)
    files = [place / name for name in _FILES if (place / name).is_file()]
    try:
        opened.send(numbers(result), step)
        opened.attach(files, f"eval/{_part(result['task'])}", step)
    finally:
        opened.close()


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Every figure of a result by its name.

    `eval/TASK/MEASURE` with `_low` and `_high` of its 95 % interval; `..._none`, `_shuffled`, `_blurred`, `_floor` the
    same of the controls; `eval/TASK/worth_CONTROL` the score minus the control's; `eval/TASK/SLICE_VALUE/MEASURE` of
    slices; `eval/TASK/calibration/...`, and `eval/TASK/questions` and `unanswered`. Shares are 0 to 1.
    """
    task = f"eval/{_part(result['task'])}"
    found: dict[str, float] = {}

    def put(name: str, figure: Any) -> None:
        for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            value = figure.get(key) if isinstance(figure, Mapping) else None
            if isinstance(value, int | float):
                found[name + suffix] = value

    headline = _part(result["measures"][0]["name"])
    for measure, figure in result["overall"].items():
        put(f"{task}/{_part(measure)}", figure)
    for slice_name, values in (result.get("slices") or {}).items():
        for value, measured in values.items():
            for measure, figure in measured.items():
                put(f"{task}/{_part(slice_name)}_{_part(value)}/{_part(measure)}", figure)
    for control, about in (result.get("controls") or {}).items():
        put(f"{task}/{headline}_{_part(control)}", about.get("blind"))
        put(f"{task}/worth_{_part(control)}", (about.get("verdict") or {}).get("difference"))
    for measure, figure in ((result.get("floor") or {}).get("overall") or {}).items():
        put(f"{task}/{_part(measure)}_floor", figure)
    for name, value in (result.get("calibration") or {}).items():
        put(f"{task}/calibration/{_part(name)}", value if isinstance(value, Mapping) else {"value": value})
    for name in ("questions", "unanswered"):
        put(f"{task}/{name}", {"value": result["counts"].get(name)})
    return found


def chosen(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a score is of, and how it came about, by name."""
    about = {
        **{f"model.{name}": result["model"].get(name) for name in ("name", "parameters", "url", "identity", "weights")},
        **{f"data.{name}": result["data"].get(name) for name in ("path", "split", "limit", "sha256")},
        **{f"settings.{name}": value for name, value in result["settings"].items()},
        **{f"versions.{name}": value for name, value in result["versions"].items()},
    }
    found = {name: value for name, value in about.items() if value not in (None, {}, [])}
    return {"task": result["task"], "protocol": result["protocol"], **found}


def _part(name: str) -> str:
    """A part of a name in the letters that every tracker takes; mlflow also keeps names as paths."""
    return re.sub(r"[^\w.-]+", "_", str(name)).strip("_.") or "_"
