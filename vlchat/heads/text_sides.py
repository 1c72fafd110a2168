"""The text side of the contrast: captions as one vector each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from vlchat.errors import CheckpointError, ConfigError, DataError
from vlchat.folders import newest
from vlchat.reading import reading
from vlchat.weightless import from_pretrained

# Text halves of pairs, whose pooled output was trained for pictures; of others the mean of the states is taken.
_POOLED = ("clip_text_model", "siglip_text_model", "siglip2_text_model")
_FIXED_LENGTH = ("siglip_text_model", "siglip2_text_model")  # trained on padding up to the last position


class TextSide(Protocol):
    """Captions -> tensors, and those -> vectors. `vlchat.heads.qformer_text.QFormerText` is another one.

    Attributes:
        prefix: of the tensors' names.
        width: of the vectors.
    """

    prefix: str
    width: int

    def tokens(self, texts: Sequence[str], names: Sequence[str]) -> dict[str, torch.Tensor]:
        """PREFIX_input_ids and PREFIX_attention_mask, (rows, tokens); `names` are the rows', for messages."""

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(rows, width)."""


class LanguageText:
    """The mean of the frozen language model's last states.

    Args:
        model: with `model.language_model`; it is not registered here, so that nothing of it is saved twice.
    """

    prefix = "caption"

    def __init__(self, model: Any, tokenizer: Any, shape_step: int = 1) -> None:
        self.model, self.tokenizer, self.shape_step = model, tokenizer, shape_step
        self.width: int = model.config.text_config.hidden_size

    def tokens(self, texts: Sequence[str], names: Sequence[str]) -> dict[str, torch.Tensor]:
        made = self.tokenizer(
            list(texts),
            padding=True,
            padding_side="right",
            pad_to_multiple_of=self.shape_step,
            return_tensors="pt",
        )
        return {f"caption_{key}": made[key] for key in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.model.model.language_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return _mean(states, attention_mask)


class TowerText(nn.Module):
    """A text model by path or Hub id; of a CLIP-like pair the text half. It is frozen unless a rule says otherwise.

    Args:
        source: a folder, a run or a Hub id, with its tokenizer.

    Raises:
        CheckpointError: nothing can be read there, or tensors are missing.
        ConfigError: it is not a text model.
    """

    prefix = "tower"

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = str(newest(Path(source)))
        with reading(self.source, "text tower"):
            self.tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
            loaded: Any = from_pretrained(
                AutoModel, self.source, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
        model, info = loaded
        if getattr(model.config, "text_config", None) is not None and hasattr(model, "text_model"):
            model = model.text_model
        missing = [key for key in info["missing_keys"] if not key.startswith(("vision_", "visual_", "pooler."))]
        if missing:
            raise CheckpointError(f"The text tower {self.source} lacks {', '.join(sorted(missing)[:4])}.")
        if model.main_input_name != "input_ids":
            raise ConfigError(f"objective.text: {self.source} holds a {type(model).__name__}, which reads no text.")
        self.model: Any = model
        self.width: int = model.config.hidden_size
        self.limit: int = getattr(model.config, "max_position_embeddings", 1 << 30)
        self.pooled = model.config.model_type in _POOLED
        self.fixed = model.config.model_type in _FIXED_LENGTH
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def tokens(self, texts: Sequence[str], names: Sequence[str]) -> dict[str, torch.Tensor]:
        made = self.tokenizer(list(texts))["input_ids"]
        for ids, name in zip(made, names, strict=True):
            if len(ids) > self.limit:
                raise DataError(
                    f"{name}: its caption has {len(ids)} tokens and the text tower {self.source} reads at most "
                    f"{self.limit}. Shorten it, or choose another objective.text."
                )
        length = self.limit if self.fixed else max(map(len, made))
        blank = self.tokenizer.pad_token_id
        return {
            "tower_input_ids": torch.tensor([ids + [blank] * (length - len(ids)) for ids in made]),
            "tower_attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in made]),
        }

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        frozen = not any(parameter.requires_grad for parameter in self.model.parameters())
        if frozen and self.model.training:
            self.model.eval()  # no dropout in what learns nothing
        with torch.no_grad() if frozen else nullcontext():
            out = self.model(input_ids=input_ids, attention_mask=None if self.fixed else attention_mask)
            return out.pooler_output if self.pooled else _mean(out.last_hidden_state, attention_mask)


def _mean(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    mask = attention_mask.unsqueeze(-1)
    return (states * mask).sum(1) / mask.sum(1)
