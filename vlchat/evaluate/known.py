"""The tasks by name: over your own data, and published benchmarks from their official files."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from vlchat.errors import ConfigError, nearest
from vlchat.evaluate import tasks
from vlchat.evaluate.protocols import PROTOCOLS
from vlchat.evaluate.tasks.base import Task

TASKS: dict[str, Callable[..., Task]] = {
    "scenes": tasks.ScenesTask,
    "vqa": tasks.VqaTask,
    "yes_no": tasks.YesNoTask,
    "multiple_choice": tasks.MultipleChoiceTask,
    "conversation": tasks.ConversationTask,
    "video": tasks.VideoTask,
    "caption": tasks.CaptionTask,
    "reading": tasks.ReadingTask,
    "document": tasks.DocumentTask,
    "chart": tasks.ChartTask,
    "counting": tasks.CountingTask,
    "retrieval": tasks.RetrievalTask,
    "zero_shot": tasks.ZeroShotTask,
    "matching": tasks.MatchingTask,
    **PROTOCOLS,
}


def make_task(name: str, **options: Any) -> Task:
    """A task by its name in `TASKS`, with its own options.

    Raises:
        ConfigError: an unknown task, or options that it does not have, or values of another type.
    """
    if name not in TASKS:
        raise ConfigError(f'Unknown task "{name}"; known: {", ".join(TASKS)}{nearest(name, TASKS)}')
    known = inspect.signature(TASKS[name]).parameters
    for option in options:
        if option not in known:
            owners = [task for task in TASKS if option in inspect.signature(TASKS[task]).parameters]
            raise ConfigError(
                f'The task "{name}" has no option "{option}"'
                + (f"; {_listed(owners)}." if owners else nearest(option, known) or ".")
            )
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ConfigError(f'The task "{name}" needs {option}: --{option} on the command line.')
        if option in options:
            _check(name, option, options[option])
    return TASKS[name](**options)


def _check(task: str, option: str, value: Any) -> None:
    """Refuses a value of another type than the task's signature has: YAML reads `yes` as true and `5` as a number."""
    wanted = get_type_hints(TASKS[task].__init__).get(option, Any)  # type: ignore[misc]
    if not _fits(value, wanted):
        shown = json.dumps(value, ensure_ascii=False, default=str)
        kinds = " or ".join(dict.fromkeys(_kinds(wanted)))
        raise ConfigError(f'{option} of the task "{task}" is {shown[:60]}; it must be {kinds}.')


def _fits(value: Any, wanted: Any) -> bool:
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(wanted))
    kind = get_origin(wanted) or wanted
    if kind is Sequence:
        return isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value)
    if isinstance(value, bool):
        return kind in (bool, Any)
    return kind is Any or isinstance(value, {str: str | Path, float: int | float}.get(kind, kind))


def _kinds(wanted: Any) -> list[str]:
    """The types of an annotation as people call them."""
    if get_origin(wanted) in (Union, UnionType):
        return [name for one in get_args(wanted) for name in _kinds(one)]
    names = {
        str: "text (in quotes, if it looks like a number or a yes)",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        Sequence: "a list such as [one, two]",
        Mapping: "a mapping",
        NoneType: "null",
    }
    kind = get_origin(wanted) or wanted
    return [names[kind]] if kind in names else []


def listing() -> str:
    """Every task with what it is and its options, as `vlchat eval --list` prints it."""
    lines = []
    for name, task in TASKS.items():
        lines.append(f"{name:16} {(inspect.getdoc(task) or '').splitlines()[0]}")
        options = [option for option in inspect.signature(task).parameters]
        lines.append(f"{'':16} options: {', '.join(options)}")
    return "\n".join(lines)


def _listed(owners: list[str]) -> str:
    several = len(owners) > 1
    return f"the task{'s' if several else ''} {', '.join(owners[:6])} {'have' if several else 'has'}"
