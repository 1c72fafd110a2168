"""Rows of all processes beside each other, with and without gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed
from torch.nn import functional

from train.ranks import rank, world_size


class _Gather(torch.autograd.Function):
    """The gradient of a row is the sum of what every process found for it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.first = sum(sizes[: rank()])
        ctx.rows = len(rows)
        return gather(rows, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)  # gloo has no reduce_scatter for every type
        return gradient[ctx.first : ctx.first + ctx.rows], None


def sizes_of(rows: torch.Tensor) -> list[int]:
    """How many rows each process has; of several, all must call it."""
    if world_size() == 1:
        return [len(rows)]
    own = torch.tensor([len(rows)], device=rows.device)
    found = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(found, own)
    return [int(size) for size in found]


def own_places(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """(rows,): where this process's rows stand among those of all."""
    first = sum(sizes[: rank()]) if world_size() > 1 else 0
    return torch.arange(first, first + len(rows), device=rows.device)


def gather(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """(all rows, ...): the rows of all processes in their order, without gradients. All must call it.

    Args:
        rows: (rows, ...), of the same shape in every process but for the number of rows.
        sizes: of `sizes_of`.
    """
    if world_size() == 1:
        return rows.detach()
    padded = rows.detach().new_zeros(max(sizes), *rows.shape[1:])  # what is sent is of one size
    padded[: len(rows)] = rows.detach()
    found = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(found, padded)
    return torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)])


def gather_with_gradients(rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """As `gather`; what every process's loss makes of a row flows back to it.

    Where the loss of the whole batch is the sum of the processes' losses, each row so gets the gradient that it has in
    one process. Every process must go backward through it.
    """
    return rows if world_size() == 1 else _Gather.apply(rows, sizes)


def gather_texts(tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """As `gather` for (rows, tokens) of another length in each process: filled up with zeros on the right."""
    if world_size() > 1:
        longest = torch.tensor(tokens.shape[1], device=tokens.device)
        distributed.all_reduce(longest, distributed.ReduceOp.MAX)
        tokens = functional.pad(tokens, (0, int(longest) - tokens.shape[1]))
    return gather(tokens, sizes)
