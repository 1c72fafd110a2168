"""What goes into a part of a model while the whole of it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def inputs_of(*modules: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The first argument of each call of `modules` inside the block, in the order of the calls."""
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])

    hooks = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
