"""A loss as sums and counts, so that micro-batches and processes add up to exactly the loss of the whole batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass
class Term:
    """One part of a loss, or a figure to watch, on one micro-batch.

    Attributes:
        total: () float32, the sum over what is counted, not a mean.
        count: over how much it is: supervised tokens, rows, cells.
        weight: in the loss; 0 for what is only watched, such as an accuracy.
    """

    total: torch.Tensor
    count: float
    weight: float = 1.0


def add(counts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Sums by name, over micro-batches or processes."""
    whole: dict[str, float] = {}
    for one in counts:
        for name, count in one.items():
            whole[name] = whole.get(name, 0.0) + count
    return whole


def loss_of(terms: dict[str, Term], counts: dict[str, float]) -> torch.Tensor:
    """What one micro-batch gives to the loss of the whole batch.

    Args:
        terms: of the micro-batch.
        counts: of the whole batch, over all micro-batches and processes, one for each term that has a weight.
    """
    parts = [term.weight * term.total / (counts[name] or 1.0) for name, term in terms.items() if term.weight]
    return torch.stack(parts).sum()
