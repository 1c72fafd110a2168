"""BLIP-2's first stage as published: contrast by the most similar query, matching by a head on the queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Blip2ForImageTextRetrieval

from vlchat.evaluate.embedders.base import about, identity_of, read_whole, to_device, unit

_PAIRS_AT_ONCE = 64


class Blip2Embedder:
    """`Blip2ForImageTextRetrieval`, such as Salesforce/blip2-itm-vit-g-coco (arXiv 2301.12597, section 3.2).

    Its files hold no temperature, so that there is no scale.

    Args:
        source: a folder or Hub id, with image processor and tokenizer beside the weights.
        dtype, device: where it computes and how precisely.

    Raises:
        CheckpointError: it cannot be read, or lacks tensors.
    """

    embeds, matches, probable = True, True, True
    scale: float | None = None
    bias: float | None = None

    def __init__(
        self,
        source: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        revision: str | None = None,
    ) -> None:
        model, self.tokenizer, self.image_processor = read_whole(Blip2ForImageTextRetrieval, source, dtype, revision)
        self.model: Any = model.to(device).eval()
        self.cut = 0
        self.limit: int = model.config.qformer_config.max_position_embeddings
        words = sorted(self.tokenizer.get_vocab().items())
        self.identity = identity_of(model, self.image_processor.to_json_string(), words, self.limit)
        self.description: dict[str, Any] = about(source, model)

    @torch.inference_mode()
    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """See `Embedder.images`."""
        features = self._features(pictures)
        queries = self._queries(len(features))
        states = self.model.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        return unit(self.model.vision_projection(states.to(self.model.vision_projection.weight.dtype)))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.texts`."""
        tokens = self._tokens(texts)
        states = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=tokens["input_ids"]),
            query_length=0,
            attention_mask=tokens["attention_mask"],
        ).last_hidden_state
        return unit(self.model.text_projection(states[:, 0].to(self.model.text_projection.weight.dtype)))

    @torch.inference_mode()
    def match(self, picture: Image.Image, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.match`: the mean over the queries of the head's logits."""
        features = self._features([picture])
        found = [
            self._match(features, texts[start : start + _PAIRS_AT_ONCE])
            for start in range(0, len(texts), _PAIRS_AT_ONCE)
        ]
        return np.concatenate(found)

    def _match(self, features: torch.Tensor, texts: Sequence[str]) -> np.ndarray:
        tokens, queries = self._tokens(texts), self._queries(len(texts))
        there = torch.ones(queries.shape[:2], dtype=torch.long, device=queries.device)
        states = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=tokens["input_ids"], query_embeds=queries),
            query_length=queries.shape[1],
            attention_mask=torch.cat([there, tokens["attention_mask"]], dim=1),
            encoder_hidden_states=features.expand(len(texts), -1, -1),
        ).last_hidden_state[:, : queries.shape[1]]
        logits = self.model.itm_head(states.to(self.model.itm_head.weight.dtype))
        return logits.float().mean(dim=1).cpu().numpy()

    def _features(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        made = self.image_processor(list(pictures), return_tensors="pt")
        pixels = to_device(made, self.model.device, self.model.dtype)["pixel_values"]
        return self.model.vision_model(pixel_values=pixels).last_hidden_state

    def _queries(self, rows: int) -> torch.Tensor:
        return self.model.query_tokens.expand(rows, -1, -1)

    def _tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        self.cut += sum(len(ids) > self.limit for ids in self.tokenizer(list(texts))["input_ids"])
        found = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.limit, return_tensors="pt"
        )
        return to_device(
            {name: found[name] for name in ("input_ids", "attention_mask")}, self.model.device, self.model.dtype
        )
