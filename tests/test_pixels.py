"""Pictures by the shorter way: to the bit what transformers' processors make of them, or told how far from it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil, ViTImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from vlchat import VLChatProcessor, images
from vlchat.data import Collator, Example
from vlchat.data.opening import Opening
from vlchat.errors import ImageError
from vlchat.pixels import Pixels

PROCESSORS: dict[str, Any] = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
    "clip, cut larger than resized": CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 25, "width": 24}
    ),
    "clip, squeezed": CLIPImageProcessorPil(size={"height": 24, "width": 20}, do_center_crop=False),
    "clip, not scaled": CLIPImageProcessorPil(size={"shortest_edge": 24}, do_rescale=False),
    "clip, not normalized": CLIPImageProcessorPil(size={"shortest_edge": 24}, do_normalize=False),
    "clip, only cut": CLIPImageProcessorPil(do_resize=False, resample=None, crop_size={"height": 24, "width": 24}),
    "siglip": SiglipImageProcessorPil(size={"height": 24, "width": 24}),
    "vit": ViTImageProcessorPil(size={"height": 24, "width": 24}),
    "blip": BlipImageProcessorPil(size={"height": 30, "width": 20}),
}
SIZES = [(24, 24), (25, 24), (90, 31), (31, 90), (8, 9), (61, 60), (120, 119), (23, 200)]


def jpeg(size: tuple[int, int], **options: Any) -> bytes:
    """A photograph's like: smooth, with fine grain."""
    generator = np.random.default_rng(size[0])
    coarse = generator.integers(0, 256, (max(1, size[1] // 16), max(1, size[0] // 16), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).astype(int)
    grain = generator.integers(-12, 13, (size[1], size[0], 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", PROCESSORS)
def test_they_are_the_processors_own_to_the_bit(name: str, picture: Any) -> None:
    processor = PROCESSORS[name]
    pixels = Pixels.of(processor)
    assert pixels is not None
    for number, size in enumerate(SIZES):
        shown = picture(number, size)
        theirs = processor([shown, shown], return_tensors="pt")["pixel_values"]
        eight_bits = pixels.eight_bits([shown, shown])
        assert eight_bits is not None and eight_bits.dtype == torch.uint8
        mine = pixels.scaled(eight_bits)
        assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype and mine.stride() == theirs.stride()


def test_other_steps_are_left_to_the_processor(picture: Any, tiny_tokenizer: Any) -> None:
    others = [
        ConvNextImageProcessorPil(),
        CLIPImageProcessorPil(size={"longest_edge": 24, "shortest_edge": 20}),
        CLIPImageProcessorPil(do_rescale=False, do_normalize=False),
        CLIPImageProcessorPil(resample=None),
    ]
    assert [Pixels.of(processor) for processor in others] == [None] * 4
    own = CLIPImageProcessorPil(size={"height": 24, "width": 24}, do_center_crop=False)
    grey, pair = [Image.new("L", (30, 40))], [picture(0, (30, 40)), picture(1, (20, 20))]
    unequal = CLIPImageProcessorPil(size={"shortest_edge": 24}, do_center_crop=False)
    assert Pixels.of(own).eight_bits(grey) is None and Pixels.of(unequal).eight_bits(pair) is None  # type: ignore[union-attr]
    processor = VLChatProcessor.from_backbones(own, tiny_tokenizer, 4, "chatml")
    expected = own(grey[0].convert("RGB"), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(grey, text="<image>", return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (641, 479), (700, 300), (718, 482)])
def test_scaled_decoding_stays_near(size: tuple[int, int]) -> None:
    data = jpeg(size)
    pixels = Pixels.of(CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}))
    assert pixels is not None and pixels.shorter_side == 112
    whole, small = images.decode(data), images.decode(data, shorter_side=pixels.shorter_side)
    times = size[0] // small.width
    assert min(small.size) >= 112 and (small.width * times, small.height * times) == size
    assert times == {640: 4, 480: 4, 641: 1, 700: 2, 718: 2}[size[0]]
    exact, near = pixels.eight_bits([whole]), pixels.eight_bits([small], reducing=True)
    assert exact is not None and near is not None and exact.shape == near.shape
    apart = (exact.int() - near.int()).abs()
    assert float(apart.float().mean()) < 1.5 and int(apart.max()) < 24


def test_what_is_not_much_larger_is_decoded_whole() -> None:
    data = jpeg((200, 150))
    for side in (76, 150, 4000):
        assert images.decode(data, shorter_side=side).tobytes() == images.decode(data).tobytes()
    assert images.decode(data, shorter_side=75).size == (100, 75)


def test_scaled_decoding_keeps_limits_orientation_and_errors(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = jpeg((320, 160), exif=exif.tobytes())
    assert images.decode(turned, shorter_side=40).size == (40, 80)
    for data, limits in (
        (turned[: len(turned) // 2], images.DEFAULT_LIMITS),
        (turned, images.ImageLimits(max_pixels=320 * 160 - 1)),
        (turned, images.ImageLimits(max_side_ratio=1.9)),
        (turned, images.ImageLimits(max_bytes=100)),
    ):
        told = []
        for side in (None, 40):
            with pytest.raises(ImageError) as error:
                images.decode(data, shorter_side=side, limits=limits)
            told.append((str(error.value), error.value.code, error.value.kind))
        assert told[0] == told[1]


def test_a_batch_holds_eight_bits_that_are_the_processors_tensor(tiny_processor: Any, tmp_path: Path) -> None:
    (tmp_path / "small.jpg").write_bytes(jpeg((40, 47)))
    (tmp_path / "large.jpg").write_bytes(jpeg((400, 470)))
    rows = [
        Example(name, [
            {"role": "user", "content": [{"type": "image", "image": tmp_path / name}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ])
        for name in ("small.jpg", "large.jpg")
    ]  # fmt: skip
    plain = Collator(tiny_processor)(rows)
    for scaled in (False, True):
        opening = Opening(tiny_processor, scaled=scaled)
        assert opening.pixels is not None
        batch = Collator(tiny_processor, opening=opening)(rows)
        assert batch["pixel_values"].dtype == torch.uint8
        found = opening.pixels.scaled(batch.pop("pixel_values"))
        # The small one is resized the same way in both cases: it is less than twice as large as is looked at.
        assert torch.equal(found[0], plain["pixel_values"][0])
        assert torch.equal(found[1], plain["pixel_values"][1]) is not scaled
        assert all(torch.equal(batch[name], plain[name]) for name in batch)
