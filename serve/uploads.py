"""What people upload to train on, a data file and its pictures: into a folder of its own, within limits."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vlchat.commands import PICTURE_ENDINGS
from vlchat.errors import VLChatError

DATA_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_MOVING_ENDINGS = (".mp4", ".mov", ".webm", ".mkv", ".avi")
_PIECE = 2**20  # bytes that are copied at once
_ENTRY = 46  # bytes of a member in a zip's directory, at least; its name is counted with as many
_NAMED = 5  # files that a sentence names


@dataclass(frozen=True)
class Limits:
    """How much one upload may hold, zips unpacked.

    Attributes:
        size: bytes.
        files: how many.
    """

    size: int = 8 * 2**30
    files: int = 100_000


@dataclass
class Upload:
    """An upload in its folder.

    Attributes:
        folder: holds this upload and nothing else.
        data: the data file.
        pictures: how many there are.
        left_out: names of files of other kinds, which were not kept.
    """

    folder: Path
    data: Path
    pictures: int = 0
    left_out: list[str] = field(default_factory=list)


def take_in(files: Sequence[str | Path], root: Path, limits: Limits | None = None) -> Upload:
    """Copies files, and what zips among them hold, into a new folder below `root`.

    A loose picture goes to `images/`, where `vlchat check` looks for it as well as beside the data; what a zip holds
    keeps its folders.

    Raises:
        VLChatError: there is no data file, or more than one; a limit is passed; a zip is damaged, or a member of it
            leads out of the folder, is a link or has a password. Nothing is kept then.
    """
    if not files:
        raise VLChatError("Nothing was uploaded: add a data file and its pictures, or a zip of both.")
    folder = _new(root, _stem(files))
    intake = _Intake(folder, limits or Limits())
    try:
        for file in map(Path, files):
            if file.suffix.lower() == ".zip":
                intake.unpack(file)
                continue
            inside = PurePosixPath(file.name)
            with file.open("rb") as source:
                intake.keep(inside if _is_data(inside) else "images" / inside, source)
        return intake.upload()
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise VLChatError(f"The upload could not be kept: {error.strerror}.") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def discard(upload: Upload) -> None:
    """Removes it."""
    shutil.rmtree(upload.folder, ignore_errors=True)


def settle(upload: Upload, missing: Sequence[str]) -> int:
    """Puts pictures where the rows look for them, and returns how many: browsers upload a folder without its folders.

    Only a picture whose name is like no other's, of those that are there and of those that are missing.

    Args:
        missing: files as the rows spell them, of `vlchat check`.
    """
    there: dict[str, list[Path]] = {}
    for path in upload.folder.rglob("*"):
        if path.is_file():
            there.setdefault(path.name, []).append(path)
    wanted: dict[str, list[PurePosixPath]] = {}
    for spelled in missing:
        parts = _parts(spelled)
        if parts is not None:
            wanted.setdefault(parts.name, []).append(parts)
    settled = 0
    for name, places in wanted.items():
        if len(places) == 1 and len(there.get(name, ())) == 1:
            target = upload.data.parent / places[0]
            with contextlib.suppress(OSError):  # a file where a folder is to be: the row stays without its picture
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(there[name][0], target)
                settled += 1
    return settled


class _Intake:
    """Counts while it keeps."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self.size = self.files = 0
        self.data: list[PurePosixPath] = []
        self.left_out: list[str] = []

    def keep(self, inside: PurePosixPath, source: BinaryIO) -> None:
        """One file, from its bytes as they come: what a zip says of its sizes need not be so."""
        if inside.name.startswith(".") or "__MACOSX" in inside.parts or inside.name == "Thumbs.db":
            return
        if not _is_data(inside) and inside.suffix.lower() not in {*PICTURE_ENDINGS, *_MOVING_ENDINGS}:
            self.left_out.append(_shown(inside.name))
            return
        self.files += 1
        if self.files > self.limits.files:
            raise VLChatError(f"The upload holds more than {self.limits.files:,} files. Take less at once.")
        target = self.folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            kept = target.open("xb")
        except FileExistsError:
            raise VLChatError(
                f"The upload holds {_shown(inside.name)} twice. Where folders tell such pictures apart, zip them: a "
                "zip keeps its folders."
            ) from None
        with kept:
            while piece := source.read(_PIECE):
                self.size += len(piece)
                if self.size > self.limits.size:
                    raise VLChatError(f"The upload holds more than {self.limits.size // 2**20:,} MiB, unpacked.")
                kept.write(piece)
        if _is_data(inside):
            self.data.append(inside)

    def unpack(self, file: Path) -> None:
        """A zip's members."""
        name = _shown(file.name)
        try:
            self._refuse_many(file)
            with zipfile.ZipFile(file) as packed:
                for member in packed.infolist():
                    inside = _inside(name, member)
                    if not member.is_dir():
                        with packed.open(member) as source:
                            self.keep(inside, source)  # type: ignore[arg-type]
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise VLChatError(f"{name} is damaged, or no zip that can be read here. Zip it again.") from error

    def _refuse_many(self, file: Path) -> None:
        """Before `zipfile` makes an object of each of a million members."""
        with file.open("rb") as packed:
            packed.seek(max(0, file.stat().st_size - 2**16 - 22))
            end = packed.read()
        found = end.rfind(b"PK\5\6")
        directory = int.from_bytes(end[found + 12 : found + 16], "little") if found >= 0 else 0
        if directory > 2 * _ENTRY * self.limits.files:
            raise VLChatError(f"{_shown(file.name)} holds more than {self.limits.files:,} files. Take less at once.")

    def upload(self) -> Upload:
        if not self.data:
            left = f" There is {_few(self.left_out)}." if self.left_out else ""
            raise VLChatError(f"There is no data file: add one that ends in {', '.join(DATA_ENDINGS)}.{left}")
        if len(self.data) > 1:
            names = _few([_shown(str(one)) for one in self.data])
            raise VLChatError(f"There are {len(self.data)} data files, {names}: give the one to train on.")
        return Upload(self.folder, self.folder / self.data[0], self.files - 1, self.left_out)


def _inside(zipped: str, member: zipfile.ZipInfo) -> PurePosixPath:
    """Where a member goes.

    Raises:
        VLChatError: it may not.
    """
    inside = _parts(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if inside is None:
        reason = "leads out of the zip."
    elif kind and not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        reason = "is a link, or no plain file."
    elif member.flag_bits & 1:
        reason = "has a password."
    else:
        return inside
    raise VLChatError(f"{zipped} is refused: its member {_shown(member.filename)} {reason}")


def _parts(spelled: str) -> PurePosixPath | None:
    """A relative path, of Windows too; None where it is absolute, leads up or is none."""
    parts = re.split(r"[\\/]", spelled)
    if spelled.startswith(("/", "\\")) or re.match("[A-Za-z]:", spelled) or ".." in parts or "\0" in spelled:
        return None
    path = PurePosixPath(*parts)
    return path if path.name else None


def _is_data(path: PurePosixPath) -> bool:
    return path.suffix.lower() in DATA_ENDINGS


def _stem(files: Sequence[str | Path]) -> str:
    """What the folder of an upload is called: as its data file, else as its first file."""
    first = next((Path(file) for file in files if _is_data(PurePosixPath(file))), Path(files[0]))
    return re.sub(r"[^A-Za-z0-9_-]+", "-", first.stem).strip("-")[:40] or "data"


def _new(root: Path, stem: str) -> Path:
    """A folder that was not there before: STEM, STEM-2 and so on."""
    for folder in _numbered(root, stem):
        with contextlib.suppress(FileExistsError):
            try:
                folder.mkdir(parents=True)
            except PermissionError as error:
                raise VLChatError("The upload could not be kept: the server may not write to its folder.") from error
            return folder
    raise AssertionError("numbers end")


def _numbered(root: Path, stem: str) -> Iterator[Path]:
    yield root / stem
    number = 2
    while True:
        yield root / f"{stem}-{number}"
        number += 1


def _shown(name: str) -> str:
    """A file's name as sentences name it."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:120]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
