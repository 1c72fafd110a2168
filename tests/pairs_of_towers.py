"""Tiny CLIP, SigLIP and BLIP-2 folders with image processor and tokenizer, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlignConfig,
    AlignModel,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from vlchat.towers import clip_image_processor

SIZES = {"align": 160}  # pixels a side; of the others 24
TEXTS = ["a red circle", "two cats and one dog", "the blue square is left of it", "no cats"]


def spread(model: Any) -> None:
    """Weights so large that comparisons are not decided by rounding."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith(("query_tokens", "bias")):
                parameter.copy_(torch.randn_like(parameter) * 0.2)


def pictures(count: int = 3) -> list[Image.Image]:
    drawn = [np.random.default_rng(number).integers(0, 256, (30, 24, 3), dtype=np.uint8) for number in range(count)]
    return [Image.fromarray(pixels) for pixels in drawn]


def write_pair(folder: Path, kind: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The model that it wrote to `folder`: clip, siglip, align or blip2."""
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 12,
        "eos_token_id": end, "pad_token_id": 0, "bos_token_id": 1,
    }  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
              "image_size": 24, "patch_size": 12}  # fmt: skip
    model: Any
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
        )
    elif kind == "siglip":
        model = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision))
    elif kind == "align":
        small = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 16, "image_size": SIZES[kind]}
        model = AlignModel(AlignConfig(text_config=text, vision_config=small, projection_dim=32))
    else:
        qformer = Blip2QFormerConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            encoder_hidden_size=16, max_position_embeddings=24, use_qformer_text_input=True,
        )  # fmt: skip
        tower = Blip2VisionConfig(**vision)
        model = Blip2ForImageTextRetrieval(Blip2Config(
            vision_config=tower.to_dict(), qformer_config=qformer.to_dict(), num_query_tokens=3,
            image_text_hidden_size=8, image_token_index=None,
        ))  # fmt: skip
    spread(model)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    clip_image_processor(SIZES.get(kind, 24)).save_pretrained(folder)
    return model
