"""Stage 1: the connector learns between a frozen tower and a frozen language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer

from train.capture import inputs_of
from train.config import typed
from train.contrastive import Contrast, ContrastConfig, hits
from train.conversations import SHAPE_STEP, Conversations
from train.likelihood import supervised, token_losses
from train.matching import Matching
from train.ranks import rank
from train.reader import MapReader
from train.terms import Term
from train.warm_start import WarmStartConfig, warm_start
from vlchat import checkpoint
from vlchat.connectors import QFormerConnector
from vlchat.data import Example
from vlchat.errors import ConfigError, DataError
from vlchat.folders import newest
from vlchat.heads.qformer_text import QFormerText
from vlchat.heads.text_sides import LanguageText, TextSide, TowerText
from vlchat.model import VLChatForConditionalGeneration
from vlchat.processor import VLChatProcessor
from vlchat.reading import reading
from vlchat.towers.composing import backbone_sources, image_processor_of, with_sources

_KEYS = ("input_ids", "attention_mask")


class AlignObjective(Conversations):
    """Stage 1: tower and language model frozen, the connector learns.

    As LLaVA does (arXiv 2304.08485), with the objectives of BLIP-2's first stage (2301.12597). What only they need
    (projections, temperature, the Q-Former's text half, the matching head) is in `heads`: a rule of `trainable` must
    name it, and it is kept in the training state, not in the model.

    Args:
        vision, language: path or Hub id of a backbone; the folder of a run stands for its newest checkpoint. A tower
            may be composed: `{type: name, **kwargs}`, one of `vlchat.towers.composing.TOWERS`.
        connector: `{type: name, **kwargs}`.
        itg: weight of the caption's likelihood through the frozen language model (image-grounded text generation).
        itg_share: share of a step's rows that enter it; it is what costs most.
        itc: image-text contrast: its weight, or the settings of `ContrastConfig`. The picture's side is the mean of its
            image tokens; of a Q-Former, each query, of which the most similar counts.
        text: its text side: null is the Q-Former's own text half, for other connectors the mean of the frozen language
            model's states; "language" the latter for all; else path or Hub id of a text model or of a CLIP-like pair.
        itm: weight of image-text matching with hard negatives; with a Q-Former only. BLIP-2's weights are all 1.
        itg_qformer: weight of the caption's likelihood by the Q-Former's own text half.
        cells: weight of the scene maps' loss, for drawn scenes only: each image token is drawn to the embedding of its
            cell's words, which the embedded language model learnt to read (`train.reader`).
        projection: width of the contrastive space.
        warm_start: the connector's last layer begins with the solution of a regression on captions instead of random
            numbers: where it can (true), or else it is said (the settings of `WarmStartConfig`), or not (false).
        template: chat template by name, or null for the tokenizer's own.
        instruction_length: at most so many tokens of the question are read by an instruction-aware Q-Former.
        quantize: "nf4" or "int8" for the language model.
        dtype: of tower and language model: "float32", "bfloat16", "float16", or "auto", each as it is stored.
        too_long: what becomes of rows of more than `max_length` tokens: "drop" leaves them out and counts them,
            "shorten" leaves out their last exchanges, "refuse" counts them as bad rows (`vlchat.data.Collator`).
        attention: "eager", "sdpa" or "flash_attention_2"; eager is the fastest to train on a CPU below 400 tokens.
        augment: vary the pictures, `{crop, flip, color, rotate}` of `vlchat.data.augment.Augment`.
        scaled_decoding: much larger pictures are made smaller by cheap means first, which moves values by a few 255ths
            (`vlchat.data.opening`); false looks at every pixel, as chat and evaluation do.
        feature_cache: `{path, gib}` of `train.features.FeatureCacheConfig`: what the tower makes of pictures is kept on
            disk, and they are not decoded again; null keeps nothing.
        tiles: show pictures in high resolution, cut into at most so many tiles, or into tiles of given sizes
            `[[height, width], ...]`; null shows them in one piece.
    """

    name = "align"
    # What the model takes of pictures: their pixels or features, and what some need beside them.
    pictured = (
        "pixel_values", "tower_features", "instruction_input_ids", "instruction_attention_mask", "image_sizes",
    )  # fmt: skip

    def __init__(
        self,
        vision: str | dict[str, Any],
        language: str,
        connector: dict[str, Any],
        data: Sequence[dict[str, Any]] = (),
        itg: float = 1.0,
        itg_share: float = 1.0,
        itc: float | dict[str, Any] = 0.2,
        text: str | None = None,
        itm: float = 0.0,
        itg_qformer: float = 0.0,
        cells: float = 0.0,
        projection: int = 128,
        warm_start: dict[str, Any] | bool | None = True,
        template: str | None = None,
        vision_feature_layer: int | list[int] | None = -2,
        vision_feature_select_strategy: str = "patch",
        instruction_length: int = 64,
        quantize: str | None = None,
        max_length: int | None = 2048,
        too_long: str = "drop",
        sample_tokens: int = 60,
        attention: str | None = None,
        augment: dict[str, Any] | None = None,
        scaled_decoding: bool = True,
        feature_cache: dict[str, Any] | None = None,
        tiles: int | list[list[int]] | None = None,
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__(data, seed, max_length, sample_tokens, cells, too_long)
        sources = [str(newest(Path(source))) for source in backbone_sources(vision)]
        vision, language = with_sources(vision, sources), str(newest(Path(language)))
        more = {f"vision_{number}": source for number, source in enumerate(sources[1:], 2)}
        self.base = {"vision": sources[0], **more, "language": language}
        contrast = typed(ContrastConfig, itc if isinstance(itc, dict) else {"weight": float(itc)}, "objective.itc")
        self.itc, self.itm, self.itg, self.itg_qformer = contrast.weight, itm, itg, itg_qformer
        self.itg_share = itg_share
        self.warm = None
        if warm_start not in (None, False):
            self.warm = typed(WarmStartConfig, {} if warm_start is True else warm_start, "objective.warm_start")
        self._warm_asked = warm_start is not True
        self.whole_batch = bool(self.itc or itm)
        with reading(language, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(language, trust_remote_code=False)
        self.model = VLChatForConditionalGeneration.from_backbones(
            vision,
            language,
            connector,
            tokenizer=tokenizer,
            quantize=quantize,
            dtype=checkpoint.known_dtype(dtype, "objective.dtype"),
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            tiles=tiles,
        )
        self.attend(attention)
        self.vary(augment)
        self.processor = VLChatProcessor.from_backbones(
            image_processor_of(vision, self.model.config.image_grid_pinpoints),
            tokenizer,
            self.model.config.image_seq_length,
            template,
            instruction_length=instruction_length if self.connector.uses_instructions else None,
        )
        self.look(scaled_decoding, feature_cache)
        self.reader = MapReader(self.processor.tokenizer)
        if cells:
            self.measure_maps()
        self._check_weights()
        self._make_heads(contrast, projection, text, seed)

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        if self.itg and self.itg_share < 1:
            raise ConfigError(
                "objective.itg_share leaves rows out, all rows of some process perhaps, and a sharded language model "
                "is run by all processes or by none: set it to 1, or start with configs/accelerate/ddp.yaml."
            )
        return super().shards()

    @property
    def connector(self) -> Any:
        return self.model.model.connector

    @property
    def qformer_text(self) -> QFormerText | None:
        """The Q-Former's text half, where a term needs it."""
        return self.heads["qformer_text"] if "qformer_text" in self.heads else None  # type: ignore[return-value]

    def _check_weights(self) -> None:
        weights = {"itg": self.itg, "itc": self.itc, "itm": self.itm, "itg_qformer": self.itg_qformer}
        for name, weight in (weights | {"cells": self.cells}).items():
            if not 0 <= weight < math.inf:
                raise ConfigError(f"objective.{name} has the weight {weight:g}; it must be 0 or more.")
        if not 0 <= self.itg_share <= 1:
            raise ConfigError(f"objective.itg_share must be from 0 to 1, not {self.itg_share:g}.")
        if not any(weights.values()) and not self.cells:
            raise ConfigError("Nothing to learn from: objective.itg, itc, itm, itg_qformer and cells are all 0.")
        for name in ("itm", "itg_qformer"):
            if weights[name] and not isinstance(self.connector, QFormerConnector):
                raise ConfigError(
                    f"objective.{name} needs a text half that sees the picture, and of all connectors only the qformer "
                    f"has one. Set objective.connector.type=qformer, or objective.{name}=0: objective.itc works with "
                    "any connector, with loss=triplet against the hardest negatives."
                )
        if self.itm and not self.itc:
            raise ConfigError(
                "objective.itm draws its hard negatives by the similarities that objective.itc learns: give itc a "
                "weight, such as 1."
            )

    def _make_heads(self, contrast: ContrastConfig, projection: int, text: str | None, seed: int) -> None:
        if projection < 1:
            raise ConfigError(f"objective.projection must be at least 1, not {projection}.")
        self.heads = nn.ModuleDict()
        self._heads_train = False  # looked at when training begins
        of_queries = isinstance(self.connector, QFormerConnector)
        if of_queries and (self.itm or self.itg_qformer or (self.itc and text is None)):
            kernels = self.connector.qformer.config._attn_implementation
            if kernels not in ("eager", "sdpa"):
                raise ConfigError(
                    f'objective.attention is "{kernels}", which knows no masks as those between a Q-Former\'s queries '
                    "and its text: use sdpa, or objective.itm=0, objective.itg_qformer=0 and objective.text=language."
                )
            self.heads["qformer_text"] = QFormerText(self.connector, self.processor.tokenizer, SHAPE_STEP)
        self.text_side: TextSide | None = None
        if self.itc:
            if text is not None and text != "language":
                self.text_side = TowerText(text)
            else:
                language = LanguageText(self.model, self.processor.tokenizer, SHAPE_STEP)
                self.text_side = self.qformer_text if text is None and of_queries else language
            width = self.connector.qformer.config.hidden_size if of_queries else self.model.config.embedding_dim
            self.heads["contrast"] = Contrast(contrast)
            self.heads["image_projection"] = nn.Linear(width, projection)
            self.heads["text_projection"] = nn.Linear(self.text_side.width, projection)  # type: ignore[union-attr]
        if self.itm:
            self.heads["matching"] = Matching(self.connector.qformer.config.hidden_size, seed)

    def begin(self, rows: int) -> None:
        """What comes before the first step of a new run that sees so many rows."""
        if self.warm is None:
            return
        try:
            told = warm_start(self, self.warm if self._warm_asked else self.warm.within(rows))
        except ConfigError as error:
            if self._warm_asked:
                raise
            told = f"No warm start: {error}"
        if rank() == 0:
            print(told)

    def unfit(self, example: Example) -> DataError | None:
        if len(example.images) == 1:
            return None
        return DataError(
            f"has {len(example.images)} pictures. Stage 1 aligns pairs of one picture and one caption; leave such rows "
            "to stage 2",
            field="image",
        )

    def tensors(self, examples: list[Example], batch: dict[str, Any] | None = None) -> dict[str, Any]:
        for example in examples:
            if problem := self.unfit(example):
                raise problem.within(example.called)
        batch = super().tensors(examples, batch)
        captions, names = [example.answer for example in examples], [example.called for example in examples]
        for side in {id(side): side for side in (self.text_side, self.qformer_text) if side is not None}.values():
            batch |= side.tokens(captions, names)
        return batch

    def default_trainable(self) -> dict[str, float]:
        """The connector and the objective's own heads, at the rate of LLaVA-1.5's first stage."""
        return {r"\.connector\.|^heads\.": 1e-3}

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        rows = len(batch["positions"])
        counts: dict[str, float] = {}
        if self.itg:
            counts["itg"] = float(supervised(batch["labels"][self._told(batch)]).sum())
        if self.itc:
            counts["itc"] = float(rows)
        if self.itm:
            counts["itm"] = 3.0 * rows
        if self.itg_qformer:
            counts["itg_qformer"] = float(batch["qformer_attention_mask"][:, 1:].sum())
        if "cell_sides" in batch:
            counts["cells"] = self.cell_count(batch["cell_sides"])
        return counts

    def _told(self, batch: dict[str, Any]) -> torch.Tensor:
        """The rows that enter the language model: evenly spread over positions, however these are shared out."""
        reached = [int(place * self.itg_share) for position in batch["positions"].tolist()
                   for place in (position, position + 1)]  # fmt: skip
        told = [row for row in range(len(reached) // 2) if reached[2 * row] < reached[2 * row + 1]]
        return torch.tensor(told, dtype=torch.long, device=batch["labels"].device)

    def _refuse_frozen_heads(self) -> None:
        if self._heads_train or not self.training:
            return
        known = {id(parameter) for parameter in self.model.parameters()}
        for name, parameter in self.heads.named_parameters():
            if id(parameter) not in known and not parameter.requires_grad:
                raise ConfigError(
                    f"trainable: no rule trains heads.{name}, which stage 1 makes anew, so that it would stay random. "
                    'Write, for example, trainable: {"connector|heads": 1e-3}.'
                )
        self._heads_train = True

    def forward(self, batch: dict[str, Any]) -> dict[str, Term]:
        self._refuse_frozen_heads()
        batch = self.shown(batch)
        pictured = {key: batch[key] for key in self.pictured if key in batch}
        # Of a Q-Former: what it reads, the tower's features, and what it makes of them, the queries' states.
        parts = (self.connector, self.connector.projection) if isinstance(self.connector, QFormerConnector) else ()
        with inputs_of(*parts) as seen:
            pictures = self.model.get_image_features(**pictured, return_dict=True)
        tokens = pictures.pooler_output
        terms: dict[str, Term] = {}
        if self.itg:
            terms["itg"] = self._written(batch, pictures)
        if "cell_words" in batch:
            cells = self.cells_loss(torch.cat(tokens), batch["cell_words"], batch["cell_sides"])
            terms["cells"] = Term(cells, self.cell_count(batch["cell_sides"]), self.cells)
        if self.itc:
            terms |= self._compared(batch, tokens, seen)
        if self.itg_qformer and self.qformer_text is not None:
            texts = (batch[f"qformer_{key}"] for key in _KEYS)
            terms["itg_qformer"] = Term(*self.qformer_text.writing_loss(seen[0], *texts), self.itg_qformer)
        return terms

    def _written(self, batch: dict[str, Any], pictures: Any) -> Term:
        """The caption's likelihood through the frozen language model."""
        told, tokens = self._told(batch), pictures.pooler_output
        if not len(told):
            return Term(tokens[0].float().sum() * 0.0, 0.0, self.itg)
        shown = type(pictures)(pooler_output=[tokens[row] for row in told.tolist()])
        found = token_losses(
            self.model,
            {name: batch[name][told] for name in ("input_ids", "attention_mask", "labels")}
            | {"mm_encoder_outputs": {"image": shown}},
        )
        return Term(found.total, float(found.count), self.itg)

    def _compared(self, batch: dict[str, Any], tokens: list[torch.Tensor], seen: list[torch.Tensor]) -> dict[str, Term]:
        """The contrast between pictures and captions, and what is drawn by its similarities."""
        contrast: Any = self.heads["contrast"]
        assert self.text_side is not None
        if not isinstance(self.connector, QFormerConnector):
            pooled = torch.stack([one.mean(0) for one in tokens])  # (rows, hidden)
        elif self.connector.uses_instructions:
            pooled = self.connector.read(seen[0])  # without the question
        else:
            pooled = seen[1]  # (rows, queries, hidden)
        words = self.text_side(*(batch[f"{self.text_side.prefix}_{key}"] for key in _KEYS))  # (rows, width)
        image = functional.normalize(self.heads["image_projection"](pooled), dim=-1)
        text = functional.normalize(self.heads["text_projection"](words), dim=-1)
        forward, backward, _ = hits(image, text)
        total, rows = contrast(image, text)
        terms = {
            "itc": Term(total, rows, self.itc),
            "image_to_text": Term(forward, rows, 0.0),
            "text_to_image": Term(backward, rows, 0.0),
            "scale": Term(contrast.scale.detach() * rows, rows, 0.0),
        }
        if self.itm and self.qformer_text is not None:
            texts = (batch[f"qformer_{key}"] for key in _KEYS)
            wrong, right, asked = self.heads["matching"](
                self.qformer_text, seen[0], *texts, (image, text), contrast.scale, batch["positions"]
            )
            terms |= {"itm": Term(wrong, asked, self.itm), "matched": Term(right, asked, 0.0)}
        return terms
