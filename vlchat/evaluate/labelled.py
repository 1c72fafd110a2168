"""Pictures with a class: rows with a label, or a folder with a folder for each class."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlchat.data import SourceConfig, load_source
from vlchat.data.fields import keys_of, pictures, string
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.embeddings import Picture

LABEL_KEYS = ("label", "class", "category")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")


@dataclass(frozen=True)
class Labelled:
    """A picture and its class.

    Attributes:
        id: the row's own, or its number; of a folder the path.
        picture: a file, or bytes, or a PIL image; not decoded yet.
        label: as the data has it.
    """

    id: str
    picture: Picture
    label: str


def read_labelled(config: SourceConfig, label: str | None = None) -> list[Labelled]:
    """The pictures of a data file with their labels, or of a folder with one folder for each class.

    Args:
        config: of a folder only path and limit count; the limit takes as many of each class as it can.
        label: the field that holds the class; None takes the first of `label`, `class`, `category`, and of questions
            the answer.

    Raises:
        DataError: a row has no label, or not one picture; a folder holds no pictures.
    """
    if config.limit is not None and config.limit < 1:
        raise ConfigError(f"limit is {config.limit} for {config.path}; it must be at least 1")
    folder = Path(config.path)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _folders(folder, config.limit)
    source = load_source(config)
    found = []
    for index in range(len(source)):
        where = f"{source.name}: row {index + 1}"
        try:
            found.append(_row(source.rows[index], source, label, index))
        except DataError as error:
            raise error.within(where) from error
    return found


def _row(row: Any, source: Any, label: str | None, index: int) -> Labelled:
    if not isinstance(row, Mapping):
        raise DataError(f"a row must be an object with named fields, not {type(row).__name__}", kind="not_an_object")
    shown = pictures(row)
    if len(shown) != 1:
        raise DataError(f"it shows {len(shown)} pictures; classification takes one", field="image")
    keys = (label,) if label is not None else (*LABEL_KEYS, "answer")
    key = next((key for key in keys if row.get(key) is not None), None)
    if key is None:
        if empty := [key for key in keys if key in row]:
            raise DataError(f"its {empty[0]} is null: fill it in, or leave the row out", kind="missing_field")
        raise DataError(
            f"it has no {' or '.join(keys)}, only {keys_of(row)}. Name the field of the class as label",
            kind="missing_field",
        )
    picture = source.find(shown[0]) if isinstance(shown[0], str) else shown[0]
    return Labelled(str(row.get("id", f"#{index + 1}")), picture, string(row[key], key).strip())


def _folders(folder: Path, limit: int | None) -> list[Labelled]:
    inside = folder.resolve()
    by_class = []
    for kind in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in kind.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        out = next((path for path in files if not path.resolve().is_relative_to(inside)), None)
        if out is not None:
            raise DataError(f"{out} is a link that leads out of {folder}: put the picture itself there", field="image")
        by_class.append([Labelled(path.relative_to(folder).as_posix(), path, kind.name) for path in files])
    found = [one for some in by_class for one in some]
    if not found:
        raise DataError(
            f"{folder} holds no folders with pictures ({', '.join(ENDINGS)}): one folder for each class is needed"
        )
    if limit is not None and limit < len(found):
        turns = sorted((number, one.id, one) for some in by_class for number, one in enumerate(some))
        found = sorted((one for _, _, one in turns[:limit]), key=lambda one: one.id)
    return found


def class_names(
    wanted: str | Sequence[str] | Mapping[str, str] | None, labels: Sequence[str]
) -> tuple[list[str], list[int]]:
    """The classes to choose from, as prompts name them, and the number of each row's class.

    Args:
        wanted: names, or LABEL -> name, or a file: .json with either, or text with a name a line; or names with commas
            between. Of names, a label may also be the number of one, from 0. None takes the labels that occur.
        labels: of the rows.

    Raises:
        ConfigError: names that cannot be read, or that are fewer than two. DataError: a label that is none of them.
    """
    if isinstance(wanted, str):
        wanted = _read_names(wanted)
    if wanted is None:
        known = sorted(set(labels))
        table = {label: number for number, label in enumerate(known)}
        names = [label.replace("_", " ") for label in known]
    elif isinstance(wanted, Mapping):
        table = {str(label): number for number, label in enumerate(wanted)}
        names = [str(name) for name in wanted.values()]
    else:
        names = [str(name) for name in wanted]
        table = {str(number): number for number in range(len(names))} | {name: n for n, name in enumerate(names)}
        table |= {name.replace(" ", "_"): number for number, name in enumerate(names)}
    if len(names) < 2:
        raise ConfigError(f"there are {len(names)} classes to choose from; classification needs two or more")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f'two classes are called "{twice}": no answer could tell them apart. Name them as classes.')
    if absent := sorted({label for label in labels if label not in table}):
        raise DataError(f'the label "{absent[0]}" is none of the {len(names)} classes, such as "{names[0]}"')
    return names, [table[label] for label in labels]


def _read_names(wanted: str) -> Any:
    path = Path(wanted)
    if not path.is_file():
        if "," not in wanted:
            raise ConfigError(f"classes is {wanted}, and there is no such file. Give a file, or names with commas.")
        return [name.strip() for name in wanted.split(",") if name.strip()]
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as names of classes: {error}") from error
    if not isinstance(found, list | dict):
        raise ConfigError(f"{path} must hold a list of names, or an object LABEL -> name")
    return found if isinstance(found, dict) else [name for name in found if name != ""]
