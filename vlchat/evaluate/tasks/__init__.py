"""What can be asked: a task gives items and reads replies. To add one, write a class here and name it in `TASKS`."""

from __future__ import annotations

from collections.abc import Callable

from vlchat.evaluate.tasks.base import Task
from vlchat.evaluate.tasks.scenes import ScenesTask
from vlchat.evaluate.tasks.vqa import VqaTask

TASKS: dict[str, Callable[..., Task]] = {"scenes": ScenesTask, "vqa": VqaTask}

__all__ = ["TASKS", "ScenesTask", "Task", "VqaTask"]
