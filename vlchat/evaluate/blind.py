"""The blind control: every question again, shown another row's pictures. What is still right, language alone gives.

Earlier turns of a conversation stay as they are, so that what they say about the right picture still helps.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlchat.data.formats import Message


def shuffle_pictures(shown: Sequence[list[Any]], seed: int) -> tuple[list[list[Any]], int]:
    """The pictures of other rows for each row, as many as it had, and how many rows kept their own.

    Rows are put in a random order of their pictures and shifted past the most frequent picture, so that no row gets the
    picture it had unless one picture fills more than half of the rows with so many pictures.
    """
    result = [list(pictures) for pictures in shown]
    keys = [tuple(_identity(picture) for picture in pictures) for pictures in shown]
    order = sorted(set(keys))
    random.Random(seed).shuffle(order)
    rank = {key: number for number, key in enumerate(order)}
    for size in {len(key) for key in keys} - {0}:
        rows = sorted((row for row, key in enumerate(keys) if len(key) == size), key=lambda row: rank[keys[row]])
        shift = max(Counter(keys[row] for row in rows).values())
        for position, row in enumerate(rows):
            result[row] = list(shown[rows[(position + shift) % len(rows)]])
    kept = sum(keys[row] == tuple(_identity(picture) for picture in result[row]) for row in range(len(keys)))
    return result, kept


def images_of(messages: list[Message]) -> list[Any]:
    """The pictures of a conversation in the order in which it shows them; a video as the part that holds it."""
    shown = [part for message in messages for part in message["content"] if part["type"] != "text"]
    return [part["image"] if part["type"] == "image" else part for part in shown]


def with_images(messages: list[Message], images: list[Any]) -> list[Message]:
    """The same conversation showing other pictures, one for each that it showed."""
    left = iter(images)
    return [
        {
            "role": message["role"],
            "content": [
                part if part["type"] == "text" else _part(next(left)) for part in message["content"]
            ],
        }
        for message in messages
    ]


def _part(shown: Any) -> dict[str, Any]:
    return shown if isinstance(shown, dict) else {"type": "image", "image": shown}


def _identity(picture: Any) -> str:
    """What makes two pictures the same one: their file, or their pixels."""
    if isinstance(picture, dict):
        return f"video {_identity(picture['video'])}"
    if isinstance(picture, str | Path):
        return f"file {picture}"
    data = picture if isinstance(picture, bytes) else f"{picture.size}".encode() + picture.tobytes()
    return hashlib.sha256(data).hexdigest()
