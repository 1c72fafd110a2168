"""CLIP and its like: a picture tower and a text tower that were trained to meet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel

from vlchat.errors import CheckpointError
from vlchat.evaluate.embedders.base import about, identity_of, read_whole, to_device, unit

_FIXED_LENGTH = ("siglip", "siglip2")  # their texts were padded to the last position in training
_LONGEST = 64  # of SigLIP's texts where the tokenizer names no limit


class PairEmbedder:
    """Any transformers model with `get_image_features` and `get_text_features`: CLIP, SigLIP, SigLIP 2, ALIGN, ...

    Args:
        source: a folder or Hub id, with image processor and tokenizer beside the weights.
        dtype, device: where it computes and how precisely.

    Raises:
        CheckpointError: it cannot be read, lacks tensors, or is no such pair.
    """

    embeds, matches, probable = True, False, False

    def __init__(
        self,
        source: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        revision: str | None = None,
    ) -> None:
        model, self.tokenizer, self.image_processor = read_whole(AutoModel, source, dtype, revision)
        if not is_pair(type(model)):
            raise CheckpointError(f"{source} holds a {type(model).__name__}, which embeds no pictures and texts.")
        self.model: Any = model.to(device).eval()
        self.cut = 0
        self.limit = _text_limit(model, self.tokenizer)
        self.fixed = model.config.model_type in _FIXED_LENGTH
        self.scale, self.bias = _scale(model), _number(model, "logit_bias")
        words = sorted(self.tokenizer.get_vocab().items())
        self.identity = identity_of(model, self.image_processor.to_json_string(), words, self.limit)
        self.description: dict[str, Any] = about(source, model)

    @torch.inference_mode()
    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """See `Embedder.images`."""
        inputs = self.image_processor(list(pictures), return_tensors="pt")
        found = self.model.get_image_features(**to_device(inputs, self.model.device, self.model.dtype))
        return unit(_pooled(found))[:, None]

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.texts`; texts beyond the last position are cut off, as CLIP's own code does."""
        whole = self.tokenizer(list(texts))["input_ids"]
        self.cut += sum(len(ids) > self.limit for ids in whole)
        inputs = self.tokenizer(
            list(texts),
            padding="max_length" if self.fixed else True,
            truncation=True,
            max_length=self.limit,
            return_tensors="pt",
        )
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        if self.fixed:
            kept.pop("attention_mask", None)  # SigLIP reads its padding
        return unit(_pooled(self.model.get_text_features(**to_device(kept, self.model.device, self.model.dtype))))

    def match(self, picture: Image.Image, texts: Sequence[str]) -> np.ndarray:
        """There is no matching head."""
        raise NotImplementedError


def is_pair(kind: Any) -> bool:
    """Whether a model's class embeds pictures and texts into one space."""
    return all(hasattr(kind, name) for name in ("get_image_features", "get_text_features"))


def _scale(model: Any) -> float | None:
    """What cosines are multiplied by before the softmax; ALIGN divides by a temperature."""
    scale, temperature = _number(model, "logit_scale"), _number(model, "temperature")
    if scale is not None:
        return math.exp(scale)
    return None if temperature is None else 1.0 / temperature


def _number(model: Any, name: str) -> float | None:
    parameter = getattr(model, name, None)
    return None if parameter is None else float(parameter.detach())


def _pooled(found: Any) -> torch.Tensor:
    """The features themselves; transformers 5 wraps them."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def _text_limit(model: Any, tokenizer: Any) -> int:
    positions = getattr(model.config.text_config, "max_position_embeddings", _LONGEST)
    own = getattr(tokenizer, "model_max_length", positions)
    return int(min(positions, own))
