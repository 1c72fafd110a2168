"""Stage 2: a whole model learns to answer, by LoRA and its connector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from train.conversations import Conversations
from train.reader import MapReader
from train.terms import Term
from vlchat import checkpoint, foreign
from vlchat.data.collate import IGNORED
from vlchat.errors import ConfigError, nearest
from vlchat.folders import newest
from vlchat.lora import add_lora
from vlchat.models import resolve

_LORA = ("r", "alpha", "dropout", "targets")


class TuneObjective(Conversations):
    """Stage 2: LoRA on the language model and a trained connector; loss on the assistant's tokens only.

    Args:
        model: any vlchat folder, run, short name or Hub id of an image-text-to-text model; null is the embedded model.
        revision: branch, tag or commit of a Hub id; the run remembers it.
        lora: `{r, alpha, dropout}` and optionally `targets`; null trains without an adapter.
        cells: as in stage 1.
        quantize: "nf4" or "int8" for the language model.
        attention: as in stage 1.
    """

    name = "tune"

    def __init__(
        self,
        data: Sequence[dict[str, Any]] = (),
        model: str | None = None,
        lora: dict[str, Any] | None = None,
        quantize: str | None = None,
        cells: float = 0.0,
        max_length: int | None = 2048,
        sample_tokens: int = 60,
        attention: str | None = None,
        revision: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(data, seed, max_length, sample_tokens, cells)
        for key in lora or {}:
            if key not in _LORA:
                hint = nearest(key, _LORA) or f"; known: {', '.join(_LORA)}."
                raise ConfigError(f'Unknown key "{key}" in objective.lora{hint}')
        model = resolve(model)
        path = str(newest(Path(model))) if model else None
        self.model, self.processor = checkpoint.load(
            path, quantize=quantize, revision=revision, merge=quantize is None, trainable=True
        )
        self.base = {"model": f"{path}@{revision}" if revision else path}
        foreign.require_template(self.processor)
        if self.model.config.is_encoder_decoder:
            raise ConfigError(f"{path} has a language model with an encoder, which can't be tuned here.")
        self.reader = MapReader(self.processor.tokenizer)
        self.attend(attention)
        if cells:
            self.measure_maps()
        if lora is not None:
            self.model = add_lora(self.model, **lora)
            self.adapter = True

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        counts = {"answers": float(torch.ne(batch["labels"][:, 1:], IGNORED).sum())}
        if len(batch.get("cell_sides", ())):
            counts["cells"] = float(self.cell_weights(batch["cell_sides"]).sum())
        return counts

    def forward(self, batch: dict[str, Any]) -> dict[str, Term]:
        counts = self.counts(batch)
        maps = [batch.pop(key) for key in ("cell_words", "cell_sides") if key in batch]
        batch.pop("positions")
        out = self.model(**batch, use_cache=False)
        terms = {"answers": Term(out.loss * counts["answers"], counts["answers"])}
        if "cells" in counts:
            cells = self.cells_loss(out.image_hidden_states, *maps)
            terms["cells"] = Term(cells, counts["cells"], self.cells)
        return terms
