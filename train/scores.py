"""How well the held-out rows are answered: the loss over all of them, and the scores of answers that are written.

Looking changes nothing of the training: no gradient, no draw from its random generators, no mode of a layer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from train.batches import on_device
from train.heldout import Heldout
from train.memory import halving
from train.randomness import undrawn
from train.ranks import alone, exchange, rank, world_size
from train.sharding import is_sharded, working
from vlchat.chat import Chat
from vlchat.data import Example
from vlchat.data.formats import text_of
from vlchat.errors import DataError
from vlchat.evaluate import evaluate
from vlchat.evaluate.metrics import exact_match
from vlchat.evaluate.tasks.vqa import PEOPLE_FOR_SOFT_ACCURACY, ExamplesTask

_SEED = 20260  # of every look: whatever an objective draws is drawn the same at each


@dataclass(frozen=True)
class Figure:
    """One term of one batch of held-out rows, as `train.terms.Term` has it.

    Attributes:
        place: the batch's first row: sums are made in this order, whichever process found them.
    """

    place: int
    name: str
    total: float
    count: float
    weight: float


@dataclass
class Looked:
    """What a look at the held-out rows found.

    Attributes:
        scores: `loss`, the objective's terms by name where there are several, and of the written answers `exact`, the
            share that is right after the VQA challenge's normalisation, and over rows with the answers of several
            people `score`, their VQA soft accuracy.
        answers: the written answers: id, question, reply, reference, exact and perhaps score.
        losses: which of the scores are better when they are lower.
        bad: the reason for each row that cannot be used, by its name; the scores are without them.
    """

    scores: dict[str, float]
    answers: list[dict[str, Any]] = field(default_factory=list)
    losses: set[str] = field(default_factory=set)
    bad: dict[str, str] = field(default_factory=dict)


@contextmanager
def unmoved(objective: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards modes and random generators are what they were."""
    modes = [(module, module.training) for module in objective.modules()]
    try:
        with undrawn(), torch.no_grad():
            random.seed(_SEED)
            np.random.seed(_SEED)
            torch.manual_seed(_SEED)
            objective.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training


def look(
    objective: Any,
    heldout: Heldout,
    accelerator: Any,
    *,
    batch: int,
    generate: int,
    tokens: int,
) -> Looked:
    """Looks at the held-out rows. Every process has to call it, and gets the same.

    Each process takes every n-th batch of rows, as one process alone would make them, and the sums are made in the
    order of the rows: how many processes there are changes nothing. Of a sharded model all take all rows, in step.

    Args:
        batch: rows at once; halved where the memory is full.
        generate: how many rows are answered; 0 leaves it out.
        tokens: the longest answer.

    Raises:
        DataError: no row can be used. VLChatError: the model answers none of them. LeftOthers: see there.
    """
    together = is_sharded(objective)  # no process can then look at rows by itself
    mine, processes = (0, 1) if together else (rank(), world_size())
    figures: list[Figure] = []
    bad: dict[str, str] = {}
    replies: list[dict[str, Any]] = []
    divisible = not getattr(objective, "whole_batch", False) and not together
    find = partial(_figures, objective, accelerator.device, bad)
    answer = partial(_answers, objective, tokens)
    with unmoved(objective), accelerator.autocast():
        with alone():
            for rows in pieces(len(heldout), batch)[mine::processes]:
                some = heldout.examples[rows.start : rows.stop]
                figures += working(objective, partial(halving, find, some, rows.start, divisible))
        shares = exchange({"figures": [asdict(figure) for figure in figures], "bad": bad})[: 1 if together else None]
        found = [Figure(**figure) for share in shares for figure in share["figures"]]
        looked = averages(sorted(found, key=lambda figure: figure.place))
        looked.bad = {name: reason for share in shares for name, reason in share["bad"].items()}
        if len(looked.bad) == len(heldout):
            raise DataError(f"No held-out row can be used. The first: {next(iter(looked.bad.values()))}")
        asked = chosen([row for row in heldout.examples if row.called not in looked.bad], generate)
        for rows in pieces(len(asked), batch)[mine::processes]:
            some = asked[rows.start : rows.stop]
            replies += working(objective, partial(halving, answer, some, rows.start, not together))
    shares = exchange({"replies": replies})[: 1 if together else None]
    answered = [one for share in shares for one in share["replies"]]
    looked.answers = sorted(answered, key=lambda one: one.pop("place"))
    for name in ("exact", "score"):
        values = [one[name] for one in looked.answers if name in one]
        if values:
            looked.scores[name] = math.fsum(values) / len(values)
    return looked


def averages(figures: Sequence[Figure]) -> Looked:
    """Each term as its total over its count, and `loss`, their weighted sum: what the loop minimises, over all rows."""
    found: dict[str, float] = {}
    weights: dict[str, float] = {}
    for name in dict.fromkeys(figure.name for figure in figures):
        own = [figure for figure in figures if figure.name == name]
        count = math.fsum(figure.count for figure in own)
        found[name] = math.fsum(figure.total for figure in own) / count if count else math.nan
        weights[name] = max(figure.weight for figure in own)
    losses = [name for name in found if weights[name]]
    scores = {"loss": math.fsum(weights[name] * found[name] for name in losses)}
    if len(found) > 1:
        scores |= found
    return Looked(scores, losses={"loss", *losses})


def pieces(rows: int, most: int) -> list[range]:
    """0 .. rows - 1 in pieces of nearly one length: none is left with a single row, which a contrast cannot take."""
    count = -(-rows // most)
    return [range(rows * number // count, rows * (number + 1) // count) for number in range(count)]


def chosen(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` of the examples, the same at every look; all of them where there are no more."""
    if count >= len(examples):
        return list(examples)
    return [examples[number] for number in sorted(random.Random("answers").sample(range(len(examples)), count))]


def _figures(
    objective: Any, device: torch.device, bad: dict[str, str], rows: Sequence[Example], first: int
) -> list[Figure]:
    """The terms of some rows; adds to `bad` those that cannot be used, the reason by name."""
    batch = objective.collated(rows, range(first, first + len(rows)))
    kept = set(batch.pop("ids"))
    reasons = {fault.id: str(fault) for fault in batch.pop("faults")}
    left_out = {row.called: reasons.get(row.id, "left out") for row in rows if row.called not in kept}
    bad |= left_out
    if not kept or (left_out and len(kept) == 1 and getattr(objective, "whole_batch", False)):
        return []  # a row that is left alone has nothing to be compared with
    terms = objective(on_device(batch, device))
    return [Figure(first, name, float(t.total), float(t.count), float(t.weight)) for name, t in terms.items()]


def _answers(objective: Any, tokens: int, rows: Sequence[Example], first: int) -> list[dict[str, Any]]:
    """The rows answered and scored by what `vlchat eval` runs."""
    task = ExamplesTask(list(rows))
    chat = Chat(objective.model, objective.processor)
    result = evaluate(chat, task, batch_size=len(rows), max_new_tokens=tokens, progress=False)
    return [
        {
            "place": first + number,
            "id": item.id,
            "question": text_of(item.messages[-1]),
            "reply": row["reply"][0],
            "reference": item.reference,
            "exact": exact_match(row["reply"][0], item.answers),
        }
        | ({"score": row["score"]} if len(item.answers) >= PEOPLE_FOR_SOFT_ACCURACY else {})
        for number, (item, row) in enumerate(zip(task.items(), result.rows, strict=True))
    ]
