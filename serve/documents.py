"""Strangers' PDFs and videos -> a few pictures: pages and frames, spread evenly. Run by `serve.decode_worker` alone.

PDFs need pypdfium2, `pip install 'vlchat[documents]'`; for videos see `vlchat.video`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from vlchat import images, video
from vlchat.errors import ImageError

Kind = Literal["page", "frame"]

# Of a picture's longer side, in pixels: an A4 page has 175 of them to the inch, where small print can be read, and the
# image processors of models look at no more at once.
LONGER_SIDE = 2048
LONGEST_VIDEO = 600  # seconds: a few frames say little of a longer one
_LARGEST_SCALE = 4.0  # pixels to a point; 288 to the inch
_LIMITS = video.VideoLimits(max_bytes=images.DEFAULT_LIMITS.max_bytes, max_seconds=LONGEST_VIDEO)
_STILL_BRANDS = (b"heic", b"heix", b"mif1", b"hevc", b"avif", b"avis")  # photographs in a video's container
_ANIMATED = 0x02  # in the flags of a WebP's VP8X chunk, its 21st byte
_PASSWORD = 4  # FPDF_ERR_PASSWORD of pdfium's fpdfview.h


@dataclass(frozen=True)
class Part:
    """One picture of a document.

    Attributes:
        place: the page's number, from 1, or the second of the frame.
        content: the bytes of a PNG or JPEG.
    """

    place: float
    content: bytes


@dataclass(frozen=True)
class Document:
    """Pictures of a document.

    Attributes:
        kind: what they are.
        parts: in order.
        total: how many pages there are; of videos, as many as the parts.
    """

    kind: Kind
    parts: tuple[Part, ...]
    total: int


def kind_of(data: bytes) -> Kind | None:
    """What a file's parts are, by its first bytes; None of a still picture and of everything else.

    A GIF may be either: one with a single frame is a document of one part.
    """
    if data[:1024].lstrip().startswith(b"%PDF-"):
        return "page"
    if data[4:8] == b"ftyp":
        return None if data[8:12] in _STILL_BRANDS else "frame"
    if data.startswith((b"\x1aE\xdf\xa3", b"GIF87a", b"GIF89a")) or (data[:4] == b"RIFF" and data[8:12] == b"AVI "):
        return "frame"
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) > 20 and data[20] & _ANIMATED:
        return "frame"
    if data.startswith(b"\x89PNG\r\n\x1a\n") and b"acTL" in data.partition(b"IDAT")[0]:
        return "frame"
    return None


def rendered(data: bytes, most: int, name: str | None) -> Document:
    """The pictures of a file that has a `kind_of`.

    Args:
        most: pictures.
        name: what messages call the file.

    Raises:
        ImageError: it is damaged, locked, empty, too large or too long, or what reads it is not installed.
    """
    if kind_of(data) == "page":
        return _pages(data, most, images.label_of(name, "PDF"))
    found = video.timed_frames(data, most, limits=_LIMITS, name=name)
    parts = tuple(Part(seconds, _encoded(frame)) for seconds, frame in found)
    return Document("frame", parts, len(parts))


def _pages(data: bytes, most: int, label: str) -> Document:
    try:
        import pypdfium2
    except ImportError as error:
        raise ImageError(
            f"{label} needs pypdfium2, which is not installed on this server: pip install 'vlchat[documents]'. Add "
            "pictures of its pages instead.",
            code="unsupported_image",
            status=415,
            kind="unsupported_file",
        ) from error
    try:
        document = pypdfium2.PdfDocument(data)
        document.init_forms()  # or what was filled in is not drawn
        total = len(document)
        parts = tuple(
            Part(place + 1, _encoded(_page(document[place]))) for place in video.sampled_places(total, most)
        )  # fmt: skip
    except ImageError as error:
        raise ImageError(f"{label}: {error}", code=error.code, status=error.status, kind=error.kind) from error
    except Exception as error:  # decoders raise far more than their own
        if getattr(error, "err_code", None) == _PASSWORD:
            raise ImageError(f"{label} is locked with a password. Save it without one.") from error
        raise ImageError(f"{label} is damaged or has no pages: none can be drawn. Save it again.") from error
    return Document("page", parts, total)


def _page(page: Any) -> Image.Image:
    width, height = page.get_size()  # in points, as it is turned
    scale = min(_LARGEST_SCALE, LONGER_SIDE / max(width, height, 1.0))
    # Judged before it is drawn: a strip would be drawn for nothing.
    images.check_shape(max(1, round(width * scale)), max(1, round(height * scale)), "A page", images.DEFAULT_LIMITS)
    return page.render(scale=scale, rev_byteorder=True).to_pil().convert("RGB")


def _encoded(picture: Image.Image) -> bytes:
    """As PNG, or where that is smaller as JPEG without a loss that can be seen: photographs and scans."""
    picture.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
    exact, small = io.BytesIO(), io.BytesIO()
    picture.save(exact, "PNG")
    picture.save(small, "JPEG", quality=95, subsampling=0)
    return min(exact.getvalue(), small.getvalue(), key=len)
