"""Which pictures are the same, or near copies of one another."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from vlchat import images
from vlchat.data import pictures
from vlchat.data.decoding import default_workers
from vlchat.errors import ImageError

# How a picture can be the same as another, the surest first.
KINDS = {
    "file": "the same file",
    "pixels": "the same pixels in another file",
    "near": "a near copy (saved again, resized, or the next slice of a scan)",
}
NEAR_BITS = 4  # of 64, in which two hashes may differ
NEAR_LEVELS = 48  # of 255, by which any channel of any cell of two thumbnails may differ
FILE = "signatures.sqlite"
_THUMBNAIL = 32  # cells a side, in colour: yellow on grey has no edge in a grey picture
_CANDIDATES = 200  # pictures that a picture is held against, for plain ones all have the same hash
_AT_ONCE = 4_000_000  # pairs of hashes compared together
_MADE_BY = f"1, Pillow {PIL.__version__}"  # another decoder may see other pixels


@dataclass(frozen=True)
class Signature:
    """What a picture is compared by; a video, or one that was not decoded, has its file's hash alone."""

    file: str | None = None
    pixels: str | None = None
    hash: int | None = None
    thumbnail: bytes = b""


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each cell of 8 x 8 is darker than its right neighbour in a 9 x 8 grey thumbnail (Krawetz 2013).

    Two pictures are as far apart as the bits in which they differ.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes())


def signatures(
    sources: Mapping[str, tuple[str, Any]],
    *,
    decode: bool = True,
    workers: int | None = None,
    cache: Path | None = None,
) -> dict[str, Signature]:
    """The signature of each picture or video that can be read.

    Args:
        sources: by any key, ("image" or "video", a path, bytes or a PIL image).
        decode: whether pictures are decoded; else two are the same by their files' bytes alone.
        workers: threads; None takes as many as there are cores.
        cache: the folder that keeps signatures by the hash of the file's bytes; None keeps nothing.
    """
    with ThreadPoolExecutor(workers or default_workers()) as pool:
        digests = dict(zip(sources, pool.map(_digest, sources.values()), strict=True))
        kept = None if cache is None or not decode else _Kept(cache)
        known = {} if kept is None else kept.find([digest for digest in digests.values() if digest is not None])
        left = {key: part for key, part in sources.items() if digests[key] not in known}
        made = pool.map(lambda key: _signature(left[key], digests[key], decode), left)
        fresh = {key: signature for key, signature in zip(left, made, strict=True) if signature is not None}
    if kept is not None:
        kept.keep(fresh.values())
    return {key: known[digest] if (digest := digests[key]) in known else fresh[key]
            for key in sources if digests[key] in known or key in fresh}  # fmt: skip


def same(asked: Mapping[str, Signature], known: Mapping[str, Signature]) -> dict[str, dict[str, list[str]]]:
    """For each picture that is asked of, the known ones that are the same, by the surest of `KINDS` that any has."""
    found: dict[str, dict[str, list[str]]] = {}
    for kind in ("file", "pixels"):
        by_value: dict[str, list[str]] = {}
        for key, signature in known.items():
            if (value := getattr(signature, kind)) is not None:
                by_value.setdefault(value, []).append(key)
        for key, signature in asked.items():
            if key not in found and (equal := by_value.get(getattr(signature, kind))):
                found[key] = {kind: equal}
    left = [key for key, signature in asked.items() if key not in found and signature.hash is not None]
    hashed = [key for key, signature in known.items() if signature.hash is not None]
    for key, other in _near(left, asked, hashed, known):
        found.setdefault(key, {}).setdefault("near", []).append(other)
    return found


def _near(
    left: Sequence[str], asked: Mapping[str, Signature], hashed: Sequence[str], known: Mapping[str, Signature]
) -> Iterator[tuple[str, str]]:
    if not left or not hashed:
        return
    hashes = np.array([known[key].hash for key in hashed], dtype=np.uint64)
    thumbnails = np.array([np.frombuffer(known[key].thumbnail, np.uint8) for key in hashed], dtype=np.uint8)
    at_once = max(1, _AT_ONCE // len(hashes))
    for start in range(0, len(left), at_once):
        block = left[start : start + at_once]
        mine = np.array([asked[key].hash for key in block], dtype=np.uint64)
        distances = np.bitwise_count(mine[:, None] ^ hashes)
        for key, distance in zip(block, distances, strict=True):
            candidates = np.flatnonzero(distance <= NEAR_BITS)
            if len(candidates) > _CANDIDATES:
                candidates = candidates[np.argsort(distance[candidates], kind="stable")[:_CANDIDATES]]
            own = np.frombuffer(asked[key].thumbnail, np.uint8).astype(np.int16)
            near = np.abs(own - thumbnails[candidates]).max(axis=1, initial=0) <= NEAR_LEVELS
            yield from ((key, hashed[column]) for column in candidates[near])


def _digest(part: tuple[str, Any]) -> str | None:
    kind, value = part
    return pictures.digest(Path(value) if isinstance(value, str) else value, kind) if _is_file(value) else None


def _signature(part: tuple[str, Any], digest: str | None, decode: bool) -> Signature | None:
    kind, value = part
    if digest is None and _is_file(value):
        return None
    if kind == "video" or (not decode and digest is not None):
        return None if digest is None else Signature(digest)
    try:
        image = images.decode(Path(value) if isinstance(value, str) else value)
    except ImageError:
        return None
    pixels = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    thumbnail = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return Signature(digest, pixels, difference_hash(image), thumbnail.tobytes())


def _is_file(value: Any) -> bool:
    return isinstance(value, str | Path | bytes)


class _Kept:
    """Signatures by their files' hashes. Where nothing can be kept, nothing is: they are only slow to make."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def find(self, digests: Sequence[str]) -> dict[str, Signature]:
        found: dict[str, Signature] = {}
        try:
            with sqlite3.connect(self._path, timeout=60) as database:
                self._prepare(database)
                for digest in digests:
                    asked = "SELECT pixels, hash, thumbnail FROM signatures WHERE file = ? AND made_by = ?"
                    row = database.execute(asked, (digest, _MADE_BY)).fetchone()
                    if row is not None and len(row[2]) == 3 * _THUMBNAIL**2:
                        found[digest] = Signature(digest, row[0], int(row[1], 16), row[2])
        except (OSError, ValueError, TypeError, sqlite3.Error):
            return {}
        return found

    def keep(self, fresh: Iterable[Signature]) -> None:
        rows = [
            (one.file, _MADE_BY, one.pixels, f"{one.hash:x}", one.thumbnail)
            for one in fresh
            if one.file is not None and one.hash is not None
        ]
        try:
            with sqlite3.connect(self._path, timeout=60) as database:
                self._prepare(database)
                database.executemany("INSERT OR REPLACE INTO signatures VALUES (?, ?, ?, ?, ?)", rows)
        except (OSError, sqlite3.Error):
            return

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute(
            "CREATE TABLE IF NOT EXISTS signatures "
            "(file TEXT PRIMARY KEY, made_by TEXT, pixels TEXT, hash TEXT, thumbnail BLOB)"
        )
