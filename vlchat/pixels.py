"""Pictures -> what transformers' Pillow image processors make of them, in less than half of their time.

They go to and fro between Pillow and numpy, and count in float64. A resized picture has only 256 values a channel: what
becomes of each is asked of the processor itself, once, and looked up afterwards. Until then a picture stays eight bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_transforms import center_crop
from transformers.image_utils import ChannelDimension

_GAP = 2.0  # a picture is first made smaller by cheap means, but to no less than twice the size that is wanted
# What a processor must have from PilBackend for its steps to be those below.
_STEPS = (
    "preprocess",
    "_preprocess",
    "process_image",
    "convert_to_rgb",
    "resize",
    "center_crop",
    "rescale",
    "normalize",
)


@dataclass(frozen=True)
class Pixels:
    """The steps of an image processor: resize, cut out the middle, scale and normalize.

    Attributes:
        size: (height, width) that pictures are resized to; or their shorter side; None leaves them.
        crop: (height, width) that is cut out of the middle; None for all of it.
        resample: Pillow's filter.
        levels: (3, 256) float32, what becomes of each of a channel's eight-bit values.
    """

    size: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    resample: Image.Resampling
    levels: torch.Tensor

    @classmethod
    def of(cls, processor: Any) -> Pixels | None:
        """The steps of a processor; None where they are others than these."""
        ours = isinstance(processor, PilBackend) and all(
            getattr(type(processor), name) is getattr(PilBackend, name) for name in _STEPS
        )
        if not ours or processor.do_pad or not (processor.do_rescale or processor.do_normalize):
            return None
        size: tuple[int, int] | int | None = None
        if processor.do_resize:
            if processor.resample is None:
                return None  # which the processor refuses
            wanted = {name: value for name, value in dict(processor.size).items() if value is not None}
            if wanted.keys() == {"shortest_edge"}:
                size = wanted["shortest_edge"]
            elif wanted.keys() == {"height", "width"}:
                size = (wanted["height"], wanted["width"])
            else:
                return None
        crop = None
        if processor.do_center_crop:
            crop = (processor.crop_size["height"], processor.crop_size["width"])
        ramp = np.tile(np.arange(256, dtype=np.uint8), (3, 1, 1))  # (3, 1, 256)
        levels = processor.rescale(ramp, processor.rescale_factor) if processor.do_rescale else ramp
        if processor.do_normalize:
            levels = processor.normalize(levels, processor.image_mean, processor.image_std)
        if levels.dtype != np.float32:
            return None
        # A filter may be missing only where nothing is resized: any will do.
        resample = Image.Resampling.BICUBIC if processor.resample is None else Image.Resampling(processor.resample)
        return cls(size, crop, resample, torch.from_numpy(levels[:, 0].copy()))

    @property
    def shorter_side(self) -> int | None:
        """How many pixels of its shorter side a picture needs to be decoded to, for `images.decode`."""
        if self.size is None:
            return None
        return math.ceil(_GAP * (self.size if isinstance(self.size, int) else max(self.size)))

    def eight_bits(self, pictures: Sequence[Image.Image], reducing: bool = False) -> torch.Tensor | None:
        """Pictures resized and cut, (images, 3, height, width) uint8; None where they come out in several sizes, or
        are not RGB.

        Args:
            reducing: make much larger ones smaller in two steps, the first by cheap means (Pillow's `reducing_gap`),
                and resize no more than is cut out. Values differ by a few 255ths from those in one step.
        """
        if any(picture.mode != "RGB" for picture in pictures):
            return None
        found = [self._eight_bits(picture, reducing) for picture in pictures]
        if len({one.shape for one in found}) > 1:
            return None
        return torch.from_numpy(np.stack(found))

    def _eight_bits(self, picture: Image.Image, reducing: bool) -> np.ndarray:
        """(3, height, width)."""
        height, width = self._resized(picture.height, picture.width)
        if reducing:
            rows, columns = self.crop if self.crop is not None else (height, width)
            top, left = (height - rows) // 2, (width - columns) // 2
            if top >= 0 and left >= 0:
                down, across = picture.height / height, picture.width / width
                box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
                picture = picture.resize((columns, rows), self.resample, box=_inside(box, picture), reducing_gap=_GAP)
                return np.asarray(picture).transpose(2, 0, 1)
        if self.size is not None:
            picture = picture.resize((width, height), self.resample)
        pixels = np.asarray(picture).transpose(2, 0, 1)
        return pixels if self.crop is None else center_crop(pixels, self.crop, *[ChannelDimension.FIRST] * 2)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if not isinstance(self.size, int):
            return self.size
        longer = int(self.size * max(height, width) / min(height, width))
        return (self.size, longer) if height <= width else (longer, self.size)

    def scaled(self, eight_bits: torch.Tensor) -> torch.Tensor:
        """What the processor makes of (images, 3, height, width) uint8: float32, to the bit, on the same device."""
        levels = self.levels.to(eight_bits.device)
        shape = eight_bits[:, 0].shape
        channels = [levels[number].index_select(0, eight_bits[:, number].flatten().int()) for number in range(3)]
        return torch.stack([channel.view(shape) for channel in channels], dim=1)


def _inside(box: tuple[float, ...], picture: Image.Image) -> tuple[float, float, float, float]:
    """A box that no rounding moves over the picture's edge, which Pillow refuses."""
    left, upper, right, lower = box
    return left, upper, min(right, picture.width), min(lower, picture.height)
