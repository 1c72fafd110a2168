"""Stages 1 and 2: a connector aligned between frozen backbones, then a whole model tuned on conversations."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer

from train.contrastive import clip_loss, recall
from train.reader import IMAGE_TOKENS, MapReader
from train.sources import open_data
from vlchat import checkpoint, foreign, prompt
from vlchat.composing import backbone_sources, image_processor_of, with_sources
from vlchat.data import Collator, Example
from vlchat.data.collate import decode_images, has_answer
from vlchat.data.formats import text_of
from vlchat.errors import ConfigError, nearest
from vlchat.folders import newest
from vlchat.lora import add_lora
from vlchat.model import VLChatForConditionalGeneration
from vlchat.models import resolve
from vlchat.processor import VLChatProcessor
from vlchat.reading import reading

_SHAPE_STEP = 32
_BACKGROUND = 0.3  # weight of a cell without a thing; two thirds are such
_LORA = ("r", "alpha", "dropout", "targets")
_BESIDE_PICTURES = ("instruction_input_ids", "instruction_attention_mask", "image_sizes")
_ATTENTION = ("eager", "sdpa", "flash_attention_2")


class _Conversations(nn.Module):
    """What both stages share: rows -> tensors, sample answers, and the folder that is saved."""

    model: Any
    processor: Any
    reader: MapReader

    def __init__(
        self, data: Sequence[dict[str, Any]], seed: int, max_length: int | None, sample_tokens: int, cells: float
    ) -> None:
        super().__init__()
        self.mixture = open_data(data, seed)
        self.cells = cells
        self.max_length, self.sample_tokens = max_length, sample_tokens
        self.base: dict[str, str | Path | None] = {}
        self.adapter = False
        self.trained_on = ", ".join(source.name for source in self.mixture.sources)

    def attend(self, attention: str | None) -> None:
        """Choose the attention kernels; null leaves the choice to transformers."""
        if attention is not None:
            if attention not in _ATTENTION:
                raise ConfigError(f'objective.attention is "{attention}"; use one of {", ".join(_ATTENTION)}.')
            self.model.set_attn_implementation(attention)

    def steps(self, epochs: float, batch: int) -> int:
        return max(1, round(epochs * len(self.mixture) / batch))

    def examples(self, step: int, rows: int) -> list[Example]:
        found = []
        for position in range(step * rows, (step + 1) * rows):
            epoch, index = divmod(position, len(self.mixture))
            self.mixture.set_epoch(epoch)
            found.append(self.mixture[index])
        return found

    def batch(self, step: int, rows: int) -> dict[str, Any]:
        return self.tensors(self.examples(step, rows))

    def tensors(self, examples: list[Example]) -> dict[str, Any]:
        batch = Collator(self.processor, self.max_length, self.model)(examples)
        if self.cells:
            batch |= self._maps(examples)
        if not isinstance(self.processor, VLChatProcessor):
            return batch  # of other models' tensors only they know which are a text long
        # Few different lengths: on a CPU each costs a freshly compiled kernel.
        extra = -batch["input_ids"].shape[1] % _SHAPE_STEP
        blanks = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": -100, "attention_mask": 0}
        return {
            key: functional.pad(value, (0, extra), value=blanks[key]) if key in blanks else value
            for key, value in batch.items()
        }

    def _maps(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        for example in examples:
            if len(example.meta.get("scenes", ())) != len(example.images):
                raise ConfigError(
                    f'Row "{example.id}" has no scene map, and objective.cells learns from it: only the drawn world '
                    "(data.N.type=scenes) has one. Set objective.cells=0."
                )
        scenes = [scene for example in examples for scene in example.meta["scenes"]]
        return self.reader.tensors([self.reader.cells(scene) for scene in scenes])

    def cells_loss(self, features: torch.Tensor, words: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
        """What the image tokens lack of the scene maps, as a share of their variance; the background counts less.

        Args:
            features: (maps * cells, hidden), what the connector gives.
            words, sides: of `MapReader.tensors`.
        """
        with torch.no_grad():
            target = self.reader.embed(self.model.get_input_embeddings(), words, sides).flatten(0, 1).float()
            weight = torch.where(sides.sum(-1).flatten() > 0, 1.0, _BACKGROUND)
        if features.shape != target.shape:
            raise ConfigError(
                f"objective.cells needs one image token for each of the {IMAGE_TOKENS} cells of a scene map; this "
                f"tower and connector give {len(features) // len(words)}. Set objective.cells=0."
            )
        error = (features.float() - target).square().mean(-1)
        return (weight * error).sum() / weight.sum() / target.var(0).mean()

    @torch.no_grad()
    def sample(self) -> tuple[dict[str, float], list[str]]:
        """Answers to a few rows from the far end of the data, beside the right ones."""
        lines = []
        for index in range(len(self.mixture) - 4, len(self.mixture)):
            if index < 0:
                continue
            example = self.mixture[index]
            if not has_answer(example):
                continue
            turns = [number for number, message in enumerate(example.messages) if message["role"] == "assistant"]
            asked = Example(example.id, example.messages[: turns[0]])
            inputs = {key: value.to(self.model.device) for key, value in self._prompt(asked).items()}
            out = self.model.generate(**inputs, max_new_tokens=self.sample_tokens, do_sample=False)
            written = foreign.new_tokens(out, inputs["input_ids"])[0]
            reply = self.processor.tokenizer.decode(written, skip_special_tokens=True)
            told, right = (textwrap.shorten(text, 120) for text in (reply, text_of(example.messages[turns[0]])))
            lines.append(f"{text_of(asked.messages[-1])} -> {told} (right: {right})")
        return {}, lines

    def _prompt(self, example: Example) -> Any:
        messages = decode_images(example.messages, f'Row "{example.id}"')
        if not isinstance(self.processor, VLChatProcessor):
            return foreign.inputs(self.processor, [prompt.validate(messages)], self.model)
        return self.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )

    def save(self, folder: Path, extra: Callable[[Path], None]) -> None:
        trains = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        checkpoint.save(
            folder,
            self.model,
            self.processor,
            base=self.base,
            trained=[name for name in trains if "lora_" not in name],
            adapter=self.adapter,
            trained_on=self.trained_on,
            extra=extra,
        )


class AlignObjective(_Conversations):
    """Stage 1: tower and language model frozen, the connector learns.

    As LLaVA does (arXiv 2304.08485), with the image-text contrast of BLIP-2 (2301.12597).

    Args:
        vision, language: path or Hub id of a backbone; the folder of a run stands for its newest checkpoint. A tower
            may be composed: `{type: name, **kwargs}`, one of `vlchat.composing.TOWERS`.
        connector: `{type: name, **kwargs}`.
        itg: weight of the caption's likelihood through the frozen language model.
        itg_share: share of a step's rows that enter it; it is what costs most.
        itc: weight of the contrast between the mean of a picture's image tokens and the mean of its caption's last
            hidden states, both projected.
        cells: weight of the scene maps' loss, for drawn scenes only: each image token is drawn to the embedding of its
            cell's words, which the embedded language model learnt to read (`train.reader`).
        projection: width of the contrastive space; its two projections are not saved.
        template: chat template by name, or null for the tokenizer's own.
        instruction_length: at most so many tokens of the question are read by an instruction-aware Q-Former.
        quantize: "nf4" or "int8" for the language model.
        attention: "eager", "sdpa" or "flash_attention_2"; eager is the fastest to train on a CPU below 400 tokens.
        tiles: show pictures in high resolution, cut into at most so many tiles, or into tiles of given sizes
            `[[height, width], ...]`; null shows them in one piece.
    """

    name = "align"

    def __init__(
        self,
        vision: str | dict[str, Any],
        language: str,
        connector: dict[str, Any],
        data: Sequence[dict[str, Any]] = (),
        itg: float = 1.0,
        itg_share: float = 1.0,
        itc: float = 0.2,
        cells: float = 0.0,
        projection: int = 128,
        template: str | None = None,
        vision_feature_layer: int | list[int] | None = -2,
        vision_feature_select_strategy: str = "patch",
        instruction_length: int = 64,
        quantize: str | None = None,
        max_length: int | None = 2048,
        sample_tokens: int = 60,
        attention: str | None = None,
        tiles: int | list[list[int]] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(data, seed, max_length, sample_tokens, cells)
        sources = [str(newest(Path(source))) for source in backbone_sources(vision)]
        vision, language = with_sources(vision, sources), str(newest(Path(language)))
        more = {f"vision_{number}": source for number, source in enumerate(sources[1:], 2)}
        self.base = {"vision": sources[0], **more, "language": language}
        self.itg, self.itg_share, self.itc = itg, itg_share, itc
        with reading(language, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(language)
        self.model = VLChatForConditionalGeneration.from_backbones(
            vision,
            language,
            connector,
            tokenizer=tokenizer,
            quantize=quantize,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            tiles=tiles,
        )
        self.attend(attention)
        self.processor = VLChatProcessor.from_backbones(
            image_processor_of(vision, self.model.config.image_grid_pinpoints),
            tokenizer,
            self.model.config.image_seq_length,
            template,
            instruction_length=instruction_length if self.model.model.connector.uses_instructions else None,
        )
        self.reader = MapReader(self.processor.tokenizer)
        hidden = self.model.config.text_config.hidden_size
        self.image_projection = nn.Linear(hidden, projection)
        self.text_projection = nn.Linear(hidden, projection)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))  # 1 / 0.07, as CLIP begins

    def tensors(self, examples: list[Example]) -> dict[str, Any]:
        for example in examples:
            if len(example.images) != 1:
                raise ConfigError(
                    f'Row "{example.id}" has {len(example.images)} pictures. Stage 1 aligns pairs of one picture '
                    "and one caption; leave such rows to stage 2."
                )
        captions = self.processor.tokenizer(
            [example.answer for example in examples],
            padding=True,
            padding_side="right",
            pad_to_multiple_of=_SHAPE_STEP,
            return_tensors="pt",
        )
        return super().tensors(examples) | {f"caption_{key}": captions[key] for key in ("input_ids", "attention_mask")}

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        model = self.model
        captions, caption_mask = batch.pop("caption_input_ids"), batch.pop("caption_attention_mask")
        maps = [batch.pop(key) for key in ("cell_words", "cell_sides") if key in batch]
        beside = {key: batch.pop(key) for key in _BESIDE_PICTURES if key in batch}  # for some connectors, and for tiles
        features = model.get_image_features(batch.pop("pixel_values"), **beside, return_dict=True)
        rows = max(1, round(self.itg_share * len(captions)))  # one picture a row
        told = type(features)(pooler_output=features.pooler_output[:rows])
        out = model(**{key: value[:rows] for key, value in batch.items()}, mm_encoder_outputs={"image": told})
        metrics = {"itg": out.loss.item()}
        loss = self.itg * out.loss
        if maps:
            cells = self.cells_loss(torch.cat(features.pooler_output), *maps)
            metrics["cells"] = cells.item()
            loss = loss + self.cells * cells
        if self.itc:
            pooled = torch.stack([tokens.mean(0) for tokens in features.pooler_output])  # (images, hidden)
            with torch.no_grad():
                states = model.model.language_model(input_ids=captions, attention_mask=caption_mask).last_hidden_state
                mask = caption_mask.unsqueeze(-1)
                words = (states * mask).sum(1) / mask.sum(1)  # (images, hidden)
            image = functional.normalize(self.image_projection(pooled), dim=-1)
            text = functional.normalize(self.text_projection(words), dim=-1)
            itc = clip_loss(image, text, self.logit_scale.exp().clamp(max=100.0))
            forward, backward = recall(image.detach(), text.detach())
            metrics |= {"itc": itc.item(), "image_to_text": forward, "text_to_image": backward}
            loss = loss + self.itc * itc
        return loss, metrics


class TuneObjective(_Conversations):
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
        if lora is not None:
            self.model = add_lora(self.model, **lora)
            self.adapter = True

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        maps = [batch.pop(key) for key in ("cell_words", "cell_sides") if key in batch]
        out = self.model(**batch, use_cache=False)
        if not maps or not len(maps[0]):
            return out.loss, {}
        cells = self.cells_loss(out.image_hidden_states, *maps)
        return out.loss + self.cells * cells, {"answers": out.loss.item(), "cells": cells.item()}
