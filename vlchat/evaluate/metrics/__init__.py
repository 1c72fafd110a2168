"""Scores of replies, each by the published rule that its docstring names."""

from __future__ import annotations

from vlchat.evaluate.metrics.reading import anls, relaxed_accuracy
from vlchat.evaluate.metrics.vqa import exact_match, soft_accuracy, vqa_accuracy, vqa_normalize, wilson, yes_no

__all__ = [
    "anls",
    "exact_match",
    "relaxed_accuracy",
    "soft_accuracy",
    "vqa_accuracy",
    "vqa_normalize",
    "wilson",
    "yes_no",
]
