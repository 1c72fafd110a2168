"""Stage 2: a whole model learns to answer, by LoRA and its connector."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from train.checkpointing import recompute_language_model
from train.company import SHARED, Company
from train.config import typed
from train.conversations import SHAPE_STEP, Conversations
from train.distill import PREFIX, DistillConfig, Teacher
from train.likelihood import supervised, token_losses
from train.reader import MapReader
from train.row_lengths import RowLengths
from train.terms import Term
from vlchat import checkpoint, foreign
from vlchat.chat_templates import checked_template
from vlchat.data import Example
from vlchat.data.collate import decode_images
from vlchat.data.packing import REMEDY, Mask, is_dense, pack, packed_mask
from vlchat.data.sharing import SEGMENTS, branch_mask, check_sharing, share
from vlchat.errors import ConfigError, DataError, nearest
from vlchat.folders import newest
from vlchat.lora import add_lora, refuse_adapter
from vlchat.models import resolve
from vlchat.processor import VLChatProcessor
from vlchat.quantize import is_quantized, language_model_prefix
from vlchat.resolution import set_image_size
from vlchat.towers import padding_image_processor

_LORA: dict[str, Any] = {
    "r": int, "alpha": int, "dropout": float, "targets": str | None, "dora": bool, "rslora": bool,
}  # fmt: skip
_CONNECTORS = "connector|projector|merger|language_projection"  # what families call theirs
_APART = ("ids", "positions", "faults", "cell_words", "cell_sides")  # of a batch, not for the model


class TuneObjective(Conversations):
    """Stage 2: LoRA on the language model and a trained connector; loss on the assistant's tokens only.

    Args:
        model: any vlchat folder, run, short name or Hub id of an image-text-to-text model; null is the embedded model.
        revision: branch, tag or commit of a Hub id; the run remembers it.
        dtype: of what stays frozen: "bfloat16", "float16" or "float32"; "auto" is as stored, and float32 for small
            models on a CPU.
        template: another chat template from here on, by name; null keeps the model's.
        pad: pictures are made square with their mean color from here on, so that nothing is cut off, as LLaVA-1.5 does.
        lora: `{r, alpha, dropout}` and optionally `targets`, `dora`, `rslora`, all as of `vlchat.lora.add_lora`; null
            trains without an adapter.
        cells: as in stage 1.
        quantize: "nf4" or "int8" for the language model.
        distill: `{teacher, weight, temperature, quantize}`, as of `train.distill.DistillConfig`: learn from a larger
            model as well; null learns from the rows alone.
        company: beside each row up to so many others about the same pictures, drawn anew each epoch. They share the
            pictures' tokens (`vlchat.data.sharing`); a step has as many more rows.
        packing: the rows that are taken at once stand one after another in one, without padding; null does so where
            that is faster: where the language model keeps them apart without a mask of all tokens by all tokens.
        checkpointing: activations of the language model are computed again in the backward pass instead of kept: less
            memory, a third more time. A number is how many of its layers do so, from the first.
        too_long, attention, augment, scaled_decoding, feature_cache: as in stage 1.
        image_size: show the tower pictures of so many pixels a side, with its position embeddings interpolated.
    """

    name = "tune"

    def __init__(
        self,
        data: Sequence[dict[str, Any]] = (),
        model: str | None = None,
        lora: dict[str, Any] | None = None,
        quantize: str | None = None,
        distill: dict[str, Any] | None = None,
        company: int = 0,
        packing: bool | None = None,
        checkpointing: bool | int = False,
        cells: float = 0.0,
        max_length: int | None = 2048,
        too_long: str = "drop",
        sample_tokens: int = 60,
        attention: str | None = None,
        augment: dict[str, Any] | None = None,
        scaled_decoding: bool = True,
        feature_cache: dict[str, Any] | None = None,
        image_size: int | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        template: str | None = None,
        pad: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(data, seed, max_length, sample_tokens, cells, too_long)
        if company < 0:
            raise ConfigError(f"objective.company must be at least 0, not {company}.")
        for name, chosen in {"packing": packing, "distill": distill, "cells": cells}.items():
            if company and chosen:
                raise ConfigError(f"objective.company can't be used beside objective.{name}: choose one of them.")
        if distill is not None and too_long == "shorten":
            raise ConfigError("objective.too_long: a teacher reads rows whole; use drop or refuse beside distill.")
        options = _lora_options(lora)
        taught = None if distill is None else typed(DistillConfig, distill, "objective.distill")
        model = resolve(model)
        path = str(newest(Path(model))) if model else None
        self.model, self.processor = checkpoint.load(
            path, quantize=quantize, dtype=dtype, revision=revision, merge=quantize is None, trainable=True
        )
        refuse_adapter(self.model)
        self.show(template, pad)
        self.base = {"model": f"{path}@{revision}" if revision else path}
        if image_size is not None:
            set_image_size(self.model, self.processor, image_size)
            self.notes["image_size"] = image_size
        foreign.require_template(self.processor)
        if self.model.config.is_encoder_decoder:
            raise ConfigError(f"{path} has a language model with an encoder, which can't be tuned here.")
        self.reader = MapReader(self.processor.tokenizer)
        self.attend(attention)
        self.vary(augment)
        if scaled_decoding and distill is not None:
            self.fallbacks.append("Pictures are decoded whole: the teacher of objective.distill may want them larger.")
        self.look(scaled_decoding and distill is None, feature_cache, distill=distill)
        if cells:
            self.measure_maps()
        if options is not None:
            self.model = add_lora(self.model, **options)
            self.adapter = True
        self.company = company
        self._companions: list[Company] = []  # made by the process that prepares rows
        if company:
            check_sharing(self.model)
        self._mask = self._packed(packing)
        self.packing = self._mask is not None
        recompute_language_model(self.model, checkpointing)
        self._teacher: list[Teacher] = []  # not a submodule
        if taught is not None:
            self._teacher = [Teacher(taught, self.processor.tokenizer)]
            self.notes["teacher"] = self._teacher[0].describe()
            self.trained_on += f", taught by {self._teacher[0].name}"

    def show(self, template: str | None, pad: bool) -> None:
        """Another chat template, and pictures made square, where this is asked for."""
        if template is None and not pad:
            return
        if not isinstance(self.processor, VLChatProcessor):
            chosen = "template" if template is not None else "pad"
            raise ConfigError(
                f"objective.{chosen} is for vlchat's own models, and a {type(self.model).__name__} keeps what it was "
                "trained with: leave it out."
            )
        if pad:
            self.processor.image_processor = padding_image_processor(self.processor.image_processor)
        if template is not None:
            tokenizer, image_token = self.processor.tokenizer, self.processor.image_token
            self.processor.chat_template = checked_template(template, tokenizer, image_token)
            checkpoint.align_generation(self.model, self.processor)

    def default_trainable(self) -> dict[str, float]:
        """LoRA and the connector, else the language model and the connector; of a quantized one the connector alone.

        The rates are LLaVA-1.5's (arXiv:2310.03744, scripts/v1_5/finetune_lora.sh and finetune.sh).
        """
        if self.adapter:
            return {"lora_": 2e-4, _CONNECTORS: 2e-5}
        if is_quantized(self.model):
            return {_CONNECTORS: 2e-5}
        return {rf"{re.escape(language_model_prefix(self.model))}\.|lm_head|{_CONNECTORS}": 2e-5}

    def collated(self, examples: Sequence[Example], positions: Sequence[int]) -> dict[str, Any]:
        if self._teacher:  # both read them: decoded once
            examples = [_decoded(example) for example in examples]
        return super().collated(examples, positions)

    def _packed(self, wanted: bool | None) -> Mask | None:
        """How the rows of a packed one stay apart; None does not pack."""
        if wanted is False:
            return None
        if self.company:
            self.fallbacks.append("Rows are padded, not packed: objective.company joins them by their pictures.")
            return None
        try:
            mask = packed_mask(self.model)
        except ConfigError as error:
            if wanted:
                raise
            self.fallbacks.append(f"Rows are padded. {str(error).removesuffix(REMEDY)}")
            return None
        if wanted or not is_dense(self.model, mask):
            return mask
        kernels = self.model.get_decoder().config._attn_implementation
        hint = " objective.attention=sdpa packs them without, where the model has it." if kernels == "eager" else ""
        self.fallbacks.append(
            f"Rows are padded, not packed: with {kernels} attention packed rows of this model need a mask of all "
            f"tokens by all tokens, which costs more than padding.{hint}"
        )
        return None

    def tensors(self, examples: list[Example], batch: dict[str, Any] | None = None) -> dict[str, Any]:
        batch = super().tensors(examples, batch)
        for teacher in self._teacher:
            batch |= teacher.tensors(examples, batch["labels"])
        pad = self.processor.tokenizer.pad_token_id
        if self.company:
            groups = [example.meta.get(SHARED, f"row {number}") for number, example in enumerate(examples)]
            return share(batch, groups, self.processor.image_token_id, pad, SHAPE_STEP)
        return pack(batch, pad, SHAPE_STEP) if self.packing else batch

    @property
    def row_lengths(self) -> RowLengths | None:
        """As of stage 1; None with company, which is drawn when a row is read."""
        return None if self.company else super().row_lengths

    def accompanied(self, position: int, example: Example) -> list[Example]:
        if not self.company:
            return [example]
        if not self._companions:
            self._companions.append(Company(self.mixture, self.company))
        epoch, index = divmod(position, len(self.mixture))
        return self._companions[0].beside(index, epoch, example)

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        counts = {"answers": float(supervised(batch["labels"]).sum())}
        if self._teacher:
            counts["distill"] = counts["answers"]
        if len(batch.get("cell_sides", ())):
            counts["cells"] = self.cell_count(batch["cell_sides"])
        return counts

    def forward(self, batch: dict[str, Any]) -> dict[str, Term]:
        counts = self.counts(batch)
        inputs = self.shown(
            {name: value for name, value in batch.items() if name not in _APART and not name.startswith(PREFIX)}
        )
        if SEGMENTS in inputs:
            inputs["attention_mask"] = branch_mask(inputs.pop(SEGMENTS))
        if self._mask is not None:
            inputs["attention_mask"] = self._mask(inputs["position_ids"])
        found = token_losses(self.model, inputs)
        terms = {"answers": Term(found.total, found.count)}
        for teacher in self._teacher:
            shown = {name.removeprefix(PREFIX): batch[name] for name in batch if name.startswith(PREFIX)}
            divergence = teacher.divergence(found.answers, shown)
            terms["distill"] = Term(divergence, found.count, teacher.config.weight)
        if "cells" in counts:
            features = found.answers.image_hidden_states
            assert features is not None
            cells = self.cells_loss(features, batch["cell_words"], batch["cell_sides"])
            terms["cells"] = Term(cells, counts["cells"], self.cells)
        return terms


def _decoded(example: Example) -> Example:
    """The row with its pictures decoded. What can't be decoded stays: the collator says which row, and why."""
    with contextlib.suppress(DataError):
        return replace(example, messages=decode_images(example.messages))
    return example


def _lora_options(lora: dict[str, Any] | None) -> dict[str, Any] | None:
    for key in lora or {}:
        if key not in _LORA:
            hint = nearest(key, _LORA) or f"; known: {', '.join(_LORA)}."
            raise ConfigError(f'Unknown key "{key}" in objective.lora{hint}')
    return None if lora is None else {k: typed(_LORA[k], v, f"objective.lora.{k}") for k, v in lora.items()}
