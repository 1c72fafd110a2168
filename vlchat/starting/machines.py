"""What a run is to have for memory: this machine's GPU, one by name, one by its size, or none."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from vlchat.errors import VLChatError, nearest

GIB = 2**30
# GiB, as the makers' data sheets have them.
GPUS = {
    "t4": 16, "v100": 16, "rtx-3060": 12, "rtx-3090": 24, "rtx-4060": 8, "rtx-4070": 12, "rtx-4080": 16,
    "rtx-4090": 24, "rtx-5070": 12, "rtx-5080": 16, "rtx-5090": 32, "a10": 24, "a6000": 48, "l4": 24, "l40s": 48,
    "a100": 80, "a100-40": 40, "a100-80": 80, "h100": 80, "h200": 141, "b200": 180,
}  # fmt: skip
NONE = "none"
_OLD = ("t4", "v100")  # from before bfloat16


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


def gpu_name(text: str) -> str:
    """A GPU's name as the lists have it: "NVIDIA GeForce RTX 4090", "rtx4090" and "4090" are rtx-4090."""
    name = re.sub(r"[\s_]+", "-", text.strip().lower().removeprefix("nvidia").strip())
    return re.sub(r"^(?:geforce-)?(?:rtx-?)?(\d{4})$", r"rtx-\1", name)


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
    name = gpu_name(wanted)
    if name not in GPUS:
        raise VLChatError(
            f'There is no GPU "{text}" in the list{nearest(name, GPUS) or "."} Known: {", ".join(GPUS)}; none; or a '
            "number of GiB, such as 24."
        )
    return Machine(name, float(GPUS[name] * GIB), bf16=name not in _OLD)
