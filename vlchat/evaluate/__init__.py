"""How well a model answers, with the controls that say how far to trust the figure."""

from __future__ import annotations

from vlchat.evaluate.report import markdown, result_folder, save, terminal
from vlchat.evaluate.runner import Result, Share, evaluate, make_task, run
from vlchat.evaluate.tasks import TASKS, Item, QuestionOnlyFloor, ScenesTask, VqaTask

__all__ = [
    "TASKS",
    "Item",
    "QuestionOnlyFloor",
    "Result",
    "ScenesTask",
    "Share",
    "VqaTask",
    "evaluate",
    "make_task",
    "markdown",
    "result_folder",
    "run",
    "save",
    "terminal",
]
