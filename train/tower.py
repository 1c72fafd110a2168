"""Stage 0, vision: a CLIP from nothing on drawn scenes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from train.config import transformers_config
from train.contrastive import hits, info_nce
from train.terms import Term
from train.tokenizer import saved_tokenizer, train_tokenizer
from train.training_state import TRAINED
from vlchat.errors import ConfigError
from vlchat.folders import TRAINING_STATE, newest, writing
from vlchat.scenes.draw import draw
from vlchat.scenes.maps import FIELD_WORDS, FIELDS, LETTER_FIELDS, TEXT_CODE, alt_text, cell_of, scene_map
from vlchat.scenes.picture import picture_of
from vlchat.scenes.rows import generator
from vlchat.scenes.vocabulary import PICTOGRAMS, article
from vlchat.scenes.world import Scene, Thing, sample_scene

_THING_SHARE = 0.85  # of the cells in the second loss; most of a picture is background


class TowerObjective(nn.Module):
    """Symmetric InfoNCE between pictures and captions, and InfoNCE between patches and the words for them.

    The second loss is why single patches know what they show. For each field of the scene map (name, colour, ...), a
    patch is told from all words of that field, each as the text tower encodes it: image-label contrast as in UniCL
    (arXiv 2204.03610), at the grain of regions as in RegionCLIP (2112.09106).

    Args:
        vision, text: CLIPVisionConfig and CLIPTextConfig fields.
        vocabulary: size of the tokenizer that is trained on the way.
        cells: cells a picture, on average, that enter the second loss (0 leaves it out).
        cells_weight: its weight beside the first.
        texts: share of scenes that are mostly text (`sample_scene`), and of the things' cells that are to be text.
        start: a run of this objective whose weights and tokenizer to begin with.
    """

    name = "clip"
    whole_batch = True
    word_ids: torch.Tensor
    word_mask: torch.Tensor

    def __init__(
        self,
        vision: dict[str, Any],
        text: dict[str, Any],
        projection: int = 128,
        vocabulary: int = 1200,
        cells: int = 16,
        cells_weight: float = 1.0,
        texts: float = 0.0,
        start: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.cells, self.cells_weight, self.texts, self.seed = cells, cells_weight, texts, seed
        if start:
            self.tokenizer = saved_tokenizer(newest(Path(start)))
        else:
            written = (text_ for index in range(6000) for text_ in _texts(generator("tokenizer", 0, index)))
            self.tokenizer = train_tokenizer(written, vocabulary, append_end=True)
        tower = transformers_config(CLIPVisionConfig, vision, "objective.vision")
        transformers_config(CLIPTextConfig, text, "objective.text")
        self.side = tower.image_size
        self.processor = CLIPImageProcessorPil(
            size={"height": self.side, "width": self.side},
            do_center_crop=False,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        config = CLIPConfig(
            vision_config=vision,
            projection_dim=projection,
            text_config={
                "vocab_size": len(self.tokenizer),
                "max_position_embeddings": 64,
                "bos_token_id": 0,
                "eos_token_id": 0,
                "pad_token_id": 0,
                **text,
            },
        )
        self.model: Any = CLIPModel(config)
        self.cell_projections = nn.ModuleDict(
            {field: nn.Linear(tower.hidden_size, projection) for field in FIELDS}
        )
        self._fix_words()
        # On a CPU the backward pass of fused attention takes half of a step at 65 tokens: 1.7 s against 0.7 s here.
        self.model.set_attn_implementation("sdpa" if torch.cuda.is_available() else "eager")
        if start:
            self._start(newest(Path(start)))

    def _start(self, folder: Path) -> None:
        """Begin with the weights of an earlier run; fields that it did not know begin from nothing."""
        file = f"{TRAINING_STATE}/{TRAINED}"
        if not (folder / file).is_file():
            raise ConfigError(f"objective.start: {folder} has no {file}. Name a run of this objective.")
        weights = load_file(folder / file)
        wrong = [
            name
            for name, parameter in self.named_parameters()
            if parameter.shape != weights.get(name, torch.empty(0)).shape
            and (name in weights or not name.startswith("cell_projections."))
        ]
        if wrong:
            raise ConfigError(
                f"objective.start: {folder} is another model than objective.vision and objective.text describe "
                f"(first difference: {wrong[0]}). Give it the sizes of that run."
            )
        self.load_state_dict(weights, strict=False)

    def _fix_words(self) -> None:
        words = self.tokenizer(
            [word or "nothing" for field in FIELDS for word in FIELD_WORDS[field]],
            padding="max_length",
            truncation=True,
            max_length=8,
            return_tensors="pt",
        )
        self.register_buffer("word_ids", words["input_ids"], persistent=False)
        self.register_buffer("word_mask", words["attention_mask"], persistent=False)

    def restore(self, folder: Path) -> None:
        """Take the tokenizer of a checkpoint that is resumed."""
        self.tokenizer = saved_tokenizer(folder, len(self.tokenizer))
        self._fix_words()

    def batch(self, positions: Sequence[int]) -> dict[str, Any]:
        """Pictures, captions and labelled cells of the rows at these positions."""
        rngs = [generator("tower", self.seed, position) for position in positions]
        scenes = [sample_scene(rng, texts=self.texts) for rng in rngs]
        pictures = [picture_of(scene, rng, self.side) for scene, rng in zip(scenes, rngs, strict=True)]
        # Fixed lengths: every new shape costs the CPU a freshly compiled kernel.
        captions = self.tokenizer(
            [alt_text(s, r) for s, r in zip(scenes, rngs, strict=True)],
            padding="max_length",
            truncation=True,
            max_length=40,
            return_tensors="pt",
        )
        batch = {
            "pixel_values": self.processor(pictures, return_tensors="pt")["pixel_values"],
            **{f"caption_{key}": captions[key] for key in ("input_ids", "attention_mask")},
        }
        if self.cells:
            batch |= self._cell_batch(scenes, rngs[0])
        return batch | {"ids": [f"scene-{position}" for position in positions]}

    def _cell_batch(self, scenes: list[Scene], rng: Random) -> dict[str, torch.Tensor]:
        codes = torch.tensor([cell.codes() for scene in scenes for cell in scene_map(scene)])  # (rows * cells, fields)
        on_thing = (codes[:, FIELDS.index("row")] > 0).nonzero().flatten().tolist()
        on_text = (codes[:, FIELDS.index("size")] >= TEXT_CODE).nonzero().flatten().tolist()
        elsewhere = (codes[:, FIELDS.index("row")] == 0).nonzero().flatten().tolist()
        wanted = self.cells * len(scenes)
        things = round(wanted * _THING_SHARE)
        texts = round(things * self.texts) if on_text else 0
        index = torch.tensor(
            rng.choices(on_thing, k=things - texts)
            + rng.choices(on_text or on_thing, k=texts)
            + rng.choices(elsewhere or on_thing, k=wanted - things)
        )
        return {"cell_index": index, "cell_codes": codes[index]}

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        """Rows, and for each field the labelled cells."""
        cells = {f"cell_{field}": float(len(batch["cell_index"])) for field in FIELDS} if "cell_index" in batch else {}
        return {"itc": float(len(batch["pixel_values"]))} | cells

    def forward(self, batch: dict[str, Any]) -> dict[str, Term]:
        model, rows = self.model, float(len(batch["pixel_values"]))
        vision = model.vision_model(batch["pixel_values"])
        image = functional.normalize(model.visual_projection(vision.pooler_output), dim=-1)  # (batch, projection)
        text = self._text(batch["caption_input_ids"], batch["caption_attention_mask"])
        scale = model.logit_scale.exp().clamp(max=100.0)
        forward, backward, _ = hits(image, text)
        watched = {"image_to_text": forward, "text_to_image": backward, "scale": scale.detach() * rows}
        terms = {"itc": Term(*info_nce(image, text, scale))}
        terms |= {name: Term(value, rows, 0.0) for name, value in watched.items()}
        if "cell_index" in batch:
            patches = model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:]).flatten(0, 1)[
                batch["cell_index"]
            ]
            for number, (field, logits) in enumerate(self._cell_logits(patches).items()):
                targets = batch["cell_codes"][:, number]
                named = functional.cross_entropy(scale * logits.float(), targets, reduction="sum")
                terms[f"cell_{field}"] = Term(named, float(len(targets)), self.cells_weight)
        return terms

    def _cell_logits(self, patches: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cosine of each patch (patches, hidden) with each word of each field, (patches, words)."""
        words = self._text(self.word_ids, self.word_mask).split([len(FIELD_WORDS[field]) for field in FIELDS])
        return {
            field: functional.normalize(self.cell_projections[field](patches), dim=-1) @ those.T
            for field, those in zip(FIELDS, words, strict=True)
        }

    def _text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        pooled = self.model.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return functional.normalize(self.model.text_projection(pooled), dim=-1)

    @torch.no_grad()
    def sample(self) -> tuple[dict[str, float], list[str]]:
        """Zero-shot naming: one picture of each pictogram on a fresh background against all names."""
        names = list(PICTOGRAMS)
        rngs = [generator("tower-test", 0, index) for index in range(len(names))]
        scenes = [
            Scene(
                (Thing("pictogram", name, None, "medium", 0.5, 0.5, 0.4, 0.4, rng.random()),),
                sample_scene(rng).background,
                "plain",
                index,
            )
            for index, (name, rng) in enumerate(zip(names, rngs, strict=True))
        ]
        pixels = self.processor([draw(scene, 192, 192) for scene in scenes], return_tensors="pt")["pixel_values"]
        tokens = self.tokenizer([article(name) for name in names], padding=True, return_tensors="pt")
        device = self.model.device
        image = self.model.visual_projection(self.model.vision_model(pixels.to(device)).pooler_output)
        text = self._text(tokens["input_ids"].to(device), tokens["attention_mask"].to(device))
        guesses = (functional.normalize(image, dim=-1) @ text.T).argmax(1).tolist()
        right = [guess == index for index, guess in enumerate(guesses)]
        shown = [f"{names[i]} -> {names[guesses[i]]}" for i in range(0, len(names), 40)]
        return {"zero_shot_naming": sum(right) / len(right)} | self._cells_named(), shown

    @torch.no_grad()
    def _cells_named(self) -> dict[str, float]:
        """Share of the cells with a thing on them, on fresh scenes, whose word is ranked first, field by field.

        `cell_text` is that of the name where the thing is a word or a number, and letters count only there.
        """
        scenes = [sample_scene(generator("tower-cells", 0, index), texts=0.25) for index in range(96)]
        pixels = self.processor([draw(s, 192, 192) for s in scenes], return_tensors="pt")["pixel_values"]
        vision = self.model.vision_model(pixels.to(self.model.device))
        patches = self.model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:]).flatten(0, 1)
        codes = torch.tensor([cell.codes() for scene in scenes for cell in scene_map(scene)])
        there = codes[:, FIELDS.index("row")] > 0
        codes = codes[there]
        right = {
            field: (logits.argmax(1).cpu() == codes[:, number]).float()
            for number, (field, logits) in enumerate(self._cell_logits(patches[there]).items())
        }
        text = codes[:, FIELDS.index("size")] >= TEXT_CODE
        shares = {field: share[text] if field in LETTER_FIELDS else share for field, share in right.items()}
        shares["text"] = right["name"][text]
        return {f"cell_{field}": share.mean().item() for field, share in shares.items()}

    def save(self, folder: Path, extra: Callable[[Path], None]) -> None:
        with writing(folder, {"trained_on": "a CLIP trained from nothing on drawn scenes"}) as stage:
            self.model.save_pretrained(stage)
            self.tokenizer.save_pretrained(stage)
            self.processor.save_pretrained(stage)
            extra(stage)


def _texts(rng: Random) -> list[str]:
    scene = sample_scene(rng)
    return [alt_text(scene, rng), *{cell_of(thing, scene).words() for thing in (None, *scene.things)}]
