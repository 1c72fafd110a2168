"""What somebody adds to a question -> its pictures: stills as they came, documents as pages, videos as frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.decoding import MOST_PICTURES, Decoder
from serve.documents import Document, Part, kind_of
from serve.page.words import told
from vlchat import images
from vlchat.errors import ImageError

MOST_PARTS = 8  # of one file
_STILLS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Attached:
    """The pictures of a question.

    Attributes:
        pictures: names and the bytes of files.
        told: sentences for who asks: what of a document is shown, and what is not.
    """

    pictures: Sequence[tuple[str, bytes]]
    told: Sequence[str]


def take_time(message: Mapping[str, Any]) -> list[str]:
    """The names of a message's files that may have to be turned into pictures."""
    paths = [Path(file["path"] if isinstance(file, Mapping) else file) for file in message.get("files") or []]
    return [path.name for path in paths if path.suffix.lower() not in _STILLS]


def attached(files: Sequence[Path], already: int, decoder: Decoder, language: str) -> Attached:
    """Reads the files of a question.

    Args:
        already: how many pictures the conversation has.
        decoder: opens documents.
        language: of what is told.

    Raises:
        ImageError: one of them can't be used, or there are too many.
        Busy, Closed: as `Decoder.decode`.
    """
    contents = [_read(path, language) for path in files]
    left = MOST_PICTURES - already - len(files)  # pictures that there may be beyond one of each file
    if left < 0:
        count = already + len(files)
        raise ImageError(told("chat.media-many", language, count=count, most=MOST_PICTURES), kind="pictures")
    pictures: list[tuple[str, bytes]] = []
    sentences: list[str] = []
    for path, content in zip(files, contents, strict=True):
        document = decoder.document(content, min(MOST_PARTS, left + 1), name=path.name) if kind_of(content) else None
        if document is None or (document.kind == "frame" and len(document.parts) == 1 and _is_picture(content)):
            pictures.append((path.name, content))
            continue
        left -= len(document.parts) - 1
        pictures += [(_name(path.name, document, part, language), part.content) for part in document.parts]
        sentences += _shown(path.name, document, language)
    return Attached(pictures, sentences)


def _read(path: Path, language: str) -> bytes:
    content = images.read_file(path, images.label_of(path.name, "file"), images.DEFAULT_LIMITS)
    if content and not (kind_of(content) or _is_picture(content)):
        error = told("chat.media-unknown", language, name=images.printable(path.name))
        raise ImageError(error, code="unsupported_image", status=415, kind="unsupported_file")
    return content


def _is_picture(content: bytes) -> bool:
    try:
        images.mime_of(content)
    except ImageError:
        return False
    return True


def _name(name: str, document: Document, part: Part, language: str) -> str:
    ending = images.mime_of(part.content).partition("/")[2]
    if document.kind == "page":
        return told("chat.media-page", language, name=name, page=int(part.place)) + f".{ending}"
    minutes, seconds = divmod(int(part.place), 60)
    return f"{name}, {minutes}m{seconds:02}s.{ending}"  # without a colon, which files may not have everywhere


def _shown(name: str, document: Document, language: str) -> list[str]:
    name, count = images.printable(name), len(document.parts)
    if document.kind == "frame":
        times = (f"{int(part.place) // 60}:{int(part.place) % 60:02}" for part in document.parts)
        return [told("chat.media-frames", language, name=name, count=count, times=", ".join(times))]
    if count == document.total:
        return []
    pages = ", ".join(str(int(part.place)) for part in document.parts)
    return [told("chat.media-pages", language, name=name, count=count, total=document.total, pages=pages)]
