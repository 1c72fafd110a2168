"""What stages 1 and 2 share: rows -> tensors, sample answers, and the folder that is saved."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from train.config import typed
from train.features import FeatureCacheConfig, TowerFeatures, check_features, features_on_disk
from train.heldout import origin
from train.reader import IMAGE_TOKENS, MapReader
from train.row_lengths import RowLengths, countable
from train.sources import open_data
from vlchat import checkpoint, foreign, prompt
from vlchat.attention import ATTENTION, set_attention
from vlchat.data import Collator, Example, Source
from vlchat.data.augment import Augment
from vlchat.data.collate import TOO_LONG, decode_images, has_answer
from vlchat.data.faults import BadRow
from vlchat.data.formats import text_of
from vlchat.data.opening import KNOWN, KNOWN_FEATURES, PICTURES, SHOWN, Opening
from vlchat.errors import ConfigError, DataError, nearest
from vlchat.feature_cache import FeatureCache
from vlchat.processor import VLChatProcessor
from vlchat.scenes.rows import generator
from vlchat.scenes.world import sample_scene
from vlchat.weightless import active

SHAPE_STEP = 32
_BACKGROUND = 0.3  # weight of a cell without a thing; two thirds are such
_MEASURED = 64  # scenes whose maps are measured
_RESOLVED = ("pixel_values", PICTURES, KNOWN, KNOWN_FEATURES, SHOWN)  # of a batch, by `Conversations.shown`


class Conversations(nn.Module):
    """What both stages share: rows -> tensors, sample answers, and the folder that is saved."""

    model: Any
    processor: Any
    reader: MapReader
    map_variance: float
    whole_batch = False
    packing = False
    _lengths: RowLengths | None = None
    augment: Augment | None = None
    opening: Opening
    features: TowerFeatures | None = None

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        seed: int,
        max_length: int | None,
        sample_tokens: int,
        cells: float,
        too_long: str,
    ) -> None:
        super().__init__()
        if too_long not in TOO_LONG:
            hint = nearest(too_long, TOO_LONG) or "."
            raise ConfigError(f'objective.too_long is "{too_long}"; use {", ".join(TOO_LONG)}{hint}')
        for name, value in {"max_length": max_length, "sample_tokens": sample_tokens}.items():
            if value is not None and value < 1:
                raise ConfigError(f"objective.{name} must be at least 1, not {value}.")
        self.too_long = too_long
        self.mixture = open_data(data, seed)
        self.cells = cells
        self.max_length, self.sample_tokens = max_length, sample_tokens
        self.base: dict[str, str | Path | None] = {}
        self.adapter = False
        self.notes: dict[str, Any] = {}  # for the manifest
        self.fallbacks: list[str] = []  # what can't be done the fast way, and why, in sentences
        self.trained_on = ", ".join(source.name for source in self.mixture.sources)

    def attend(self, attention: str | None) -> None:
        """Choose the attention kernels; null leaves the choice to transformers."""
        if attention is not None and attention not in ATTENTION:
            raise ConfigError(f'objective.attention is "{attention}"; use one of {", ".join(ATTENTION)}.')
        set_attention(self.model, attention)

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """The language model's blocks, which any row runs through once, and what holds its embeddings and its head.

        Raises:
            ConfigError: a language model without such blocks, or with blocks that rows without a picture pass by.
        """
        decoder = self.model.get_decoder()
        blocks = next((list(part) for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part)), [])
        if len({type(block) for block in blocks}) != 1:
            raise ConfigError(
                f"The language model, a {type(decoder).__name__}, is no stack of equal blocks and can't be sharded: "
                "start it with configs/accelerate/ddp.yaml."
            )
        return blocks, [decoder, self.model.get_output_embeddings()]

    @property
    def row_lengths(self) -> RowLengths | None:
        """What counts the tokens of rows beforehand; None where that costs much."""
        if not countable(self.mixture, self.processor):
            return None
        if self._lengths is None or self._lengths.mixture is not self.mixture:
            shortened = self.too_long == "shorten"
            self._lengths = RowLengths(self.mixture, self.processor, self.max_length, shortened, SHAPE_STEP)
        return self._lengths

    def vary(self, augment: dict[str, Any] | None) -> None:
        """Vary the pictures that are trained on, as `vlchat.data.augment` says; null leaves them as they are."""
        self.augment = Augment.of(augment)
        if self.cells and self.augment is not None and self.augment.moves:
            raise ConfigError(
                "objective.augment: crop, flip and rotate move what the scene maps of objective.cells say. Leave them "
                "out, or set objective.cells=0."
            )

    def look(self, scaled_decoding: bool, feature_cache: dict[str, Any] | None, **others: Any) -> None:
        """How the pictures that are trained on are looked at.

        Args:
            scaled_decoding: as `scaled` of `vlchat.data.opening.Opening`.
            feature_cache: the settings of `FeatureCacheConfig`; None encodes each picture each time.
            others: keys that a cache does not go with, as of `check_features`.
        """
        self.scaled_decoding, self.kept_features = scaled_decoding, None
        if feature_cache is not None:
            check_features(self.model, augment=self.augment, **others)
            self.kept_features = typed(FeatureCacheConfig, feature_cache, "objective.feature_cache")
        self.opening = Opening(self.processor, scaled_decoding)

    def prepare(self, precision: str, device: torch.device) -> None:
        """Opens the cache of features, once it is known what trains, where, and how finely."""
        if self.kept_features is not None:
            cache = features_on_disk(
                self.kept_features, self.model, self.processor, self.scaled_decoding, precision, device
            )
            self.keep_features(cache, precision, device)

    def keep_features(self, cache: FeatureCache, precision: str, device: torch.device) -> None:
        """Looks at pictures through a cache of features, as of `TowerFeatures`."""
        self.features = TowerFeatures(cache, self.model, precision, device)
        self.opening = Opening(self.processor, self.scaled_decoding, cache)

    def shown(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with its pictures as the model takes them: scaled from their eight bits, or as tower_features."""
        pixels = batch.get("pixel_values")
        if pixels is not None and pixels.dtype == torch.uint8 and self.opening.pixels is not None:
            pixels = self.opening.pixels.scaled(pixels)
        rest = {name: value for name, value in batch.items() if name not in _RESOLVED}
        if self.features is not None and PICTURES in batch:
            return rest | {"tower_features": self.features.of(batch, pixels)}
        return rest if pixels is None else rest | {"pixel_values": pixels}

    def steps(self, epochs: float, batch: int) -> int:
        return max(1, round(epochs * len(self.mixture) / batch))

    def examples(self, positions: Sequence[int]) -> list[Example]:
        """The rows at these positions: epoch after epoch, each in its own order."""
        found = []
        for position in positions:
            epoch, index = divmod(position, len(self.mixture))
            self.mixture.set_epoch(epoch)
            example = self.mixture[index]
            found.append(self.augment.example(example, self.mixture.seed, epoch, index) if self.augment else example)
        return found

    def batch(self, positions: Sequence[int]) -> dict[str, Any]:
        """The tensors of these rows without those that can't be used, as of `collated`."""
        examples, read, bad = [], [], []
        for position in positions:
            try:
                found = self.accompanied(position, self.examples([position])[0])
                examples += found
                read += [position] * len(found)
            except DataError as error:  # a file of it has gone since the run began, or has changed
                bad.append(self._fault(position, error))
        batch = self.collated(examples, read)
        return batch | {"faults": [*bad, *batch["faults"]]}

    def accompanied(self, position: int, example: Example) -> list[Example]:
        """The row at a position, and what is learnt beside it."""
        return [example]

    def _fault(self, position: int, error: DataError) -> BadRow:
        number, row = self.mixture.locate(position % len(self.mixture))
        source, row = origin(self.mixture.sources[number], row)
        found = source.read(row) if isinstance(source, Source) else None
        cause = error.__cause__  # the source puts the row's name before it
        reason = str(cause if isinstance(cause, DataError) else error)
        return BadRow(source.name, row + 1, found.id if found else f"#{row + 1}", error.field, error.kind, reason)

    def collated(self, examples: Sequence[Example], positions: Sequence[int]) -> dict[str, Any]:
        """The tensors of rows without those that can't be used, whose `faults` are told.

        `ids` names the rows, `positions` is (rows,). Where no row is left, there are no tensors.
        """
        problems = [self.unfit(example) for example in examples]
        unfit = [
            BadRow(example.source, example.row, example.id, problem.field, problem.kind, str(problem))
            for example, problem in zip(examples, problems, strict=True)
            if problem is not None
        ]
        fit = [number for number, problem in enumerate(problems) if problem is None]
        collator = Collator(self.processor, self.max_length, self.model, self.too_long, self.opening)
        found = collator.collate([examples[number] for number in fit])
        numbers = [fit[number] for number in found.kept]
        kept = [examples[number] for number in numbers]
        batch = self.tensors(kept, found.batch) if found.batch is not None else {}
        return batch | {
            "ids": [example.called for example in kept],
            "positions": torch.tensor([positions[number] for number in numbers]),
            "faults": [*unfit, *found.bad, *found.notes],
        }

    def unfit(self, example: Example) -> DataError | None:
        """Why the objective can't learn from a row that a model could read, or None."""
        return None

    def tensors(self, examples: list[Example], batch: dict[str, Any] | None = None) -> dict[str, Any]:
        """The tensors of rows that can all be used.

        Args:
            batch: what the collator made of them; None makes it.

        Raises:
            DataError: a row cannot be used.
        """
        if batch is None:
            batch = Collator(self.processor, self.max_length, self.model, opening=self.opening)(examples)
        if self.cells:
            batch |= self._maps(examples)
        if not isinstance(self.processor, VLChatProcessor):
            return batch  # of other models' tensors only they know which are a text long
        # Few different lengths: on a CPU each costs a freshly compiled kernel.
        extra = -batch["input_ids"].shape[1] % SHAPE_STEP
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

    def measure_maps(self) -> None:
        """The variance of scene maps in the language model's embeddings, before anything trains: `cells_loss`' unit."""
        if active():
            self.map_variance = 1.0
            return
        scenes = [sample_scene(generator("cells-variance", 0, index)) for index in range(_MEASURED)]
        words = self.reader.tensors([self.reader.cells(scene) for scene in scenes])
        with torch.no_grad():
            target = self.reader.embed(self.model.get_input_embeddings(), *words.values()).flatten(0, 1).float()
        self.map_variance = target.var(0).mean().item()

    @staticmethod
    def cell_weights(sides: torch.Tensor) -> torch.Tensor:
        """How much each cell of scene maps counts, (maps * cells,): the background less."""
        return torch.where(sides.sum(-1).flatten() > 0, 1.0, _BACKGROUND)

    def cell_count(self, sides: torch.Tensor) -> float:
        """What the cells of a batch count together."""
        return float(sides[..., 0].numel()) if active() else float(self.cell_weights(sides).sum())

    def cells_loss(self, features: torch.Tensor, words: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
        """What the image tokens lack of the scene maps, in units of their variance, summed over cells by weight.

        Args:
            features: (maps * cells, hidden), what the connector gives.
            words, sides: of `MapReader.tensors`.
        """
        with torch.no_grad():
            target = self.reader.embed(self.model.get_input_embeddings(), words, sides).flatten(0, 1).float()
        if features.shape != target.shape:
            raise ConfigError(
                f"objective.cells needs one image token for each of the {IMAGE_TOKENS} cells of a scene map; this "
                f"tower and connector give {len(features) // len(words)}. Set objective.cells=0."
            )
        error = (features.float() - target).square().mean(-1)
        return (self.cell_weights(sides) * error).sum() / self.map_variance

    @torch.no_grad()
    def sample(self) -> tuple[dict[str, float], list[str]]:
        """Answers to a few rows from the far end of the data, beside the right ones."""
        lines = []
        for index in range(len(self.mixture) - 4, len(self.mixture)):
            if index < 0:
                continue
            try:
                example = self.mixture[index]
            except DataError:  # a bad row is told where it would be trained on
                continue
            if not has_answer(example):
                continue
            turns = [number for number, message in enumerate(example.messages) if message["role"] == "assistant"]
            asked = replace(example, messages=example.messages[: turns[0]])
            try:
                inputs = {key: value.to(self.model.device) for key, value in self._prompt(asked).items()}
            except DataError:
                continue
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
            notes=self.notes,
            extra=extra,
        )
