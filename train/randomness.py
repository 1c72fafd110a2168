"""This process's random generators: kept over a checkpoint, put back after a step that failed, left alone by a look."""

from __future__ import annotations

import base64
import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class RandomState:
    """The states of Python's, numpy's and torch's generators.

    Attributes:
        torch: the CPU's, then one for each CUDA device that was asked for.
    """

    python: Any
    numpy: Any
    torch: list[torch.Tensor]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        version, numbers, gauss = self.python
        kind, keys, *rest = self.numpy
        return {
            "torch": [base64.b64encode(bytes(state.tolist())).decode() for state in self.torch],
            "python": [version, list(numbers), gauss],
            "numpy": [kind, np.asarray(keys).tolist(), *rest],
        }

    @classmethod
    def of(cls, told: dict[str, Any]) -> RandomState:
        """From what `to_dict` gave."""
        version, numbers, gauss = told["python"]
        kind, keys, *rest = told["numpy"]
        return cls(
            (version, tuple(numbers), gauss),
            (kind, np.array(keys, dtype=np.uint32), *rest),
            [torch.tensor(list(base64.b64decode(state)), dtype=torch.uint8) for state in told["torch"]],
        )


def random_state(*devices: torch.device) -> RandomState:
    """The state of every generator of this process, on the CPU and on those of `devices` that are CUDA's."""
    cuda = [torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"]
    return RandomState(random.getstate(), np.random.get_state(), [torch.get_rng_state(), *cuda])


def set_random_state(state: RandomState, *devices: torch.device) -> None:
    """Puts `random_state(*devices)` back. A state from a machine without CUDA leaves its generators as they are."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.torch[0])
    cuda = [device for device in devices if device.type == "cuda"]
    for device, found in zip(cuda, state.torch[1:], strict=False):
        torch.cuda.set_rng_state(found, device)


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Afterwards the random generators are what they were, whatever was drawn."""
    devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    before = random_state(*devices)
    try:
        yield
    finally:
        set_random_state(before, *devices)
