"""Composed towers, against the plain towers they are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    BitImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
)

from train.align import AlignObjective
from train.terms import loss_of
from vlchat import VLChatForConditionalGeneration, VLChatProcessor, checkpoint
from vlchat.errors import ConfigError
from vlchat.towers import clip_image_processor, load_image_processor
from vlchat.towers.composing import TOWERS, image_processor_of

VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 12}
SPECS: dict[str, dict[str, Any]] = {
    "concat": {"type": "concat", "towers": ["clip", "dino"]},
    "multiscale": {"type": "multiscale", "tower": "clip", "scales": [1, 2]},
}
CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three towers with their image processors: clip (24 pixels, 2 x 2 patches), dino (36, 3 x 3), cnn (64, 2 x 2)."""
    torch.manual_seed(5)
    clip = CLIPVisionModel(CLIPVisionConfig(**VIT, intermediate_size=64, image_size=24))
    dino = Dinov2Model(Dinov2Config(**{**VIT, "hidden_size": 16}, image_size=48, layerscale_value=0.7))
    cnn = ConvNextModel(
        ConvNextConfig(hidden_sizes=[8, 16, 24, 40], depths=[1] * 4, image_size=64, layer_scale_init_value=0.5)
    )
    shape = {"size": {"shortest_edge": 36}, "crop_size": {"height": 36, "width": 36}}
    for name, model, processor in (
        ("clip", clip, clip_image_processor(24)),
        ("dino", dino, BitImageProcessorPil(**shape, image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3])),
        ("cnn", cnn, ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875)),
    ):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    return tmp_path


def placed(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    where = {key: [str(folder / n) for n in v] if key == "towers" else str(folder / v)
             for key, v in spec.items() if key in ("tower", "towers")}  # fmt: skip
    return {**spec, **where}


def compose(folder: Path, language: Any, spec: dict[str, Any], connector: dict | None = None, **options: Any) -> Any:
    torch.manual_seed(3)
    return VLChatForConditionalGeneration.from_backbones(
        placed(spec, folder), language, connector or {"type": "linear"}, **options
    )


def features_of(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The tower's features, undone of the linear connector by asking the tower itself."""
    return model.model.vision_tower(pixels).last_hidden_state


def states(folder: Path, name: str, pixels: torch.Tensor, layer: int | None) -> torch.Tensor:
    """Patches of transformers' own class: (images, patches, dim)."""
    model = AutoModel.from_pretrained(folder / name).eval()
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True)
    state = output.last_hidden_state if layer is None else output.hidden_states[layer]
    return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state[:, 1:]


def normalized(raw: torch.Tensor, folder: Path, name: str) -> torch.Tensor:
    processor = load_image_processor(folder / name)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (raw - mean) / std


@pytest.mark.parametrize("layers", [None, [-1, -2], [None, -1]])
def test_concat_is_both_towers_each_with_its_own_pixels(folder: Path, tiny_llama: Any, layers: Any) -> None:
    model = compose(folder, tiny_llama, {**SPECS["concat"], **({"layers": layers} if layers else {})})
    raw = torch.rand(3, 3, 24, 24)  # colours from 0 to 1
    first = states(folder, "clip", normalized(raw, folder, "clip"), layers[0] if layers else -2)
    larger = torch.nn.functional.interpolate(raw, (36, 36), mode="bilinear", antialias=True)
    second = states(folder, "dino", normalized(larger, folder, "dino"), layers[1] if layers else -2)
    # From 3 x 3 to 2 x 2: the new centres lie a quarter of the way from the outer cells to the middle one.
    weights = torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]])
    second = torch.einsum("ar,bc,nrcd->nabd", weights, weights, second.unflatten(1, (3, 3))).flatten(1, 2)
    expected = torch.cat([first, second], dim=-1)
    assert model.config.vision_feature_dim == 48 and model.config.image_seq_length == 4
    pixels = normalized(raw, folder, "clip")
    torch.testing.assert_close(features_of(model, pixels), expected, rtol=1e-4, atol=1e-4)
    seen = torch.stack(model.get_image_features(pixels).pooler_output)
    torch.testing.assert_close(seen, model.model.connector(expected), rtol=1e-4, atol=1e-4)


def test_concat_of_a_vit_and_a_cnn_feeds_gated_fusion(folder: Path, tiny_llama: Any) -> None:
    spec = {"type": "concat", "towers": ["clip", "cnn"], "layers": [-2, None]}
    gated = {"type": "gated", "widths": [32, 40], "num_attention_heads": 2, "head_dim": 8}
    model = compose(folder, tiny_llama, spec, gated)
    raw = torch.rand(2, 3, 24, 24)
    pixels = normalized(raw, folder, "clip")
    larger = torch.nn.functional.interpolate(raw, (64, 64), mode="bilinear", antialias=True)
    second = states(folder, "cnn", normalized(larger, folder, "cnn"), None)
    torch.testing.assert_close(features_of(model, pixels)[..., 32:], second, rtol=1e-4, atol=1e-4)
    first_alone = model.model.connector.mlp(states(folder, "clip", pixels, -2))
    torch.testing.assert_close(torch.stack(model.get_image_features(pixels).pooler_output), first_alone)


@pytest.mark.parametrize("scales", [[1, 2], [1, 2, 3], [2]])
def test_multiscale_is_the_tower_on_tiles_averaged(folder: Path, tiny_llama: Any, scales: list[int]) -> None:
    model = compose(folder, tiny_llama, {**SPECS["multiscale"], "scales": scales})
    size = 24 * max(scales)
    pixels = torch.randn(2, 3, size, size)
    found = []
    for scale in scales:
        picture = torch.nn.functional.interpolate(pixels, (24 * scale, 24 * scale), mode="bilinear", antialias=True)
        whole = torch.zeros(2, 2 * scale, 2 * scale, 32)
        for row in range(scale):
            for column in range(scale):
                tile = picture[:, :, 24 * row : 24 * row + 24, 24 * column : 24 * column + 24]
                whole[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = states(
                    folder, "clip", tile, -2
                ).unflatten(1, (2, 2))
        found.append(torch.stack([
            whole[:, scale * row : scale * row + scale, scale * column : scale * column + scale].mean((1, 2))
            for row in range(2) for column in range(2)
        ], dim=1))  # fmt: skip
    assert model.config.vision_feature_dim == 32 * len(scales) and model.config.image_seq_length == 4
    torch.testing.assert_close(features_of(model, pixels), torch.cat(found, dim=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_a_composed_tower_saves_loads_and_answers_with_its_own_processor(
    folder: Path, tiny_llama: Any, tiny_tokenizer: Any, picture: Any, name: str
) -> None:
    model = compose(folder, tiny_llama, SPECS[name], tokenizer=tiny_tokenizer)
    prepares = image_processor_of(placed(SPECS[name], folder))
    processor = VLChatProcessor.from_backbones(prepares, tiny_tokenizer, model.config.image_seq_length)
    model.save_pretrained(folder / "whole")
    processor.save_pretrained(folder / "whole")
    config = (folder / "whole" / "config.json").read_text()
    assert str(folder) not in config
    back, processor = checkpoint.load(folder / "whole")
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": picture(seed, (70, 50))}]}] for seed in (1, 2)
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    both = processor.apply_chat_template(messages, **options)
    assert both["pixel_values"].shape[-1] == (48 if name == "multiscale" else 24)
    assert torch.equal(back(**both).logits, model(**both).logits)
    alone = processor.apply_chat_template(messages[1], **options)
    torch.testing.assert_close(back(**alone).logits, back(**both).logits[1:], rtol=1e-4, atol=1e-4)
    for attention in ("eager", "sdpa"):
        back.set_attn_implementation(attention)
        torch.testing.assert_close(back(**both).logits, model(**both).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_stage_1_trains_on_a_composed_tower_and_its_save_loads(
    folder: Path, tiny_llama: Any, tiny_tokenizer: Any, name: str
) -> None:
    tiny_llama.save_pretrained(folder / "lm")
    tiny_tokenizer.save_pretrained(folder / "lm")
    for seed in range(4):
        colours = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(colours).save(folder / f"{seed}.png")
    rows = [{"id": str(seed), "image": f"{seed}.png", "caption": "a red circle"} for seed in range(4)]
    (folder / "data.json").write_text(json.dumps(rows))
    objective = AlignObjective(
        placed({**SPECS[name]}, folder), str(folder / "lm"), {"type": "mlp"}, [{"path": str(folder / "data.json")}],
        template="chatml", vision_feature_layer=-1,
    )  # fmt: skip
    objective.model.requires_grad_(False)
    objective.model.model.connector.requires_grad_(True)
    batch = objective.batch(range(4))
    counts = objective.counts(batch)
    loss_of(objective.forward(batch), counts).backward()
    torch.optim.SGD(objective.model.model.connector.parameters(), 0.1).step()
    assert all(p.grad.abs().sum() > 0 for p in objective.model.model.connector.parameters())
    objective.save(folder / "saved", lambda stage: None)
    assert not list((folder / "saved").glob("model*.safetensors"))  # what was trained, and where the rest lies
    loaded, processor = checkpoint.load(folder / "saved")
    pixels = torch.randn(2, 3, *(2 * [48 if name == "multiscale" else 24]))
    with torch.no_grad():
        expected = objective.model.eval().get_image_features(pixels).pooler_output
        for mine, theirs in zip(loaded.get_image_features(pixels).pooler_output, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
    digests = json.loads((folder / "saved" / "vlchat.json").read_text())["base"]
    assert sorted(digests) == (["language", "vision", "vision_2"] if name == "concat" else ["language", "vision"])


def test_wrong_composed_towers_are_sentences(folder: Path, tiny_llama: Any) -> None:
    for spec, message in (
        ({"type": "concatt", "towers": ["clip"]}, 'Did you mean "concat"'),
        ({"type": "concat", "towers": ["clip"]}, "a list of 2 paths"),
        ({"type": "concat", "towers": ["clip", "dino"], "layers": -2}, "layers are a list of 2"),
        ({"type": "concat"}, "concat tower lacks towers"),
        ({"type": "multiscale", "tower": "clip", "scale": [1]}, 'Did you mean "scales"'),
        ({"type": "multiscale", "tower": "clip", "scales": 2}, "list of whole numbers"),
        ({"type": "multiscale", "tower": "clip", "scales": [1, 1.5]}, "whole numbers from 1 on"),
        ({"type": "multiscale", "tower": "clip", "scales": []}, "whole numbers from 1 on"),
        ({"type": "multiscale", "tower": "clip", "layers": [-1, -2]}, "layers are a list of 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            compose(folder, tiny_llama, spec)
    for nested in ({"type": "concat", "towers": [SPECS["concat"], "clip"]}, {"type": "concat", "towers": "clip"},
                   {"type": "multiscale", "tower": SPECS["concat"]}):  # fmt: skip
        with pytest.raises(ConfigError, match="paths? or Hub ids?, not"):
            VLChatForConditionalGeneration.from_backbones(nested, tiny_llama, {"type": "linear"})
    with pytest.raises(ConfigError, match="composed tower gives patches"):
        compose(folder, tiny_llama, SPECS["concat"], vision_feature_select_strategy="cls")
