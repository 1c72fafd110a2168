"""What a model, a picture and a request are, as hashes: the keys of the answer cache and the lines of a certificate."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from vlchat import models
from vlchat.evaluate.blind import Blurred
from vlchat.evaluate.items import Request
from vlchat.folders import adapter_base, is_adapter, newest, read_manifest, sha256, weights_digest
from vlchat.places import locate, resolve_base

# What besides its weights decides what a model answers.
_SETTINGS = ("*config.json", "tokenizer*", "*.jinja", "vocab*", "merges.txt", "special_tokens_map.json")


def model_identity(path_or_id: str | Path | None = None, revision: str | None = None) -> str:
    """A hash of a checkpoint's weights, configuration, tokenizer and chat template, and of what it stands on.

    Of a model on the Hub its id and commit.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    folder, revision = locate(models.resolve(path_or_id), revision)
    return _of_folder(folder) if isinstance(folder, Path) else _of_hub(folder, revision)


def _of_folder(folder: Path) -> str:
    digest = hashlib.sha256(f"weights {weights_digest(folder)}\n".encode())
    for pattern in _SETTINGS:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                digest.update(f"{file.name} {sha256(file)}\n".encode())
    manifest = read_manifest(folder)
    if manifest is not None and manifest.get("base"):
        for part, base in sorted(resolve_base(folder, manifest).items()):
            found = newest(Path(base)) if base is not None else None
            whole = found is None or found.is_dir()
            digest.update(f"{part} {model_identity(found) if whole else _of_hub(str(base), None)}\n".encode())
    elif is_adapter(folder):
        base, revision = adapter_base(folder)
        digest.update(f"base {model_identity(base, revision)}\n".encode())
    return digest.hexdigest()


def _of_hub(repository: str, revision: str | None) -> str:
    """An id with the commit that the cache holds; without one, as where nothing was downloaded yet, its revision."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "config.json", revision=revision)
    commit = Path(found).parent.name if isinstance(found, str) else revision or "main"
    return f"{repository}@{commit}"


def request_key(request: Request) -> str:
    """A hash of everything a request says: words, pictures, choices, decoding."""
    said = {
        "messages": [
            {"role": message["role"], "content": [_part(part) for part in message["content"]]}
            for message in request.messages
        ],
        "choices": request.choices,
        "max_new_tokens": request.max_new_tokens,
        "beams": request.beams,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def picture_key(picture: Any) -> str:
    """A hash of a picture's bytes, of its pixels where it was never a file, or of its path where there is none."""
    if isinstance(picture, Blurred):
        return f"blurred {picture_key(picture.picture)}"
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    if isinstance(picture, Image.Image):
        return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).hexdigest()
    path = Path(picture)
    if not path.is_file():
        return hashlib.sha256(f"no file {picture}".encode(errors="surrogatepass")).hexdigest()
    found = path.stat()
    return _of_file(str(path), found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=100_000)
def _of_file(path: str, changed: int, size: int) -> str:
    return sha256(Path(path))


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part["type"]
    if kind == "text":
        return {"text": part["text"].encode(errors="surrogatepass").hex() if not _plain(part["text"]) else part["text"]}
    others = {name: value for name, value in part.items() if name not in ("type", kind)}
    return {kind: picture_key(part[kind]), **others}


def _plain(text: str) -> bool:
    """Whether it can be written as UTF-8; half an emoji, as cut texts end in, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
