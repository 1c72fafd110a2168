"""The drawn world: pictures and language that the embedded model is trained and tested on."""

from vlchat.scenes.language import KINDS
from vlchat.scenes.rows import Conversation, SceneQuestion, conversation, correct, questions

__all__ = ["KINDS", "Conversation", "SceneQuestion", "conversation", "correct", "questions"]
