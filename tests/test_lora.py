"""LoRA and its like on the language model: the papers' formulas, saved, loaded, merged, quantized."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_quantize import llama_folder, question  # noqa: F401  # a fixture
from tiny_models import LANGUAGES, inputs_for, labels_for, tiny

from vlchat import VLChatForConditionalGeneration
from vlchat.checkpoint import load, save, save_full
from vlchat.errors import ConfigError
from vlchat.lora import add_lora, merge

KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "dora and rslora": {"dora": True, "rslora": True},
}
EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS))


def moved(model: Any, seed: int = 1) -> Any:
    """The adapter as after some training: its updates are not zero, and lengths are not those of the base."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(noise * 0.1 * float(parameter.std() + 0.5))
    return model.eval()


@EVERY_KIND
@pytest.mark.parametrize("language", list(LANGUAGES))
def test_the_merged_weights_are_those_of_the_papers(language: str, kind: str) -> None:
    base = dict(tiny("mlp", language).named_parameters())
    model = moved(add_lora(tiny("mlp", language), r=4, alpha=6, dropout=0.0, **KINDS[kind]))
    adapter = {name: parameter.detach().double() for name, parameter in model.named_parameters() if "lora_" in name}
    batch = inputs_for(model)
    with torch.no_grad():
        expected = model(**batch).logits
    merged = merge(model)
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=2e-4, atol=2e-4)
    changed = 0
    scale = 6 / (math.sqrt(4) if "rslora" in kind else 4)
    for name, parameter in merged.named_parameters():
        wrapped = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{wrapped}.lora_A.default.weight" not in adapter:
            assert torch.equal(parameter, base[name]), name
            continue
        changed += 1
        update = adapter[f"{wrapped}.lora_B.default.weight"] @ adapter[f"{wrapped}.lora_A.default.weight"]
        weight = base[name].detach().double()
        transposed = weight.shape != update.shape or language == "gpt2"  # GPT-2 stores (inputs, outputs)
        whole = (weight.T if transposed else weight) + scale * update
        if "dora" in kind:  # equation 5 of arXiv:2402.09353
            length = adapter[f"{wrapped}.lora_magnitude_vector.default.weight"]
            whole = length[:, None] * whole / whole.norm(dim=1, keepdim=True)
        torch.testing.assert_close(parameter.double(), whole.T if transposed else whole, rtol=1e-4, atol=1e-5)
    assert changed >= 2 * 4


@EVERY_KIND
def test_saved_loaded_and_merged(kind: str, tmp_path: Path, tiny_model: Any, tiny_processor: Any, picture: Any) -> None:
    save_full(tmp_path / "base", tiny_model(), tiny_processor, trained_on="")
    model = moved(add_lora(load(tmp_path / "base")[0], r=4, **KINDS[kind]))
    save(
        tmp_path / "run", model, tiny_processor, base={"model": tmp_path / "base"}, trained=[], adapter=True,
        trained_on="",
    )  # fmt: skip
    batch = question(tiny_processor, picture)
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(load(tmp_path / "run")[0](**batch).logits, expected)
        merged, _ = load(tmp_path / "run", merge=True)
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-4)
        assert (load(tmp_path / "base")[0](**batch).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@EVERY_KIND
def test_on_a_quantized_language_model(
    kind: str, quantize: str, tmp_path: Path, llama_folder: Path, tiny_clip: Any, tiny_processor: Any, picture: Any  # noqa: F811
) -> None:  # fmt: skip
    pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
    tiny_clip.save_pretrained(tmp_path / "clip")
    model = VLChatForConditionalGeneration.from_backbones(
        tmp_path / "clip", llama_folder, {"type": "mlp"}, tokenizer=tiny_processor.tokenizer, quantize=quantize
    )
    wrapped = add_lora(model, r=4, **KINDS[kind])
    batch = question(tiny_processor, picture)
    labels = labels_for(batch)
    learning = [parameter for name, parameter in wrapped.named_parameters() if "lora_" in name]
    optimizer = torch.optim.Adam(learning, 1e-2)
    wrapped.train()
    losses = []
    for _ in range(4):
        loss = wrapped(**batch, labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in learning)
    base = {"vision": tmp_path / "clip", "language": llama_folder}
    names = [name for name, _ in wrapped.named_parameters() if ".connector." in name]
    save(tmp_path / "run", wrapped, tiny_processor, base=base, trained=names, adapter=True, trained_on="")
    with torch.no_grad():
        expected = wrapped.eval()(**batch).logits
        again, _ = load(tmp_path / "run", quantize=quantize)
        for _ in range(2):  # the first answer on a CPU may pack the weights
            found = again(**batch).logits
            assert (found - expected).norm() / expected.norm() < 0.02
        unquantized, _ = load(tmp_path / "run", merge=True)
        found = unquantized(**batch).logits
        assert (found - expected).norm() / expected.norm() < 0.25


def test_numbers_out_of_range_are_sentences() -> None:
    for options, said in [({"r": 0}, "r = 0"), ({"alpha": 0}, "alpha = 0"), ({"dropout": 1.0}, "dropout = 1.0")]:
        with pytest.raises(ConfigError, match=f"LoRA with .*{said}.* learns nothing"):
            add_lora(tiny(), **options)
