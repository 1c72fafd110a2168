"""LLaVA's own layout, and connectors taken from checkpoints of every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published import ROWS, batch_for, blip2, instructblip, llava, llava_next
from safetensors.torch import save_file

from vlchat import VLChatForConditionalGeneration, checkpoint
from vlchat.cli import main
from vlchat.errors import CheckpointError

PROJECTOR = {"linear_1": "0", "linear_2": "2"}


def original(folder: Path, model: Any, tokenizer: Any, pickled: bool = False) -> None:
    """Writes a Llava as liuhaotian/llava-v1.5-7b is: a Llama with more tensors, the tower apart."""
    tower = folder / "tower"
    model.model.vision_tower.save_pretrained(tower)
    from vlchat.towers import clip_image_processor

    clip_image_processor(24).save_pretrained(tower)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("model.language_model."):
            tensors["model." + name.removeprefix("model.language_model.")] = tensor
        elif name.startswith("model.multi_modal_projector."):
            _, _, layer, kind = name.split(".")
            tensors[f"model.mm_projector.{PROJECTOR[layer]}.{kind}"] = tensor
    tensors["lm_head.weight"] = model.lm_head.weight
    pinpoints = getattr(model.config, "image_grid_pinpoints", None)
    if pinpoints:
        tensors["model.image_newline"] = model.model.image_newline
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = model.config.text_config.to_dict() | {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": "tower",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 32,
        "image_aspect_ratio": "pad",
        "tune_mm_mlp_adapter": False,
    }
    if pinpoints:
        settings |= {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
        settings["image_grid_pinpoints"] = [[width, height] for height, width in pinpoints]
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("pickled", [True, False])
def test_llavas_own_layout_gives_the_same_logits(tmp_path: Path, tiny_tokenizer: Any, pickled: bool) -> None:
    torch.manual_seed(5)
    reference, their_processor = llava(tiny_tokenizer, "clip", "llama")
    original(tmp_path, reference, tiny_tokenizer, pickled)
    with pytest.raises(CheckpointError, match="stores no chat template.*--template vicuna"):
        checkpoint.load(tmp_path)
    out = tmp_path / "imported"
    assert main(["import", str(tmp_path), str(out), "--template", "vicuna", "--dtype", "float32"]) == 0
    model, processor = checkpoint.load(out)
    assert "ASSISTANT:" in processor.chat_template
    assert processor.image_processor.do_pad, "LLaVA-1.5 makes pictures square by padding"
    batch = batch_for(reference, their_processor, ROWS, 4)
    with torch.no_grad():
        assert (model(**batch).logits - reference(**batch).logits).abs().max() <= 1e-5


def test_llava_1_6_in_its_own_layout_sees_the_same_tiles(tmp_path: Path, tiny_tokenizer: Any, picture: Any) -> None:
    torch.manual_seed(5)
    reference, their_processor = llava_next(tiny_tokenizer)
    original(tmp_path, reference, tiny_tokenizer)
    out = tmp_path / "imported"
    assert main(["import", str(tmp_path), str(out), "--template", "vicuna", "--dtype", "float32"]) == 0
    model, processor = checkpoint.load(out)
    asked = [{"type": "image", "image": picture(1, (60, 50))}, {"type": "text", "text": "What is in the picture?"}]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": asked}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    pixels = their_processor.image_processor([picture(1, (60, 50))], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], pixels)
    with torch.no_grad():
        assert (model(**batch).logits - reference(**batch).logits).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mm_projector_type": "ldp"}, "ldp"),
        ({"model_type": "llava_mpt"}, "llava_mpt"),
        ({"image_aspect_ratio": "anyres", "mm_patch_merge_type": "flat"}, "anyres, flat"),
        ({"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad"}, "anyres_max_9"),
    ],
)
def test_what_is_not_read_of_that_layout_is_said(
    tmp_path: Path, tiny_tokenizer: Any, capsys: Any, change: dict[str, str], said: str
) -> None:
    reference, _ = llava(tiny_tokenizer, "clip", "llama")
    original(tmp_path, reference, tiny_tokenizer, False)
    settings = json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) | change
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert main(["import", str(tmp_path), str(tmp_path / "out"), "--template", "vicuna"]) == 2
    assert said in capsys.readouterr().err


def compose(vision: Any, language: Any, tokenizer: Any, kind: dict[str, Any], source: Path) -> Any:
    return VLChatForConditionalGeneration.from_backbones(
        vision, language, kind, tokenizer=tokenizer, connector_from=source
    )


QFORMER = {
    "type": "qformer", "num_query_tokens": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip


def test_only_the_connector_is_taken(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> None:
    torch.manual_seed(5)
    donor, processor = llava(tiny_tokenizer, "clip", "llama")
    donor.save_pretrained(tmp_path / "llava")
    expected = donor.model.multi_modal_projector.linear_2.weight
    projector = {
        f"model.mm_projector.{PROJECTOR[name.split('.')[0]]}.{name.split('.')[1]}": tensor
        for name, tensor in donor.model.multi_modal_projector.state_dict().items()
    }
    torch.save(projector, tmp_path / "mm_projector.bin")
    from transformers import LlamaForCausalLM

    other = LlamaForCausalLM(donor.config.text_config)
    for source in (tmp_path / "llava", tmp_path / "mm_projector.bin"):
        model = compose(tiny_clip, other, tiny_tokenizer, {"type": "mlp"}, source)
        assert torch.equal(model.model.connector.layers[1].weight, expected)
        assert torch.equal(model.lm_head.weight, other.lm_head.weight)
    model.save_pretrained(tmp_path / "ours")
    again = compose(tiny_clip, other, tiny_tokenizer, {"type": "mlp"}, tmp_path / "ours")
    assert torch.equal(again.model.connector.layers[1].weight, expected)
    with pytest.raises(CheckpointError, match=r"Missing: layers\.2\.bias, layers\.2\.weight"):
        compose(tiny_clip, other, tiny_tokenizer, {"type": "mlp", "depth": 3}, tmp_path / "llava")
    with pytest.raises(CheckpointError, match="holds no connector"):
        tiny_clip.save_pretrained(tmp_path / "clip")
        compose(tiny_clip, other, tiny_tokenizer, {"type": "mlp"}, tmp_path / "clip")


@pytest.mark.parametrize("maker", [blip2, instructblip])
def test_a_q_former_is_taken(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, maker: Any) -> None:
    donor, _ = maker(tiny_tokenizer, "llama")
    donor.save_pretrained(tmp_path)
    from transformers import LlamaForCausalLM

    kind = dict(QFORMER)
    if maker is instructblip:
        config = donor.config.qformer_config
        kind |= {"text_vocab_size": config.vocab_size, "max_instruction_tokens": 64}
    other = LlamaForCausalLM(donor.config.text_config)
    model = compose(tiny_clip, other, tiny_tokenizer, kind, tmp_path)
    connector = model.model.connector
    assert torch.equal(connector.query_tokens, donor.query_tokens)
    assert torch.equal(connector.projection.weight, donor.language_projection.weight)
    if maker is instructblip:
        assert torch.equal(connector.qformer.layernorm.weight, donor.qformer.embeddings.layernorm.weight)
        words = donor.qformer.embeddings.word_embeddings.weight
        assert torch.equal(connector.embeddings.word_embeddings.weight, words)
