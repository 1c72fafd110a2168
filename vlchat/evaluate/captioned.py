"""Pictures with everything that is said of them: rows that share a picture joined, and the official caption files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlchat.data import Example, SourceConfig, load_source
from vlchat.data.formats import CAPTION_KEYS
from vlchat.data.paths import resolve_image
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.embeddings import Picture
from vlchat.evaluate.identity import picture_key


@dataclass(frozen=True)
class Captioned:
    """A picture and its texts.

    Attributes:
        id: of its first row.
        picture: a file, or bytes, or a PIL image; not decoded yet.
        name: what tables and messages call it.
        texts: what is said of it, at least one.
    """

    id: str
    picture: Picture
    name: str
    texts: tuple[str, ...]


def read_captioned(config: SourceConfig, captions: int | None = None) -> list[Captioned]:
    """The captioned pictures of a data file in any format, or of an official one.

    Official are Karpathy's `dataset_coco.json` and `dataset_flickr30k.json` (split `test` unless another is named;
    `train` takes `restval` too, as everybody's does) and COCO's own `captions_val2017.json`. Of conversations the last
    answer is the text.

    Args:
        config: `limit` counts pictures; `images` is where the pictures lie.
        captions: at most so many of each picture; None takes all.

    Raises:
        DataError: a row cannot be used, has not one picture, or says nothing.
    """
    if captions is not None and captions < 1:
        raise ConfigError(f"captions is {captions}; it must be at least 1")
    if config.limit is not None and config.limit < 1:
        raise ConfigError(f"limit is {config.limit} for {config.path}; it must be at least 1")
    path = Path(config.path)
    official = _official(path) if path.suffix.lower() == ".json" and path.is_file() else None
    if official is None:
        pairs = _rows(config)
    elif "annotations" in official:
        pairs = _coco(official, config)
    else:
        pairs = _karpathy(official, config)
    joined: dict[str, Captioned] = {}
    for one in pairs:
        key = str(one.picture.resolve()) if isinstance(one.picture, Path) else picture_key(one.picture)
        known = joined.get(key)
        joined[key] = one if known is None else replace(known, texts=known.texts + one.texts)
    found = list(joined.values())[: config.limit]
    twice = len({one.id for one in found}) < len(found)
    return [
        replace(one, texts=one.texts[:captions], id=f"{one.id} #{number}" if twice else one.id)
        for number, one in enumerate(found, 1)
    ]


def _rows(config: SourceConfig) -> list[Captioned]:
    found = []
    source = load_source(replace(config, limit=None))
    for example in source:
        if len(example.images) != 1 or example.videos:
            raise DataError(
                f"{example.called} shows {len(example.images)} pictures; retrieval compares one picture with its texts"
            )
        picture = example.images[0]
        texts = [text for text in _texts(example) if text.strip()]
        if not texts:
            raise DataError(f"{example.called} says nothing of its picture: give it a caption or leave it out")
        name = picture.name if isinstance(picture, Path) else example.id
        found.append(Captioned(example.id, picture, name, tuple(texts)))
    return found


def _texts(example: Example) -> list[str]:
    """All captions of a row; tags describe a picture together, and are one text."""
    key = next((key for key in CAPTION_KEYS if example.meta.get(key) is not None), None)
    given = example.meta.get(key) if example.format == "caption" and key not in (None, "tags") else None
    if isinstance(given, list):
        return [str(text) for text in given]
    return [example.answer]


def _official(path: Path) -> Mapping[str, Any] | None:
    with path.open("rb") as file:
        if not file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path.name} is not valid JSON: {error}", kind="not_json") from error
    if not isinstance(found.get("images"), list):
        raise DataError(
            f"{path.name} is one object with the keys {', '.join(map(str, list(found)[:6])) or 'none'}; known are "
            "lists of rows, Karpathy's dataset_*.json and COCO's captions_*.json"
        )
    return found


def _karpathy(data: Mapping[str, Any], config: SourceConfig) -> list[Captioned]:
    wanted = config.split or "test"
    splits = {wanted, "restval"} if wanted == "train" else {wanted}
    found = []
    for number, image in enumerate(data["images"]):
        where = f"{Path(config.path).name}: images[{number}]"
        try:
            if image["split"] not in splits:
                continue
            name = f"{image['filepath']}/{image['filename']}" if image.get("filepath") else image["filename"]
            texts = tuple(sentence["raw"] for sentence in image["sentences"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{where} is not as Karpathy's files are: {error} is missing") from error
        if not texts:
            raise DataError(f"{where} has no sentences")
        called = str(image.get("cocoid", image.get("imgid", number)))
        found.append(Captioned(called, _find(name, config, where), name, texts))
    if not found:
        known = sorted({str(image.get("split")) for image in data["images"]})
        raise DataError(f'{config.path} has no pictures of the split "{wanted}"; its splits: {", ".join(known)}')
    return found


def _coco(data: Mapping[str, Any], config: SourceConfig) -> list[Captioned]:
    try:
        texts: dict[Any, list[str]] = {image["id"]: [] for image in data["images"]}
        for annotation in data["annotations"]:
            texts[annotation["image_id"]].append(annotation["caption"].strip())
        named = [(image["id"], image["file_name"]) for image in data["images"] if texts[image["id"]]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{config.path} is not as COCO's captions are: {error}") from error
    return [
        Captioned(str(key), _find(name, config, f"{Path(config.path).name}: picture {key}"), name, tuple(texts[key]))
        for key, name in named
    ]


def _find(name: str, config: SourceConfig, where: str) -> Path:
    folder = Path(config.images) if config.images is not None else Path(config.path).parent
    roots = [folder] if config.images is not None else [folder, folder / "images"]
    try:
        found = resolve_image(name, [root for root in roots if root.is_dir()])
    except DataError as error:
        raise error.within(where) from error
    if found is None:
        looked = ", ".join(map(str, roots))
        raise DataError(
            f'{where}: "{name}" was not found in {looked}. Name the folder of the pictures as images.',
            kind="missing_file",
            field="image",
        )
    return found
