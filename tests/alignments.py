"""Stage 1 on tiny backbones, for tests: a folder with a tower, a language model and captioned pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast

from train.align import AlignObjective
from train.terms import Term, loss_of
from vlchat.towers import clip_image_processor

CAPTIONS = [
    "a red circle", "two cats and one dog", "the blue square is left of it", "a yellow picture", "it is green",
    "no cats", "one dog is in the picture",
]  # fmt: skip
QFORMER: dict[str, Any] = {
    "type": "qformer", "num_query_tokens": 3, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "dropout": 0.0,
}  # fmt: skip
CONNECTORS: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear"},
    "mlp": {"type": "mlp", "depth": 2},
    "downsample": {"type": "downsample"},
    "qformer": QFORMER,
    "resampler": {"type": "resampler", "num_query_tokens": 4, "num_attention_heads": 2},
    "perceiver": {"type": "perceiver", "num_query_tokens": 3, "depth": 1, "num_attention_heads": 2, "head_dim": 8},
    "gated": {"type": "gated", "widths": [16, 16], "num_attention_heads": 2, "head_dim": 8},
}


def write_backbones(
    folder: Path, tower: CLIPVisionModel, language: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Path:
    tower.save_pretrained(folder / "tower")
    clip_image_processor(24).save_pretrained(folder / "tower")
    language.save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    rows = []
    for number, caption in enumerate(CAPTIONS):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"id": f"row-{number}", "image": f"{number}.png", "caption": caption})
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def settings(folder: Path, connector: str | dict[str, Any], **options: Any) -> dict[str, Any]:
    spec = CONNECTORS[connector] if isinstance(connector, str) else connector
    return {
        "vision": str(folder / "tower"), "language": str(folder / "language"), "connector": spec,
        "data": [{"path": str(folder / "rows.json")}], "template": "chatml", "projection": 8, "sample_tokens": 2,
        **options,
    }  # fmt: skip


def objective(folder: Path, connector: str | dict[str, Any], **options: Any) -> AlignObjective:
    torch.manual_seed(0)
    made = AlignObjective(**settings(folder, connector, **options))
    for name, parameter in made.named_parameters():
        parameter.requires_grad_("connector" in name or name.startswith("heads."))
    return made.train()


def step(made: AlignObjective, batch: dict[str, Any], counts: dict[str, float] | None = None) -> dict[str, Term]:
    """Terms of one batch, whose gradients are in the parameters afterwards."""
    terms = made({key: value for key, value in batch.items() if key != "ids"})
    loss_of(terms, counts or made.counts(batch)).backward()
    return terms
