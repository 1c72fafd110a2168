"""Machines to train on: this one, a GPU by name or by its size, or none. What is known of GPUs stands here alone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from vlchat.errors import VLChatError, nearest

GIB = 2**30
NONE = "none"


@dataclass(frozen=True)
class Gpu:
    """What is known of a GPU before it is there.

    Attributes:
        memory: GiB, as its driver shows them to programs.
        rate: TFLOP/s of dense bfloat16 products that are summed in float32; float16 where there is no bfloat16.
        bandwidth: GB/s of its memory.
        bf16: whether it computes in bfloat16.
    """

    memory: float
    rate: float
    bandwidth: float
    bf16: bool = True


# Rates and bandwidths are those of the makers' data sheets. Where one tells a rate with sparsity alone, it is half of
# that; a GeForce's is twice its float32 rate, for it sums in float32 at half the speed of float16. Memory of cards that
# correct errors in it is what that leaves.
GPUS = {
    "t4": Gpu(15, 65, 320, bf16=False),
    "v100": Gpu(16, 125, 900, bf16=False),
    "rtx-3060": Gpu(12, 25, 360),
    "rtx-3090": Gpu(24, 71, 936),
    "rtx-4060": Gpu(8, 30, 272),
    "rtx-4060ti-16": Gpu(16, 44, 288),
    "rtx-4070": Gpu(12, 58, 504),
    "rtx-4080": Gpu(16, 97, 717),
    "rtx-4090": Gpu(24, 165, 1008),
    "rtx-5070": Gpu(12, 62, 672),
    "rtx-5080": Gpu(16, 113, 960),
    "rtx-5090": Gpu(32, 210, 1792),
    "a10": Gpu(22.5, 125, 600),
    "a10g": Gpu(22.5, 70, 600),
    "a6000": Gpu(48, 155, 768),
    "l4": Gpu(22.5, 121, 300),
    "l40s": Gpu(45, 362, 864),
    "a100": Gpu(80, 312, 2039),
    "a100-40": Gpu(40, 312, 1555),
    "a100-80": Gpu(80, 312, 2039),
    "h100": Gpu(80, 989, 3350),
    "h200": Gpu(140, 989, 4800),
    "b200": Gpu(180, 2250, 8000),
}


@dataclass(frozen=True)
class Machine:
    """Where a run is to train.

    Attributes:
        name: as people call it.
        memory: bytes, of the GPU; without one, of the machine.
        gpu: whether there is a GPU.
        bf16: whether it computes in bfloat16.
    """

    name: str
    memory: float
    gpu: bool = True
    bf16: bool = True

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / GIB:.0f} GiB" if self.gpu else self.name


def detected() -> Machine:
    """This machine's first GPU, or its processor."""
    import torch

    if not torch.cuda.is_available():
        return processor()
    facts = torch.cuda.get_device_properties(0)
    return Machine(facts.name, float(facts.total_memory), bf16=facts.major >= 8)


def processor() -> Machine:
    """This machine without a GPU."""
    return Machine("no GPU", float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), gpu=False)


def known_gpu(text: str, otherwise: str) -> str:
    """The name in `GPUS` of what people type: "NVIDIA GeForce RTX 4090", "rtx4090" and "4090" are rtx-4090.

    Args:
        otherwise: what else may be said, for the message.

    Raises:
        VLChatError: it is not among them; names the nearest.
    """
    name = re.sub(r"[\s_]+", "-", text.strip().lower().removeprefix("nvidia").strip())
    name = re.sub(r"^(?:geforce-)?(?:rtx-?)?(\d{4})$", r"rtx-\1", name)
    if name not in GPUS:
        raise VLChatError(
            f'There is no GPU "{text}" in the list{nearest(name, GPUS) or "."} Known: {", ".join(GPUS)}; {otherwise}.'
        )
    return name


def machine_of(text: str) -> Machine:
    """A machine by what people type: `none`, a name of `GPUS`, or a number of GiB such as `24` or `24GB`.

    Raises:
        VLChatError: anything else; names the nearest.
    """
    wanted = text.strip().lower()
    if wanted in (NONE, "cpu"):
        return processor()
    if size := re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*(?:g|gb|gib)?", wanted):  # four digits are a name, as 4090
        if not float(size[1]):
            raise VLChatError(f"A GPU of {size[1]} GiB is none: say how much memory it has, such as 24.")
        return Machine(f"a GPU of {size[1]} GiB", float(size[1]) * GIB)
    name = known_gpu(text, "none; or a number of GiB, such as 24")
    return Machine(name, GPUS[name].memory * GIB, bf16=GPUS[name].bf16)
