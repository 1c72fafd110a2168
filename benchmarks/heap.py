"""What a step of ours costs in time and memory where freed memory is kept, given back, or left to glibc.

    python benchmarks/heap.py                            # ViT 256 x 12, language model 256 x 8, 576 + 64 tokens
    python benchmarks/heap.py --layers 2 2 --rounds 3    # a small one, to see that it runs
    THP_MEM_ALLOC_ENABLE=1 python benchmarks/heap.py     # with torch's huge pages for tensors of 2 MiB and more

All peers are the same step in the same process. Before each one malloc is set: as `train.heap` sets it for small models
and for large ones, and as glibc sets itself once a block of 32 MiB was freed. Memory is the kernel's VmHWM over a step,
set back before it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch
from interleaved import ratios, seconds, surroundings, told, write
from step import config, mean_loss, optimizer_of, rows, shape, stepper
from transformers import LlavaForConditionalGeneration
from transformers.utils import logging

from train.heap import GLIBCS_OWN, MIB, set_malloc, settle
from vlchat.interop.llava import read_model

KEPT, GIVEN_BACK, GLIBC = "kept", "given back", "as glibc does"


def main() -> None:
    arguments = read_arguments()
    logging.set_verbosity_error()
    if not settle(large=True):
        raise SystemExit("Needs Linux with glibc, and no MALLOC_, GLIBC_TUNABLES or LD_PRELOAD in the environment.")
    torch.manual_seed(0)
    # 1. One model, one step, in three settings.
    plain = LlavaForConditionalGeneration(config(*arguments.layers, arguments.width))
    ours = read_model(plain).train()
    ours.set_attn_implementation("sdpa")
    ours.model.vision_tower.requires_grad_(False)
    batch = rows(plain.config, arguments.batch, arguments.text)
    step = stepper(lambda: mean_loss(ours, batch, False), optimizer_of(ours, True))

    def after(settings: Callable[[], bool]) -> Callable[[], None]:
        def set_and_step() -> None:
            settings()
            step()

        return set_and_step

    peers = {
        KEPT: after(lambda: settle(large=False)),
        GIVEN_BACK: after(lambda: settle(large=True)),
        GLIBC: after(lambda: set_malloc(GLIBCS_OWN)),
    }
    # 2. In turn.
    times = seconds(peers, arguments.rounds)
    print(told(times))
    found = {name: ratios(times, name, KEPT) for name in (GIVEN_BACK, GLIBC)}
    for name, ratio in found.items():
        print(f"{name} / {KEPT}: {ratio['median_wall']:.3f} by the clock, {ratio['median_processor']:.3f} by CPU time")
    # 3. The most that each takes.
    peaks = {name: most(step) for name, step in peers.items()}
    print("the most of a step:", ", ".join(f"{name} {peak / MIB:,.0f} MiB" for name, peak in peaks.items()))
    layers = " ".join(map(str, arguments.layers))
    options = (f" --layers {layers} --width {arguments.width} --batch {arguments.batch} --text {arguments.text}"
               f" --rounds {arguments.rounds}")  # fmt: skip
    write(arguments.out, {"shape": shape(arguments), "ratios_to_kept": found, "peak_bytes": peaks,
                          "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1", "seconds": times,
                          **surroundings("python benchmarks/heap.py" + options)})  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=[12, 8], help="of the tower and the language model")
    parser.add_argument("--width", type=int, default=256, help="of both")
    parser.add_argument("--batch", type=int, default=2, help="rows, of one picture each")
    parser.add_argument("--text", type=int, default=64, help="tokens of words in a row; half of them are learnt")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each, of which the median is told")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    return parser.parse_args()


def most(step: Callable[[], None]) -> int:
    """Bytes of the third of three steps at their peak; what an earlier peer left is given back before."""
    ctypes.CDLL(None).malloc_trim(0)
    step()
    step()
    Path("/proc/self/clear_refs").write_text("5")
    step()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    main()
