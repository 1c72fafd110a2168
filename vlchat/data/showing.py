"""The check as pictures: histograms, and one row with what is learned of it in colour; and that row in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from vlchat.data.histograms import Histogram

if TYPE_CHECKING:
    from vlchat.data.lesson import Sample

_INK, _GREY, _LINE, _BAR = "#1f2430", "#6b7280", "#e5e7eb", "#3b6fb6"
# ink and ground of a piece: what is learned stands out, by more than its colour
_COLOURS = {"context": (_GREY, None), "learned": ("#0b5d2a", "#c9f0d5"), "picture": ("#3730a3", "#dfe3ff")}
_ANSI = {"context": "\033[2m", "learned": "\033[1;32m", "picture": "\033[34m"}
_PLAIN = {"context": ("", ""), "learned": ("[[", "]]"), "picture": ("", "")}
_MOST_LINES = 60
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) != "\n"}

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def sample_text(sample: Sample, colour: bool) -> str:
    """The row for a terminal: what is learned in green (`[[ ]]` without colours), a picture's tokens as one piece."""
    told = "green" if colour else "in [[ ]]"
    head = f"{_facts(sample)}; what is learned stands {told}:"
    body = ""
    for text, kind in sample.pieces:
        text = text.translate(_CONTROLS).replace("\n", "\u21b5\n")
        if colour:
            body += f"{_ANSI[kind]}{text}\033[0m"
        else:
            before, after = _PLAIN[kind]
            body += f"{before}{text}{after}"
    return head + "\n" + "\n".join(f"  {line}" for line in body.removesuffix("\n").split("\n"))


def _facts(sample: Sample) -> str:
    return (
        f"{sample.row}: {sample.tokens:,} tokens, {sample.image_tokens:,} of them of pictures, "
        f"{sample.learned:,} learned"
    )


def sample_picture(sample: Sample, width: int = 1100) -> Image.Image:
    """The row as a picture: its own pictures on the left, all of its tokens on the right."""
    font, small = _font(17), _font(13)
    left, line_height, margin = 360, 26, 24
    thumbnails = [_fitted(picture, left, 300) for picture in sample.pictures[:4]]
    lines = list(_lines(sample.pieces, font, width - left - 3 * margin))
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], [(f"... and {len(lines) - _MOST_LINES:,} lines more", "context")]]
    tall = max(len(lines) * line_height, sum(picture.height + 12 for picture in thumbnails))
    canvas = Image.new("RGB", (width, tall + 3 * margin + 60), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((margin, margin), _printable(_facts(sample)), fill=_INK, font=font)
    x = margin
    for words, kind in (("learned", "learned"), ("read, not learned", "context"), ("a picture's tokens", "picture")):
        x += round(_piece(draw, x, margin + 32, words, kind, small)) + 16
    top = 2 * margin + 50
    y = top
    for picture in thumbnails:
        canvas.paste(picture, (margin, y))
        y += picture.height + 12
    for number, line in enumerate(lines):
        x = left + 2 * margin
        for text, kind in line:
            x += round(_piece(draw, x, top + number * line_height, text, kind, font))
    return canvas


def histogram_picture(name: str, facts: str, histograms: Sequence[Histogram]) -> Image.Image:
    """All histograms of a report on one page, two beside each other, under a title and a line of facts."""
    shown = [histogram for histogram in histograms if histogram.count]
    wide, margin, bar, head = 560, 28, 20, 58
    columns = 2
    heights = [head + bar * max(1, len(histogram.bars)) + 26 for histogram in shown]
    rows = [max(heights[start : start + columns]) for start in range(0, len(heights), columns)]
    canvas = Image.new("RGB", (columns * wide + 2 * margin, sum(rows) + 2 * margin + 64), "white")
    draw = ImageDraw.Draw(canvas)
    font, small = _font(17), _font(13)
    draw.text((margin, margin), _printable(name)[:90], fill=_INK, font=_font(21))
    draw.text((margin, margin + 32), _printable(facts), fill=_GREY, font=small)
    y = margin + 64
    for number, histogram in enumerate(shown):
        x = margin + number % columns * wide
        _bars(draw, histogram, (x, y), wide - margin, bar, font, small)
        if number % columns == columns - 1:
            y += rows[number // columns]
    return canvas


def _bars(
    draw: ImageDraw.ImageDraw, histogram: Histogram, at: tuple[int, int], wide: int, bar: int, font: Font, small: Font
) -> None:
    x, y = at
    draw.text((x, y + 8), histogram.name, fill=_INK, font=font)
    draw.text((x, y + 31), histogram.summary(), fill=_GREY, font=small)
    most = max(count for _, count in histogram.bars)
    label_wide = max(draw.textlength(label, font=small) for label, _ in histogram.bars)
    begin = x + round(label_wide) + 10
    room = wide - (begin - x) - 70
    y += 54
    draw.line((begin, y, begin, y + bar * len(histogram.bars)), fill=_LINE)
    for label, count in histogram.bars:
        draw.text((begin - 8, y + bar / 2), label, fill=_GREY, font=small, anchor="rm")
        length = max(2, round(room * count / most)) if count else 0
        if length:
            draw.rectangle((begin, y + 3, begin + length, y + bar - 3), fill=_BAR)
        draw.text((begin + length + 6, y + bar / 2), f"{count:,}", fill=_INK, font=small, anchor="lm")
        y += bar


def _piece(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, kind: str, font: Font) -> float:
    """Draws a piece of text on its ground and returns its width."""
    ink, ground = _COLOURS[kind]
    wide = draw.textlength(text, font=font)
    if ground is not None:
        tall = draw.textbbox((0, 0), "Ag|", font=font)[3]
        draw.rectangle((x, y - 1, x + wide, y + tall + 2), fill=ground)
    draw.text((x, y), text, fill=ink, font=font)
    return wide


def _lines(pieces: Sequence[tuple[str, str]], font: Font, wide: int) -> Iterator[list[tuple[str, str]]]:
    """The pieces broken into lines that are at most `wide` pixels: at line breaks, and else behind a space."""
    line: list[tuple[str, str]] = []
    used = 0.0
    for word, kind in _words(pieces):
        length = font.getlength(word.removesuffix("\n"))
        if line and used + length > wide:
            yield line
            line, used = [], 0.0
        line.append((word.replace("\n", "\u21b5"), kind))
        used += length
        if word.endswith("\n"):
            yield line
            line, used = [], 0.0
    if line:
        yield line


def _words(pieces: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for text, kind in pieces:
        if kind == "picture":
            yield text, kind
            continue
        word = ""
        for character in _printable(text):
            word += character
            if character in " \n" or len(word) >= 60:
                yield word, kind
                word = ""
        if word:
            yield word, kind


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def _fitted(picture: Image.Image, wide: int, tall: int) -> Image.Image:
    scale = min(wide / picture.width, tall / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _font(size: int) -> Font:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)  # many alphabets, on most systems; boxes for the others
    except OSError:
        return ImageFont.load_default(size)
