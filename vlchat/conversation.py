"""The conversations that `vlchat.chat.Chat` answers: what a caller may write, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlchat import images, prompt, video
from vlchat.errors import VLChatError

Message = Mapping[str, Any]  # {"role": str, "content": str | [{"type": "image", "image": ...} | {"type": "text", ...}]}
Picture = bytes | str | Path | Image.Image


def ask_messages(
    pictures: Picture | Sequence[Picture] | None, question: str, system: str | None = None
) -> list[dict[str, Any]]:
    """The conversation that asks one question: the system prompt if there is one, then the pictures and the words."""
    if pictures is None:
        several: Sequence[Picture] = []
    elif isinstance(pictures, (bytes, str, Path, Image.Image)):
        several = [pictures]
    else:
        several = pictures
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in several]
    content.append({"type": "text", "text": question})
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    return [{"role": "system", "content": [{"type": "text", "text": system}]}, *turns] if system else turns


def decoded(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Every content a list of parts, every picture an RGB image; text cleaned of what tokenizers choke on."""
    result = []
    for message in prompt.validate(video.expanded(messages)):
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append({"type": "text", "text": prompt.clean(part["text"])})
            elif part.get("image") is None:
                raise VLChatError("A message has a place for a picture but no picture in it.")
            else:
                parts.append({"type": "image", "image": images.decode(part["image"])})
        result.append({**message, "content": parts})
    if result[-1]["role"] != "user":
        raise VLChatError(f"The last message is from the {result[-1]['role']}, so there is nothing to answer.")
    return result
