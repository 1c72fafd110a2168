"""Pictures with texts that belong to them or do not: labelled rows, drawn negatives, and Winoground's rows of two."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from vlchat.data import Example, Source, SourceConfig, load_source
from vlchat.data.fields import picture, required, string
from vlchat.data.formats import text_of
from vlchat.errors import DataError
from vlchat.evaluate.captioned import Captioned
from vlchat.evaluate.embeddings import Picture

LABEL_KEYS = ("match", "label")
_YES = ("yes", "true", "1", "match", "entailment")
_NO = ("no", "false", "0", "mismatch", "no match", "contradiction")
_STATEMENT = re.compile(r"^\s*true or false\s*[:,?.]?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """A picture and a text, and whether they belong together.

    Attributes:
        id: unique within the task.
        cluster: pairs with the same one share a picture.
    """

    id: str
    picture: Picture
    text: str
    match: bool
    cluster: str


@dataclass(frozen=True)
class Quadruple:
    """Two pictures and two captions; number n of each belongs to number n of the other."""

    id: str
    pictures: tuple[Picture, Picture]
    texts: tuple[str, str]
    tag: str | None = None


def is_quadruple(row: Any) -> bool:
    """Whether a raw row is of Winoground's shape: image_0, image_1, caption_0, caption_1."""
    return isinstance(row, Mapping) and {"image_0", "image_1", "caption_0", "caption_1"} <= row.keys()


def read_quadruples(source: Source) -> list[Quadruple]:
    """Winoground's rows (Thrush et al. 2022, arXiv 2204.03162). Raises DataError for a row that is none."""
    found = []
    for index in range(len(source)):
        row = source.rows[index]
        try:
            shown = [picture(required(row, f"image_{n}", "row"), f"image_{n}") for n in (0, 1)]
            one, two = (source.find(value) if isinstance(value, str) else value for value in shown)
            texts = [string(required(row, f"caption_{n}", "row"), f"caption_{n}") for n in (0, 1)]
        except DataError as error:
            raise error.within(f"{source.name}: row {index + 1}") from error
        tag = row.get("collapsed_tag") or row.get("tag")
        name = f"{row.get('id', '')} #{index + 1}".strip()
        found.append(Quadruple(name, (one, two), (texts[0], texts[1]), None if tag is None else str(tag)))
    return found


def read_pairs(config: SourceConfig, label: str | None = None) -> list[Pair] | None:
    """Labelled rows in any format; None where the first row has no label, so that mismatches are to be drawn.

    The label is the field `label`, by default `match` or `label`, of a captioned picture; of a question, the yes or no,
    true or false that answers it, the question being the text.

    Raises:
        DataError: a row without a label among others, or with one that is neither yes nor no, or not one picture.
    """
    source = load_source(config)
    if label is None and _label(source.example(0), None) is None:
        return None
    found = []
    clusters: dict[Any, int] = {}
    for number, example in enumerate(source, 1):
        told = _label(example, label)
        if told is None:
            wanted = label or " or ".join(LABEL_KEYS)
            raise DataError(
                f"{example.called} does not say whether picture and text belong together: its {wanted} must be one of "
                f"{', '.join(_YES[:4])} or {', '.join(_NO[:4])}, as must the answer of a question"
            )
        if len(example.images) != 1 or example.videos:
            raise DataError(f"{example.called} shows {len(example.images)} pictures; matching takes one")
        shown = example.images[0]
        cluster = clusters.setdefault(shown if isinstance(shown, Path | bytes) else number, len(clusters))
        found.append(Pair(f"{example.id} #{number}", shown, told[0], told[1], f"picture {cluster}"))
    return found


def drawn_pairs(rows: Sequence[Captioned], seed: int) -> list[Pair]:
    """Each text with its picture, and each picture, as often, with a text of another that is none of its own.

    Args:
        seed: of the draw, a function of it and of the texts alone.

    Raises:
        DataError: all pictures have the same texts.
    """
    random = Random(f"vlchat-mismatch/{seed}")
    everything = [text for row in rows for text in row.texts]
    found = []
    for number, row in enumerate(rows):
        own = {_plain(text) for text in row.texts}
        for which, text in enumerate(row.texts, 1):
            wrong = next((one for one in random.choices(everything, k=64) if _plain(one) not in own), None)
            if wrong is None:  # nearly all are the same
                others = [one for one in everything if _plain(one) not in own]
                if not others:
                    raise DataError(f"every text of {row.name} is said of all pictures: there is no mismatch to draw")
                wrong = random.choice(others)
            for name, said, match in (("own", text, True), ("other", wrong, False)):
                found.append(Pair(f"{row.id} {name} {which}", row.picture, said, match, f"picture {number}"))
    return found


def _label(example: Example, label: str | None) -> tuple[str, bool] | None:
    """The text of a row and whether it matches."""
    key = label or next((key for key in LABEL_KEYS if example.meta.get(key) is not None), None)
    if key is not None and example.meta.get(key) is not None and example.format == "caption":
        match = _truth(example.meta[key])
        return None if match is None else (example.answer, match)
    answered = _truth(example.answer) if label is None and example.format != "caption" else None
    if answered is None:
        return None
    asked = next((text_of(message) for message in reversed(example.messages) if message["role"] == "user"), "")
    return _STATEMENT.sub("", asked), answered


def _truth(value: Any) -> bool | None:
    plain = str(value).strip().rstrip(".").lower()
    return True if plain in _YES else False if plain in _NO else None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")

