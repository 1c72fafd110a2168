"""Untrusted bytes -> an RGB picture: the one place where pictures are decoded.

Header first, pixels last: the format, the pixel count and the shape are judged before anything is decompressed.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile

from vlchat.errors import ImageError

# Decoders are the attack surface, so the list is short; each is a long-fuzzed C library.
SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "WEBP": (b"RIFF",),
    "GIF": (b"GIF87a", b"GIF89a"),
}
FORMATS_IN_WORDS = "JPEG, PNG, WebP and GIF"
# Refused all the same; naming what a file is tells people what to convert.
_OTHER_SIGNATURES = {
    "TIFF": (b"II*\x00", b"MM\x00*"),
    "PDF": (b"%PDF",),
    "EPS": (b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "SVG": (b"<svg", b"<?xml"),
    "BMP": (b"BM",),
}
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"hevc": "HEIC", b"avif": "AVIF", b"avis": "AVIF"}

_TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ONTO_THE_SIDE = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))  # width and height change places


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before a pixel is read.

    Attributes:
        max_bytes: size of the file.
        max_pixels: width x height; decoded RGB takes three bytes each.
        max_side_ratio: long side / short side. Image processors scale the short side to a fixed length, so a
            20000 x 1 picture of 138 bytes would grow to gigabytes.
    """

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_side_ratio: float = 100.0


DEFAULT_LIMITS = ImageLimits()
_BAND = 2**20  # pixels
# Of a JPEG: a bit at least for each block of 8 x 8. libjpeg paints grey what is missing of a larger one, at any size.
_PIXELS_OF_A_BYTE = 512
# Pillow's own limit lies above ours, which answers with a sentence; its warning would only name our source file.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(
    source: bytes | str | Path | Image.Image,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    name: str | None = None,
    mime: str | None = None,
    shorter_side: int | None = None,
) -> Image.Image:
    """Opens a picture as people see it: upright, RGB, eight bits, transparency laid on white.

    Args:
        source: the file's bytes, a path, or a PIL image of any mode. The source itself is left as it is.
        limits: see `ImageLimits`; they are those of the file, however small it is decoded.
        name: what messages call the picture; a server gives one so that its own paths stay private.
        mime: the content type that a client declared; refused when the bytes are something else.
        shorter_side: a JPEG may be decoded at a half, a quarter or an eighth of its size (libjpeg's scaled decoding),
            as long as that divides its sides and the shorter one keeps so many pixels. None decodes every pixel.

    Returns:
        A new PIL image of mode RGB.

    Raises:
        ImageError: with `code` and `status` `invalid_image` 400 (missing, empty, damaged, or an extreme shape),
            `image_too_large` 413 (bytes or pixels) or `unsupported_image` 415 (format, moving picture, mime).
    """
    if isinstance(source, Image.Image):
        called = label_of(name)
        return _pixels(source, called, limits)
    called = label_of(name if name is not None or isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else read_file(source, called, limits)
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(called, len(data), limits)
    expected = _sniff(data, called)
    _check_mime(mime, expected, called)
    image = _open(io.BytesIO(data), expected, called, limits)
    with image:
        if expected == "JPEG" and image.width * image.height > _PIXELS_OF_A_BYTE * len(data):
            raise _damaged(called, "JPEG")
        _check_stills(image, data, called)
        return _pixels(image, called, limits, shorter_side)


def header(
    source: bytes | str | Path, *, limits: ImageLimits = DEFAULT_LIMITS, name: str | None = None
) -> tuple[int, int]:
    """(width, height) of a file's picture upright, as its first bytes state them. No pixel is decoded.

    Raises:
        ImageError: as `decode`, save for what only the pixels would show.
    """
    called = label_of(name if name is not None or isinstance(source, bytes) else str(source))
    with io.BytesIO(source) if isinstance(source, bytes) else open_file(source, called, limits) as stream:
        head = stream.read(4096)
        expected = _sniff(head, called)
        stream.seek(0)
        with _open(stream, expected, called, limits) as image:
            _check_stills(image, head, called)
            check_shape(*image.size, called, limits)
            told = image.format != "PNG" or "exif" in image.info  # else Pillow decodes a PNG to look behind its pixels
            return image.size[::-1] if told and _turn(image) in _ONTO_THE_SIDE else image.size


def mime_of(data: bytes) -> str:
    """The content type of a picture's bytes, such as `image/png`, by how they begin.

    Raises:
        ImageError: they begin like no picture that is accepted.
    """
    return f"image/{_sniff(data, label_of(None)).lower()}"


def _open(stream: BinaryIO, expected: str, called: str, limits: ImageLimits) -> Image.Image:
    try:
        return Image.open(stream, formats=[expected])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{called} has far more than the {limits.max_pixels / 1e6:.0f} million pixels accepted. Make it smaller.",
            code="image_too_large",
            status=413,
            kind="too_many_pixels",
        ) from error
    except Exception as error:  # decoders raise far more than OSError: SyntaxError, ValueError, struct.error, ...
        raise _damaged(called, expected) from error


def label_of(name: str | None, what: str = "picture") -> str:
    """How messages call something from outside."""
    if name is None:
        return f"The {what}"
    readable = "".join(character if character.isprintable() else "?" for character in name)
    return f'The {what} "{readable[:200]}"'


def read_file(path: str | Path, called: str, limits: ImageLimits) -> bytes:
    """The bytes of a file from outside; arguments and errors as of `open_file`."""
    with open_file(path, called, limits) as file:
        return file.read(limits.max_bytes + 1)


def open_file(path: str | Path, called: str, limits: ImageLimits) -> BinaryIO:
    """A file from outside, opened for reading.

    Args:
        called: what messages call it.

    Raises:
        ImageError: when it is not there, not a file, closed to us, or larger than `limits.max_bytes`.
    """
    # One descriptor for looking and reading: the file cannot change its kind in between, and a pipe cannot hang us.
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{called} is not there: no such file. Check the path.", kind="missing_file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the path is not valid"
        raise ImageError(f"{called} cannot be read: {reason}.", kind="unreadable_file") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{called} is not a file. Give the path of one picture.", kind="unreadable_file")
        if status.st_size > limits.max_bytes:
            raise _too_many_bytes(called, status.st_size, limits)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _sniff(data: bytes, called: str) -> str:
    if not data:
        raise ImageError(f"{called} is empty (0 bytes). Save or upload it again.", kind="empty_file")
    head = data[:16]
    for format_name, signatures in SIGNATURES.items():
        if head.startswith(signatures) and (format_name != "WEBP" or head[8:12] in (b"WEBP", b"")):
            return format_name
    # Fewer bytes than a signature are a cut-off file, not another format.
    if any(signature.startswith(data) for signatures in SIGNATURES.values() for signature in signatures):
        raise ImageError(f"{called} is damaged or cut short: only {len(data)} bytes. Save or upload it again.")
    found = _BRANDS.get(head[8:12], "") if head[4:8] == b"ftyp" else ""
    text = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n")
    for format_name, signatures in _OTHER_SIGNATURES.items():
        if not found and text.startswith(signatures):
            found = format_name
    what = f"is a {found} file" if found else "is not a picture in a known format"
    raise _unsupported(f"{called} {what}; accepted are {FORMATS_IN_WORDS}. Save it as PNG or JPEG.")


def _check_mime(mime: str | None, actual: str, called: str) -> None:
    if mime is None:
        return
    declared = mime.split(";")[0].strip().lower().replace("image/jpg", "image/jpeg")
    if declared not in ("application/octet-stream", f"image/{actual.lower()}"):
        raise _unsupported(f"{called} was declared as {printable(declared)} but is image/{actual.lower()}.")


def _check_stills(image: Image.Image, data: bytes, called: str) -> None:
    # Phones write MPO: a JPEG with a second picture (depth, preview) behind it. The first one is the photograph.
    if image.format == "MPO":
        return
    # Where an animation's header is broken, Pillow falls back to the still picture and only warns.
    if isinstance(image, PngImageFile) and b"acTL" in data.partition(b"IDAT")[0]:
        if image.get_format_mimetype() != "image/apng":
            raise _damaged(called, "PNG")
    try:
        moving = getattr(image, "is_animated", False)
    except Exception as error:  # the second frame of a GIF is looked for here
        raise _damaged(called, str(image.format)) from error
    if moving:
        message = f"{called} is a moving picture; only stills are accepted. Save one frame as PNG."
        raise _unsupported(message, "moving_picture")


def _pixels(image: Image.Image, called: str, limits: ImageLimits, shorter_side: int | None = None) -> Image.Image:
    check_shape(*image.size, called, limits)
    try:
        if shorter_side is not None:
            _draft(image, shorter_side)
        image.load()
        return _rgb(_upright(image))
    except Exception as error:  # as above: the set of exceptions that decoders raise is open
        raise _damaged(called, image.format or "PIL") from error


def _draft(image: Image.Image, shorter_side: int) -> None:
    # By whole blocks only: with a part of one at its edge, the picture would be shown a little narrower than it is.
    for times in (8, 4, 2):
        width, height = image.width / times, image.height / times
        if width.is_integer() and height.is_integer() and min(width, height) >= shorter_side:
            image.draft(None, (int(width), int(height)))  # other formats than JPEG do not hear it
            return


def check_shape(width: int, height: int, called: str, limits: ImageLimits) -> None:
    """Refuses pictures of no pixels, too many, or an extreme shape; `called` is what messages call it.

    Raises:
        ImageError: as `decode`.
    """
    if width < 1 or height < 1:
        raise ImageError(f"{called} is {width} x {height} pixels: there is nothing to see.", kind="side_ratio")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{called} is {width} x {height} pixels ({width * height / 1e6:.0f} million); at most "
            f"{limits.max_pixels / 1e6:.0f} million are accepted. Make it smaller.",
            code="image_too_large",
            status=413,
            kind="too_many_pixels",
        )
    ratio = max(width, height) / min(width, height)
    if ratio > limits.max_side_ratio:
        raise ImageError(
            f"{called} is {width} x {height} pixels, a side ratio of {ratio:.0f}; at most {limits.max_side_ratio:.0f} "
            "is accepted. Crop it.",
            kind="side_ratio",
        )


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose writes all of the EXIF anew, and fails where a camera mistyped any tag of it.
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes a picture stand upright; None where it does."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF that cannot be read turns nothing
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image)
    if image.has_transparency_data:
        return _by_bands(image, _on_white)
    return image.convert("RGB")


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An RGB picture whose every band is `convert` of that band: what is made on the way stays small."""
    result = Image.new("RGB", image.size)
    for band in _bands(image):
        result.paste(convert(image.crop(band)), band)
    return result


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _on_white(image: Image.Image) -> Image.Image:
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or floats, scaled to eight bits: `convert` alone would clip it to white."""
    # "I;16" has its range in its name; for "I" and "F" only the values tell it.
    deep = image.mode.startswith("I;16")
    peak = np.inf if deep else max(_numbers(image.crop(band)).max() for band in _bands(image))
    transparent: Any = image.info.get("transparency")

    def convert(band: Image.Image) -> Image.Image:
        grey = shown = _numbers(band)
        if peak > 255:
            grey = shown / 257
        elif image.mode == "F" and peak <= 1:
            grey = shown * 255
        if isinstance(transparent, int):
            grey = np.where(np.asarray(band) == transparent, 255.0, grey)
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))

    return _by_bands(image, convert)


def _numbers(band: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(band).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def printable(text: str) -> str:
    """Words from outside for a message, on one line and short."""
    return "".join(character if character.isprintable() else "?" for character in text)[:80]


def _damaged(called: str, format_name: str) -> ImageError:
    return ImageError(f"{called} is damaged or cut short: its {format_name} data cannot be decoded. Save it again.")


def _unsupported(message: str, kind: str = "unsupported_file") -> ImageError:
    return ImageError(message, code="unsupported_image", status=415, kind=kind)


def _too_many_bytes(called: str, size: int, limits: ImageLimits) -> ImageError:
    return ImageError(
        f"{called} has {size:,} bytes; at most {limits.max_bytes:,} are accepted. Make it smaller.",
        code="image_too_large",
        status=413,
        kind="too_many_bytes",
    )
