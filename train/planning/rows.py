"""How long a run's rows are, from a sample of them; and the rows of a plan whose data is not there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from train.batches import Plan
from train.grouping import Budget, grouped
from vlchat.data.lengths import blank, measure, shorten
from vlchat.data.pictures import header
from vlchat.errors import VLChatError
from vlchat.evaluate.blind import images_of

SAMPLED = 48  # rows whose tokens are counted
_DRAWS = 200  # micro-batches that are imagined of them, or a little more
_FEWEST = 8  # steps
_ASSUMED = 8  # rows
_WORDS = 180  # of an assumed row, question and answer


@dataclass(frozen=True)
class Row:
    """A row of the sample: where it stands in the run's order, its tokens, how many of them are pictures', and how many
    pictures it shows."""

    position: int
    tokens: int
    image_tokens: int
    pictures: int


@dataclass(frozen=True)
class Lengths:
    """Median, 95th percentile and longest of the sample.

    Attributes:
        tokens, image_tokens: those three.
        count: rows in the sample that a run takes.
        left_out: rows of it that are longer than `objective.max_length`, and can't be shortened or are not to be.
        assumed: there was no data: what the rows are is a guess.
    """

    tokens: tuple[int, int, int]
    image_tokens: tuple[int, int, int]
    count: int
    left_out: int
    assumed: bool


def sample(objective: Any, count: int = SAMPLED) -> tuple[list[Row], int]:
    """Rows of an objective's mixture, evenly spread, and how many more are too long for it and are left out.

    Pictures are not decoded. Rows that can't be used are passed over: a run says what is wrong with them.
    """
    mixture, limit, found, left_out = objective.mixture, objective.max_length, [], 0
    step = max(1, len(mixture) // count)
    for position in range(0, len(mixture), step)[:count]:
        try:
            messages: Any = _blanks(mixture[position].messages)
            tokens = measure(objective.processor, messages)
            if limit is not None and len(tokens) > limit:
                messages = _shortened(objective, messages) if objective.too_long == "shorten" else None
                if messages is None:
                    left_out += 1
                    continue
                tokens = measure(objective.processor, messages)
        except VLChatError:
            continue
        found.append(Row(position, len(tokens), tokens.image_tokens, len(images_of(messages))))
    return found, left_out


def _shortened(objective: Any, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """As `vlchat.data.Collator` does it."""
    found = shorten(messages, objective.max_length, lambda some: len(measure(objective.processor, some)))
    return None if found is None else found[0]


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


@dataclass(frozen=True)
class Pieces:
    """The micro-batches that one process's rows of a step come in.

    Attributes:
        positions: of the rows of the largest one.
        count: how many there are, at most.
        share: the mean step as a share of so many of the largest.
    """

    positions: list[int]
    count: int
    share: float


def pieces(rows: Sequence[Row], plan: Plan, budget: Budget, by_length: bool) -> Pieces:
    """What many steps drawn from a sample come in, by the same code as a run's.

    Args:
        budget: what a micro-batch may hold.
        by_length: rows of similar length are taken at once (`train.grouping`), else as they come.
    """
    random = Random("plan")
    # Without lengths no process is told from another; with them the others wait for the one with the most tokens.
    as_they_come = [[list(piece) for piece in replace(plan, rank=0).micro_batches(0)]]
    positions: list[int] = []
    count, largest = 0, 0
    costs: list[int] = []
    for draw in range(max(_FEWEST, _DRAWS // len(as_they_come[0]))):
        step = random.choices(rows, k=plan.batch)
        if draw == 0:  # sooner or later the longest row comes
            step[0] = max(rows, key=lambda row: row.tokens)
        lengths = [row.tokens for row in step]
        shares = grouped(lengths, budget, plan.processes) if by_length else as_they_come
        found = [[(budget.cost([lengths[row] for row in piece]), piece) for piece in share] for share in shares]
        count = max(count, *map(len, found))
        costs.append(max(sum(cost for cost, _ in share) for share in found))
        cost, piece = max((one for share in found for one in share), key=lambda one: one[0])
        if cost > largest:
            largest, positions = cost, [step[row].position for row in piece]
    return Pieces(positions, count, sum(costs) / len(costs) / (count * largest))


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
