"""What `vlchat info` says of a run: what it is, how far, how good, what is saved, and how to go on."""

from __future__ import annotations

import contextlib
import shlex
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlchat.folders import TRAINING_STATE, newest, step_of, steps
from vlchat.runs import (
    ABOUT,
    BEST,
    CONFIG,
    DAMAGED,
    METRICS,
    PLOT,
    PROGRESS,
    RUNNING,
    STOPPED,
    alive,
    clock,
    lines,
    problem_of,
    read_json,
)

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Standing:
    """Whether a run goes on, and how far it is.

    Attributes:
        kind: "training", "killed" (its process said no word), "finished", "stopped", "unfinished" (nothing says why),
            or "elsewhere": a process of another machine has trained, of which nothing more is known.
        step: the last one that is known of.
        planned: how many there are to be; None where nothing tells.
        reason: why it stopped.
        left: seconds until the end, at the pace of the last figures, where it trains.
        process: its number, where it trains.
        host: of the other machine.
    """

    kind: str
    step: int
    planned: float | None = None
    reason: str = ""
    left: float | None = None
    process: int | None = None
    host: str = ""


def standing(folder: Path) -> Standing:
    """Of a run's folder, however broken it is."""
    return _standing(folder, _dictionary(folder / CONFIG), _dictionary(folder / ABOUT), lines(folder / METRICS))


def describe(folder: Path) -> list[tuple[str, str]]:
    """What people want to know of a run, or of one of its saves: a label and a sentence or figure each.

    Nothing here fails on a folder that is broken or half-written: what cannot be read is said instead.
    """
    save = (folder / TRAINING_STATE).is_dir()
    config, about = _dictionary(folder / CONFIG), _dictionary(folder / ABOUT)
    if save and not about:
        about = _dictionary(folder.parent / ABOUT)
    logged = lines(folder / METRICS)
    facts = [("run", str(folder))]
    if not config:
        there = (folder / CONFIG).is_file()
        facts.append(("", f"{CONFIG} {'cannot be read' if there else 'is missing'}: what it was told is not known."))
    facts += _what(config, about)
    facts += _how_far(folder, config, about, logged)
    if not save:
        facts.append(("state", _state(folder, _standing(folder, config, about, logged))))
    facts += _how_good(folder, logged)
    if (folder / PLOT).is_file():
        facts.append(("plot", str(folder / PLOT)))
    facts += _saves(folder, save)
    if config:
        go_on = f"vlchat train {folder.parent if save else folder}/{CONFIG} --resume {folder if save else 'auto'}"
        begun = about.get("started_in")
        if isinstance(begun, str) and begun != str(Path.cwd()):  # paths in the configuration may begin there
            go_on = f"cd {shlex.quote(begun)} && {go_on}"
        planned = _planned(config, about)
        if planned and _dictionary(folder / STOPPED).get("reason") == "done":
            facts.append(("go further", f"{go_on} loop.steps={2 * planned:.0f}"))
        else:
            facts.append(("resume", go_on))
    if (newest(folder) / "processor_config.json").is_file():
        facts.append(("chat", f'vlchat chat --model {folder} photo.jpg "What is this?"'))
    return facts


def sparkline(values: list[float], width: int = 48) -> str:
    """A curve in one line of text. A few high values at its beginning are drawn at the top, not to scale."""
    if not values:
        return ""
    columns = min(width, len(values))
    bounds = [number * len(values) // columns for number in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    low, high = min(means), max(means[columns // 8 :])
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[min(len(_BARS) - 1, round((mean - low) * scale))] for mean in means)


def _what(config: dict[str, Any], about: dict[str, Any]) -> list[tuple[str, str]]:
    objective = config.get("objective")
    name = about.get("objective") or (objective.get("type") if isinstance(objective, dict) else None)
    facts = [("objective", str(name))] if name else []
    base = about.get("base")
    if isinstance(base, dict) and base:
        facts.append(("base", ", ".join(f"{part}: {path or 'the embedded model'}" for part, path in base.items())))
    data = about.get("data")
    if isinstance(data, list) and data:
        for number, part in enumerate(entry for entry in data if isinstance(entry, dict)):
            digest = f", sha256 {str(part['sha256'])[:12]}" if part.get("sha256") else ""
            facts.append(("" if number else "data", f"{part.get('name')}: {_count(part.get('rows'))} rows{digest}"))
    elif isinstance(config.get("data"), list):
        sources = [part for part in config["data"] if isinstance(part, dict)]
        named = [str(part.get("path") or f"{part.get('type')} (drawn)") for part in sources]
        facts += [("data", ", ".join(named))] if named else []
    held = about.get("heldout")
    if isinstance(held, dict):
        facts.append(("held out", f"{_count(held.get('rows'))} rows, {held.get('origin')}"))
    table = about.get("trainable")
    if isinstance(table, list):
        facts += [("" if number else "trains", str(line)) for number, line in enumerate(table[1:])]
    return facts


def _how_far(
    folder: Path, config: dict[str, Any], about: dict[str, Any], logged: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    saved = _dictionary(folder / PROGRESS)
    made = _number(saved.get("step")) or max((line["step"] for line in logged), default=0)
    planned, batch = _planned(config, about), _number(_loop(config, "batch"))
    parts = [f"step {made:,.0f}" + (f" of {planned:,.0f} ({100 * made / planned:.0f} %)" if planned else "")]
    if batch:
        parts.append(f"{made * batch:,.0f} rows seen")
    epochs = _number(about.get("epochs"))
    if epochs and planned:
        parts.append(f"{epochs * made / planned:.2f} of {epochs:.3g} epochs")
    timed = [line for line in logged if _number(line.get("seconds"))]
    seconds = _number(saved.get("seconds")) or (timed[-1]["seconds"] if timed else None)
    if seconds:
        parts.append(f"{clock(seconds)} of training")
    if timed and _number(timed[-1].get("rows_per_second")):
        parts.append(f"{timed[-1]['rows_per_second']:.3g} rows/s")
    facts = [("progress", ", ".join(parts))]
    if not logged:
        facts.append(("", f"{METRICS} holds nothing yet."))
    return facts


def _standing(folder: Path, config: dict[str, Any], about: dict[str, Any], logged: list[dict[str, Any]]) -> Standing:
    running, stopped = _dictionary(folder / RUNNING), _dictionary(folder / STOPPED)
    made = max((line["step"] for line in logged), default=0)
    planned = _planned(config, about)
    if running:
        host, pid = running.get("host"), running.get("pid")
        if host != socket.gethostname():
            return Standing("elsewhere", made, planned, host=str(host))
        if isinstance(pid, int) and alive(pid, running.get("start")):
            return Standing("training", made, planned, left=_left(config, planned, logged), process=pid)
        return Standing("killed", made, planned)
    if stopped:
        reason, at = str(stopped.get("reason")), _number(stopped.get("step"))
        kind = "finished" if reason == "done" else "stopped"
        return Standing(kind, made if at is None else int(at), planned, "" if reason == "done" else reason)
    minutes = _number(_loop(config, "minutes"))
    spent = max((line["seconds"] for line in logged if _number(line.get("seconds")) is not None), default=0)
    over = (planned and made >= planned) or (minutes and spent >= 60 * minutes)
    return Standing("finished" if over else "unfinished", made, planned)


def _state(folder: Path, now: Standing) -> str:
    if now.kind == "elsewhere":
        return f"a process on {now.host} has trained; the last figures are {_ago(folder / METRICS)} old"
    if now.kind == "training":
        return f"training now (process {now.process})" + (f", {clock(now.left)} left" if now.left is not None else "")
    if now.kind == "killed":
        return f"killed at about step {now.step:,}: its process is gone and said no word"
    if now.kind == "unfinished":
        return "not finished; nothing says why"
    where = f" at step {now.step:,}" if (folder / STOPPED).is_file() else ""
    return f"finished{where}" if now.kind == "finished" else f"stopped{where}: {now.reason}"


def _how_good(folder: Path, logged: list[dict[str, Any]]) -> list[tuple[str, str]]:
    facts = []
    losses = [float(line["loss"]) for line in logged if _number(line.get("loss")) is not None]
    if losses:
        low, at = min((line["loss"], line["step"]) for line in logged if _number(line.get("loss")) is not None)
        facts.append(("loss", f"{losses[-1]:.4g} now, {losses[0]:.4g} first, lowest {low:.4g} at step {at:,}"))
        facts.append(("", sparkline(losses)))
    seen: dict[str, list[tuple[int, float]]] = {}
    for line in logged:
        for name, value in line.items():
            if "loss" not in line and name != "step" and _number(value) is not None:
                seen.setdefault(name, []).append((line["step"], float(value)))
    for number, (name, values) in enumerate(seen.items()):
        first = f", {values[0][1]:.4g} at step {values[0][0]:,}" if len(values) > 1 else ""
        facts.append(("" if number else "scores", f"{name.replace('_', ' ')} {values[-1][1]:.4g}{first}"))
    best_of = _dictionary(folder / BEST)
    if _number(best_of.get("value")) is not None and _number(best_of.get("step")) is not None:
        before = f" ({best_of['before']:.4g} before training)" if _number(best_of.get("before")) is not None else ""
        facts.append(("best", f"step-{best_of['step']}: {best_of.get('metric')} {best_of['value']:.4g}{before}"))
    return facts


def _saves(folder: Path, save: bool) -> list[tuple[str, str]]:
    if save:
        problem = problem_of(folder)
        return [("save", f"not whole: {problem}" if problem else f"whole, {_size(folder)}")]
    best, facts = _dictionary(folder / BEST).get("step"), []
    for found in steps(folder):
        problem = problem_of(found)
        more = ", newest" if found == newest(folder) else ""
        more += ", best" if step_of(found) == best else ""
        facts.append(f"{found.name}: not whole: {problem}" if problem else f"{found.name}: whole, {_size(found)}{more}")
    facts += [f"{found.name}: set aside, for it was damaged" for found in sorted(folder.glob(f"{DAMAGED}step-*"))]
    return [("" if number else "saves", fact) for number, fact in enumerate(facts or ["none yet"])]


def _left(config: dict[str, Any], planned: float | None, logged: list[dict[str, Any]]) -> float | None:
    """Seconds until the end, at the pace of the last figures."""
    timed = [line for line in logged if _number(line.get("seconds")) is not None][-20:]
    if len(timed) < 2 or not planned or timed[-1]["step"] <= timed[0]["step"]:
        return None
    pace = (timed[-1]["seconds"] - timed[0]["seconds"]) / (timed[-1]["step"] - timed[0]["step"])
    left = max(0.0, pace * (planned - timed[-1]["step"]))
    minutes = _number(_loop(config, "minutes"))
    return min(left, max(0.0, 60 * minutes - timed[-1]["seconds"])) if minutes else left


def _planned(config: dict[str, Any], about: dict[str, Any]) -> float | None:
    return _number(about.get("steps")) or _number(_loop(config, "steps"))


def _loop(config: dict[str, Any], name: str) -> Any:
    loop = config.get("loop")
    return loop.get(name) if isinstance(loop, dict) else None


def _dictionary(file: Path) -> dict[str, Any]:
    found = read_json(file)
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _ago(file: Path) -> str:
    try:
        return clock(max(0.0, time.time() - file.stat().st_mtime))
    except OSError:
        return "an unknown time"


def _size(folder: Path) -> str:
    size = 0.0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a run that goes on rotates its saves away
            size += path.stat().st_size if path.is_file() else 0
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"
