"""Packed rows are the padded ones: the same losses and gradients, and no row sees another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES
from tiny_models import CONNECTORS, LANGUAGES, inputs_for, tiny
from transformers import AutoConfig

from train.likelihood import token_losses
from vlchat.checkpoint import load
from vlchat.data.packing import Mask, borders, by_positions, is_dense, pack, packed_mask
from vlchat.data.segments import SEGMENTED, segment_lengths
from vlchat.errors import ConfigError
from vlchat.lora import add_lora
from vlchat.model import VLChatForConditionalGeneration

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def lesson(model: Any, rows: int = 3, words: int = 7, side: str = "right", seed: int = 0) -> dict[str, torch.Tensor]:
    batch = inputs_for(model, rows=rows, words=words, side=side, seed=seed)
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    labels[batch["input_ids"] == model.config.image_token_id] = -100
    labels[batch["input_ids"] == 1] = -100  # the start token, which padding would otherwise announce
    return batch | {"labels": labels}


def gentle(connector: str = "mlp", language: str = "llama", **changes: Any) -> VLChatForConditionalGeneration:
    """A tiny model whose losses are of the size of real ones, so that 1e-6 is a matter of the rows alone."""
    model = tiny(connector, language, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5) if parameter.ndim > 1 else None
    return model


def step(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
    """Loss, count, and the gradients of the mean."""
    model.zero_grad()
    found = token_losses(model, batch)
    (found.total / found.count).backward()
    return found.total.detach() / found.count, found.count, {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }  # fmt: skip


def packed_for(model: Any, padded: dict[str, torch.Tensor], multiple: int = 1) -> dict[str, torch.Tensor]:
    packed = pack(padded, filler=0, multiple=multiple)
    return packed | {"attention_mask": packed_mask(model)(packed["position_ids"])}


def compare(model: Any, padded: dict[str, torch.Tensor], multiple: int = 1) -> None:
    packed = packed_for(model, padded, multiple)
    assert packed["input_ids"].shape[0] == 1 and packed["input_ids"].shape[1] % multiple == 0
    one, two = step(model, padded), step(model, packed)
    assert one[1] == two[1]
    torch.testing.assert_close(one[0], two[0], **CLOSE)
    assert one[2].keys() == two[2].keys()
    for name, gradient in one[2].items():
        torch.testing.assert_close(gradient, two[2][name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("language", list(LANGUAGES))
def test_packed_is_padded(language: str, attention: str) -> None:
    model = gentle("mlp", language)
    model.set_attn_implementation(attention)
    compare(model, lesson(model))
    compare(model, lesson(model), multiple=32)


def test_padding_on_the_left_packs_to_the_same() -> None:
    model = tiny()
    left, right = (pack(lesson(model, side=side), 0) for side in ("left", "right"))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("connector", list(CONNECTORS))
def test_with_every_connector_and_an_adapter(connector: str) -> None:
    model = add_lora(gentle(connector), r=2, dropout=0.0)
    for name, parameter in model.named_parameters():
        if "connector" in name:
            parameter.requires_grad_(True)
    compare(model, lesson(model.get_base_model()))


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_many_rows_are_longer_than_the_model_has_positions(language: str) -> None:
    model = gentle("mlp", language, max_position_embeddings=32)
    batch = lesson(model, rows=8, words=20)
    assert pack(batch, 0)["input_ids"].shape[1] > 3 * 32 and batch["input_ids"].shape[1] < 32
    compare(model, batch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("language", list(LANGUAGES))
def test_a_changed_token_moves_no_logit_of_another_row(language: str, attention: str) -> None:
    model = gentle("mlp", language)
    model.set_attn_implementation(attention)
    batch = lesson(model)
    lengths = batch["attention_mask"].sum(1).tolist()
    packed = {name: value for name, value in packed_for(model, batch).items() if name != "labels"}
    packed["use_cache"] = False
    ends = torch.tensor(lengths).cumsum(0).tolist()
    with torch.no_grad():
        before = model(**packed).logits[0]
        for row, end in enumerate(ends):
            begin = end - lengths[row]
            ids = packed["input_ids"].clone()
            ids[0, begin] = 5 if ids[0, begin] != 5 else 6
            moved = (model(**packed | {"input_ids": ids}).logits[0] - before).abs().amax(-1) > 0
            assert moved[begin:end].all()
            assert not moved[:begin].any() and not moved[end:].any()


def test_the_first_token_of_a_row_is_not_learnt_and_nothing_of_the_filler() -> None:
    model = tiny()
    batch = lesson(model)
    batch["labels"][:, 0] = batch["input_ids"][:, 0]
    packed = pack(batch, filler=7, multiple=50)
    places, labels = packed["position_ids"][0], packed["labels"][0]
    assert (places == 0).sum() == 3 + 1 and (labels[places == 0] == -100).all()
    count = int(batch["attention_mask"].sum())
    assert packed["input_ids"].shape[1] == 50 and (packed["input_ids"][0, count:] == 7).all()
    assert (labels[count:] == -100).all() and "attention_mask" not in packed
    assert torch.equal(packed["pixel_values"], batch["pixel_values"])


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_sdpa_attends_row_by_row_and_others_as_they_can(language: str) -> None:
    model = gentle("mlp", language)
    model.set_attn_implementation("sdpa")
    assert packed_mask(model) is segment_lengths and not is_dense(model, segment_lengths)
    assert model.get_decoder().config._attn_implementation == SEGMENTED
    model.set_attn_implementation("eager")
    dense: Mask = borders if language == "opt" else by_positions
    assert packed_mask(model) is dense and is_dense(model, dense)
    assert model.get_decoder().config._attn_implementation == "eager"


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_rows_longer_than_a_window_and_recomputed_layers(language: str) -> None:
    model = gentle("mlp", language)
    batch = lesson(model, rows=3, words=30)
    assert int(batch["attention_mask"].sum(1).min()) > 3 * 8, "mistral's and gemma3's windows"
    compare(model, batch)
    model.get_decoder().gradient_checkpointing_enable({"use_reentrant": False})
    compare(model.train(), batch)


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_a_model_that_packs_still_answers_as_before(language: str) -> None:
    model = gentle("mlp", language)
    prompt = {name: tensor for name, tensor in inputs_for(model, rows=3).items()}
    before = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    packed_mask(model)
    assert torch.equal(model.generate(**prompt, max_new_tokens=6, do_sample=False), before)


def test_lengths_of_rows_are_read_from_their_positions() -> None:
    places = torch.tensor([[0, 1, 2, 0, 0, 1]])
    assert segment_lengths(places).tolist() == [[[[3, 1, 2]]]]


def other_language(**options: Any) -> VLChatForConditionalGeneration:
    config = tiny().config
    config.text_config = AutoConfig.for_model(**options)
    torch.manual_seed(0)
    return VLChatForConditionalGeneration(config).eval()


def test_a_window_that_only_a_mask_knows_is_kept_by_a_mask() -> None:
    options: dict[str, Any] = {"model_type": "phimoe", **LANGUAGES["llama"], "num_local_experts": 2}
    windowed = other_language(**{**options, "model_type": "phimoe", "sliding_window": 8})
    windowed.set_attn_implementation("sdpa")
    assert packed_mask(windowed) is by_positions
    compare(windowed, lesson(windowed, rows=3, words=30))
    plain = other_language(**{**options, "model_type": "phimoe", "sliding_window": None})
    plain.set_attn_implementation("sdpa")
    assert packed_mask(plain) is segment_lengths


def test_models_that_know_no_borders_are_refused(tmp_path: Any) -> None:
    mamba = other_language(
        model_type="mamba", vocab_size=100, hidden_size=32, state_size=4, num_hidden_layers=2, conv_kernel=2
    )
    with pytest.raises(ConfigError, match="Rows can't be packed for the mamba language model: a token would see"):
        packed_mask(mamba)
    FAMILIES["qwen2_vl"](tmp_path)
    with pytest.raises(ConfigError, match="Rows can't be packed for a Qwen2VLForConditionalGeneration"):
        packed_mask(load(tmp_path)[0])
