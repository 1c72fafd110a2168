"""What transformers' own common tests ask of any model: configuration, saving, initialisation, embeddings."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    CONNECTORS,
    LANGUAGES,
    TIED,
    VOCABULARY,
    embeddings_of,
    inputs_for,
    labels_for,
    language_config,
    plain_language_model,
    tiny,
    tiny_config,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
)

from vlchat import VLChatConfig, VLChatForConditionalGeneration
from vlchat.model import VLChatModel

EVERY_CONNECTOR = pytest.mark.parametrize("connector", list(CONNECTORS))
EVERY_LANGUAGE = pytest.mark.parametrize("language", list(LANGUAGES))


def reload(model: Any, folder: Path, **options: Any) -> Any:
    """Through a folder and back; nothing may be missing, left over or of another shape."""
    model.save_pretrained(folder)
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return loaded


# Configuration


@EVERY_LANGUAGE
def test_config_round_trip(tmp_path: Path, language: str) -> None:
    config = tiny_config("qformer", language)
    config.save_pretrained(tmp_path)
    for back in (
        AutoConfig.from_pretrained(tmp_path),
        VLChatConfig.from_pretrained(tmp_path),
        VLChatConfig.from_dict(json.loads(config.to_json_string(use_diff=False))),
        VLChatConfig(**config.to_diff_dict()),
        copy.deepcopy(config),
    ):
        assert type(back) is VLChatConfig
        assert {**back.to_dict(), "_name_or_path": ""} == config.to_dict()
        assert type(back.text_config) is type(language_config(language))
        assert type(back.vision_config) is CLIPVisionConfig
        assert back.get_text_config() is back.text_config
    # Each part is found in the file of the whole, as for transformers' own composed models.
    assert type(config.text_config).from_pretrained(tmp_path).hidden_size == 32
    assert CLIPVisionConfig.from_pretrained(tmp_path).hidden_size == 24


def test_config_without_arguments_and_with_common_ones(tmp_path: Path) -> None:
    config = VLChatConfig()
    assert isinstance(config.text_config, LlamaConfig) and config.connector == {"type": "mlp", "depth": 2}
    config = VLChatConfig(output_hidden_states=True, return_dict=False, dtype="float16", num_labels=3)
    config.save_pretrained(tmp_path)
    back = AutoConfig.from_pretrained(tmp_path)
    assert back.output_hidden_states and not back.return_dict and back.dtype == torch.float16
    assert len(back.id2label) == 3
    given = {"type": "mlp", "depth": 3}
    VLChatConfig(connector=given).connector["depth"] = 7
    assert given["depth"] == 3  # each configuration has its own


def test_a_config_given_twice_stays_what_it_was() -> None:
    config = tiny_config("qformer", "gemma3_text")
    before = config.to_dict()
    VLChatForConditionalGeneration(config)
    first, second = tiny(), tiny()
    first.config.text_config.vocab_size = 7
    assert second.config.text_config.vocab_size == VOCABULARY
    assert config.to_dict() == before


# Saving and loading


@EVERY_LANGUAGE
@EVERY_CONNECTOR
def test_saved_and_loaded_gives_the_same_bits(tmp_path: Path, connector: str, language: str) -> None:
    model = tiny(connector, language)
    batch = inputs_for(model)
    loaded = reload(model, tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert torch.equal(loaded(**batch, labels=labels_for(batch)).loss, model(**batch, labels=labels_for(batch)).loss)
    stored = set(load_file(tmp_path / "model.safetensors"))
    assert ("lm_head.weight" in stored) == (language not in TIED)


def test_auto_classes_load_it_whole_and_without_head(tmp_path: Path) -> None:
    model = tiny("instructed", "qwen2")
    model.save_pretrained(tmp_path)
    batch = inputs_for(model)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(whole) is VLChatForConditionalGeneration
    bare, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(bare) is VLChatModel and not info["missing_keys"]
    hidden = bare(**batch).last_hidden_state
    torch.testing.assert_close(whole.lm_head(hidden), model(**batch).logits)
    # and the other way round: a head is put on a bare model, which a tied one has already
    bare.save_pretrained(tmp_path / "bare")
    headed, info = VLChatForConditionalGeneration.from_pretrained(tmp_path / "bare", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(headed(**batch).logits, model(**batch).logits)


def test_shards_load(tmp_path: Path) -> None:
    model = tiny("qformer", "opt")
    model.save_pretrained(tmp_path, max_shard_size="40kB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = VLChatForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs_for(model)).logits, model(**inputs_for(model)).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EVERY_CONNECTOR
def test_half_precision(tmp_path: Path, connector: str, dtype: torch.dtype) -> None:
    model = tiny(connector)
    batch = inputs_for(model)
    loaded = reload(model, tmp_path, dtype=dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype} == {loaded.dtype}
    assert loaded.config.text_config.dtype == loaded.config.vision_config.dtype == dtype
    logits = loaded(**batch).logits
    assert logits.dtype == dtype
    # Rounding of weights and activations, not another computation.
    cosine = torch.cosine_similarity(logits.float(), model(**batch).logits, dim=-1)[batch["attention_mask"].bool()]
    assert cosine.min() > 0.98
    loaded.save_pretrained(tmp_path / "half")
    again = VLChatForConditionalGeneration.from_pretrained(tmp_path / "half", dtype="auto")
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert torch.equal(again(**batch).logits, logits)


@pytest.mark.parametrize("language", ["llama", "opt"])
def test_copies_are_whole_and_apart(language: str) -> None:
    model = tiny("instructed", language)
    batch = inputs_for(model)
    pickled = pickle.dumps(model)  # before the first forward, which puts hooks of transformers into the parts
    expected = model(**batch).logits
    for other in (copy.deepcopy(model), pickle.loads(pickled)):
        assert torch.equal(other(**batch).logits, expected)
        assert (other.lm_head.weight is other.get_input_embeddings().weight) == (language in TIED)
        with torch.no_grad():
            other.get_input_embeddings().weight.zero_()
        assert torch.equal(model(**batch).logits, expected)


# Initialisation


@EVERY_LANGUAGE
@EVERY_CONNECTOR
def test_loading_nothing_initialises_everything(connector: str, language: str) -> None:
    """Loading begins on the meta device, in memory that holds anything: what no file gives must be initialised."""
    config = tiny_config(connector, language)
    torch.manual_seed(3)
    built = VLChatForConditionalGeneration(config)
    torch.manual_seed(3)
    loaded = VLChatForConditionalGeneration.from_pretrained(None, config=config, state_dict={})
    tensors = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    for name, tensor in [*built.named_parameters(), *built.named_buffers()]:
        assert tensors[name].device.type == "cpu"
        if not torch.equal(tensor, tensors[name]):  # drawn in another order
            std, other = tensor.std().item(), tensors[name].std().item()
            assert std / other == pytest.approx(1.0, abs=0.4), name
            assert (tensor.mean() - tensors[name].mean()).abs() < std, name


@EVERY_CONNECTOR
def test_a_connector_starts_with_the_configured_spread(connector: str) -> None:
    config = tiny_config(connector)
    config.initializer_range = 1e-10
    for name, module in VLChatModel(config).connector.named_modules():
        if isinstance(module, torch.nn.Linear) and "qformer" not in name:  # which has a spread of its own
            assert module.weight.abs().max() < 1e-8, name  # none was left to torch's default


@pytest.mark.parametrize(
    ("connector", "gone"),
    [("mlp", "model.connector.layers.0.weight"), ("qformer", "model.connector.query_tokens"),
     ("instructed", "model.connector.embeddings.position_embeddings.weight")],
)  # fmt: skip
def test_a_missing_tensor_is_told_and_initialised(tmp_path: Path, connector: str, gone: str) -> None:
    model = tiny(connector)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = VLChatForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {gone} and not info["unexpected_keys"]
    assert 0.01 < loaded.get_parameter(gone).std() < 0.03  # fresh, and neither what it was (three times that) nor zero
    for name, tensor in tensors.items():
        assert torch.equal(loaded.get_parameter(name), tensor), name


def test_a_tensor_of_another_shape_is_refused_or_made_anew(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    config = tiny_config()
    config.connector["hidden_size"] = 16
    with pytest.raises(RuntimeError, match="mismatch"):
        VLChatForConditionalGeneration.from_pretrained(tmp_path, config=config)
    loaded = VLChatForConditionalGeneration.from_pretrained(tmp_path, config=config, ignore_mismatched_sizes=True)
    assert loaded.model.connector.layers[0].weight.shape == (16, 24)
    assert torch.isfinite(loaded(**inputs_for(loaded)).logits).all()


# Embeddings


@EVERY_LANGUAGE
def test_embeddings_are_reached_and_replaced(language: str) -> None:
    model = tiny(language=language)
    assert model.can_generate()
    assert model.get_decoder() is model.model.language_model is model.model.get_decoder()
    assert model.get_output_embeddings() is model.lm_head
    table = model.get_input_embeddings()
    assert table is model.model.get_input_embeddings() is model.model.language_model.get_input_embeddings()
    assert table.weight.shape == (VOCABULARY, 32)
    other = copy.deepcopy(table)
    model.set_input_embeddings(other)
    assert model.model.language_model.get_input_embeddings() is other
    head = torch.nn.Linear(32, VOCABULARY, bias=False)
    model.set_output_embeddings(head)
    assert model.lm_head is head
    model.tie_weights()
    assert (model.lm_head.weight is other.weight) == (language in TIED)


@pytest.mark.parametrize("rows", [VOCABULARY + 9, VOCABULARY - 9])
@pytest.mark.parametrize("tied", [True, False])
@EVERY_LANGUAGE
def test_resizing(tmp_path: Path, language: str, tied: bool, rows: int) -> None:
    model = tiny(language=language, tie_word_embeddings=tied)
    model.config.image_token_id = 90  # inside the smaller vocabulary
    batch = inputs_for(model)
    expected = model(**batch).logits
    known = min(rows, VOCABULARY)
    model.resize_token_embeddings(rows)
    assert model.config.text_config.vocab_size == rows
    assert model.get_input_embeddings().weight.shape[0] == model.lm_head.weight.shape[0] == rows
    assert model.lm_head.out_features == rows
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    output = model(**batch, labels=labels_for(batch))
    torch.testing.assert_close(output.logits[..., :known], expected[..., :known])
    assert output.logits.shape[-1] == rows and torch.isfinite(output.loss)
    loaded = reload(model, tmp_path)
    assert torch.equal(loaded(**batch).logits, output.logits)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied


def test_resizing_to_a_multiple_and_not_at_all() -> None:
    model = tiny(language="qwen2")
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    model.resize_token_embeddings(VOCABULARY + 1, pad_to_multiple_of=16)
    assert model.config.text_config.vocab_size == model.lm_head.out_features == 112
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.get_input_embeddings().weight.shape[0] == 128
    assert torch.isfinite(model(**inputs_for(model)).logits).all()


# The language model is the one that stood there before


@EVERY_LANGUAGE
@EVERY_CONNECTOR
def test_logits_are_the_language_models_own(connector: str, language: str) -> None:
    """Pictures put where their tokens stand, transformers' own causal language model answers the same."""
    model = tiny(connector, language)
    batch = inputs_for(model, rows=3)
    expected = plain_language_model(model)(
        inputs_embeds=embeddings_of(model, batch), attention_mask=batch["attention_mask"]
    ).logits
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch).logits[kept], expected[kept], rtol=1e-5, atol=1e-5)
