"""Turns of a conversation as Gradio's Chatbot shows them: Markdown, and nothing in it that acts."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from serve.messages import escaped, refusal
from serve.store import Picture, Turn

MATH: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]  # a single $ is money
_SECRET = secrets.token_bytes(32)
_PARTS = re.compile(
    r"(?P<code>(?:^|\n) {0,3}(?P<fence>`{3,}|~{3,})[^\n]*(?:\n.*?)?(?:\n {0,3}(?P=fence)[`~]*[ \t]*(?=\n|$)|$)"
    r"|(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<math>\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\))",
    re.DOTALL,
)


def shown(turns: Iterable[Turn], path_of: Callable[[Picture], Path], language: str) -> list[dict[str, Any]]:
    """A message for each turn.

    Args:
        path_of: where the page finds a picture.
        language: of what is not the visitor's or the model's.
    """
    return [_message(turn, path_of, language) for turn in turns]


def growing(text: str) -> dict[str, Any]:
    """An answer on its way."""
    return {"role": "assistant", "content": inert(text)}


def _message(turn: Turn, path_of: Callable[[Picture], Path], language: str) -> dict[str, Any]:
    if reason := turn.facts.get("refused"):
        return refusal("\n\n".join(filter(None, [inert(turn.text), str(reason)])), language)
    if turn.role == "assistant":
        return growing(turn.text)
    # Words first (the style sheet puts pictures on top): the page's script for editing expects them there.
    pictures = [{"path": str(path_of(one)), "alt_text": one.name} for one in turn.pictures]
    return escaped({"role": "user", "content": [*filter(None, [turn.text]), *pictures]})


def inert(text: str) -> str:
    """Markdown in which no HTML acts and no picture is fetched; code and formulas stay what they are."""
    return "".join(_pieces(text))


def _pieces(text: str) -> Iterator[str]:
    end = 0
    for found in _PARTS.finditer(text):
        yield _harmless(text[end : found.start()])
        # KaTeX reads its own names for signs, the page's Markdown none of them inside of code.
        yield found[0] if found["code"] else re.sub("<", r"\\lt ", found[0])
        end = found.end()
    yield _harmless(text[end:])


def _harmless(text: str) -> str:
    message: str = escaped({"content": text})["content"][0]
    return message.replace("![", "!\\[")


def place_of(owner: str, picture: Picture, read: Callable[[str], bytes]) -> Path:
    """A picture of the store as a file that the page may show, where nobody else can guess it.

    Args:
        read: the bytes of a digest.
    """
    known = hmac.digest(_SECRET, f"{owner}\0{picture.digest}".encode(), hashlib.sha256).hex()
    path = Path(get_upload_folder()) / known / (Path(picture.name).name or "picture")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{secrets.token_hex(8)}")
        beside.write_bytes(read(picture.digest))
        os.replace(beside, path)
    return path
