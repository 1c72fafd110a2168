"""How well a model answers, with the controls that say how far to trust the figure."""

from __future__ import annotations

from vlchat.evaluate.report import made, markdown, save, terminal
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
    "made",
    "make_task",
    "markdown",
    "run",
    "save",
    "terminal",
]
