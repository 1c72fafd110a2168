"""Composing from language models that keep, tie or scale their parts in ways of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import inputs_for
from transformers import AutoConfig, AutoModelForCausalLM

from vlchat import VLChatForConditionalGeneration
from vlchat.errors import ConfigError
from vlchat.lora import add_lora, merge

LANGUAGES: dict[str, dict[str, Any]] = {
    "opt": {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32},
    # as OPT-350m: embeddings narrower than the layers
    "opt-narrow": {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "gpt2": {"model_type": "gpt2"},
    # these change the logits after their output layer
    "gemma2": {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 3.0},
    "cohere": {"model_type": "cohere", "num_key_value_heads": 2, "logit_scale": 0.25},
    "granite": {"model_type": "granite", "num_key_value_heads": 2, "logits_scaling": 4.0, "embedding_multiplier": 3.0},
}
COMMON = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture(params=list(LANGUAGES))
def language(request: Any) -> Any:
    torch.manual_seed(4)
    values = {**COMMON, **LANGUAGES[request.param]}
    if request.param not in ("opt", "opt-narrow", "gpt2"):
        values["intermediate_size"] = 64
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    return model


def composed(tower: Any, language: Any, connector: dict | None = None) -> VLChatForConditionalGeneration:
    torch.manual_seed(5)
    model = VLChatForConditionalGeneration.from_backbones(tower, language, connector or {"type": "mlp", "depth": 2})
    model.config.image_token_id = 99
    return model


def test_it_answers_as_the_language_model_alone(tmp_path: Path, tiny_clip: Any, language: Any) -> None:
    language.save_pretrained(tmp_path / "language")
    words = torch.tensor([[1, 5, 6, 7, 8, 20, 41]])
    expected = language(words, labels=words)
    model = composed(tiny_clip, str(tmp_path / "language"))
    found = model(words, labels=words)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(words, **options), language.generate(words, **options))
    # through a folder, tied or not as it was
    model.save_pretrained(tmp_path / "whole")
    loaded, info = VLChatForConditionalGeneration.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(info.values())
    tied = language.get_output_embeddings().weight is language.get_input_embeddings().weight
    for one in (model, loaded):
        assert (one.lm_head.weight is one.get_input_embeddings().weight) == tied
    batch = inputs_for(model)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_a_picture_reaches_it_and_everything_learns(tiny_clip: Any, language: Any) -> None:
    connector = {"type": "qformer", "num_query_tokens": 4, "hidden_size": 16, "num_hidden_layers": 1,
                 "num_attention_heads": 2}  # fmt: skip
    model = composed(tiny_clip, language, connector)
    batch = inputs_for(model)
    other = {**batch, "pixel_values": batch["pixel_values"].flip(0)}
    assert not torch.allclose(model(**batch).logits, model(**other).logits)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in model.model.language_model.parameters())
    assert model.model.connector.projection.weight.grad.abs().sum() > 0


def test_lora_reaches_every_projection(tiny_clip: Any, language: Any) -> None:
    if language.config.model_type == "gpt2":
        pytest.skip("its projections are no linear layers, and are named by hand")
    model = composed(tiny_clip, language)
    names = {n for n, m in model.model.language_model.named_modules() if isinstance(m, torch.nn.Linear)}
    names -= {"decoder.project_in", "decoder.project_out"}  # next to the embeddings
    batch = inputs_for(model)
    wrapped = add_lora(model, r=2)
    found = {n.split("language_model.")[1] for n, m in wrapped.named_modules() if hasattr(m, "lora_A")}
    assert found == names
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            parameter.normal_(std=0.1) if "lora_B" in name else None
    expected = wrapped.eval()(**batch).logits
    torch.testing.assert_close(merge(wrapped)(**batch).logits, expected, rtol=1e-4, atol=1e-4)


def test_logits_changed_in_unknown_ways_are_refused(tiny_clip: Any) -> None:
    config = AutoConfig.for_model("llama", **COMMON, intermediate_size=64)
    config.lm_head_multiplier = 0.5
    with pytest.raises(ConfigError, match="llama language model changes its logits .lm_head_multiplier = 0.5"):
        composed(tiny_clip, AutoModelForCausalLM.from_config(config))
