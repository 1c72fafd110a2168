"""Pictures varied while they are trained on: cut, mirrored, turned, in other light.

What is drawn is a function of (seed, epoch, row, picture) alone: the same in any process, any worker, and after any
resume. Pillow does the rest, so that the same Pillow gives the same pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

from PIL import Image, ImageEnhance, ImageStat

from vlchat import images
from vlchat.data.formats import Example
from vlchat.errors import ConfigError, ImageError, nearest

_SHAPE = 1.1  # how much wider or higher than the picture a cut may be
_LEAST_SIDE = 8  # pixels: nothing smaller is cut out
_STRIP = 50  # times as long as wide: a cut of it might be refused for its shape
_MOST_TURN = 45.0  # degrees


@dataclass(frozen=True)
class Augment:
    """How pictures are varied. Everything is off by default.

    Anything that moves what is in a picture must leave the answers true: `flip` swaps left and right and mirrors
    writing, `crop` may cut off what a question asks for or change a count, `rotate` changes what is level. Leave them
    out, or small, for questions about places, numbers and text.

    Attributes:
        crop: the least and the largest share of a picture's area that is shown, such as [0.8, 1.0]; about its own
            shape, anywhere in it.
        flip: probability that it is mirrored, 0 to 1.
        color: brightness, contrast and saturation are each multiplied by a factor of 1 - color to 1 + color; 0 to 1.
        rotate: it is turned by up to so many degrees to either side, 0 to 45; the corners get the colour of the edge.

    Raises:
        ConfigError: a value out of its range.
    """

    crop: list[float] | None = None
    flip: float = 0.0
    color: float = 0.0
    rotate: float = 0.0

    def __post_init__(self) -> None:
        most = {"flip": 1.0, "color": 1.0, "rotate": _MOST_TURN}
        for name, limit in most.items():
            value = getattr(self, name)
            if not _number(value) or not 0 <= value <= limit:
                raise ConfigError(f"augment.{name} must be a number from 0 to {limit:g}, not {value!r}.")
        crop: Any = self.crop
        pair = isinstance(crop, list | tuple) and len(crop) == 2 and all(map(_number, crop))
        if crop is not None and not (pair and 0 < crop[0] <= crop[1] <= 1):
            raise ConfigError(
                "augment.crop must be the least and the largest share of the area, such as [0.8, 1.0], "
                f"above 0 and at most 1, not {crop!r}."
            )

    @classmethod
    def of(cls, spec: dict[str, Any] | None) -> Augment | None:
        """From `objective.augment`; None where it is null or empty.

        Raises:
            ConfigError: an unknown key, or a value out of its range.
        """
        known = [field.name for field in fields(cls)]
        for key in spec or {}:
            if key not in known:
                hint = nearest(str(key), known) or f"; known: {', '.join(known)}."
                raise ConfigError(f'Unknown key "{key}" in objective.augment{hint}')
        return cls(**spec) if spec else None

    @property
    def moves(self) -> bool:
        """Whether what is in a picture may lie elsewhere afterwards: no map of the picture holds any more."""
        return bool(self.flip or self.rotate or (self.crop and min(self.crop) < 1))

    def example(self, example: Example, seed: int, epoch: int, row: int | str) -> Example:
        """The same conversation with its pictures decoded and varied. Videos, and what can't be decoded, stay.

        Args:
            row: what names the row within the epoch: its position, or its id.
        """
        messages = []
        number = 0
        for message in example.messages:
            parts = []
            for part in message["content"]:
                if part["type"] == "image":
                    with contextlib.suppress(ImageError):  # the collator says which row, and why
                        picture = images.decode(part["image"])
                        part = {**part, "image": self.picture(picture, drawn(seed, epoch, row, number))}
                    number += 1
                parts.append(part)
            messages.append({**message, "content": parts})
        return replace(example, messages=messages)

    def picture(self, picture: Image.Image, rng: Random) -> Image.Image:
        """One picture of any mode, varied: RGB, cut smaller or of the same size. The given one stays as it is."""
        # Every number is drawn whether or not it is used: what one setting does not depend on the others.
        area, shape, left, top, mirror, turn = (rng.random() for _ in range(6))
        light = [rng.random() for _ in range(3)]
        result = images.decode(picture)
        if self.rotate:
            angle = self.rotate * (2 * turn - 1)
            result = result.rotate(angle, Image.Resampling.BICUBIC, fillcolor=_edge(result))
        if self.crop is not None:
            result = result.crop(_box(result.size, self.crop, area, shape, left, top))
        if mirror < self.flip:
            result = result.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.color:
            kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for kind, draw in zip(kinds, light, strict=True):
                result = kind(result).enhance(1 + self.color * (2 * draw - 1))
        return result


def drawn(seed: int, epoch: int, row: int | str, picture: int = 0) -> Random:
    """The random numbers of one picture of one row in one epoch."""
    name = f"augment {seed} {epoch} {row} {picture}".encode(errors="surrogatepass")
    return Random(int.from_bytes(hashlib.sha256(name).digest()))


def _edge(picture: Image.Image) -> tuple[int, ...]:
    """The colour of a picture's edge: the median of its outermost pixels, channel by channel."""
    width, height = picture.size
    pixels = Image.new(picture.mode, (2 * (width + height), 1))
    pixels.paste(picture.crop((0, 0, width, 1)), (0, 0))
    pixels.paste(picture.crop((0, height - 1, width, height)), (width, 0))
    for number, x in enumerate((0, width - 1)):
        column = picture.crop((x, 0, x + 1, height)).transpose(Image.Transpose.ROTATE_90)
        pixels.paste(column, (2 * width + number * height, 0))
    return tuple(round(value) for value in ImageStat.Stat(pixels).median)


def _box(
    size: tuple[int, int], crop: list[float], area: float, shape: float, left: float, top: float
) -> tuple[int, int, int, int]:
    """(left, upper, right, lower) of the cut, in pixels."""
    if max(size) > _STRIP * min(size):
        return 0, 0, *size
    side = math.sqrt(crop[0] + (crop[1] - crop[0]) * area)  # as a share of the picture's
    widest = min(math.log(_SHAPE), -math.log(side))  # beyond, it would reach over the edge
    wider = math.exp((2 * shape - 1) * widest)
    width, height = (
        min(whole, max(_LEAST_SIDE, round(whole * side * factor)))
        for whole, factor in zip(size, (wider, 1 / wider), strict=True)
    )
    x, y = round(left * (size[0] - width)), round(top * (size[1] - height))
    return x, y, x + width, y + height


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
