"""Stage 0, vision: a CLIP from nothing on drawn scenes."""

from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from train.contrastive import clip_loss, multi_positive_loss, recall
from train.tokenizer import train_tokenizer
from vlchat.scenes.draw import draw
from vlchat.scenes.maps import FIELDS, alt_text, cell_of, scene_map
from vlchat.scenes.picture import picture_of
from vlchat.scenes.rows import generator
from vlchat.scenes.vocabulary import PICTOGRAMS, article
from vlchat.scenes.world import GRID, Scene, Thing, sample_scene

_FIELD_SETS = (FIELDS, FIELDS, ("size", "colour", "name"), ("colour", "name"), ("name",), ("name", "row", "column"),
               ("row", "column"), ("colour", "row"), ("size", "column"))


class TowerObjective(nn.Module):
    """Symmetric InfoNCE between pictures and captions, and between cells of the patch grid and words for them.

    Args:
        vision, text: CLIPVisionConfig and CLIPTextConfig fields.
        vocabulary: size of the tokenizer that is trained on the way.
        cells: cells a picture that enter the second loss (0 leaves it out).
        cells_weight: its weight beside the first.
    """

    name = "clip"

    def __init__(self, vision: dict[str, Any], text: dict[str, Any], projection: int = 128, vocabulary: int = 1200,
                 cells: int = 4, cells_weight: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.cells, self.cells_weight, self.seed = cells, cells_weight, seed
        texts = (text_ for index in range(6000) for text_ in _texts(generator("tokenizer", 0, index)))
        self.tokenizer = train_tokenizer(texts, vocabulary, append_end=True)
        self.side = int(vision["image_size"])
        self.processor = CLIPImageProcessorPil(
            size={"height": self.side, "width": self.side}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        config = CLIPConfig(vision_config=vision, projection_dim=projection, text_config={
            "vocab_size": len(self.tokenizer), "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
            "pad_token_id": 0, **text})
        self.model = CLIPModel(config)
        # On a CPU the backward pass of fused attention takes half of a step at 65 tokens: 1.7 s against 0.7 s here.
        self.model.set_attn_implementation("sdpa" if torch.cuda.is_available() else "eager")

    def batch(self, step: int, rows: int) -> dict[str, torch.Tensor]:
        """Pictures, captions and labelled cells of one step."""
        rngs = [generator("tower", self.seed, step * rows + row) for row in range(rows)]
        scenes = [sample_scene(rng) for rng in rngs]
        pictures = [picture_of(scene, rng, self.side) for scene, rng in zip(scenes, rngs, strict=True)]
        # Fixed lengths: every new shape costs the CPU a freshly compiled kernel.
        captions = self.tokenizer([alt_text(s, r) for s, r in zip(scenes, rngs, strict=True)], padding="max_length",
                                  truncation=True, max_length=40, return_tensors="pt")
        batch = {"pixel_values": self.processor(pictures, return_tensors="pt")["pixel_values"], **{
            f"caption_{key}": captions[key] for key in ("input_ids", "attention_mask")}}
        if self.cells:
            batch |= self._cell_batch(scenes, rngs)
        return batch

    def _cell_batch(self, scenes: list[Scene], rngs: list[Random]) -> dict[str, torch.Tensor]:
        picked, codes, phrases, wanted = [], [], [], []
        for row, (scene, rng) in enumerate(zip(scenes, rngs, strict=True)):
            cells = scene_map(scene)
            by_thing: dict[str, list[int]] = {}
            for index, cell in enumerate(cells):
                by_thing.setdefault(cell.words(), []).append(index)
            groups = list(by_thing.values())
            for _ in range(self.cells):
                index = rng.choice(rng.choice(groups))
                cell = cells[index]
                fields = rng.choice(_FIELD_SETS)
                fields = fields if cell.words(fields) else FIELDS
                picked.append(row * GRID * GRID + index)
                codes.append(cell.codes())
                phrases.append(cell.words(fields))
                wanted.append([code if field in fields and getattr(cell, field) else -1
                               for field, code in zip(FIELDS, cell.codes(), strict=True)])
        order = list({phrase: index for index, phrase in reversed(list(enumerate(phrases)))}.values())
        order += order[: -len(order) % 64]  # repeats fill up to a steady number of phrases
        asked = torch.tensor([wanted[index] for index in order])  # (phrases, fields)
        have = torch.tensor(codes)  # (cells, fields)
        text = self.tokenizer([phrases[index] for index in order], padding="max_length", truncation=True, max_length=12,
                              return_tensors="pt")
        return {"cell_index": torch.tensor(picked), "cell_input_ids": text["input_ids"],
                "cell_attention_mask": text["attention_mask"],
                "cell_positives": ((asked[None] == -1) | (asked[None] == have[:, None])).all(-1)}

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        model = self.model
        vision = model.vision_model(batch["pixel_values"])
        image = functional.normalize(model.visual_projection(vision.pooler_output), dim=-1)  # (batch, projection)
        text = self._text(batch["caption_input_ids"], batch["caption_attention_mask"])
        scale = model.logit_scale.exp().clamp(max=100.0)
        loss = clip_loss(image, text, scale)
        forward, backward = recall(image.detach(), text.detach())
        metrics = {"itc": loss.item(), "image_to_text": forward, "text_to_image": backward, "scale": scale.item()}
        if "cell_index" in batch:
            patches = vision.last_hidden_state[:, 1:].flatten(0, 1)[batch["cell_index"]]  # (cells, hidden)
            cells = functional.normalize(model.visual_projection(model.vision_model.post_layernorm(patches)), dim=-1)
            words = self._text(batch["cell_input_ids"], batch["cell_attention_mask"])
            cell_loss = multi_positive_loss(cells, words, batch["cell_positives"], scale)
            loss = loss + self.cells_weight * cell_loss
            metrics["cells"] = cell_loss.item()
        return loss, metrics

    def _text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        pooled = self.model.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return functional.normalize(self.model.text_projection(pooled), dim=-1)

    @torch.no_grad()
    def sample(self) -> tuple[dict[str, float], list[str]]:
        """Zero-shot naming: one picture of each pictogram on a fresh background against all names."""
        names = list(PICTOGRAMS)
        rngs = [generator("tower-test", 0, index) for index in range(len(names))]
        scenes = [Scene((Thing("pictogram", name, None, "medium", 0.5, 0.5, 0.4, 0.4, rng.random()),),
                        sample_scene(rng).background, "plain", index)
                  for index, (name, rng) in enumerate(zip(names, rngs, strict=True))]
        pixels = self.processor([draw(scene, 192, 192) for scene in scenes], return_tensors="pt")["pixel_values"]
        tokens = self.tokenizer([article(name) for name in names], padding=True, return_tensors="pt")
        image = self.model.visual_projection(self.model.vision_model(pixels).pooler_output)
        text = self._text(tokens["input_ids"], tokens["attention_mask"])
        guesses = (functional.normalize(image, dim=-1) @ text.T).argmax(1).tolist()
        right = [guess == index for index, guess in enumerate(guesses)]
        shown = [f"{names[i]} -> {names[guesses[i]]}" for i in range(0, len(names), 40)]
        return {"zero_shot_naming": sum(right) / len(right)} | self._cells_named(), shown

    @torch.no_grad()
    def _cells_named(self) -> dict[str, float]:
        """Share of cells on fresh scenes whose words are ranked first among all words of their batch, field by field."""
        rngs = [generator("tower-cells", 0, index) for index in range(64)]
        scenes = [sample_scene(rng) for rng in rngs]
        pixels = self.processor([draw(s, 192, 192) for s in scenes], return_tensors="pt")["pixel_values"]
        vision = self.model.vision_model(pixels)
        patches = self.model.visual_projection(self.model.vision_model.post_layernorm(vision.last_hidden_state[:, 1:]))
        patches = functional.normalize(patches, dim=-1).flatten(0, 1)
        cells = [(row * GRID * GRID + index, cell) for row, scene in enumerate(scenes)
                 for index, cell in enumerate(scene_map(scene)) if cell.row]
        scores = {}
        for fields in (("colour", "name"), ("row", "column")):
            words = sorted({cell.words(fields) for _, cell in cells})
            tokens = self.tokenizer(words, padding=True, return_tensors="pt")
            text = self._text(tokens["input_ids"], tokens["attention_mask"])
            guesses = (patches[[index for index, _ in cells]] @ text.T).argmax(1).tolist()
            scores["cell_" + "_".join(fields)] = sum(
                words[guess] == cell.words(fields) for guess, (_, cell) in zip(guesses, cells, strict=True)) / len(cells)
        return scores

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _texts(rng: Random) -> list[str]:
    scene = sample_scene(rng)
    return [alt_text(scene, rng), *{cell_of(thing, scene).words() for thing in (None, *scene.things)}]
