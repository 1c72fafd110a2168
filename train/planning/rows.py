"""How long a run's rows are, from a sample of them; and the rows of a plan whose data is not there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from vlchat.data.lengths import blank, measure
from vlchat.data.pictures import header
from vlchat.errors import VLChatError

SAMPLED = 48  # rows whose tokens are counted
_DRAWS = 200  # micro-batches that are imagined of them
_ASSUMED = 8  # rows
_WORDS = 180  # of an assumed row, question and answer


@dataclass(frozen=True)
class Row:
    """A row of the sample: where it stands in the run's order, its tokens, and how many of them are a picture's."""

    position: int
    tokens: int
    image_tokens: int


@dataclass(frozen=True)
class Lengths:
    """Median, 95th percentile and longest of the sample.

    Attributes:
        tokens, image_tokens: those three.
        count: rows in the sample that a run takes.
        left_out: rows of it that are longer than `objective.max_length`.
        assumed: there was no data: what the rows are is a guess.
    """

    tokens: tuple[int, int, int]
    image_tokens: tuple[int, int, int]
    count: int
    left_out: int
    assumed: bool


def sample(objective: Any, limit: int | None, count: int = SAMPLED) -> tuple[list[Row], int]:
    """Rows of an objective's mixture, evenly spread, and how many more are longer than `limit`.

    Pictures are not decoded. Rows that can't be used are passed over: a run says what is wrong with them.
    """
    mixture, found, longer = objective.mixture, [], 0
    step = max(1, len(mixture) // count)
    for position in range(0, len(mixture), step)[:count]:
        try:
            example = mixture[position]
            tokens = measure(objective.processor, _blanks(example.messages))
        except VLChatError:
            continue
        if limit is not None and len(tokens) > limit:
            longer += 1
        else:
            found.append(Row(position, len(tokens), tokens.image_tokens))
    return found, longer


def _blanks(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with pictures of the same sizes in which nothing is to be seen."""

    def shown(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "image":
            return part
        image = part["image"]
        size = image.size if isinstance(image, Image.Image) else header(image, "image").size
        return {"type": "image", "image": blank(*(size or (64, 64)))}

    return [{**message, "content": [shown(part) for part in message["content"]]} for message in messages]


def lengths(rows: Sequence[Row], left_out: int, assumed: bool) -> Lengths:
    """The figures of a sample with at least one row."""

    def figures(values: list[int]) -> tuple[int, int, int]:
        values = sorted(values)
        return values[len(values) // 2], values[min(len(values) - 1, int(0.95 * len(values)))], values[-1]

    tokens, pictures = [row.tokens for row in rows], [row.image_tokens for row in rows]
    return Lengths(figures(tokens), figures(pictures), len(rows), left_out, assumed)


def micro_batches(rows: Sequence[Row], size: int, packed: bool) -> tuple[list[int], float]:
    """The positions of the largest of many micro-batches drawn from a sample, and the mean size as a share of its.

    Args:
        packed: rows stand one after another, else each is as long as the longest.
    """
    random = Random("plan")

    def tokens(chosen: Sequence[Row]) -> int:
        return sum(row.tokens for row in chosen) if packed else size * max(row.tokens for row in chosen)

    drawn = [random.choices(rows, k=size) for _ in range(_DRAWS)]
    if not packed:  # sooner or later the longest row comes
        drawn[0][0] = max(rows, key=lambda row: row.tokens)
    sizes = [tokens(chosen) for chosen in drawn]
    largest = drawn[sizes.index(max(sizes))]
    return [row.position for row in largest], sum(sizes) / len(sizes) / max(sizes)


@contextmanager
def assumed_data() -> Iterator[list[dict[str, Any]]]:
    """`data` of a run whose own is not there: rows of one picture, a question and an answer."""
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (640, 480)).save(Path(folder) / "blank.png")
        words = "what is to be seen in this picture and where does it stand ".split() * (_WORDS // 10)
        asked, told = " ".join(words[: _WORDS // 3]), " ".join(words[: 2 * _WORDS // 3])
        rows = [
            {"id": str(number), "image": "blank.png", "question": asked, "answer": told} for number in range(_ASSUMED)
        ]
        file = Path(folder) / "assumed.json"
        file.write_text(json.dumps(rows))
        yield [{"path": str(file)}]
