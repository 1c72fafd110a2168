"""What was computed of conversations and pictures, kept for those that begin alike, within a budget of memory."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from serve.slots import KeyValues

_OFFSET = 2**20  # more tokens than a picture has

Scope = tuple[str, str]
"""An adapter's name, and whose conversations: nothing is shared between two."""

Seen = tuple[int, torch.Tensor]
"""A picture's number, which no other one gets, and its features."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A conversation's keys and values.

    Attributes:
        names: (tokens) int64, of `named`.
        found: of these tokens.
    """

    names: np.ndarray
    found: KeyValues

    @property
    def bytes(self) -> int:
        return sum(one.nbytes for pair in self.found for one in pair)


class Prefixes:
    """Conversations that were answered, the one used last at the end; the others go first when the budget is full.

    Args:
        budget: bytes.

    Attributes:
        bytes: that are taken now.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self._kept: list[tuple[Scope, Kept]] = []

    def longest(self, scope: Scope, names: np.ndarray) -> tuple[int, KeyValues]:
        """The most tokens that a kept conversation of this scope begins alike with, and its keys and values.

        Args:
            names: of the new conversation.
        """
        best, place = 0, -1
        for index, (other, kept) in enumerate(self._kept):
            if other == scope and (alike := common(kept.names, names)) > best:
                best, place = alike, index
        if place < 0:
            return 0, []
        self._kept.append(self._kept.pop(place))
        return best, self._kept[-1][1].found

    def keep(self, scope: Scope, kept: Kept) -> None:
        """Keeps a conversation, in place of those that it goes on from."""
        if kept.bytes > self.budget:
            return
        covered = [
            one for one in self._kept if one[0] == scope and common(one[1].names, kept.names) == len(one[1].names)
        ]
        for one in covered:
            self._drop(self._kept.index(one))
        self._kept.append((scope, kept))
        self.bytes += kept.bytes
        while self.bytes > self.budget:
            self._drop(0)

    def clear(self) -> None:
        """Gives all of it back."""
        self._kept, self.bytes = [], 0

    def _drop(self, index: int) -> None:
        self.bytes -= self._kept.pop(index)[1].bytes


def common(one: np.ndarray, other: np.ndarray) -> int:
    """How many elements two rows begin with alike."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


class Pictures:
    """Pictures as the language model sees them, by what the processor made of them, within a budget of memory.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self._numbers = 0
        self._kept: OrderedDict[str, Seen] = OrderedDict()

    @staticmethod
    def digests(inputs: dict[str, torch.Tensor], adapter: str = "") -> list[str]:
        """Of each picture: its pixels and whatever else of it the model is given, as a hash.

        Args:
            inputs: of one conversation; whatever begins with a row a picture, token ids apart.
            adapter: that sees it.
        """
        told = [inputs[name] for name in sorted(inputs) if name not in ("input_ids", "attention_mask")]
        count = len(inputs["pixel_values"]) if "pixel_values" in inputs else 0
        found = []
        for number in range(count):
            digest = hashlib.blake2b(adapter.encode(), digest_size=32)
            for tensor in told:
                one = tensor[number].contiguous().cpu()
                digest.update(f"{tuple(one.shape)} {one.dtype} ".encode())
                digest.update(one.view(torch.uint8).numpy().data if one.ndim else str(one.item()).encode())
            found.append(digest.hexdigest())
        return found

    def get(self, digest: str) -> Seen | None:
        """A picture that is known."""
        if digest not in self._kept:
            return None
        self._kept.move_to_end(digest)
        return self._kept[digest]

    def keep(self, digest: str, features: torch.Tensor) -> Seen:
        """Keeps a picture's features, (image tokens, hidden); those not used for the longest time go first."""
        if (known := self._kept.pop(digest, None)) is not None:
            self.bytes -= known[1].nbytes
        self._numbers += 1
        seen = self._kept[digest] = (self._numbers, features)
        self.bytes += features.nbytes
        while self.bytes > self.budget and self._kept:
            self.bytes -= self._kept.popitem(last=False)[1][1].nbytes
        return seen

    def clear(self) -> None:
        """Gives all of it back."""
        self._kept.clear()
        self.bytes = 0


def named(ids: Sequence[int], image_token: int, pictures: Sequence[Seen]) -> np.ndarray:
    """Token ids with every picture's tokens replaced by numbers of its own below zero, (tokens) int64.

    Conversations that begin with the same names begin with the same keys and values.

    Args:
        pictures: in the order of their tokens.
    """
    names = np.array(ids, dtype=np.int64)
    places = np.flatnonzero(names == image_token)
    first = 0
    for number, features in pictures:
        own = places[first : first + len(features)]
        names[own] = -1 - (number * _OFFSET + np.arange(len(own)))
        first += len(own)
    return names
