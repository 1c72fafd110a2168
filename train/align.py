"""Stage 1: the connector learns between a frozen tower and a frozen language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer

from train.contrastive import hits, info_nce
from train.conversations import SHAPE_STEP, Conversations
from train.reader import MapReader
from train.terms import Term
from vlchat.data import Example
from vlchat.data.collate import IGNORED
from vlchat.errors import ConfigError
from vlchat.folders import newest
from vlchat.model import VLChatForConditionalGeneration
from vlchat.processor import VLChatProcessor
from vlchat.reading import reading
from vlchat.towers.composing import backbone_sources, image_processor_of, with_sources

_BESIDE_PICTURES = ("instruction_input_ids", "instruction_attention_mask", "image_sizes")


class AlignObjective(Conversations):
    """Stage 1: tower and language model frozen, the connector learns.

    As LLaVA does (arXiv 2304.08485), with the image-text contrast of BLIP-2 (2301.12597).

    Args:
        vision, language: path or Hub id of a backbone; the folder of a run stands for its newest checkpoint. A tower
            may be composed: `{type: name, **kwargs}`, one of `vlchat.towers.composing.TOWERS`.
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
            tokenizer = AutoTokenizer.from_pretrained(language, trust_remote_code=False)
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
        if cells:
            self.measure_maps()
        self.whole_batch = bool(itc)
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
            pad_to_multiple_of=SHAPE_STEP,
            return_tensors="pt",
        )
        return super().tensors(examples) | {f"caption_{key}": captions[key] for key in ("input_ids", "attention_mask")}

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        labels = batch["labels"]
        rows = float(len(labels))
        shown = max(1, round(self.itg_share * len(labels)))
        counts = {"itg": float(torch.ne(labels[:shown, 1:], IGNORED).sum()), "itc": rows}
        if "cell_sides" in batch:
            counts["cells"] = float(self.cell_weights(batch["cell_sides"]).sum())
        return counts

    def forward(self, batch: dict[str, Any]) -> dict[str, Term]:
        model, counts = self.model, self.counts(batch)
        batch.pop("positions")
        captions, caption_mask = batch.pop("caption_input_ids"), batch.pop("caption_attention_mask")
        maps = [batch.pop(key) for key in ("cell_words", "cell_sides") if key in batch]
        beside = {key: batch.pop(key) for key in _BESIDE_PICTURES if key in batch}  # for some connectors, and for tiles
        features = model.get_image_features(batch.pop("pixel_values"), **beside, return_dict=True)
        rows = max(1, round(self.itg_share * len(captions)))  # one picture a row
        told = type(features)(pooler_output=features.pooler_output[:rows])
        out = model(**{key: value[:rows] for key, value in batch.items()}, mm_encoder_outputs={"image": told})
        terms = {"itg": Term(out.loss * counts["itg"], counts["itg"], self.itg)}
        if maps:
            cells = self.cells_loss(torch.cat(features.pooler_output), *maps)
            terms["cells"] = Term(cells, counts["cells"], self.cells)
        if self.itc:
            pooled = torch.stack([tokens.mean(0) for tokens in features.pooler_output])  # (images, hidden)
            with torch.no_grad():
                states = model.model.language_model(input_ids=captions, attention_mask=caption_mask).last_hidden_state
                mask = caption_mask.unsqueeze(-1)
                words = (states * mask).sum(1) / mask.sum(1)  # (images, hidden)
            image = functional.normalize(self.image_projection(pooled), dim=-1)
            text = functional.normalize(self.text_projection(words), dim=-1)
            terms["itc"] = Term(*info_nce(image, text, self.logit_scale.exp().clamp(max=100.0)), self.itc)
            forward, backward, pairs = hits(image, text)
            terms |= {"image_to_text": Term(forward, pairs, 0.0), "text_to_image": Term(backward, pairs, 0.0)}
        return terms
