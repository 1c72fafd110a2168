"""From replies to rows: each item read and scored, as `replies.jsonl` keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlchat.evaluate.blind import images_of
from vlchat.evaluate.identity import picture_key
from vlchat.evaluate.items import Item, Reading, Reply, question_of
from vlchat.evaluate.metrics.choices import probability
from vlchat.evaluate.tasks.base import Task

NO_REPLY = "\ufffd"  # what is read for a request without a reply: no answer is like it


def read_all(task: Task, items: Sequence[Item], replies: Mapping[int, Sequence[Reply]]) -> dict[int, Reading]:
    """The reading of each item that was asked. One without a reply scores 0."""
    readings: dict[int, Reading] = {}
    for row, several in replies.items():
        failed = any(reply.error is not None for reply in several)
        heard = [replace(reply, text=NO_REPLY) if reply.error is not None else reply for reply in several]
        reading = task.read(items[row], heard)
        if failed:
            reading = replace(reading, answer="", score=0.0, confidence=None)
        elif reading.confidence is None:
            reading = replace(reading, confidence=confidence(several))
        readings[row] = reading
    return readings


def confidence(replies: Sequence[Reply]) -> float | None:
    """How sure the model was of its last reply: the probability of the words it wrote, or of the likeliest choice.

    None where it does not say, or says no number: a model whose weights overflow holds nothing likely.
    """
    last = replies[-1] if replies else Reply()
    if last.choices:
        most = max(last.choices)
        if not math.isfinite(most) or any(math.isnan(choice) for choice in last.choices):
            return None
        return 1 / math.fsum(math.exp(choice - most) for choice in last.choices)
    return None if last.logprob is not None and math.isnan(last.logprob) else probability(last)


def row_of(item: Item, replies: Sequence[Reply], reading: Reading) -> dict[str, Any]:
    """One line of `replies.jsonl`."""
    pictures = [picture["video"] if isinstance(picture, dict) else picture for picture in images_of(item.messages)]
    keys = [picture_key(picture)[:16] for picture in pictures]
    row = {
        "id": item.id,
        "slices": dict(item.slices),
        # Rows that show the same pictures are not independent; one without any stands for itself.
        "cluster": item.cluster or " ".join(keys) or f"row {item.id}",
        "question": question_of(item.messages),
        "pictures": keys,
        "reference": item.reference,
        **_said(replies, reading),
        "confidence": reading.confidence,
    }
    errors = [reply.error for reply in replies if reply.error is not None]
    return row | ({"error": errors[0]} if errors else {})


def control_of(replies: Sequence[Reply], reading: Reading) -> dict[str, Any]:
    """What a row says of a blind control."""
    return _said(replies, reading)


def _said(replies: Sequence[Reply], reading: Reading) -> dict[str, Any]:
    return {
        "reply": [reply.text for reply in replies if not reply.choices],
        "answer": reading.answer,
        "score": reading.score,
        "stats": dict(reading.stats),
    }
