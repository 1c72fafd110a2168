"""Blind controls: the questions again without their pictures, with other rows' pictures, or with blurred ones.

What is still right then, language alone gives (or colours and places, of a blurred one). Earlier turns of a
conversation stay as they are, so that what they say about the right picture still helps.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter

from vlchat import images, video
from vlchat.data.formats import Message

CONTROLS = {
    "shuffled": "shown other rows' pictures",
    "none": "shown no picture",
    "blurred": "shown their pictures blurred beyond recognition",
}
_BLUR = 1 / 8  # the radius, as a share of the longer side


@dataclass(frozen=True)
class Blurred:
    """A picture that is blurred when it is opened."""

    picture: Any

    def opened(self) -> Image.Image:
        """The picture, decoded, with a Gaussian blur of an eighth of its longer side."""
        picture = images.decode(self.picture)
        return picture.filter(ImageFilter.GaussianBlur(_BLUR * max(picture.size)))


def control(
    name: str, shown: Sequence[list[Any]], seed: int
) -> tuple[Callable[[int, list[Message]], list[Message]], set[int]]:
    """How a control changes the conversation of a row, and which rows it leaves as they are.

    Args:
        name: one of `CONTROLS`.
        shown: each row's pictures.
        seed: shuffles them.
    """
    empty = {row for row, pictures in enumerate(shown) if not pictures}
    if name == "none":
        return lambda row, messages: without_images(messages), empty
    if name == "blurred":
        return lambda row, messages: blurred(messages), empty
    shuffled, kept = shuffle_pictures(shown, seed)

    def swapped(row: int, messages: list[Message]) -> list[Message]:
        count, others = len(images_of(messages)), shuffled[row]
        return with_images(messages, [others[number % len(others)] for number in range(count)]) if others else messages

    return swapped, kept


def shuffle_pictures(shown: Sequence[list[Any]], seed: int) -> tuple[list[list[Any]], set[int]]:
    """The pictures of other rows for each row, as many as it had, and which rows kept their own.

    Rows are put in a random order of their pictures and shifted past the most frequent picture, so that no row gets the
    picture it had unless one picture fills more than half of the rows with so many pictures. A row that is shown its
    own pictures in another order, or copies of their files, has kept them.
    """
    from vlchat.evaluate.identity import picture_key

    def bytes_of(pictures: Sequence[Any]) -> set[str]:
        return {f"video {picture_key(one['video'])}" if isinstance(one, dict) else picture_key(one) for one in pictures}

    result = [list(pictures) for pictures in shown]
    keys = [tuple(identity_of(picture) for picture in pictures) for pictures in shown]
    order = sorted(set(keys))
    random.Random(seed).shuffle(order)
    rank = {key: number for number, key in enumerate(order)}
    for size in {len(key) for key in keys} - {0}:
        rows = sorted((row for row, key in enumerate(keys) if len(key) == size), key=lambda row: rank[keys[row]])
        shift = max(Counter(keys[row] for row in rows).values())
        for position, row in enumerate(rows):
            result[row] = list(shown[rows[(position + shift) % len(rows)]])
    return result, {row for row, own in enumerate(shown) if bytes_of(own) == bytes_of(result[row])}


def images_of(messages: list[Message]) -> list[Any]:
    """The pictures of a conversation in the order in which it shows them; a video as the part that holds it."""
    shown = [part for message in messages for part in message["content"] if part["type"] != "text"]
    return [part["image"] if part["type"] == "image" else part for part in shown]


def without_images(messages: list[Message]) -> list[Message]:
    """The same conversation in words alone."""
    return [
        {"role": message["role"], "content": [part for part in message["content"] if part["type"] == "text"]}
        for message in messages
    ]


def blurred(messages: list[Message]) -> list[Message]:
    """The same conversation with every picture, and every frame of its videos, blurred."""
    messages = video.expanded(messages)
    return with_images(messages, [Blurred(picture) for picture in images_of(messages)])


def opened(messages: list[Message]) -> list[Message]:
    """The same conversation with its blurred pictures blurred."""
    shown = [picture.opened() if isinstance(picture, Blurred) else picture for picture in images_of(messages)]
    return with_images(messages, shown)


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


def identity_of(picture: Any) -> str:
    """What makes two pictures the same one: their file, or their pixels."""
    if isinstance(picture, dict):
        return f"video {identity_of(picture['video'])}"
    if isinstance(picture, str | Path):
        return f"file {picture}"
    data = picture if isinstance(picture, bytes) else f"{picture.size}".encode() + picture.tobytes()
    return hashlib.sha256(data).hexdigest()
