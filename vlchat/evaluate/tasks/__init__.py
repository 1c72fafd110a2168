"""What can be asked: a task gives items and reads replies. To add one, write a class here and name it in `TASKS`."""

from __future__ import annotations

from vlchat.evaluate.tasks.base import Task
from vlchat.evaluate.tasks.captions import CaptionTask
from vlchat.evaluate.tasks.conversation import ConversationTask
from vlchat.evaluate.tasks.matching import MatchingTask
from vlchat.evaluate.tasks.multiple_choice import MultipleChoiceTask
from vlchat.evaluate.tasks.reading import ChartTask, CountingTask, DocumentTask, ReadingTask
from vlchat.evaluate.tasks.retrieval import RetrievalTask
from vlchat.evaluate.tasks.scenes import ScenesTask
from vlchat.evaluate.tasks.video import VideoTask
from vlchat.evaluate.tasks.vqa import VqaTask
from vlchat.evaluate.tasks.yes_no import YesNoTask
from vlchat.evaluate.tasks.zero_shot import ZeroShotTask

__all__ = [
    "CaptionTask", "ChartTask", "ConversationTask", "CountingTask", "DocumentTask", "MatchingTask",
    "MultipleChoiceTask", "ReadingTask", "RetrievalTask", "ScenesTask", "Task", "VideoTask", "VqaTask", "YesNoTask",
    "ZeroShotTask",
]  # fmt: skip
