"""Draws a scene with Pillow. Pictograms come from the Noto Color Emoji font, which only drawing needs."""

import math
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlchat.errors import VLChatError
from vlchat.scenes.vocabulary import COLOURS, PICTOGRAMS
from vlchat.scenes.world import Scene, Thing

_FONT_FOLDERS = (
    Path("/usr/share/fonts"),
    Path("/usr/local/share/fonts"),
    Path.home() / ".fonts",
    Path("/System/Library/Fonts"),
    Path("/Library/Fonts"),
)
_TEXT_FONTS = (
    "DejaVuSans-Bold.ttf",
    "DejaVuSans.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSansMono-Bold.ttf",
    "LiberationSans-Bold.ttf",
    "LiberationSerif-Bold.ttf",
    "LiberationMono-Bold.ttf",
    "LiberationSans-Regular.ttf",
)
_EMOJI_PIXELS = 109  # the only size of the font's bitmaps


@lru_cache(maxsize=1)
def _font_files() -> dict[str, Path]:
    return {file.name: file for folder in _FONT_FOLDERS if folder.is_dir() for file in folder.rglob("*.ttf")}


def _font_file(name: str) -> Path:
    file = _font_files().get(name)
    if file is None:
        raise VLChatError(
            f"The font {name} is not installed, and drawing scenes needs it. "
            "Install it (Debian and Ubuntu: apt-get install fonts-noto-color-emoji "
            "fonts-dejavu-core fonts-liberation)."
        )
    return file


@lru_cache(maxsize=256)
def _pictogram(name: str) -> Image.Image:
    """The pictogram, cropped to its ink and squared, as RGBA at the font's own resolution."""
    font = ImageFont.truetype(str(_font_file("NotoColorEmoji.ttf")), _EMOJI_PIXELS)
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), PICTOGRAMS[name], font=font, embedded_color=True)
    ink = canvas.crop(canvas.getbbox())
    side = max(ink.size)
    square = Image.new("RGBA", (side, side))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return square


@lru_cache(maxsize=512)
def _text_font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_file(name)), pixels)


def _polygon(corners: int, turn: float, inner: float | None = None) -> list[tuple[float, float]]:
    """Corners on the unit circle; with `inner`, a star whose inner corners lie at that radius."""
    steps = corners if inner is None else corners * 2
    points = []
    for step in range(steps):
        radius = inner if inner is not None and step % 2 else 1.0
        angle = 2 * math.pi * step / steps - math.pi / 2 + turn
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * step / 40 for step in range(40)]
    return [
        (math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16)
        for a in angles
    ]


def _shape_mask(name: str, side: int, turn: float) -> Image.Image:
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    half = (side - 1) / 2
    whole = (0, 0, side - 1, side - 1)
    if name in ("circle", "ring", "crescent"):
        draw.ellipse(whole, fill=255)
        if name == "ring":
            hole = side * 0.27
            draw.ellipse((hole, hole, side - 1 - hole, side - 1 - hole), fill=0)
        if name == "crescent":
            draw.ellipse((side * 0.32, -side * 0.08, side * 1.18, side * 0.78), fill=0)
        return mask
    if name == "square":
        edge = side * 0.06
        draw.rectangle((edge, edge, side - 1 - edge, side - 1 - edge), fill=255)
        return mask
    if name == "cross":
        arm = side * 0.33
        draw.rectangle((arm, 0, side - 1 - arm, side - 1), fill=255)
        draw.rectangle((0, arm, side - 1, side - 1 - arm), fill=255)
        return mask
    points = {
        "triangle": lambda: [(0.0, -1.0), (1.0, 0.9), (-1.0, 0.9)],
        "star": lambda: _polygon(5, turn, 0.42),
        "heart": _heart,
        "diamond": lambda: [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
        "hexagon": lambda: _polygon(6, math.pi / 6),
    }[name]()
    draw.polygon([(half + half * x, half + half * y) for x, y in points], fill=255)
    return mask


def _tint(colour: str, rng: Random, amount: int = 14) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, value + rng.randint(-amount, amount))) for value in COLOURS[colour])
    return red, green, blue


def _background(scene: Scene, rng: Random, width: int, height: int) -> Image.Image:
    base = np.array(_tint(scene.background, rng), dtype=np.float32)
    if scene.texture == "gradient":
        other = np.clip(base + rng.choice((-1, 1)) * rng.uniform(15, 40), 0, 255)
        down = rng.random() < 0.5
        ramp = np.linspace(0, 1, height if down else width, dtype=np.float32)[:, None]
        field = base + (other - base) * ramp  # (steps, 3)
        field = np.broadcast_to(field[:, None] if down else field[None], (height, width, 3))
    elif scene.texture == "noise":
        noise = np.random.default_rng(scene.seed).normal(0, rng.uniform(4, 14), (height // 2 + 1, width // 2 + 1, 1))
        field = base + noise.repeat(2, 0).repeat(2, 1)[:height, :width]
    else:
        field = np.broadcast_to(base, (height, width, 3))
    return Image.fromarray(np.clip(field, 0, 255).astype(np.uint8), "RGB")


def _paste_text(
    canvas: Image.Image, thing: Thing, box: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> None:
    left, top, width, height = box
    font = _text_font(_TEXT_FONTS[int(thing.style * len(_TEXT_FONTS))], max(6, int(height * 1.2)))
    bounds = font.getbbox(thing.name)
    mask = Image.new("L", (int(bounds[2] - bounds[0]) + 2, int(bounds[3] - bounds[1]) + 2))
    ImageDraw.Draw(mask).text((1 - bounds[0], 1 - bounds[1]), thing.name, font=font, fill=255)
    scale = min(width / mask.width, height / mask.height)
    mask = mask.resize((max(1, int(mask.width * scale)), max(1, int(mask.height * scale))), Image.Resampling.BILINEAR)
    canvas.paste(colour, (left + (width - mask.width) // 2, top + (height - mask.height) // 2), mask)


def draw(scene: Scene, width: int = 192, height: int = 192) -> Image.Image:
    """The scene as an RGB picture of `width` x `height` pixels. Same scene and size, same pixels.

    Raises VLChatError when a font is missing, with the package that brings it.
    """
    rng = Random(scene.seed)
    canvas = _background(scene, rng, width, height)
    for thing in scene.things:
        box_width, box_height = max(4, round(thing.width * width)), max(4, round(thing.height * height))
        left, top = round(thing.x * width - box_width / 2), round(thing.y * height - box_height / 2)
        if thing.kind == "pictogram":
            glyph = _pictogram(thing.name)
            if thing.style < 0.6:  # small turns; never a mirror image, so that left and right stay honest
                glyph = glyph.rotate((thing.style / 0.6 - 0.5) * 24, Image.Resampling.BILINEAR)
            glyph = glyph.resize((box_width, box_height), Image.Resampling.BILINEAR, reducing_gap=2.0)
            canvas.paste(glyph, (left, top), glyph)
            continue
        assert thing.colour is not None
        colour = _tint(thing.colour, rng)
        if thing.is_text:
            _paste_text(canvas, thing, (left, top, box_width, box_height), colour)
            continue
        mask = _shape_mask(thing.name, max(box_width, box_height), (thing.style - 0.5) * 0.5)
        canvas.paste(colour, (left, top), mask.resize((box_width, box_height), Image.Resampling.BILINEAR))
    return canvas
