"""An answerer that follows a rule, to hold parsers and bookkeeping against figures worked by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vlchat.evaluate.items import Item, Reading, Reply, Request
from vlchat.evaluate.measures import Measure
from vlchat.evaluate.tasks.base import Task


class Scripted:
    """Answers each request by `rule(request)`: a text, or the log-probabilities of its choices."""

    description: dict[str, Any] = {"name": "scripted"}
    identity = None

    def __init__(self, rule: Callable[[Request], str]) -> None:
        self.rule = rule
        self.asked: list[Request] = []

    def answer(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Reply]:
        self.asked += requests
        return [Reply(self.rule(request)) for request in requests]


def replied(task: Task, item: Item, *texts: str) -> Reading:
    """How the task reads these replies to an item."""
    return task.read(item, [Reply(text) for text in texts])


def measured(task: Task, readings: Sequence[Reading]) -> dict[str, float]:
    """Every measure over these rows; a row that lacks a statistic is not counted for it."""
    return {measure.name: _value(measure, readings) for measure in task.measures}


def _value(measure: Measure, readings: Sequence[Reading]) -> float:
    rows = [reading.stats for reading in readings if set(measure.needs) <= set(reading.stats)]
    sums = {name: sum(row[name] for row in rows) for name in measure.needs} | {"rows": len(rows)}
    return float(measure.value(sums))  # type: ignore[arg-type]
