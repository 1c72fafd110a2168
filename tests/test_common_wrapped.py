"""The model in other people's hands, as transformers' common tests ask: accelerate's devices, PEFT, torch.compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import CONNECTORS, LANGUAGES, gradients, inputs_for, tiny

from vlchat import VLChatForConditionalGeneration

EVERY_CONNECTOR = pytest.mark.parametrize("connector", list(CONNECTORS))
EVERY_LANGUAGE = pytest.mark.parametrize("language", list(LANGUAGES))
# Renamed in 5.23, where the old name still works; releases before it know no other.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


# Devices


@EVERY_CONNECTOR
@EVERY_LANGUAGE
def test_offloaded_to_disk_it_answers_the_same(tmp_path: Path, connector: str, language: str) -> None:
    model = tiny(connector, language)
    model.save_pretrained(tmp_path)
    batch = inputs_for(model)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    placements: list[dict[str, Any]] = [{"device_map": "auto", "max_memory": {"cpu": size * 2 // 3}}]
    if connector != "instructed":  # transformers' Blip2TextEmbeddings can't be offloaded, in InstructBLIP neither
        placements.append({"device_map": {"model": "disk", "lm_head": "disk"}})
    for index, placement in enumerate(placements):
        loaded = VLChatForConditionalGeneration.from_pretrained(
            tmp_path, **placement, offload_folder=tmp_path / f"offload-{index}"
        )
        assert set(loaded.hf_device_map.values()) == ({"disk"} if index else {"cpu", "disk"})
        assert any(p.device.type == "meta" for p in loaded.parameters())
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
        options = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(loaded.generate(**batch, **options), model.generate(**batch, **options))


@EVERY_LANGUAGE
def test_device_map_on_one_device(tmp_path: Path, language: str) -> None:
    model = tiny("qformer", language)
    model.save_pretrained(tmp_path)
    batch = inputs_for(model)
    for device_map in ("auto", "cpu", {"": "cpu"}):
        loaded = VLChatForConditionalGeneration.from_pretrained(tmp_path, device_map=device_map)
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_blocks_are_never_split() -> None:
    """What accelerate must keep together comes from the parts: a layer cut in two would add tensors of two devices."""
    for language in LANGUAGES:
        model = tiny("qformer", language)
        classes = {type(module).__name__ for module in model.modules()}
        assert {type(model.model.vision_tower.encoder.layers[0]).__name__} <= set(model._no_split_modules)
        assert len(set(model._no_split_modules) & classes) >= 2


# PEFT


TARGETS = r".*language_model.*\.(q_proj|v_proj|c_attn|fc1|up_proj|c_fc)"


def lora_of(model: Any, seed: int = 1) -> PeftModel:
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False))
    return wrapped.eval()


@EVERY_CONNECTOR
@EVERY_LANGUAGE
def test_an_adapter_saves_loads_and_merges(tmp_path: Path, connector: str, language: str) -> None:
    plain = tiny(connector, language)
    batch = inputs_for(plain)
    base = plain(**batch).logits
    wrapped = lora_of(plain)
    trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert trained and all(".language_model." in name and "lora_" in name for name in trained)
    expected = wrapped(**batch).logits
    assert not torch.allclose(expected, base, atol=1e-2)
    with wrapped.disable_adapter():
        assert torch.equal(wrapped(**batch).logits, base)
    options = {"max_new_tokens": 5, "do_sample": False}
    words = wrapped.generate(**batch, **options)
    wrapped.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny(connector, language), tmp_path).eval()
    assert torch.equal(again(**batch).logits, expected)
    merged = again.merge_and_unload()
    assert type(merged) is VLChatForConditionalGeneration
    torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(merged.generate(**batch, **options), words)
    merged.save_pretrained(tmp_path / "merged")
    whole, info = VLChatForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(whole(**batch).logits, merged(**batch).logits)


def test_several_adapters(tmp_path: Path) -> None:
    batch = inputs_for(tiny())
    expected = {}
    for seed, name in ((1, "first"), (2, "second")):
        wrapped = lora_of(tiny(), seed)
        expected[name] = wrapped(**batch).logits
        wrapped.save_pretrained(tmp_path / name)
    model = PeftModel.from_pretrained(tiny(), tmp_path / "first", adapter_name="first")
    model.load_adapter(str(tmp_path / "second"), adapter_name="second")
    for name in ("second", "first", "second"):
        model.set_adapter(name)
        assert torch.equal(model(**batch).logits, expected[name])
    # transformers' own way of holding adapters
    direct = tiny()
    direct.load_adapter(str(tmp_path / "first"), adapter_name="first")
    assert torch.equal(direct(**batch).logits, expected["first"])
    direct.disable_adapters()
    assert torch.equal(direct(**batch).logits, tiny()(**batch).logits)


def test_an_adapter_learns_under_checkpointing_beside_the_connector() -> None:
    model = tiny("qformer", "qwen2")
    config = LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["connector"])
    wrapped = get_peft_model(model, config).train()
    wrapped.gradient_checkpointing_enable()
    wrapped.enable_input_require_grads()
    _, got = gradients(wrapped, inputs_for(model))
    assert any("lora_B" in name for name in got) and any("connector" in name for name in got)
    for name, gradient in got.items():
        assert gradient is not None, name
    fresh = [gradient for name, gradient in got.items() if "lora_B" in name or "default.projection" in name]
    assert len(fresh) > 2 and all(gradient.abs().sum() > 0 for gradient in fresh)


# Compiling


@pytest.mark.parametrize(("connector", "language"), [("mlp", "llama"), ("instructed", "gemma3_text")])
def test_compiled_in_one_graph_equals_eager(connector: str, language: str) -> None:
    model = tiny(connector, language)
    batch = inputs_for(model)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(**batch).logits  # first, because transformers puts hooks into towers meanwhile
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


def test_compiled_it_learns_and_generates_the_same() -> None:
    model = tiny()
    model.model.vision_tower.requires_grad_(False)
    batch = inputs_for(model)
    options = {"max_new_tokens": 4, "do_sample": False}
    words = model.generate(**batch, **options)
    loss, expected = gradients(model.train(), batch)
    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    compiled_loss, got = gradients(model, batch)
    torch.testing.assert_close(compiled_loss, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    static = {**options, "cache_implementation": "static", "disable_compile": True}
    assert torch.equal(model.eval().generate(**batch, **static), words)
    torch._dynamo.reset()
