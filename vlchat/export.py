"""A run -> one whole model folder, its adapter merged, that needs no other file."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from vlchat import checkpoint
from vlchat.errors import CheckpointError
from vlchat.folders import newest, read_manifest, writable
from vlchat.model import VLChatForConditionalGeneration


def export(model: str, out: str | Path, *, dtype: str = "bfloat16", name: str | None = None) -> Path:
    """Write `model` (a run's save, with or without an adapter) as a whole folder that loads by its path alone.

    The adapter is merged in float32 and the result stored as `dtype`. A model's card stays where it is exported anew by
    the same name.

    Args:
        model: a folder that training wrote, or any vlchat checkpoint.
        out: the folder to write.
        dtype: of the stored weights: bfloat16, float16 or float32.
        name: what the model calls itself to people.

    Raises:
        CheckpointError: when the model is not one of vlchat's own, or cannot be loaded, or `out` cannot be written.
    """
    if dtype not in ("bfloat16", "float16", "float32"):
        raise CheckpointError(f'dtype is "{dtype}"; use bfloat16, float16 or float32.')
    writable(out)
    loaded, processor = checkpoint.load(model, dtype=torch.float32, device="cpu", merge=True)
    if not isinstance(loaded, VLChatForConditionalGeneration):
        raise CheckpointError(f"{model} is a {type(loaded).__name__}; only vlchat's own models are exported so far.")
    out = Path(out)
    card = out / "README.md"
    same = card.is_file() and (read_manifest(out) or {}).get("name") == name
    kept = card.read_bytes() if same else None
    source = newest(Path(model))

    def extra(stage: Path) -> None:
        if kept is not None:
            (stage / card.name).write_bytes(kept)
        for file in ("run.json", "metrics.jsonl"):
            if (source / file).is_file():
                shutil.copyfile(source / file, stage / file)

    about = checkpoint.describe(model)
    checkpoint.save_full(
        out, loaded, processor, trained_on=about["trained_on"] or "", dtype=dtype, extra=extra, name=name
    )
    return out
