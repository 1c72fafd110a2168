"""How well a model answers, with the controls that say how far to trust the figure."""

from __future__ import annotations

from vlchat.evaluate.blind import CONTROLS
from vlchat.evaluate.floor import QuestionOnlyFloor
from vlchat.evaluate.items import Item, Reading, Reply, Request
from vlchat.evaluate.known import TASKS, make_task
from vlchat.evaluate.measures import Measure, mean_of, ratio_of
from vlchat.evaluate.report import load, markdown, result_folder, save, terminal
from vlchat.evaluate.result import Result
from vlchat.evaluate.runner import evaluate, open_answerer, run
from vlchat.evaluate.tasks import ScenesTask, Task, VqaTask

__all__ = [
    "CONTROLS",
    "TASKS",
    "Item",
    "Measure",
    "QuestionOnlyFloor",
    "Reading",
    "Reply",
    "Request",
    "Result",
    "ScenesTask",
    "Task",
    "VqaTask",
    "evaluate",
    "load",
    "make_task",
    "markdown",
    "mean_of",
    "open_answerer",
    "ratio_of",
    "result_folder",
    "run",
    "save",
    "terminal",
]
