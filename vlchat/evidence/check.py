"""Whether an evidence map tells the truth: what is covered where it points must matter more than elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlchat.chat import Chat
from vlchat.data.formats import Message
from vlchat.errors import VLChatError
from vlchat.evidence.heat import Evidence, Heat
from vlchat.evidence.likelihood import AT_ONCE, asked, shown
from vlchat.evidence.signals import covered


@dataclass(frozen=True)
class Deletion:
    """What covering a part of the pictures costs an answer, in nats of its log-likelihood; positive is a loss.

    Attributes:
        shown: covering the places that the map points at.
        random: covering as many places drawn at random; one number a draw.
        elsewhere: covering the pointed-at shape moved to another place; one number a draw.
        share: of all places that were covered.
    """

    shown: float
    random: tuple[float, ...]
    elsewhere: tuple[float, ...]
    share: float

    @property
    def over_random(self) -> float:
        """How much more the shown places cost than random ones, in nats."""
        return self.shown - float(np.mean(self.random))

    @property
    def over_elsewhere(self) -> float:
        """How much more the shown places cost than their shape elsewhere, in nats."""
        return self.shown - float(np.mean(self.elsewhere))


def deletion_check(
    chat: Chat,
    messages: Sequence[Message],
    found: Evidence,
    *,
    share: float = 0.125,
    draws: int = 8,
    seed: int = 0,
    blur: bool = False,
    at_once: int = AT_ONCE,
) -> Deletion:
    """Covers the hottest `share` of the places of a map, and as many others, and compares the answer's log-likelihood.

    The deletion test of RISE (arXiv:1806.07421) at one point, with random places of the same area as the control. The
    pictures of a conversation are taken together: the hottest places may all lie in one of them.

    Args:
        messages: the conversation that `found` is about.
        share: of the places, above 0 and below 1; at least one place is covered.
        draws: random places, and moved shapes, drawn each.
        blur: cover by a strong blur instead of each picture's mean colour.
        at_once: variants in one pass; others who use the model come between two passes.
    """
    if not 0 < share < 1 or draws < 1:
        raise VLChatError(f"share is {share} and draws {draws}: share lies between 0 and 1, draws is at least 1.")
    maps = found.maps
    rng = np.random.default_rng(seed)
    flat = np.concatenate([heat.values.ravel() for heat in maps])
    count = max(1, round(share * len(flat)))
    # Equal values in random order: a map that says nothing is then no better than chance.
    hottest = np.lexsort((rng.random(len(flat)), -flat))[:count]
    chosen = [_mask(hottest, maps)]
    chosen += [_mask(rng.permutation(len(flat))[:count], maps) for _ in range(draws)]
    chosen += [_moved(chosen[0], rng) for _ in range(draws)]
    pictures = [heat.seen for heat in maps]
    variants = [(0, pictures)] + [
        (0, [covered(picture, hidden, blur) for picture, hidden in zip(pictures, masks, strict=True)])
        for masks in chosen
    ]
    lesson = asked(chat, [messages], [found.answer], [found.word])
    whole, *rest = shown(chat, lesson, variants, at_once)
    costs = [whole - score for score in rest]
    return Deletion(costs[0], tuple(costs[1 : 1 + draws]), tuple(costs[1 + draws :]), count / len(flat))


def mass_inside(heat: Heat, box: tuple[float, float, float, float]) -> tuple[float, float]:
    """The share of a map's heat that lies in a box, and the box's share of the picture.

    Args:
        box: left, top, right and bottom as shares of the picture's sides. A place that it cuts counts by its part.
    """
    rows, columns = heat.values.shape
    left, top, right, bottom = box
    down, across = _inside(top, bottom, rows), _inside(left, right, columns)
    total = float(heat.values.sum())
    inside = float((heat.values * down[:, None] * across[None]).sum())
    return inside / total if total else 0.0, float(down.mean() * across.mean())


def _inside(low: float, high: float, count: int) -> np.ndarray:
    """How much of each of `count` equal parts of 0..1 lies between two numbers."""
    edges = np.linspace(0, 1, count + 1)
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * count


def _mask(places: np.ndarray, maps: Sequence[Heat]) -> list[np.ndarray]:
    flat = np.zeros(sum(heat.values.size for heat in maps), dtype=bool)
    flat[places] = True
    parts = np.split(flat, np.cumsum([heat.values.size for heat in maps])[:-1])
    return [part.reshape(heat.values.shape) for part, heat in zip(parts, maps, strict=True)]


def _moved(masks: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The same shape somewhere else; what leaves a picture on one side comes in again on the other."""
    moved = []
    for mask in masks:
        rows, columns = mask.shape
        step = int(rng.integers(1, mask.size)) if mask.size > 1 else 0
        moved.append(np.roll(mask, (step // columns, step % columns), axis=(0, 1)))
    return moved
