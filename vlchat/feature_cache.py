"""What a frozen tower makes of pictures, kept on disk: a picture that was seen before is neither decoded nor encoded.

One file a picture, in a folder for all that its features depend on besides its bytes. A file is the SHA-256 of what
follows, and safetensors. It is written under another name and renamed, so that any number of processes may read, write
and make room in one folder at once; what is damaged is as good as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save

from vlchat.errors import ConfigError

_FEATURES = "*/*/*.features"
_PARTIAL = "*/*/*.partial"
_DIGEST = 32  # bytes
_LOOK = 64  # a process looks at the folder's size each time it has written this share of the limit
_SPARED = 0.9  # of the limit stays when room is made
_ABANDONED = 3600.0  # seconds after which a file that nobody finished is taken for one of a process that died


class FeatureCache:
    """Features of pictures by the hash of their bytes.

    Args:
        folder: may be shared by runs, processes and models; it is made where it is missing.
        gib: how much all of it may take. What was used longest ago goes first. While several processes write, it may be
            more by a 64th for each.
        depends: all that the features depend on besides a picture's bytes, as JSON.
        say: is told, once, that no more is written, and why.

    Raises:
        ConfigError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, gib: float, depends: dict[str, Any], say: Callable[[str], None] = print) -> None:
        written = json.dumps(depends, sort_keys=True, default=str)
        self.root, self.limit, self.say = folder, int(gib * 2**30), say
        self.folder = folder / hashlib.sha256(written.encode()).hexdigest()[:32]
        self.writes = True
        self._room = 0  # bytes that may be written before the folder is looked at again
        self._full = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ConfigError(
                f"Features of pictures can't be kept in {folder}: {error.strerror}. Name another folder, or leave the "
                "cache out."
            ) from error

    def get(self, key: str) -> torch.Tensor | None:
        """The features of a picture, of the shape and dtype that they had; None where they are absent or damaged."""
        file = self._file(key)
        try:
            data = file.read_bytes()
        except OSError:
            return None
        features = _read(data)
        with contextlib.suppress(OSError):  # another process may have made room of it
            file.unlink() if features is None else os.utime(file)
        return features

    def put(self, key: str, features: torch.Tensor) -> None:
        """Keeps the features of a picture. Where that fails nothing more is written, and `say` is told once."""
        if not self.writes:
            return
        file, data = self._file(key), save({"features": features.detach().cpu().contiguous()})
        data = hashlib.sha256(data).digest() + data
        if len(data) > self.limit:
            self.writes = False
            self.say(
                f"Nothing more is kept in {self.root}: it may take {self.limit:,} bytes, and the features of one "
                f"picture take {len(data):,}. Raise objective.feature_cache.gib."
            )
            return
        name = None
        try:
            self._make_room(len(data))
            file.parent.mkdir(exist_ok=True)
            handle, name = tempfile.mkstemp(dir=file.parent, suffix=Path(_PARTIAL).suffix)
            with open(handle, "wb") as stream:
                stream.write(data)
            os.replace(name, file)
        except OSError as error:
            self.writes = False
            if name is not None:
                with contextlib.suppress(OSError):
                    os.unlink(name)
            self.say(
                f"Features of pictures can't be written to {self.root} any more: {error.strerror}. The run goes on "
                "with those that are there, and computes the others."
            )

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.features"

    def _make_room(self, size: int) -> None:
        if size > self._room:
            there = self._there()
            total = sum(one for _, one, _ in there)
            if total + size > self.limit:
                if not self._full:
                    self._full = True
                    self.say(
                        f"The features of pictures in {self.root} have reached {self.limit / 2**30:g} GiB: those used "
                        "longest ago make room. Where a pass over the data has more than that, few are found again."
                    )
                for _, one, file in sorted(there):
                    if total + size <= _SPARED * self.limit:
                        break
                    with contextlib.suppress(OSError):
                        os.unlink(file)
                    total -= one
            self._room = min(self.limit - total, self.limit // _LOOK)
        self._room -= size

    def _there(self) -> list[tuple[float, int, str]]:
        """When it was used, its bytes and its name, of each file. Half-written ones of dead processes go."""
        found = []
        for pattern in (_FEATURES, _PARTIAL):
            for file in self.root.glob(pattern):
                try:
                    status = file.stat()
                    if pattern == _PARTIAL and time.time() - status.st_mtime > _ABANDONED:
                        file.unlink()
                    elif pattern == _FEATURES:
                        found.append((status.st_mtime, status.st_size, str(file)))
                except OSError:  # gone meanwhile
                    continue
        return found


def key_of(picture: bytes | Image.Image) -> str:
    """What names a picture: the hash of a file's bytes, or of the pixels of one that is upright and RGB."""
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    return hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()


def tensors_digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers: their names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(data: bytes) -> torch.Tensor | None:
    if hashlib.sha256(memoryview(data)[_DIGEST:]).digest() != data[:_DIGEST]:
        return None
    try:
        return load(data[_DIGEST:])["features"]
    except (SafetensorError, KeyError):
        return None
