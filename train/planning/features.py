"""A cache of features in a plan: pictures are not known the first time, known the second, and nothing is written."""

from __future__ import annotations

from typing import Any

import torch

from vlchat.feature_cache import FeatureCache

_CPU = torch.device("cpu")  # where tensors without numbers say that they are


class Foreseen(FeatureCache):
    """Remembers that it was given features, and their shape; from then on it gives such for any picture.

    Attributes:
        size: bytes of one picture's features.
    """

    def __init__(self) -> None:
        self.size = 0
        self._like: tuple[torch.Size, torch.dtype] | None = None

    @classmethod
    def of(cls, objective: Any, precision: str) -> Foreseen | None:
        """One through which an objective that keeps features looks at pictures from now on; else None."""
        if getattr(objective, "kept_features", None) is None:
            return None
        cache = cls()
        objective.keep_features(cache, precision, _CPU)
        return cache

    def get(self, key: str) -> torch.Tensor | None:
        return None if self._like is None else torch.empty(self._like[0], dtype=self._like[1])

    def put(self, key: str, features: torch.Tensor) -> None:
        self._like, self.size = (features.shape, features.dtype), features.nbytes
