"""What the similarities of a contrastive batch take of a process's memory, in both forms.

    python benchmarks/contrast_memory.py

Counts the bytes of all tensors that are alive at once in the forward and the backward pass of InfoNCE, in each of
several gloo processes; the largest is shown. Tensors as wide as the features (these, those of the other processes, and
their gradients, which both forms have alike) are not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.contrastive import FORMS, Contrast, ContrastConfig


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive; `peak` is the most at any time.

    Args:
        leaving: tensors of this width are not counted.
    """

    def __init__(self, leaving: int) -> None:
        super().__init__()
        self.leaving = leaving
        self.alive, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if not isinstance(leaf, torch.Tensor) or leaf.shape[-1:] == (self.leaving,):
                continue
            storage = leaf.untyped_storage()
            if id(storage) in self._known or id(storage) in given:  # a view, or in place
                continue
            self._known.add(id(storage))
            self.alive += storage.nbytes()
            weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return out

    def _gone(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.alive -= size


def peak(loss: str, form: str, rows: int, dim: int, queries: int = 0) -> int:
    """Bytes alive at most while this process makes one step of the loss on `rows` rows of its own."""
    contrast = Contrast(ContrastConfig(loss=loss, form=form))
    image = torch.randn((rows, queries, dim) if queries else (rows, dim), requires_grad=True)
    text = torch.randn(rows, dim, requires_grad=True)
    with LiveMemory(dim) as memory:
        total, _ = contrast(image, text)
        total.backward()
    return memory.peak


def _rank(rank: int, ranks: int, folder: str, rows: int, dim: int, queries: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    try:
        found = [float(peak("infonce", form, rows, dim, queries)) for form in FORMS]
        most = torch.tensor(found)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        if rank == 0:
            (Path(folder) / "peaks").write_text(" ".join(str(int(value)) for value in most.tolist()))
    finally:
        distributed.destroy_process_group()


def measure(ranks: int, rows: int, dim: int, queries: int) -> list[int]:
    """Bytes of the local and of the full form, the most of any of `ranks` processes."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _rank, (ranks, folder, rows, dim, queries), nprocs=ranks, start_method="fork"
        )
        return [int(value) for value in (Path(folder) / "peaks").read_text().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="rows of each process")
    parser.add_argument("--dim", type=int, default=16, help="width of the features")
    parser.add_argument("--queries", type=int, default=0, help="queries of a picture; 0 for pooled features")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    if arguments.dim in {arguments.rows * ranks for ranks in arguments.ranks}:
        parser.error("--dim must differ from the rows of all processes, or similarities look like features.")
    print(f"{arguments.rows} rows a process, {arguments.dim} wide, {arguments.queries or 1} a picture")
    print(f"{'processes':>9} {'local':>12} {'full':>12} {'local / full':>12}")
    for ranks in arguments.ranks:
        local, full = measure(ranks, arguments.rows, arguments.dim, arguments.queries)
        print(f"{ranks:9} {local / 2**20:8.2f} MiB {full / 2**20:8.2f} MiB {local / full:12.2f}")


if __name__ == "__main__":
    main()
