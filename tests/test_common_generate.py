"""What transformers' common generation tests ask: every way of generating, against the plain language model's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import CONNECTORS, LANGUAGES, VOCABULARY, embeddings_of, inputs_for, plain_language_model, tiny
from transformers import DynamicCache, GenerationMixin, StaticCache

EVERY_CONNECTOR = pytest.mark.parametrize("connector", list(CONNECTORS))
EVERY_LANGUAGE = pytest.mark.parametrize("language", list(LANGUAGES))
NEW = 8
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
WAYS = {
    "greedy": GREEDY,
    "sample": {**GREEDY, "do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "several": {**GREEDY, "do_sample": True, "num_return_sequences": 3},
    "beam": {**GREEDY, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7},
    "beam-sample": {**GREEDY, "num_beams": 2, "do_sample": True},
    "processors": {**GREEDY, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[7], [8, 9]]},
    "uncached": {**GREEDY, "use_cache": False},
    "static": {**GREEDY, "cache_implementation": "static", "disable_compile": True},
}


def generate(model: Any, batch: dict[str, torch.Tensor], **options: Any) -> Any:
    torch.manual_seed(7)
    return model.generate(**batch, **options)


@pytest.mark.parametrize("way", list(WAYS))
@EVERY_LANGUAGE
def test_every_way_equals_the_plain_language_models(language: str, way: str) -> None:
    """The reference is transformers' causal language model, generating from the embeddings with pictures in place."""
    model = tiny("mlp", language)
    batch = inputs_for(model, rows=3)
    words = {"inputs_embeds": embeddings_of(model, batch), "attention_mask": batch["attention_mask"]}
    options = WAYS[way]
    if way == "processors":  # these look at the prompt's ids
        words["input_ids"] = batch["input_ids"]
    expected = generate(plain_language_model(model), words, **options)[:, -NEW:]
    given = generate(model, batch, **options)
    length = batch["input_ids"].shape[1]
    copies = options.get("num_return_sequences", 1)
    assert torch.equal(given[:, :length], batch["input_ids"].repeat_interleave(copies, 0))
    assert torch.equal(given[:, length:], expected)
    assert given.shape == (3 * copies, length + NEW) and given.max() < VOCABULARY


@EVERY_CONNECTOR
@pytest.mark.parametrize("way", ["beam", "several"])
def test_rows_keep_their_pictures_and_instructions(connector: str, way: str) -> None:
    """Expanded for beams or several answers, each row must meet its own picture: alone it says the same."""
    model = tiny(connector)
    batch = inputs_for(model, rows=3)
    options = {**WAYS[way], "do_sample": False}
    if way == "several":
        options |= {"num_beams": 3}
    together = generate(model, batch, **options)
    copies = options["num_return_sequences"]
    for row in range(3):
        alone = generate(model, {name: value[row : row + 1] for name, value in batch.items()}, **options)
        assert torch.equal(together[row * copies : (row + 1) * copies], alone)
    swapped = {**batch, "pixel_values": batch["pixel_values"].flip(0)}
    assert not torch.allclose(model(**batch).logits[0], model(**swapped).logits[0], atol=1e-4)  # it does look


@EVERY_CONNECTOR
def test_from_embeddings_equals_from_ids(connector: str) -> None:
    model = tiny(connector, "qwen2")
    batch = inputs_for(model)
    expected = generate(model, batch, **GREEDY)[:, -NEW:]
    # embeddings of the words alone, pictures beside them
    words = {k: v for k, v in batch.items() if k != "input_ids"}
    words["inputs_embeds"] = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(generate(model, words, **GREEDY), expected)
    # embeddings in which the pictures stand already
    whole = {"inputs_embeds": embeddings_of(model, batch), "attention_mask": batch["attention_mask"]}
    assert torch.equal(generate(model, whole, **GREEDY), expected)
    # and both given at once, as generate allows
    both = {**whole, "input_ids": batch["input_ids"]}
    assert torch.equal(generate(model, both, **GREEDY)[:, -NEW:], expected)


@EVERY_CONNECTOR
@EVERY_LANGUAGE
def test_left_padding_changes_nothing(connector: str, language: str) -> None:
    model = tiny(connector, language)
    batch = inputs_for(model, rows=1)
    padded = {
        **batch,
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (6, 0), value=0),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (6, 0), value=0),
    }
    positions = (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(**padded, position_ids=positions).logits[:, 6:]
        torch.testing.assert_close(logits, model(**batch).logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(generate(model, padded, **GREEDY)[:, 6:], generate(model, batch, **GREEDY))


@EVERY_CONNECTOR
@EVERY_LANGUAGE
def test_going_on_from_a_returned_cache(connector: str, language: str) -> None:
    """An answer in two calls is the answer in one, and the picture is looked at once."""
    model = tiny(connector, language)
    batch = inputs_for(model, rows=1)
    options = {**GREEDY, "return_dict_in_generate": True, "output_scores": True}
    whole = generate(model, batch, **options)
    looks: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda *_: looks.append(1))
    first = generate(model, batch, **{**options, "max_new_tokens": 3, "min_new_tokens": 3})
    ids = first.sequences
    rest = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": first.past_key_values}
    second = generate(model, rest, **{**options, "max_new_tokens": NEW - 3, "min_new_tokens": NEW - 3})
    assert torch.equal(second.sequences, whole.sequences)
    for mine, theirs in zip(first.scores + second.scores, whole.scores, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert len(looks) == 1


@pytest.mark.parametrize("language", ["llama", "qwen2", "mistral", "gemma3_text", "opt"])
def test_a_static_cache_by_hand(language: str) -> None:
    model = tiny("mlp", language)
    batch = inputs_for(model, rows=2)
    length = batch["input_ids"].shape[1]
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=length + NEW)
    expected = generate(model, batch, **GREEDY)
    assert torch.equal(generate(model, {**batch, "past_key_values": cache}, **GREEDY), expected)


def test_a_conversation_keeps_its_cache_over_a_second_picture() -> None:
    """Turn two brings a picture of its own; only that one is encoded, and the answer is that of the whole prompt."""
    model = tiny()
    one, two = inputs_for(model, rows=1), inputs_for(model, rows=1, seed=1)
    ids = torch.cat([one["input_ids"], two["input_ids"]], dim=1)
    whole = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.cat([one["pixel_values"], two["pixel_values"]]),
    }
    expected = generate(model, whole, **GREEDY)
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(**one, past_key_values=cache, use_cache=True)
        past = cache.get_seq_length()
        hidden = model(
            input_ids=two["input_ids"], pixel_values=two["pixel_values"], attention_mask=whole["attention_mask"],
            past_key_values=cache, use_cache=True,
        ).logits  # fmt: skip
        torch.testing.assert_close(hidden, model(**whole).logits[:, past:], rtol=1e-4, atol=1e-4)
    assert hidden[0, -1].argmax() == expected[0, ids.shape[1]]


@pytest.mark.parametrize("language", ["llama", "opt"])
def test_assisted_decoding_says_the_same(language: str) -> None:
    model = tiny("mlp", language)
    batch = inputs_for(model, rows=1)
    expected = generate(model, batch, **GREEDY)
    assistant = copy.deepcopy(model)
    assistant.generation_config.num_assistant_tokens = 3
    assert torch.equal(generate(model, batch, assistant_model=assistant, **GREEDY), expected)
    assert torch.equal(generate(model, batch, prompt_lookup_num_tokens=3, **GREEDY), expected)
    # a language model alone as the assistant: it sees no picture, and only drafts
    drafts = plain_language_model(model)
    assert torch.equal(generate(model, batch, assistant_model=drafts, **GREEDY), expected)


@EVERY_LANGUAGE
def test_what_generate_returns(language: str) -> None:
    model = tiny("mlp", language)
    model.set_attn_implementation("eager")
    batch = inputs_for(model)
    out = generate(
        model, batch, **GREEDY, return_dict_in_generate=True, output_scores=True, output_logits=True,
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    rows, length = batch["input_ids"].shape
    layers, heads = model.config.text_config.num_hidden_layers, model.config.text_config.num_attention_heads
    assert len(out.scores) == len(out.logits) == len(out.hidden_states) == len(out.attentions) == NEW
    assert all(step.shape == (rows, VOCABULARY) for step in out.logits)
    assert [len(step) for step in out.hidden_states] == [layers + 1] * NEW
    assert [len(step) for step in out.attentions] == [layers] * NEW
    assert out.hidden_states[0][0].shape == (rows, length, 32) and out.hidden_states[1][0].shape == (rows, 1, 32)
    assert out.attentions[0][-1].shape == (rows, heads, length, length)
    assert out.past_key_values.get_seq_length() == length + NEW - 1
    with torch.no_grad():
        first = model(**batch).logits[0, -1]  # of the row without padding, which GPT-2 must be told of by position_ids
        torch.testing.assert_close(out.logits[0][0], first, rtol=1e-4, atol=1e-4)


def test_it_is_a_generating_model() -> None:
    model = tiny()
    assert model.can_generate() and isinstance(model, GenerationMixin) and not model.model.can_generate()
    # The tower works once, at the prefill, however many tokens follow.
    looks: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda *_: looks.append(1))
    generate(model, inputs_for(model), **GREEDY)
    generate(model, inputs_for(model), **WAYS["beam"])
    assert len(looks) == 2
    with pytest.raises(ValueError, match="not_an_argument"):
        generate(model, inputs_for(model), not_an_argument=1, **GREEDY)


def test_only_the_last_position_gets_logits_at_the_prefill() -> None:
    model = tiny()
    widths: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: widths.append(inputs[0].shape[1]))
    generate(model, inputs_for(model), **GREEDY)
    assert widths == [1] * NEW
