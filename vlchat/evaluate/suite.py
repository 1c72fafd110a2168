"""A suite: many tasks asked of one model, with one report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from vlchat.errors import ConfigError, nearest
from vlchat.evaluate.answerers import Answerer
from vlchat.evaluate.blind import CONTROLS
from vlchat.evaluate.known import TASKS, make_task
from vlchat.evaluate.result import Result
from vlchat.evaluate.runner import CONTROL_ROWS, run


@dataclass(frozen=True)
class Entry:
    """One task of a suite: its name in the report, in `TASKS`, and its options."""

    name: str
    task: str
    options: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Suite:
    """What a suite's YAML says.

    Attributes:
        tasks: a list of `{task: NAME, ...}`; besides the task's options an entry may have `name`, `max_new_tokens` and
            `seed`.
        controls: blind controls of every task.
        control_rows: on how many rows of each; 0 is all.
        seed: of every task that has none.
    """

    tasks: Sequence[Entry]
    controls: Sequence[str] = tuple(CONTROLS)
    control_rows: int = CONTROL_ROWS
    seed: int = 0


def read_suite(path: str | Path) -> Suite:
    """A suite from its YAML file. Paths in it are read as they are written, from where the command runs.

    Raises:
        ConfigError: the file cannot be read, or names a key, task or option that there is not; nothing was asked then.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The suite {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The suite {path} is no YAML: {' '.join(str(error).split())}") from error
    known = [one.name for one in fields(Suite)]
    if not isinstance(content, dict):
        raise ConfigError(f"The suite {path} must be a mapping with the key tasks.")
    for key in content:
        if key not in known:
            raise ConfigError(f'{path}: unknown key "{key}"; known: {", ".join(known)}{nearest(str(key), known)}')
    given = content.get("tasks")
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{path}: tasks must be a list of entries like {{task: vqa, data: test.json}}.")
    entries = [_entry(entry, f"{path}: tasks.{number}") for number, entry in enumerate(given)]
    for entry in entries:
        if [other.name for other in entries].count(entry.name) > 1:
            raise ConfigError(f'{path}: two tasks are called "{entry.name}"; give one of them a name of its own.')
    settings = {key: value for key, value in content.items() if key != "tasks"}
    if "controls" in settings:
        settings["controls"] = _controls(settings["controls"], f"{path}: controls")
    for key, least in (("control_rows", 0), ("seed", None)):
        if key in settings:
            _whole(settings[key], f"{path}: {key}", least)
    return Suite(entries, **settings)


def run_suite(
    suite: Suite,
    answerer: Answerer,
    *,
    model: str | Path | None,
    progress: bool = True,
    say: Callable[[str], Any] = print,
    **options: Any,
) -> Iterator[tuple[str, Result]]:
    """Each task's name and result, as they are finished. One model answers all.

    Args:
        answerer: of `vlchat.evaluate.open_answerer`.
        model: its name, for the results' settings.
        progress: say each task's name before it is asked, and show progress bars.
        options: as of `vlchat.evaluate.run`.
    """
    for entry in suite.tasks:
        _make(entry, suite)  # all data is there, and right, before the first question
    for entry in suite.tasks:
        if progress:
            say(f"== {entry.name}")
        yield entry.name, run(
            model,
            entry.task,
            answerer=answerer,
            controls=suite.controls,
            control_rows=suite.control_rows,
            seed=suite.seed if entry.seed is None else entry.seed,
            max_new_tokens=entry.max_new_tokens,
            progress=progress,
            **options,
            **entry.options,
        )


def _make(entry: Entry, suite: Suite) -> None:
    seed = {"seed": suite.seed if entry.seed is None else entry.seed} if entry.task == "scenes" else {}
    try:
        make_task(entry.task, **entry.options, **seed)
    except ConfigError as error:
        raise ConfigError(f'Task "{entry.name}" of the suite: {error}') from error


def _entry(content: Any, where: str) -> Entry:
    if not isinstance(content, dict) or not isinstance(content.get("task"), str):
        raise ConfigError(f"{where} must be a mapping that names its task: {{task: vqa, data: test.json}}.")
    task = content["task"]
    if task not in TASKS:
        raise ConfigError(f'{where}: unknown task "{task}"; known: {", ".join(TASKS)}{nearest(task, TASKS)}')
    own = {key: content[key] for key in ("max_new_tokens", "seed") if content.get(key) is not None}
    for key, value in own.items():
        _whole(value, f"{where}: {key}", 1 if key == "max_new_tokens" else None)
    if odd := [key for key in content if not isinstance(key, str)]:
        raise ConfigError(f'{where}: the key {odd[0]} is no text, so it is no option of the task "{task}".')
    name = str(task if content.get("name") is None else content["name"])
    if not name or "/" in name or name in (".", ".."):
        raise ConfigError(f'{where}: name is "{name}"; it becomes the name of a folder.')
    options = {key: value for key, value in content.items() if key not in ("task", "name", *own)}
    return Entry(name, task, options, **own)


def _controls(given: Any, where: str) -> list[str]:
    if not isinstance(given, list):
        raise ConfigError(f"{where} must be a list, such as [shuffled, none]; [] asks none.")
    for name in given:
        if not isinstance(name, str) or name not in CONTROLS:
            known = f"{', '.join(CONTROLS)}{nearest(str(name), CONTROLS)}"
            raise ConfigError(f'{where}: there is no control "{name}"; known: {known}')
    return given


def _whole(value: Any, where: str, least: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        from_here = "" if least is None else f" from {least} on"
        raise ConfigError(f"{where} is {value}; it must be a whole number{from_here}.")
