"""The model, against transformers' Llava with the same weights, and against itself in other orders of work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionModel,
    DynamicCache,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vlchat import VLChatConfig, VLChatForConditionalGeneration
from vlchat.connectors import CONNECTORS as known_connectors
from vlchat.errors import CheckpointError, ConfigError, VLChatError

IMAGE, TOKENS = "<image>", 4


def batch_of(
    tokenizer: Any, texts: list[str], pictures: int, *, side: str = "right", size: int = 24, tokens: int = TOKENS
) -> dict[str, torch.Tensor]:
    """Prompts in which each `<image>` is a picture, padded on one side."""
    rows = [tokenizer(text.replace(IMAGE, IMAGE * tokens), add_special_tokens=False)["input_ids"] for text in texts]
    length = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids, mask = [], []
    for row in rows:
        filler = [pad] * (length - len(row))
        ids.append(filler + row if side == "left" else row + filler)
        ones, zeros = [1] * len(row), [0] * len(filler)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    if pictures:
        generator = torch.Generator().manual_seed(pictures)
        batch["pixel_values"] = torch.randn(pictures, 3, size, size, generator=generator)
    return batch


def llava_with_the_weights_of(model: VLChatForConditionalGeneration, layers: int | list[int], full: bool) -> Any:
    reference = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=model.config.vision_config,
            text_config=model.config.text_config,
            image_token_index=model.config.image_token_id,
            vision_feature_layer=layers,
            vision_feature_select_strategy="full" if full else "default",
        )
    ).eval()
    names = {"model.connector.layers.0": "model.multi_modal_projector.linear_1",
             "model.connector.layers.1": "model.multi_modal_projector.linear_2"}  # fmt: skip
    weights = {}
    for key, value in model.state_dict().items():
        for mine, theirs in names.items():
            key = key.replace(mine, theirs)
        weights[key] = value
    reference.load_state_dict(weights)
    return reference


MIXED = ["What is <image>? and <image> left", "no picture here", "<image>two cats and one dog.", "is it<image>"]


@pytest.mark.parametrize(
    ("layers", "strategy"), [(-2, "patch"), (-1, "patch"), (-2, "full"), ([-3, -1], "patch"), ([0, 2, -1], "full")]
)
def test_logits_equal_llavas(tiny_model: Any, tiny_tokenizer: Any, layers: Any, strategy: str) -> None:
    model = tiny_model(vision_feature_layer=layers, vision_feature_select_strategy=strategy)
    reference = llava_with_the_weights_of(model, layers, strategy == "full")
    tokens = 5 if strategy == "full" else 4
    assert model.config.image_seq_length == tokens
    for texts, pictures in ((MIXED, 4), (MIXED[:1], 2), (MIXED[1:2], 0)):
        batch = batch_of(tiny_tokenizer, texts, pictures, tokens=tokens)
        labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
        mine, theirs = model(**batch, labels=labels), reference(**batch, labels=labels)
        torch.testing.assert_close(mine.logits, theirs.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.loss, theirs.loss)
        last = model(**batch, logits_to_keep=1).logits
        torch.testing.assert_close(last, theirs.logits[:, -1:], rtol=1e-5, atol=1e-5)


def test_generation_equals_llavas(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    reference = llava_with_the_weights_of(model, -2, False)
    reference.generation_config = model.generation_config
    batch = batch_of(tiny_tokenizer, MIXED, 4, side="left")
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(**batch, **options), reference.generate(**batch, **options))


def test_loss_counts_supervised_tokens_and_takes_a_global_count(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    batch = batch_of(tiny_tokenizer, MIXED, 4)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[0, 8:11] = batch["input_ids"][0, 8:11]
    output = model(**batch, labels=labels)
    log_probabilities = output.logits.double().log_softmax(-1)
    expected = -sum(log_probabilities[0, i - 1, labels[0, i]] for i in (8, 9, 10))
    torch.testing.assert_close(output.loss.double(), expected / 3, rtol=1e-5, atol=1e-6)
    shared = model(**batch, labels=labels, num_items_in_batch=torch.tensor(12))
    torch.testing.assert_close(shared.loss.double(), expected / 12, rtol=1e-5, atol=1e-6)


def test_cached_equals_uncached(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    batch = batch_of(tiny_tokenizer, MIXED, 4, side="left")
    options = {"max_new_tokens": 12, "do_sample": False}
    cached = model.generate(**batch, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**batch, **options, use_cache=False))
    # and by hand: a conversation that goes on with the keys and values it has, its pictures not shown again
    single = batch_of(tiny_tokenizer, ["What is <image>? and <image> left of it"], 2)
    cache = DynamicCache(config=model.config.get_text_config())
    first = {name: value[:, :-2] if value.ndim == 2 else value for name, value in single.items()}
    model(**first, past_key_values=cache, use_cache=True)
    rest = model(single["input_ids"][:, -2:], attention_mask=single["attention_mask"], past_key_values=cache)
    torch.testing.assert_close(rest.logits, model(**single).logits[:, -2:], rtol=1e-4, atol=1e-4)


def test_left_padded_batch_equals_one_by_one(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    batch = batch_of(tiny_tokenizer, MIXED, 4, side="left")
    together = model.generate(**batch, max_new_tokens=10, do_sample=False)[:, batch["input_ids"].shape[1] :]
    taken = 0
    for text, expected in zip(MIXED, together, strict=True):
        single = batch_of(tiny_tokenizer, [text], 0)
        count = text.count(IMAGE)
        if count:
            single["pixel_values"] = batch["pixel_values"][taken : taken + count]
        taken += count
        alone = model.generate(**single, max_new_tokens=10, do_sample=False)[0, single["input_ids"].shape[1] :]
        assert alone.tolist() == expected[: len(alone)].tolist()


def test_beams_and_several_answers_keep_their_own_pictures(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    batch = batch_of(tiny_tokenizer, [MIXED[2], MIXED[3]], 2, side="left")
    both = model.generate(**batch, num_beams=3, num_return_sequences=2, max_new_tokens=6, do_sample=False)
    assert both.shape[0] == 4
    second = {name: value[1:] for name, value in batch.items()}
    alone = model.generate(**second, num_beams=3, num_return_sequences=2, max_new_tokens=6, do_sample=False)
    width = min(both.shape[1], alone.shape[1])
    assert torch.equal(both[2:, :width], alone[:, :width])


def test_image_features_can_be_kept_and_given_again(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    batch = batch_of(tiny_tokenizer, MIXED, 4)
    expected = model(**batch).logits
    pixels = batch.pop("pixel_values")
    features = model.get_image_features(pixels)
    assert [tuple(f.shape) for f in features.pooler_output] == [(4, 64)] * 4
    assert torch.equal(model(**batch, mm_encoder_outputs={"image": features}).logits, expected)
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    by_embedding = model(
        inputs_embeds=embeddings, attention_mask=batch["attention_mask"], pixel_values=pixels
    ).logits
    assert torch.equal(by_embedding, expected)


def test_too_many_or_too_few_image_tokens_name_both_numbers(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    batch = batch_of(tiny_tokenizer, MIXED, 4)
    with pytest.raises(VLChatError, match="16 image tokens but the pictures give 12"):
        model(**{**batch, "pixel_values": batch["pixel_values"][:3]})
    with pytest.raises(VLChatError, match="3 image tokens but the pictures give 4"):
        model(**batch_of(tiny_tokenizer, ["<image>"], 1, tokens=3))


CONNECTORS = [
    {"type": "linear"},
    {"type": "mlp", "depth": 2},
    {"type": "qformer", "num_query_tokens": 3, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    {"type": "downsample", "factor": 2},
    {"type": "resampler", "num_query_tokens": 4, "num_attention_heads": 2},
    {"type": "perceiver", "num_query_tokens": 3, "depth": 2, "num_attention_heads": 2, "head_dim": 8},
    {"type": "gated", "widths": [20, 12], "num_attention_heads": 2, "head_dim": 8},
]


def test_no_connector_is_forgotten_here() -> None:
    assert {connector["type"] for connector in CONNECTORS} == set(known_connectors)


@pytest.mark.parametrize("connector", CONNECTORS, ids=lambda connector: connector["type"])
def test_every_connector_saves_loads_and_learns(
    tmp_path: Any, tiny_model: Any, tiny_tokenizer: Any, connector: dict
) -> None:
    model = tiny_model(connector)
    tokens = model.config.image_seq_length
    batch = batch_of(tiny_tokenizer, MIXED, 4, tokens=tokens)
    model.save_pretrained(tmp_path)
    loaded, info = VLChatForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(model(**batch).logits, loaded.eval()(**batch).logits)
    assert isinstance(loaded.config, VLChatConfig) and loaded.config.connector == connector
    model(**batch, labels=batch["input_ids"]).loss.backward()
    torch.optim.SGD(model.model.connector.parameters(), 0.1).step()  # what a closed gate hides learns from then on
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.model.connector.parameters())


@pytest.mark.parametrize(("connector", "name", "std"), [(2, "query_tokens", 0.02), (5, "query_tokens", 1.0),
                                                        (6, "attention_gate", 0.0)])  # fmt: skip
def test_bare_parameters_that_a_checkpoint_lacks_start_as_fresh_ones_do(
    tmp_path: Any, tiny_model: Any, connector: int, name: str, std: float
) -> None:
    tiny_model(CONNECTORS[connector]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"model.connector.{name}"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = VLChatForConditionalGeneration.from_pretrained(tmp_path)
    values = getattr(loaded.model.connector, name)
    assert std / 2 <= values.square().mean().sqrt() <= std * 2


def test_instruction_aware_model_generates(tiny_model: Any, tiny_tokenizer: Any) -> None:
    connector = {**CONNECTORS[2], "text_vocab_size": len(tiny_tokenizer)}
    model = tiny_model(connector)
    batch = batch_of(tiny_tokenizer, MIXED[2:3], 1, tokens=3)
    ids = torch.tensor([[10, 11, 12]])
    batch |= {"instruction_input_ids": ids, "instruction_attention_mask": torch.ones_like(ids)}
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        model.generate(**batch, **options, use_cache=True), model.generate(**batch, **options, use_cache=False)
    )
    other = model(**{**batch, "instruction_input_ids": ids + 5})
    assert not torch.allclose(model(**batch).logits, other.logits)


class Recorder:
    """Notes in which mode the tower ran, and how often."""

    def __init__(self, tower: Any) -> None:
        self.calls: list[tuple[bool, bool]] = []
        tower.encoder.layers[0].register_forward_hook(self)

    def __call__(self, module: Any, inputs: Any, output: Any) -> None:
        self.calls.append((torch.is_grad_enabled(), module.training))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_tower_builds_no_graph_and_stays_as_it_was(
    tiny_model: Any, tiny_tokenizer: Any, checkpointing: bool
) -> None:
    model = tiny_model()
    model.model.vision_tower.requires_grad_(False)
    model.model.language_model.requires_grad_(False)
    recorder = Recorder(model.model.vision_tower)
    before = {name: tensor.clone() for name, tensor in model.model.vision_tower.state_dict().items()}
    model.train()
    batch = batch_of(tiny_tokenizer, MIXED, 4)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        return [p.grad.clone() for p in model.model.connector.parameters()]

    expected = gradients()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        recorder.calls.clear()
        for mine, theirs in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert recorder.calls == [(False, False)]  # once, without a graph, and without being run again for the backward
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    after = model.model.vision_tower.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_open_tower_learns(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model().train()
    model(**batch_of(tiny_tokenizer, MIXED, 4), labels=batch_of(tiny_tokenizer, MIXED, 0)["input_ids"]).loss.backward()
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0


def test_resizing_embeddings_keeps_what_was_known(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model()
    batch = batch_of(tiny_tokenizer, MIXED, 4)
    expected = model(**batch).logits
    rows = expected.shape[-1]
    model.resize_token_embeddings(rows + 8)
    assert model.config.text_config.vocab_size == rows + 8
    torch.testing.assert_close(model(**batch).logits[..., :rows], expected)
    assert torch.isfinite(model(**batch, labels=batch["input_ids"]).loss)


def test_image_token_is_added_alike_every_time(
    tiny_clip: CLIPVisionModel, tiny_llama: LlamaForCausalLM, tiny_tokenizer: Any, tmp_path: Any
) -> None:
    tiny_llama.save_pretrained(tmp_path)
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = VLChatForConditionalGeneration.from_backbones(
            tiny_clip, tmp_path, {"type": "linear"}, tokenizer=tiny_tokenizer, image_token="<picture>"
        )
        made.append(model)
    first, second = made
    rows = tiny_llama.config.vocab_size
    assert first.config.image_token_id == rows == tiny_tokenizer.convert_tokens_to_ids("<picture>")
    assert first.lm_head.weight.shape[0] == rows + 1 == first.config.text_config.vocab_size
    assert torch.equal(first.lm_head.weight, second.lm_head.weight)
    torch.testing.assert_close(first.get_input_embeddings().weight[rows], tiny_llama.lm_head.weight.new_tensor(
        tiny_llama.get_input_embeddings().weight.mean(0).tolist()))  # fmt: skip
    assert first.config.image_token_id in first.generation_config.suppress_tokens


def test_tied_embeddings_stay_tied(tmp_path: Any, tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any) -> None:
    config = tiny_llama.config
    config.tie_word_embeddings = True
    language = LlamaForCausalLM(config).eval()
    model = VLChatForConditionalGeneration.from_backbones(
        tiny_clip, language, {"type": "linear"}, tokenizer=tiny_tokenizer
    )
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = VLChatForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    batch = batch_of(tiny_tokenizer, MIXED, 4)
    torch.testing.assert_close(loaded.eval()(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementation_reaches_every_part(
    tmp_path: Any, tiny_model: Any, tiny_tokenizer: Any, attention: str
) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = VLChatForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=attention).eval()
    assert loaded.model.language_model.config._attn_implementation == attention
    assert loaded.model.vision_tower.config._attn_implementation == attention
    batch = batch_of(tiny_tokenizer, MIXED, 4, side="left")
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(loaded(**batch).logits[kept], model(**batch).logits[kept], rtol=1e-4, atol=1e-4)


def test_device_map_and_half_precision(tmp_path: Any, tiny_model: Any, tiny_tokenizer: Any) -> None:
    tiny_model().save_pretrained(tmp_path)
    loaded = VLChatForConditionalGeneration.from_pretrained(tmp_path, device_map={"": "cpu"}, dtype=torch.bfloat16)
    output = loaded.eval()(**batch_of(tiny_tokenizer, MIXED, 4))
    assert output.logits.dtype == torch.bfloat16 and torch.isfinite(output.logits).all()


def siglip() -> SiglipVisionModel:
    return SiglipVisionModel(
        SiglipVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                           image_size=24, patch_size=12)
    )  # fmt: skip


def test_a_tower_without_class_token_loses_no_patch(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    def make(strategy: str) -> VLChatForConditionalGeneration:
        torch.manual_seed(0)
        return VLChatForConditionalGeneration.from_backbones(
            siglip(), tiny_llama, {"type": "linear"}, tokenizer=tiny_tokenizer, vision_feature_select_strategy=strategy
        )

    patch, full = make("patch"), make("full")
    assert patch.config.image_seq_length == full.config.image_seq_length == 4
    batch = batch_of(tiny_tokenizer, MIXED, 4)
    assert torch.equal(patch(**batch).logits, full(**batch).logits)
    with pytest.raises(ConfigError, match="no class token"):
        make("cls")


def test_a_blip2_tower_gives_its_own_output(tmp_path: Any, tiny_llama: Any, tiny_tokenizer: Any) -> None:
    config = Blip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=12
    )
    tower = Blip2VisionModel(config).eval()
    torch.nn.init.normal_(tower.post_layernorm.weight)
    model = VLChatForConditionalGeneration.from_backbones(
        tower, tiny_llama, {"type": "linear"}, tokenizer=tiny_tokenizer,
        vision_feature_layer=None, vision_feature_select_strategy="full",
    )  # fmt: skip
    pixels = torch.randn(2, 3, 24, 24)
    expected = model.model.connector(tower(pixels).last_hidden_state)
    torch.testing.assert_close(torch.stack(model.get_image_features(pixels).pooler_output), expected)
    model.save_pretrained(tmp_path)
    back = VLChatForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(torch.stack(back.get_image_features(pixels).pooler_output), expected)


def test_class_token_alone(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model(vision_feature_select_strategy="cls")
    assert model.config.image_seq_length == 1
    assert torch.isfinite(model(**batch_of(tiny_tokenizer, MIXED, 4, tokens=1)).logits).all()


def test_parts_that_do_not_fit_are_refused(tiny_clip: Any, tiny_llama: Any, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="not a vision model"):
        VLChatForConditionalGeneration.from_backbones(tiny_llama, tiny_llama, {"type": "linear"})
    with pytest.raises(ConfigError, match="no plain output layer"):
        VLChatForConditionalGeneration.from_backbones(tiny_clip, tiny_clip, {"type": "linear"})
    with pytest.raises(ConfigError, match="already in memory"):
        VLChatForConditionalGeneration.from_backbones(tiny_clip, tiny_llama, {"type": "linear"}, quantize="nf4")
    with pytest.raises(CheckpointError, match="The vision tower .*nothing can't be loaded: there is no such folder"):
        VLChatForConditionalGeneration.from_backbones(tmp_path / "nothing", tiny_llama, {"type": "linear"})
    with pytest.raises(CheckpointError, match="The language model .*nothing can't be loaded"):
        VLChatForConditionalGeneration.from_backbones(tiny_clip, tmp_path / "nothing", {"type": "linear"})
    tiny_llama.save_pretrained(tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(tiny_llama.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        VLChatForConditionalGeneration.from_backbones(tiny_clip, tmp_path / "pickled", {"type": "linear"})
    with pytest.raises(ConfigError, match="must be one of patch, cls, full"):
        VLChatConfig(vision_feature_select_strategy="default")


def test_plain_language_model_sees_the_same(tiny_model: Any, tiny_tokenizer: Any, tiny_llama: LlamaForCausalLM) -> None:
    """What a language model is pretrained on, embeddings put where image tokens stand, is what it meets here."""
    model = tiny_model()
    batch = batch_of(tiny_tokenizer, MIXED[:1], 2)
    embeddings = tiny_llama.get_input_embeddings()(batch["input_ids"])
    features = torch.cat(model.get_image_features(batch["pixel_values"]).pooler_output)
    embeddings[batch["input_ids"] == model.config.image_token_id] = features
    torch.testing.assert_close(tiny_llama(inputs_embeds=embeddings).logits, model(**batch).logits)


