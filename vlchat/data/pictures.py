"""What is wrong with picture and video files: by their headers alone, or decoded in worker processes.

Verdicts on decoded files are kept by the hash of their bytes, so that a second look at a large dataset only reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL

from vlchat import images, video
from vlchat.errors import ImageError
from vlchat.images import DEFAULT_LIMITS, ImageLimits

FEWEST_PIXELS = 4  # a side below this is what a failed download or a tracking pixel leaves


@dataclass(frozen=True)
class Verdict:
    """What was found about a file.

    Attributes:
        kind: of `vlchat.data.faults.KINDS`, or None for a good file.
        reason: a sentence that calls the file "The picture" or "The video".
        size: width and height in pixels as people see it, where it is known.
    """

    kind: str | None = None
    reason: str = ""
    size: tuple[int, int] | None = None

    def told(self, name: str | None) -> str:
        """The reason with the file's name put in."""
        if name is None:
            return self.reason
        for what in ("picture", "video"):
            if self.reason.startswith(f"The {what} "):
                return images.label_of(name, what) + self.reason.removeprefix(f"The {what}")
        return self.reason


def header(source: Path | bytes | Any, field: str) -> Verdict:
    """Looks at the first bytes of a picture, or whether a video can be opened; no pixel is decoded."""
    try:
        if field == "video":
            if not isinstance(source, bytes):
                limits = ImageLimits(max_bytes=video.DEFAULT_LIMITS.max_bytes)
                with images.open_file(source, "The video", limits) as file:
                    source = file.read(1)
            return Verdict() if source else Verdict("empty_file", "The video is empty (0 bytes).")
        if not isinstance(source, bytes | Path):
            return _sized(source.size)  # a PIL image
        return _sized(images.header(source, name=None if isinstance(source, bytes) else ""))
    except ImageError as error:
        return Verdict(error.kind, _unnamed(str(error)))


def decoded(source: Path | bytes | Any, field: str) -> Verdict:
    """Decodes a picture, or the frames of a video."""
    try:
        if field == "video":
            video.frames(source, name="")
            return Verdict()
        return _sized(images.decode(source, name="").size)
    except ImageError as error:
        return Verdict(error.kind, _unnamed(str(error)))


def _sized(size: tuple[int, int]) -> Verdict:
    if min(size) < FEWEST_PIXELS:
        return Verdict("tiny_picture", f"The picture is {size[0]} x {size[1]} pixels: is it a placeholder?", size)
    return Verdict(size=size)


def _unnamed(message: str) -> str:
    return message.replace(' ""', "", 1)


class Cache:
    """Verdicts on decoded files by the SHA-256 of their bytes, in one JSON file in the user's cache folder.

    Args:
        file: None takes `vlchat/pictures.json` in XDG_CACHE_HOME, LOCALAPPDATA or `~/.cache`.
    """

    most = 1_000_000  # entries, about 100 MB; the oldest go first

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or cache_folder() / "pictures.json"
        self._fresh: dict[str, list[Any]] = {}
        self._known = self._read()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, digest: str) -> Verdict | None:
        """The verdict on a file with these bytes; None where there is none, or it is not in its form."""
        found = self._known.get(digest)
        try:
            kind, reason, size = found  # type: ignore[misc]
            return Verdict(kind, reason, None if size is None else (int(size[0]), int(size[1])))
        except (TypeError, ValueError, IndexError):
            return None

    def put(self, digest: str, verdict: Verdict) -> None:
        self._fresh[digest] = self._known[digest] = [verdict.kind, verdict.reason, verdict.size]

    def save(self) -> None:
        """Writes what is new beside what others wrote meanwhile, whole or not at all; where it cannot, nothing."""
        if not self._fresh:
            return
        merged = {**self._read(), **self._fresh}
        kept = dict(list(merged.items())[-self.most :])
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.file.parent, prefix="pictures.", suffix=".tmp")
        except OSError:  # a home that is read-only has no cache
            return
        try:
            with open(handle, "w", encoding="utf-8") as stream:
                json.dump({"made_by": _made_by(), "verdicts": kept}, stream, separators=(",", ":"))
            os.replace(name, self.file)
            self._fresh = {}
        except OSError:
            Path(name).unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self.file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        usable = isinstance(stored, Mapping) and stored.get("made_by") == _made_by()
        found = stored.get("verdicts") if usable else None
        return found if isinstance(found, dict) else {}


def cache_folder() -> Path:
    """The user's cache folder for vlchat."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return Path(base).expanduser() / "vlchat"


def _made_by() -> str:
    """What a verdict depends on besides the bytes: another decoder or other limits judge anew."""
    return f"1, Pillow {PIL.__version__}, {DEFAULT_LIMITS}, {FEWEST_PIXELS}"


def digest(source: Path | bytes, field: str) -> str | None:
    """The SHA-256 under which a verdict is kept; None for a file that cannot be read, or is too large to be judged."""
    value = hashlib.sha256(field.encode())
    if isinstance(source, bytes):
        value.update(source)
        return value.hexdigest()
    most = video.DEFAULT_LIMITS.max_bytes if field == "video" else DEFAULT_LIMITS.max_bytes
    try:
        with images.open_file(source, "The file", ImageLimits(max_bytes=most)) as file:
            while block := file.read(1 << 20):
                value.update(block)
    except (ImageError, OSError):
        return None
    return value.hexdigest()
