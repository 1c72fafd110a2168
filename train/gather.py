"""Rows of all processes beside each other, with and without gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def processes() -> tuple[int, int]:
    """This process's number and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    """The gradient of a row is the sum of what every process found for it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(rows)
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        rank, _ = processes()
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)  # gloo has no reduce_scatter for every type
        return gradient[rank * ctx.rows : (rank + 1) * ctx.rows]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """(processes * rows, ...): the rows of all processes in their order, without gradients.

    Every process must call it with a tensor of the same shape.
    """
    _, world = processes()
    if world == 1:
        return rows.detach()
    found = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world)]
    distributed.all_gather(found, rows.detach().contiguous())
    return torch.cat(found)


def gather_with_gradients(rows: torch.Tensor) -> torch.Tensor:
    """As `gather`; what every process's loss makes of a row flows back to it.

    Where the loss of the whole batch is the sum of the processes' losses, each row so gets the gradient that it has in
    one process. Every process must go backward through it.
    """
    return rows if processes()[1] == 1 else _Gather.apply(rows)


def gather_ragged(rows: torch.Tensor, padding: int = 0) -> torch.Tensor:
    """As `gather` for (rows, length) of another length in each process: filled up on the right with `padding`."""
    if processes()[1] > 1:
        longest = torch.tensor(rows.shape[1], device=rows.device)
        distributed.all_reduce(longest, distributed.ReduceOp.MAX)
        rows = torch.nn.functional.pad(rows, (0, int(longest) - rows.shape[1]), value=padding)
    return gather(rows)
