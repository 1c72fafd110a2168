"""Real processes that talk over gloo, for tests that compare several with one.

A new process imports torch and transformers for five to ten seconds; that is what such tests take, so each asks two
processes for all that it compares.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing

Work = Callable[[int, int], dict[str, torch.Tensor]]


def _one(rank: int, ranks: int, folder: str, work: Work) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    try:
        save_file(work(rank, ranks), f"{folder}/rank-{rank}.safetensors")
    finally:
        distributed.destroy_process_group()


def together(work: Work, ranks: int, folder: Path) -> list[dict[str, torch.Tensor]]:
    """What `work(rank, ranks)`, a function of a module, gives in each of `ranks` new processes."""
    multiprocessing.start_processes(_one, (ranks, str(folder), work), nprocs=ranks, start_method="spawn")
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(ranks)]
