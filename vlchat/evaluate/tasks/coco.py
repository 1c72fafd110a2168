"""COCO's annotation files of captions: `images` and `annotations` in one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlchat.data import Source, SourceConfig
from vlchat.errors import ConfigError, DataError


def is_coco(path: str) -> bool:
    """Whether a data file is one JSON object instead of a list of rows."""
    file = Path(path)
    if file.suffix.lower() != ".json" or not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def coco_captions(config: SourceConfig) -> tuple[Source, int, int]:
    """The pictures of an annotation file with their captions, as rows of the format `caption`.

    The layout is that of captions_val2014.json (cocodataset.org, also nocaps and TextCaps): `images` with `id` and
    `file_name`, `annotations` with `image_id` and `caption`.

    Args:
        config: `path` is the file, `images` the folder of its pictures (the file's own folder, or `images/` in it, by
            default), `limit` the first so many pictures with captions.

    Returns:
        the rows in the order of `images`, how many pictures have no caption, and how many there are.

    Raises:
        DataError: the file is not of this layout; says which entry and field. ConfigError: an option that it has no
            place for.
    """
    if config.split is not None or config.format not in (None, "caption"):
        raise ConfigError(f"{config.path} is an annotation file of COCO; leave `split` and `format` out")
    if config.limit is not None and config.limit < 1:
        raise ConfigError(f"limit is {config.limit} for {config.path}; it must be at least 1")
    file = Path(config.path)
    try:
        found = json.loads(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name} is not valid JSON: {error}", kind="not_json") from error
    captions: dict[Any, list[str]] = {}
    for number, entry in enumerate(_listed(found, "images", file)):
        where = f"{file.name}: images[{number}]"
        if (key := _field(entry, "id", (int, str), where)) in captions:
            raise DataError(f"{where} has the id {key!r}, which an earlier picture has", kind="duplicate_id")
        captions[key] = []
        _field(entry, "file_name", (str,), where)
    for number, entry in enumerate(_listed(found, "annotations", file)):
        where = f"{file.name}: annotations[{number}]"
        key = _field(entry, "image_id", (int, str), where)
        if key not in captions:
            raise DataError(f"{where}: no picture in `images` has the id {key!r}", kind="missing_field")
        if text := _field(entry, "caption", (str,), where).strip():
            captions[key].append(text)
    rows = [
        {"id": entry["id"], "image": entry["file_name"], "captions": captions[entry["id"]]}
        for entry in found["images"]
        if captions[entry["id"]]
    ]
    if not rows:
        raise DataError(f"{file.name}: no picture has a caption (test sets come without)")
    source = Source(rows[: config.limit], name=file.name, roots=_folders(config), format="caption")
    return source, len(captions) - len(rows), len(captions)


def _folders(config: SourceConfig) -> list[Path]:
    if config.images is not None:
        if not Path(config.images).is_dir():
            raise DataError(f"the image folder {config.images} does not exist or is not a folder")
        return [Path(config.images)]
    folder = Path(config.path).parent
    return [folder, folder / "images"] if (folder / "images").is_dir() else [folder]


def _listed(found: Any, name: str, file: Path) -> list[Any]:
    if not isinstance(entries := found.get(name), list):
        raise DataError(
            f"{file.name} is one JSON object, as COCO's annotation files are, but has no list `{name}`; its keys are "
            f"{', '.join(map(str, found)) or 'none'}. Other formats are lists of rows.",
            kind="unknown_format",
        )
    return entries


def _field(entry: Any, name: str, kinds: tuple[type, ...], where: str) -> Any:
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = " or ".join({int: "a number", str: "text"}[kind] for kind in kinds)
        raise DataError(f"{where}.{name} must be {wanted}; it is {value!r:.80}", kind="wrong_type")
    return value
