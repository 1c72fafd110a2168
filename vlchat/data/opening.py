"""How the pictures of a batch are opened: no larger than is looked at, in eight bits, and not at all where what the
tower makes of them is known."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from vlchat import images
from vlchat.feature_cache import FeatureCache, key_of
from vlchat.images import DEFAULT_LIMITS
from vlchat.pixels import Pixels
from vlchat.processor import VLChatProcessor

# Of a batch whose pictures' features may be known; each is named by its key, and stands there once.
PICTURES = "picture_keys"  # of all its pictures in reading order
KNOWN = "known_keys"  # of those whose features are in `KNOWN_FEATURES`, (known, patches, vision_dim)
KNOWN_FEATURES = "known_features"
SHOWN = "shown_keys"  # of those in `pixel_values`

_KEY, _FEATURES = "vlchat key", "vlchat features"  # in a picture's `info`


class Opening:
    """Opens pictures for a `Collator`, and stands in for the image processor of its own copy of the processor.

    Args:
        processor: of the model.
        scaled: much larger pictures are made smaller by cheap means first (`images.decode`'s shorter_side and
            `Pixels.eight_bits`), which moves values by a few 255ths. False gives what the processor gives, to the bit.
        cache: what is known of pictures; None decodes all of them.

    Attributes:
        processor: ours gives `pixel_values` as uint8 where it is one that `Pixels` knows, for `Pixels.scaled`; with a
            cache also PICTURES, KNOWN, KNOWN_FEATURES and SHOWN. Any other maker's is left as it is.
        pixels: its steps, or None.
    """

    def __init__(self, processor: Any, scaled: bool = False, cache: FeatureCache | None = None) -> None:
        self.scaled, self.cache = scaled, cache
        self.processor, self.pixels = processor, None
        self._image_processor: Any = None
        if isinstance(processor, VLChatProcessor):
            self._image_processor = processor.image_processor
            self.pixels = Pixels.of(processor.image_processor)
            if self.pixels is not None or cache is not None:
                self.processor = copy.copy(processor)
                self.processor.image_processor = self

    def __getattr__(self, name: str) -> Any:
        """As an image processor: what the real one says of itself."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._image_processor, name)

    def open(self, source: bytes | Path | Image.Image) -> Image.Image:
        """A picture decoded; or one of a single pixel, which stands for what is known of it.

        Raises:
            ImageError: as `images.decode`.
        """
        side = self.pixels.shorter_side if self.scaled and self.pixels is not None else None
        if self.cache is None:
            return images.decode(source, shorter_side=side)
        name = None if isinstance(source, bytes | Image.Image) else str(source)
        if name is not None:
            source = images.read_file(name, images.label_of(name), DEFAULT_LIMITS)
        elif isinstance(source, Image.Image):
            source = images.decode(source)  # upright and RGB: its key tells what pixels alone do not, such as a palette
        assert not isinstance(source, Path)
        key = key_of(source)
        features = self.cache.get(key)
        picture = (
            Image.new("RGB", (1, 1)) if features is not None else images.decode(source, name=name, shorter_side=side)
        )
        picture.info |= {_KEY: key, _FEATURES: features}
        return picture

    def __call__(self, pictures: Sequence[Image.Image], return_tensors: str | None = None, **_: Any) -> BatchFeature:
        """As an image processor: the pictures' tensors."""
        if self.cache is None:
            return BatchFeature({"pixel_values": self._eight_bits(pictures)})
        found = {picture.info[_KEY]: picture for picture in pictures}
        known = {key: one.info[_FEATURES] for key, one in found.items() if one.info[_FEATURES] is not None}
        shown = {key: one for key, one in found.items() if key not in known}
        batch: dict[str, Any] = {
            PICTURES: [picture.info[_KEY] for picture in pictures], KNOWN: list(known), SHOWN: list(shown),
        }  # fmt: skip
        if known:
            batch[KNOWN_FEATURES] = torch.stack(list(known.values()))
        if shown:
            batch["pixel_values"] = self._eight_bits(list(shown.values()))
        return BatchFeature(batch)

    def _eight_bits(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """(images, 3, height, width), uint8 where the steps are known."""
        found = self.pixels.eight_bits(pictures, reducing=self.scaled) if self.pixels is not None else None
        if found is None:
            return self._image_processor(list(pictures), return_tensors="pt")["pixel_values"]
        return found
