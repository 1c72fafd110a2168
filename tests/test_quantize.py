"""Quantization touches the language model and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from vlchat import VLChatForConditionalGeneration
from vlchat.checkpoint import add_lora, load, merge, save, save_full
from vlchat.errors import CheckpointError, ConfigError, VLChatError
from vlchat.quantize import KINDS, language_model_prefix, linear_layers_to_keep, quantization_config

bitsandbytes = pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
QUANTIZED = {"nf4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}


@pytest.fixture
def llama_folder(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """A Llama wide enough (128) for bitsandbytes' blocks."""
    torch.manual_seed(6)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def question(processor: Any, picture: Any) -> dict[str, torch.Tensor]:
    content = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "How many cats are there?"}]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )  # fmt: skip
    return dict(batch)


def check_only_the_language_model(model: nn.Module, kind: str) -> None:
    quantized = [name for name, module in model.named_modules() if isinstance(module, QUANTIZED[kind])]
    assert len(quantized) == 2 * 7
    assert all(".language_model.layers." in name for name in quantized)
    for name, parameter in model.named_parameters():
        if "vision_tower" in name or "connector" in name or "multi_modal_projector" in name or "lm_head" in name:
            assert parameter.dtype in (torch.float32, torch.bfloat16), name


@pytest.mark.parametrize("kind", KINDS)
def test_backbones_quantize_the_language_model_only(
    kind: str, llama_folder: Path, tiny_clip: Any, tiny_tokenizer: Any, tiny_processor: Any, picture: Any
) -> None:
    model = VLChatForConditionalGeneration.from_backbones(
        tiny_clip, llama_folder, {"type": "mlp"}, tokenizer=tiny_tokenizer, quantize=kind
    )
    check_only_the_language_model(model, kind)
    batch = question(tiny_processor, picture)
    assert torch.isfinite(model(**batch).logits).all()
    assert model.generate(**batch, max_new_tokens=4, do_sample=False).shape[1] > batch["input_ids"].shape[1]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_load_quantized_and_stay_close(
    kind: str, tmp_path: Path, llama_folder: Path, tiny_clip: Any, tiny_processor: Any, picture: Any
) -> None:
    plain = VLChatForConditionalGeneration.from_backbones(
        tiny_clip, llama_folder, {"type": "mlp"}, tokenizer=tiny_processor.tokenizer
    )
    save_full(tmp_path / "full", plain, tiny_processor, trained_on="")
    model, processor = load(tmp_path / "full", quantize=kind)
    check_only_the_language_model(model, kind)
    batch = question(processor, picture)
    logits, expected = model(**batch).logits.float(), plain(**batch).logits
    difference = (logits - expected).norm() / expected.norm()
    assert 0 < difference < (0.2 if kind == "nf4" else 0.05)
    connectors = (model.model.connector.state_dict(), plain.model.connector.state_dict())
    for mine, theirs in zip(*(weights.values() for weights in connectors), strict=True):
        assert torch.equal(mine.float(), theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_any_image_text_checkpoint_is_quantized_alike(
    kind: str, tmp_path: Path, llama_folder: Path, tiny_clip: Any, tiny_processor: Any
) -> None:
    config = LlavaConfig(
        vision_config=tiny_clip.config, text_config=LlamaConfig.from_pretrained(llama_folder),
        image_token_index=tiny_processor.image_token_id,
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "llava")
    tiny_processor.save_pretrained(tmp_path / "llava")
    model, _ = load(tmp_path / "llava", quantize=kind)
    assert isinstance(model, LlavaForConditionalGeneration)
    check_only_the_language_model(model, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_learns_on_a_quantized_language_model(
    kind: str, tmp_path: Path, llama_folder: Path, tiny_clip: Any, tiny_processor: Any, picture: Any
) -> None:
    tiny_clip.save_pretrained(tmp_path / "clip")
    model = add_lora(
        VLChatForConditionalGeneration.from_backbones(
            tmp_path / "clip", llama_folder, {"type": "mlp"}, tokenizer=tiny_processor.tokenizer, quantize=kind
        ),
        r=4,
    )
    for name, parameter in model.named_parameters():
        if ".connector." in name:
            parameter.requires_grad_(True)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in learning if "lora_" not in name} == {n for n in learning if ".connector." in n}
    batch = question(tiny_processor, picture)
    optimizer = torch.optim.Adam(learning.values(), 1e-3)
    model.train()
    losses = []
    for _ in range(3):
        loss = model(**batch, labels=batch["input_ids"]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in learning.values())
        optimizer.step()
    assert losses[-1] < losses[0]

    names = [name for name in learning if ".connector." in name]
    base = {"vision": tmp_path / "clip", "language": llama_folder}
    save(tmp_path / "run", model.eval(), tiny_processor, base=base, trained=names, adapter=True, trained_on="")
    assert "quantization_config" not in (tmp_path / "run" / "config.json").read_text()
    expected = model(**batch).logits.float()
    again, _ = load(tmp_path / "run", quantize=kind)
    torch.testing.assert_close(again(**batch).logits.float(), expected, rtol=1e-2, atol=1e-2)
    unquantized, _ = load(tmp_path / "run")
    assert (unquantized(**batch).logits - expected).norm() / expected.norm() < 0.2
    with pytest.raises(CheckpointError, match="merged into a quantized"):
        merge(model)
    with pytest.raises(CheckpointError, match="choose merge or quantize"):
        load(tmp_path / "run", quantize=kind, merge=True)
    with pytest.raises(CheckpointError, match="quantized model can't be written whole"):
        save_full(tmp_path / "full", again.get_base_model(), tiny_processor, trained_on="")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_the_quantized_model_survive_an_evaluation(
    kind: str, llama_folder: Path, tiny_clip: Any, tiny_processor: Any, picture: Any
) -> None:
    batch = question(tiny_processor, picture)

    def gradients(quantize: str | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = VLChatForConditionalGeneration.from_backbones(
            tiny_clip, llama_folder, {"type": "mlp"}, tokenizer=tiny_processor.tokenizer, quantize=quantize
        )
        model.model.language_model.requires_grad_(False)
        found = []
        for _ in range(2):
            model.train().zero_grad()
            model(**batch, labels=batch["input_ids"]).loss.backward()
            found.append(torch.cat([p.grad.flatten() for p in model.model.connector.parameters()]))
            with torch.no_grad():
                model.eval().generate(**batch, max_new_tokens=2, do_sample=False)
        return found

    before, after = gradients(kind)
    torch.testing.assert_close(before, after)
    assert torch.nn.functional.cosine_similarity(before, gradients(None)[0], dim=0) > 0.95


@pytest.mark.parametrize("origin", ["quantized on loading", "stored quantized"])
@pytest.mark.parametrize("adapter", [None, {}, {"dora": True}], ids=["connector", "lora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_third_step_is_the_same_with_and_without_an_evaluation_before_it(
    kind: str, adapter: dict | None, origin: str, tmp_path: Path, llama_folder: Path, tiny_clip: Any,
    tiny_processor: Any, picture: Any,
) -> None:  # fmt: skip
    plain = VLChatForConditionalGeneration.from_backbones(
        tiny_clip, llama_folder, {"type": "mlp"}, tokenizer=tiny_processor.tokenizer
    )
    save_full(tmp_path / "full", plain, tiny_processor, trained_on="")
    if origin == "stored quantized":
        load(tmp_path / "full", quantize=kind, trainable=True)[0].save_pretrained(tmp_path / "small")
        tiny_processor.save_pretrained(tmp_path / "small")
    batch = question(tiny_processor, picture)

    def third_step(evaluate: bool) -> dict[str, torch.Tensor]:
        if origin == "stored quantized":
            model, _ = load(tmp_path / "small", trainable=True)
        else:
            model, _ = load(tmp_path / "full", quantize=kind, trainable=True)
        check_only_the_language_model(model, kind)
        torch.manual_seed(0)
        model = model if adapter is None else add_lora(model, r=4, dropout=0.0, **adapter)
        learning = {}
        for name, parameter in model.named_parameters():
            if "connector" in name or "lora_" in name:
                parameter.data = parameter.data.float()
                learning[name] = parameter.requires_grad_(True)
            else:
                parameter.requires_grad_(False)
        optimizer = torch.optim.SGD(learning.values(), 0.1)
        for step in range(3):
            model.train().zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                model(**batch, labels=batch["input_ids"]).loss.backward()
            if step < 2:
                optimizer.step()
                if evaluate:
                    with torch.no_grad():
                        model.eval().generate(**batch, max_new_tokens=2, do_sample=False)
                        model(**batch)
        return {name: parameter.grad.clone() for name, parameter in learning.items()}

    without, after = third_step(False), third_step(True)
    for name, gradient in without.items():
        assert gradient.any() and torch.equal(gradient, after[name]), name


def test_names_of_layers_to_keep_are_full(tiny_model: Any) -> None:
    model = tiny_model()
    assert language_model_prefix(model) == "model.language_model"
    keep = linear_layers_to_keep(model)
    assert {"lm_head", "model.connector.layers.0", "model.vision_tower.encoder.layers.0.mlp.fc1"} <= set(keep)
    assert not any("language_model" in name for name in keep)


def test_unknown_kinds_and_absent_bitsandbytes_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match='Did you mean "nf4"'):
        quantization_config("fp4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(VLChatError, match="needs bitsandbytes, which is not installed"):
        quantization_config("nf4")
