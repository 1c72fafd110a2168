"""High resolution by tiles, against transformers' LLaVA-NeXT with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from train.align import AlignObjective
from train.terms import loss_of
from vlchat import VLChatForConditionalGeneration, VLChatProcessor, checkpoint
from vlchat.data import Collator, Example
from vlchat.errors import ConfigError, VLChatError
from vlchat.towers import clip_image_processor
from vlchat.towers.composing import image_processor_of
from vlchat.towers.tiles import grid_pinpoints, tile_image_processor

SIZES = [(24, 24), (90, 30), (31, 77), (60, 50), (24, 100), (500, 333), (10, 7), (300, 3), (1, 1)]  # width, height


def processor_for(model: Any, tokenizer: Any) -> VLChatProcessor:
    tiles = tile_image_processor(clip_image_processor(24), (24, 24), model.config.image_grid_pinpoints)
    return VLChatProcessor.from_backbones(tiles, tokenizer, model.config.image_seq_length, "chatml")


def llava_next_with_the_weights_of(model: VLChatForConditionalGeneration) -> Any:
    reference = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=model.config.vision_config,
            text_config=model.config.text_config,
            image_token_index=model.config.image_token_id,
            image_grid_pinpoints=model.config.image_grid_pinpoints,
            vision_feature_layer=-2,
        )
    ).eval()
    names = {"connector.layers.0": "multi_modal_projector.linear_1", "connector.image_newline": "image_newline",
             "connector.layers.1": "multi_modal_projector.linear_2"}  # fmt: skip
    weights = {}
    for key, value in model.state_dict().items():
        for mine, theirs in names.items():
            key = key.replace(mine, theirs)
        weights[key] = value
    reference.load_state_dict(weights)
    return reference


def conversations(picture: Any, groups: list[list[int]]) -> list[list[dict]]:
    """One conversation for each group, with the pictures of those sizes."""
    found = []
    for group in groups:
        parts = [{"type": "image", "image": picture(index, SIZES[index])} for index in group]
        found.append([{"role": "user", "content": [*parts, {"type": "text", "text": "What is left?"}]}])
    return found


OPTIONS = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "padding": True}
GROUPS = [[0, 1], [2], [], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("tiles", [4, 6, [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]])
def test_logits_equal_llava_nexts(tiny_model: Any, tiny_tokenizer: Any, picture: Any, tiles: Any) -> None:
    model = tiny_model(tiles=tiles)
    batch = processor_for(model, tiny_tokenizer).apply_chat_template(conversations(picture, GROUPS), **OPTIONS)
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    mine = model(**batch, labels=labels)
    theirs = llava_next_with_the_weights_of(model)(**batch, labels=labels)
    torch.testing.assert_close(mine.logits, theirs.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(mine.loss, theirs.loss)


def test_tokens_are_counted_as_llava_nexts_processor_does(tiny_model: Any, tiny_tokenizer: Any, picture: Any) -> None:
    model = tiny_model(tiles=4)
    processor = processor_for(model, tiny_tokenizer)
    reference = LlavaNextProcessor(
        processor.image_processor, tiny_tokenizer, patch_size=12, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    text = "<image> and <image>"
    for first in range(len(SIZES)):
        for second in range(len(SIZES)):
            pictures = [picture(0, SIZES[first]), picture(1, SIZES[second])]
            mine = processor(pictures, text, return_tensors="pt")
            theirs = reference(images=pictures, text=text, return_tensors="pt")
            assert torch.equal(mine["input_ids"], theirs["input_ids"])
            assert torch.equal(mine["pixel_values"], theirs["pixel_values"])
            assert torch.equal(mine["image_sizes"], theirs["image_sizes"])


@pytest.mark.parametrize("connector", [{"type": "linear"}, {"type": "downsample", "depth": 1},
                                       {"type": "gated", "widths": [20, 12], "num_attention_heads": 2}])  # fmt: skip
def test_a_batch_equals_its_rows_one_by_one_and_saves_and_loads(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, picture: Any, connector: dict
) -> None:
    model = tiny_model(connector, tiles=4)
    processor = processor_for(model, tiny_tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    back, again = checkpoint.load(tmp_path)
    assert torch.equal(back.model.connector.image_newline, model.model.connector.image_newline)
    asked = conversations(picture, GROUPS)
    left = {**OPTIONS, "add_generation_prompt": True}
    batch = again.apply_chat_template(asked, **left)
    answers = {"max_new_tokens": 6, "do_sample": False}
    together = back.generate(**batch, **answers)[:, batch["input_ids"].shape[1] :]
    for conversation, expected in zip(asked, together, strict=True):
        single = processor.apply_chat_template(conversation, **left)
        alone = back.generate(**single, **answers, use_cache=False)[0, single["input_ids"].shape[1] :]
        assert alone.tolist() == expected[: len(alone)].tolist()


def test_features_can_be_kept_and_beams_keep_their_own(tiny_model: Any, tiny_tokenizer: Any, picture: Any) -> None:
    model = tiny_model(tiles=4)
    processor = processor_for(model, tiny_tokenizer)
    batch = processor.apply_chat_template(conversations(picture, [[0, 1], [2, 5]]), **OPTIONS)
    expected = model(**batch).logits
    features = model.get_image_features(batch["pixel_values"], image_sizes=batch["image_sizes"])
    lengths = [len(tokens) for tokens in features.pooler_output]
    assert sum(lengths) == int((batch["input_ids"] == model.config.image_token_id).sum()) and len(set(lengths)) > 1
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model(**text, mm_encoder_outputs={"image": features}).logits, expected)
    left = {**OPTIONS, "add_generation_prompt": True}
    beams = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False}
    both = processor.apply_chat_template(conversations(picture, [[0, 1], [2, 5]]), **left)
    second = processor.apply_chat_template(conversations(picture, [[2, 5]]), **left)
    found = model.generate(**both, **beams)[2:, both["input_ids"].shape[1] :]
    alone = model.generate(**second, **beams)[:, second["input_ids"].shape[1] :]
    width = min(found.shape[1], alone.shape[1])
    assert torch.equal(found[:, :width], alone[:, :width])


def test_rows_with_tiles_train_and_every_part_learns(
    tmp_path: Path, tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any, picture: Any
) -> None:
    for name, part in (("clip", tiny_clip), ("lm", tiny_llama), ("lm", tiny_tokenizer)):
        part.save_pretrained(tmp_path / name)
    clip_image_processor(24).save_pretrained(tmp_path / "clip")
    rows = []
    for index, size in enumerate(SIZES[:4]):
        picture(index, size).save(tmp_path / f"{index}.png")
        rows.append({"id": str(index), "image": f"{index}.png", "caption": "a red circle"})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    objective = AlignObjective(
        str(tmp_path / "clip"), str(tmp_path / "lm"), {"type": "mlp"}, [{"path": str(tmp_path / "data.json")}],
        template="chatml", tiles=4,
    )  # fmt: skip
    objective.model.requires_grad_(False)
    connector = objective.model.model.connector.requires_grad_(True)
    batch = objective.batch(range(4))
    assert sorted(batch["image_sizes"].tolist()) == [[24, 24], [30, 90], [50, 60], [77, 31]]
    counts = objective.counts(batch)
    loss_of(objective.forward(batch), counts).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in connector.parameters())
    torch.optim.SGD(connector.parameters(), 0.1).step()
    objective.save(tmp_path / "saved", lambda stage: None)
    loaded, processor = checkpoint.load(tmp_path / "saved")
    inputs = processor.apply_chat_template(conversations(picture, [[1, 2]]), **OPTIONS)
    assert torch.equal(loaded(**inputs).logits, objective.model.eval()(**inputs).logits)
    example = Example("1", [
        {"role": "user", "content": [{"type": "image", "image": picture(1, SIZES[1])}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]},
    ])  # fmt: skip
    labels = Collator(processor)([example])["labels"]
    assert processor.tokenizer.decode(labels[labels >= 0]).startswith("a dog")


def test_tokens_within_the_budget(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, picture: Any) -> None:
    for most in (2, 4, 9):
        model = tiny_model(tiles=most)
        processor = processor_for(model, tiny_tokenizer)
        for size in SIZES:
            inputs = processor(picture(0, size), "<image>", return_tensors="pt")
            assert inputs["pixel_values"].shape[1] <= 1 + most
            # Pieces of 2 x 2 tokens, and a newline for each row of tokens.
            assert inputs["input_ids"].shape[1] <= 4 + most * 4 + most * 2


def test_a_composed_tower_takes_tiles(tmp_path: Path, tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any,
                                      picture: Any) -> None:  # fmt: skip
    tiny_clip.save_pretrained(tmp_path)
    clip_image_processor(24).save_pretrained(tmp_path)
    vision = {"type": "multiscale", "tower": str(tmp_path)}
    model = VLChatForConditionalGeneration.from_backbones(
        vision, tiny_llama, {"type": "linear"}, tokenizer=tiny_tokenizer, tiles=[[48, 96], [96, 48]]
    )
    prepares = image_processor_of(vision, model.config.image_grid_pinpoints)
    processor = VLChatProcessor.from_backbones(prepares, tiny_tokenizer, model.config.image_seq_length)
    inputs = processor.apply_chat_template(conversations(picture, [[0, 1], [2]]), **OPTIONS)
    assert inputs["pixel_values"].shape[1:] == (3, 3, 48, 48)
    assert torch.isfinite(model(**inputs).logits).all()


def test_what_cannot_be_tiled_is_a_sentence(tiny_model: Any, tiny_tokenizer: Any, picture: Any) -> None:
    small = {"num_query_tokens": 4, "num_attention_heads": 2}
    for connector in ({"type": "resampler", **small}, {"type": "perceiver", "depth": 1, **small},
                      {"type": "qformer", "hidden_size": 16, "num_hidden_layers": 2, **small}):  # fmt: skip
        with pytest.raises(ConfigError, match="Use linear, mlp, downsample or gated with tiles"):
            tiny_model(connector, tiles=4)
    with pytest.raises(ConfigError, match="at least 2"):
        tiny_model(tiles=1)
    with pytest.raises(ConfigError, match="multiples of 24 pixels"):
        tiny_model(tiles=[[24, 50]])
    with pytest.raises(ConfigError, match="square grid of patches, and this tower gives 5 features"):
        tiny_model(tiles=4, vision_feature_select_strategy="full")
    with pytest.raises(ConfigError, match="Tiles must be square"):
        grid_pinpoints(4, (24, 36))
    tiled, whole = tiny_model(tiles=4), tiny_model()
    batch = processor_for(tiled, tiny_tokenizer).apply_chat_template(conversations(picture, [[0]]), **OPTIONS)
    with pytest.raises(VLChatError, match="is shown pictures whole, and these come in tiles"):
        whole(**batch)
    with pytest.raises(VLChatError, match="is shown pictures in tiles, and these come whole"):
        tiled(input_ids=batch["input_ids"], pixel_values=torch.zeros(1, 3, 24, 24))
