"""Towers of the field, composed by path, against what transformers' own classes give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BeitConfig,
    BeitImageProcessorPil,
    BeitModel,
    BitImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2Model,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    EfficientNetConfig,
    EfficientNetImageProcessorPil,
    EfficientNetModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from vlchat import VLChatForConditionalGeneration, VLChatProcessor
from vlchat.errors import CheckpointError, ConfigError
from vlchat.towers import clip_image_processor, load_image_processor, load_tower, padding_image_processor

VIT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 24,
    "patch_size": 12,
}  # fmt: skip
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"}
CNN: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SQUARE = {"size": {"height": 24, "width": 24}}
SHORT = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}



def siglip_pair() -> SiglipModel:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return SiglipModel(SiglipConfig(vision_config=VIT, text_config={**text, "vocab_size": 99}))


# name: (makes the tower, its image processor, patches in a picture of 24 x 24 pixels or of the CNNs' 64 x 64, width)
TOWERS: dict[str, tuple[Callable[[], PreTrainedModel], Any, int, int]] = {
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**VIT)), clip_image_processor(24), 4, 32),
    # SigLIP 2 checkpoints for pictures of one size are SiglipModels, too.
    "siglip": (siglip_pair, SiglipImageProcessorPil(**SQUARE), 4, 32),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**{**DINO, "image_size": 48})), BitImageProcessorPil(**SHORT), 4, 32),
    "dinov2_with_registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO)), BitImageProcessorPil(**SHORT), 4, 32,
    ),
    "dinov3_vit": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**VIT, num_register_tokens=4)), None, 4, 32),
    "beit": (lambda: BeitModel(BeitConfig(**VIT, use_relative_position_bias=True)), BeitImageProcessorPil(**SQUARE),
             4, 32),
    "vit_mae": (lambda: ViTMAEModel(ViTMAEConfig(**VIT)), ViTImageProcessorPil(**SQUARE), 4, 32),
    "vit": (lambda: ViTModel(ViTConfig(**VIT)), ViTImageProcessorPil(**SQUARE), 4, 32),
    "swin": (
        lambda: SwinModel(SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=24, window_size=3)),
        ViTImageProcessorPil(**SQUARE), 9, 16,
    ),
    "resnet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=8, **CNN)),
        ConvNextImageProcessorPil(size={"shortest_edge": 64}, crop_pct=0.875), 4, 32,
    ),
    "convnext": (lambda: ConvNextModel(ConvNextConfig(**CNN, image_size=64)),
                 ConvNextImageProcessorPil(size={"shortest_edge": 64}), 4, 32),
    "convnextv2": (lambda: ConvNextV2Model(ConvNextV2Config(**CNN, image_size=64)),
                   ConvNextImageProcessorPil(size={"shortest_edge": 64}), 4, 32),
    "efficientnet": (
        lambda: EfficientNetModel(EfficientNetConfig(
            image_size=64, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320
        )),
        EfficientNetImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False), 4, 320,
    ),
    "dinov3_convnext": (lambda: DINOv3ConvNextModel(DINOv3ConvNextConfig(**CNN, image_size=64)), None, 4, 32),
}  # fmt: skip


def written(name: str, folder: Path) -> Path:
    """A tower with random weights as a checkpoint folder."""
    make, processor, _, _ = TOWERS[name]
    torch.manual_seed(7)
    model = make().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias") or parameter.ndim == 1:  # norms and scales that differ from one another
                parameter.add_(torch.randn_like(parameter) * 0.2)
        for key, buffer in model.named_buffers():
            if "running" in key:
                buffer.add_(torch.rand_like(buffer))
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


def compose(vision: Any, language: Any, **options: Any) -> VLChatForConditionalGeneration:
    torch.manual_seed(3)
    return VLChatForConditionalGeneration.from_backbones(vision, language, {"type": "linear"}, **options)


def seen(model: VLChatForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    output = model.get_image_features(pixels)
    assert set(type(output)(pooler_output=output.pooler_output)) == {"pooler_output"}  # for stage 1, of any tower
    return torch.stack(output.pooler_output)


def plain(name: str, folder: Path, pixels: torch.Tensor, layer: int | None) -> torch.Tensor:
    """What transformers' own class says of the pictures: patches alone, read row by row."""
    model = type(TOWERS[name][0]()).from_pretrained(folder).eval()
    options = {}
    if name == "siglip":
        model = model.vision_model
    if name == "vit_mae":
        model.config.mask_ratio = 0.0
        options["noise"] = torch.linspace(0, 1, 4).expand(len(pixels), -1)
    with torch.no_grad():
        output = model(pixels, output_hidden_states=True, **options)
    state = output.last_hidden_state if layer is None else output.hidden_states[layer]
    if state.ndim == 4:
        return torch.stack([state[:, :, row, column] for row in range(state.shape[2]) for column in
                            range(state.shape[3])], dim=1)  # fmt: skip
    prefix = {"siglip": 0, "swin": 0, "dinov2_with_registers": 5, "dinov3_vit": 5}.get(name, 1)
    return state[:, prefix:]


@pytest.mark.parametrize("layer", [None, -1, -2])
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_by_path_gives_what_transformers_own_class_gives(
    tmp_path: Path, tiny_llama: Any, name: str, layer: int | None
) -> None:
    folder = written(name, tmp_path / "tower")
    model = compose(folder, tiny_llama, vision_feature_layer=layer)
    size = 64 if TOWERS[name][3] == 320 or "conv" in name or name == "resnet" else 24
    pixels = torch.randn(3, 3, size, size)
    reference = plain(name, folder, pixels, layer)
    assert model.config.image_seq_length == reference.shape[1]
    if layer is None:
        assert reference.shape[1:] == TOWERS[name][2:]
    expected = torch.nn.functional.linear(reference, *model.model.connector.parameters())
    torch.testing.assert_close(seen(model, pixels), expected)
    model.save_pretrained(tmp_path / "whole")
    back, info = VLChatForConditionalGeneration.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(seen(back.eval(), pixels), expected)


@pytest.mark.parametrize("name", TOWERS)
def test_a_towers_own_processor_makes_as_many_tokens_as_the_model_counts(
    tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any, picture: Any, name: str
) -> None:
    folder = written(name, tmp_path / "tower")
    if TOWERS[name][1] is None:  # DINOv3's, which transformers has for torchvision alone
        size = 64 if name == "dinov3_convnext" else 24
        values = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": size, "width": size},
                  "image_mean": [0.4, 0.5, 0.6], "crop_size": None, "do_center_crop": None}  # fmt: skip
        (folder / "preprocessor_config.json").write_text(json.dumps(values))
        assert load_image_processor(folder).image_mean == (0.4, 0.5, 0.6)
    model = compose(folder, tiny_llama, tokenizer=tiny_tokenizer, vision_feature_layer=None)
    processor = VLChatProcessor.from_backbones(folder, tiny_tokenizer, model.config.image_seq_length)
    messages = [{"role": "user", "content": [{"type": "image", "image": picture(1, (60, 40))}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()


def test_a_processor_that_makes_pictures_of_many_sizes_is_refused(tmp_path: Path, tiny_llama: Any) -> None:
    folder = written("vit", tmp_path)
    BeitImageProcessorPil(size={"shortest_edge": 24}).save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"24 x 24 of one picture and 24 x 48 of another"):
        compose(folder, tiny_llama)


def test_two_layers_of_a_tower_side_by_side(tmp_path: Path, tiny_llama: Any) -> None:
    folder = written("dinov2", tmp_path / "vit")
    model = compose(folder, tiny_llama, vision_feature_layer=[1, -1])
    assert model.config.vision_feature_dim == 64
    pixels = torch.randn(1, 3, 24, 24)
    both = torch.cat([plain("dinov2", folder, pixels, 1), plain("dinov2", folder, pixels, -1)], dim=-1)
    expected = torch.nn.functional.linear(both, *model.model.connector.parameters())
    torch.testing.assert_close(seen(model, pixels), expected)
    with pytest.raises(ConfigError, match=r"layers \[-2, -1\] of this convnext tower have \[16, 4\] tokens"):
        compose(written("convnext", tmp_path / "cnn"), tiny_llama, vision_feature_layer=[-2, -1])


def test_a_tower_in_memory_needs_a_size_of_its_own(tmp_path: Path, tiny_llama: Any) -> None:
    assert compose(TOWERS["convnext"][0](), tiny_llama, vision_feature_layer=-1).config.image_seq_length == 4
    with pytest.raises(ConfigError, match="resnet tower does not say how large its pictures are"):
        compose(TOWERS["resnet"][0](), tiny_llama, vision_feature_layer=-1)
    with pytest.raises(ConfigError, match="no class token"):
        compose(TOWERS["convnext"][0](), tiny_llama, vision_feature_layer=-1, vision_feature_select_strategy="cls")
    with pytest.raises(ConfigError, match="no hidden state -9; it has 4, from -4 to 3"):
        compose(TOWERS["vit"][0](), tiny_llama, vision_feature_layer=-9)


def test_counting_tokens_leaves_a_tower_in_training_as_it_was(tiny_llama: Any) -> None:
    tower = TOWERS["efficientnet"][0]().train()
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    compose(tower, tiny_llama, vision_feature_layer=None)
    assert all(torch.equal(buffer, before[name]) for name, buffer in tower.named_buffers())


def test_missing_tensors_are_named_but_for_an_unused_pooler(tmp_path: Path, tiny_llama: Any) -> None:
    folder = written("vit", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    pooled = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert len(pooled) < len(tensors)
    save_file(pooled, folder / "model.safetensors", metadata={"format": "pt"})
    first, second = load_tower(folder), load_tower(folder)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    del pooled["layernorm.weight"]
    save_file(pooled, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks tensors: layernorm.weight\. It may be cut short"):
        compose(folder, tiny_llama)


def test_a_tower_that_needs_more_than_pictures_is_refused(tmp_path: Path, tiny_llama: Any) -> None:
    options = {key: value for key, value in VIT.items() if key != "image_size"}
    Siglip2VisionModel(Siglip2VisionConfig(**options, num_patches=4)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="Siglip2VisionModel .*needs pixel_attention_mask, spatial_shapes besides"):
        compose(tmp_path, tiny_llama)


def test_a_frozen_cnn_keeps_its_statistics_while_the_rest_learns(tmp_path: Path, tiny_llama: Any) -> None:
    model = compose(written("resnet", tmp_path), tiny_llama, vision_feature_layer=-1).train()
    model.model.vision_tower.requires_grad_(False)
    before = {name: buffer.clone() for name, buffer in model.model.vision_tower.named_buffers()}
    model.get_image_features(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.model.vision_tower.named_buffers())


def test_pictures_made_square_first_lose_nothing_and_are_kept_so(tmp_path: Path) -> None:
    wide = Image.new("RGB", (60, 20), (255, 0, 0))
    for number, own in enumerate((clip_image_processor(24), SiglipImageProcessorPil(size={"height": 36, "width": 36}))):
        padding = padding_image_processor(own)
        made = padding([wide], return_tensors="pt")["pixel_values"][0]
        side = made.shape[-1]
        assert made.shape[-2:] == own([wide], return_tensors="pt")["pixel_values"].shape[-2:]
        red = made[0, :, side // 2] > 0.8  # the picture's third of the height, the mean color above and below
        assert red.sum().item() == side // 3 and not made[0, 0].gt(0.8).any() and (made[0, side // 2] > 0.8).all()
        padding.save_pretrained(tmp_path / str(number))
        again = load_image_processor(tmp_path / str(number))([wide], return_tensors="pt")["pixel_values"][0]
        assert torch.equal(again, made)
    own.image_grid_pinpoints = [[36, 72]]
    with pytest.raises(ConfigError, match="tiles"):
        padding_image_processor(own)
