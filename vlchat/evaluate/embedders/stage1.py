"""A stage-1 run of ours: the connector's image tokens against captions, by the heads that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlchat import checkpoint
from vlchat.connectors import QFormerConnector
from vlchat.data.formats import CAPTION_INSTRUCTION
from vlchat.evaluate.embedders.base import identity_of, to_device, unit
from vlchat.heads.reading import read_heads

_PAIRS_AT_ONCE = 64


class StageOneEmbedder:
    """As `train.align` compares them: pictures by the mean of their image tokens, of a Q-Former by each query.

    Args:
        folder: a save of a run, RUN/step-N.
        dtype, device: as of `vlchat.checkpoint.load`.

    Raises:
        CheckpointError: as `vlchat.checkpoint.load` and `vlchat.heads.reading.read_heads`.
    """

    embeds, probable = True, True

    def __init__(
        self, folder: Path, *, dtype: str | torch.dtype = "auto", device: str | torch.device = "auto"
    ) -> None:
        self.model, self.processor = checkpoint.load(folder, dtype=dtype, device=device)
        self.heads = read_heads(folder, self.model, self.processor)
        for module in self.heads.modules():
            module.to(self.model.device).eval()
        self.matches = self.heads.matching is not None
        self.scale: float | None = self.heads.scale
        self.bias = self.heads.bias
        self.cut = 0
        parts = {"model": self.model, **{f"head {n}": part for n, part in enumerate(self.heads.modules())}}
        tensors = [(f"{part}.{name}", t) for part, module in parts.items() for name, t in module.state_dict().items()]
        self.identity = identity_of(tensors, self.processor.image_processor.to_json_string(), self.scale, self.bias)
        self.description: dict[str, Any] = {**checkpoint.describe(folder), "kind": "stage 1"}

    @torch.inference_mode()
    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """See `Embedder.images`."""
        features, tokens = self._seen(pictures)
        connector: Any = self.model.model.connector
        if isinstance(connector, QFormerConnector):  # without the question, as the contrast has it
            pooled = connector.read(features)
        else:
            pooled = torch.stack([one.mean(0) for one in tokens])[:, None]
        return unit(self.heads.image_projection(pooled.float()))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.texts`. Raises DataError for one that is longer than the text side reads."""
        return unit(self.heads.text_projection(self.heads.text(*self._tokens(self.heads.text, texts)).float()))

    @torch.inference_mode()
    def match(self, picture: Image.Image, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.match`: the mean over the queries of the head's logits."""
        assert self.heads.matching is not None
        half, head = self.heads.matching
        features, _ = self._seen([picture])
        found = []
        for start in range(0, len(texts), _PAIRS_AT_ONCE):
            some = texts[start : start + _PAIRS_AT_ONCE]
            states = half.match(features.expand(len(some), -1, -1), *self._tokens(half, some))
            found.append(head(states.float()).mean(1).cpu().numpy())
        return np.concatenate(found)

    def _tokens(self, side: Any, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        made = side.tokens(list(texts), [f'The text "{text[:60]}"' for text in texts])
        ids, mask = (made[f"{side.prefix}_{key}"].to(self.model.device) for key in ("input_ids", "attention_mask"))
        return ids, mask

    def _seen(self, pictures: Sequence[Image.Image]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What a Q-Former is given, (pictures, features, width), and what any connector makes of each picture."""
        parts = [
            [{"role": "user", "content": [
                {"type": "image", "image": picture}, {"type": "text", "text": CAPTION_INSTRUCTION}
            ]}]
            for picture in pictures
        ]  # fmt: skip
        inputs = self.processor.apply_chat_template(
            parts, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
        )
        wanted = to_device(inputs, self.model.device, self.model.dtype)
        seen: list[torch.Tensor] = []
        hook = self.model.model.connector.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            found = self.model.get_image_features(
                **{name: wanted[name] for name in _SHOWN if name in wanted}, return_dict=True
            )
        finally:
            hook.remove()
        return seen[0], list(found.pooler_output)


_SHOWN = ("pixel_values", "instruction_input_ids", "instruction_attention_mask", "image_sizes")
