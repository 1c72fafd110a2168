"""The tasks by name: over your own data, and published benchmarks from their official files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

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
        ConfigError: an unknown task, or options that it does not have.
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
    return TASKS[name](**options)


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
