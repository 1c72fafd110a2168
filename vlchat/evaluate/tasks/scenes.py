"""Questions about freshly drawn scenes, scored by the fact that the reply states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlchat.errors import ConfigError
from vlchat.evaluate.items import Item, Reading, Reply
from vlchat.evaluate.measures import mean_of
from vlchat.evaluate.tasks.base import Task


class ScenesTask(Task):
    """Questions about freshly drawn scenes.

    Args:
        questions: how many, the kinds in turn.
        seed: draws the scenes and questions.
        phrasings: "seen" asks in the wordings used in training, "held" in those kept for testing.
    """

    protocol = "vlchat-scenes-3 (the reply states the fact asked for; wording is free)"
    measures = [mean_of("right", "right")]
    max_new_tokens = 80
    read_by = ("vlchat.scenes",)

    def __init__(self, *, questions: int = 2000, seed: int = 0, phrasings: str = "seen") -> None:
        if questions < 1:
            raise ConfigError(f"questions is {questions}; it must be at least 1")
        self.questions, self.seed, self.phrasings = questions, seed, phrasings
        self.data: dict[str, Any] = {
            "generator": "vlchat.scenes", "split": "test", "phrasings": phrasings, "questions": questions, "seed": seed,
        }  # fmt: skip
        self.notes: list[str] = []

    def items(self) -> list[Item]:
        from vlchat import scenes

        drawn = scenes.questions(self.questions, self.seed, split="test", phrasings=self.phrasings)
        return [
            Item(asked.id, asked.messages, asked.answer, tuple(asked.accepted), {"kind": asked.kind}, source=asked)
            for asked in drawn
        ]

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        from vlchat import scenes

        right = float(scenes.correct(item.source, replies[0].text))
        return Reading(replies[0].text, right, {"right": right})
