"""The conversations of `soak.py`, and what the model answers to each alone."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlchat.chat import Chat

TURNS = 4
_ASKED = [
    "What is in the picture?", "How many cats are there?", "Is it green?", "Is the red circle left of the square?",
    "What is it?", "Are there two dogs?",
]  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"
# Each as a URL that is no picture that can be used, as a person or an attacker would send it.
BAD = {
    "no picture": "data:image/png;base64," + base64.b64encode(b"not a picture").decode(),
    "empty": "data:image/png;base64,",
    "a head alone": "data:image/png;base64," + base64.b64encode(PNG + b"0" * 50).decode(),
    "SVG": "data:image/svg+xml;base64," + base64.b64encode(b"<svg></svg>").decode(),
    "no base64": "data:image/png;base64,***",
    "a path": "file:///etc/hostname",
    "an address": "http://169.254.0.1/latest",
}


@dataclass(frozen=True)
class Conversation:
    """Questions with the model's answers.

    Attributes:
        canary: a word that no other conversation has.
        questions: OpenAI's contents, a turn each.
        answers: of the model alone, knowing the turns before.
    """

    canary: str
    questions: list[Any]
    answers: list[str]

    def messages(self, turn: int) -> list[dict[str, Any]]:
        """What a client sends to ask this turn's question: all that was said before, and the question."""
        said: list[dict[str, Any]] = []
        for question, answer in zip(self.questions[:turn], self.answers[:turn], strict=True):
            said += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return [*said, {"role": "user", "content": self.questions[turn]}]


def conversations(model: Path, count: int, tokens: int, kept: Path) -> list[Conversation]:
    """So many, with their answers of `tokens` tokens at most.

    Args:
        kept: a file that has the answers of an earlier start, or gets them; others than these questions' are computed
            anew.
    """
    asked = {canary: questions for canary, questions in map(_questions, range(count))}
    told = json.dumps([asked, tokens, hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()])
    key = hashlib.sha256(told.encode()).hexdigest()
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if known.get("key") != key:
        print(f"What the model answers to {count} conversations alone ...", flush=True)
        chat = Chat.load(model)
        known = {"key": key, "answers": {canary: _answers(chat, each, tokens) for canary, each in asked.items()}}
        kept.write_text(json.dumps(known))
    found = [Conversation(canary, questions, known["answers"][canary]) for canary, questions in asked.items()]
    for turn in range(TURNS):
        unlike = len({one.answers[turn] for one in found})
        if unlike < 0.9 * count:
            raise SystemExit(f"Only {unlike} of {count} answers of turn {turn + 1} are unlike: a mixed one would pass.")
    return found


def _questions(number: int) -> tuple[str, list[Any]]:
    chance = random.Random(number)
    canary = "".join(chance.choice("bdfgklmnprst") + chance.choice("aeiou") for _ in range(4)) + str(number)
    questions: list[Any] = []
    for turn in range(TURNS):
        words = chance.choice(_ASKED) + (f" The word is {canary}." if turn == 0 else "")
        if number % 2 and (turn == 0 or chance.random() < 0.2):  # half of the conversations are about pictures
            shown = {"type": "image_url", "image_url": {"url": _picture(number * TURNS + turn)}}
            questions.append([shown, {"type": "text", "text": words}])
        else:
            questions.append(words)
    return canary, questions


def _picture(seed: int) -> str:
    """A JPEG of coloured patches as a `data:` URL, a side of 100 to 400 pixels."""
    chance = np.random.default_rng(seed)
    small = Image.fromarray(chance.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    data = io.BytesIO()
    small.resize(tuple(chance.integers(100, 400, 2).tolist())).save(data, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _answers(chat: Chat, questions: list[Any], tokens: int) -> list[str]:
    said: list[dict[str, Any]] = []
    for question in questions:
        said.append({"role": "user", "content": question if isinstance(question, str) else _opened(question)})
        said.append({"role": "assistant", "content": chat.batch([said], max_new_tokens=tokens)[0]})
    return [turn["content"] for turn in said[1::2]]


def _opened(question: list[dict[str, Any]]) -> list[dict[str, Any]]:
    data = base64.b64decode(question[0]["image_url"]["url"].partition(",")[2])
    return [{"type": "image", "image": data}, *question[1:]]
