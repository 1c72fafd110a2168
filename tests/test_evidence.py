"""Evidence maps: held against formulas written out here, and against what covering pixels does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import BLIPS, FAMILIES
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlchat.chat import Chat, ask_messages
from vlchat.checkpoint import EMBEDDED
from vlchat.errors import ConfigError, VLChatError
from vlchat.evidence import METHODS, deletion_check, evidence, evidences, mass_inside, signals
from vlchat.evidence.check import _mask, _moved
from vlchat.evidence.heat import Heat
from vlchat.evidence.likelihood import asked, logprobs
from vlchat.evidence.seen import on_grid
from vlchat.evidence.signals import cells, covered
from vlchat.processor import VLChatProcessor
from vlchat.towers import clip_image_processor
from vlchat.towers.tiles import tile_image_processor
from vlchat.whole import load_whole

ANSWER = "two cats and a dog"
QFORMER = {
    "type": "qformer", "num_query_tokens": 3, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "dropout": 0.0,
}  # fmt: skip


@pytest.fixture
def chat(tiny_model: Any, tiny_processor: Any) -> Chat:
    return Chat(tiny_model(), tiny_processor)


def image_slopes(chat: Chat, question: list[dict[str, Any]], answer: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The image tokens (4, hidden) of one picture, the gradient of the answer's log-likelihood by them, and that."""
    lesson = asked(chat, [question], [answer], [None])
    ids = lesson.batch["input_ids"]
    model = chat.model
    words = model.get_input_embeddings()(ids).detach()
    features = model.get_image_features(lesson.batch["pixel_values"]).pooler_output[0].detach().requires_grad_()
    place = (ids[0] == model.config.image_token_id).nonzero().flatten()
    embeddings = words.index_put((torch.zeros_like(place), place), features)
    logits = model.get_decoder()(inputs_embeds=embeddings).last_hidden_state @ model.lm_head.weight.T
    chances = torch.log_softmax(logits, -1)
    text = chat.processor.tokenizer(answer)["input_ids"]
    begin = next(at for at in range(ids.shape[1]) if ids[0, at : at + len(text)].tolist() == text)
    total = sum(chances[0, begin + number - 1, token] for number, token in enumerate(text))
    assert isinstance(total, torch.Tensor)
    return features.detach(), torch.autograd.grad(total, features)[0], total.item()


def test_the_gradient_is_that_of_the_answers_words_by_the_image_tokens(chat: Chat, picture: Any) -> None:
    question = ask_messages(picture(1), "What is there?")
    features, slope, total = image_slopes(chat, question, ANSWER)
    found = evidence(chat, question, ANSWER, method="gradient")
    expected = (features * slope).norm(dim=-1).view(2, 2)
    np.testing.assert_allclose(found.maps[0].values, expected / expected.max(), rtol=1e-4)
    assert found.logprob == pytest.approx(total, rel=1e-5)
    assert found.maps[0].values.dtype == np.float32


def test_integrated_gradients_add_up_to_what_the_places_are_worth(
    chat: Chat, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "STEPS", 80)
    lesson = asked(chat, [ask_messages(picture(1), "What is there?")], [ANSWER], [None])
    (values,) = signals.integrated(chat, lesson, []).values
    with torch.no_grad():
        whole, _ = logprobs(chat, lesson)
        features = chat.model.get_image_features(lesson.batch["pixel_values"]).pooler_output[0]
        flat = BaseModelOutputWithPooling(pooler_output=[features.mean(0, keepdim=True).expand_as(features)])
        del lesson.batch["pixel_values"]
        without, _ = logprobs(chat, lesson, mm_encoder_outputs={"image": flat})
    assert float(values.sum()) == pytest.approx(float(whole - without), rel=0.02)
    assert abs(float(whole - without)) > 0.1


def test_attention_is_the_mean_over_heads_and_the_later_layers(chat: Chat, picture: Any) -> None:
    question = ask_messages(picture(1), "What is there?")
    found = evidence(chat, question, ANSWER, method="attention")
    lesson = asked(chat, [question], [ANSWER], [None])
    chat.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = chat.model(**lesson.batch, output_attentions=True).attentions[-1][0].mean(0)  # the later of two
    says = lesson.explained[0].nonzero().flatten() - 1
    expected = weights[says][:, lesson.batch["input_ids"][0] == chat.model.config.image_token_id].mean(0).view(2, 2)
    np.testing.assert_allclose(found.maps[0].values, expected / expected.max(), rtol=1e-4)


def test_occlusion_is_how_much_the_likelihood_falls(chat: Chat, picture: Any) -> None:
    question = ask_messages(picture(1), "What is there?")
    found = evidence(chat, question, ANSWER, method="occlusion")
    heat = found.maps[0]
    assert heat.values.shape == cells(heat.seen) == (8, 8)

    def score(shown: Image.Image) -> float:
        return evidence(chat, ask_messages(shown, "What is there?"), ANSWER, method="gradient").logprob

    falls = np.zeros((8, 8))
    for cell in ((0, 0), (3, 5), (7, 7)):
        hidden = np.zeros((8, 8), dtype=bool)
        hidden[cell] = True
        falls[cell] = max(0.0, score(heat.seen) - score(covered(heat.seen, hidden)))
    scale = max(heat.values[cell] / falls[cell] for cell in np.ndindex(8, 8) if falls[cell] > 0)
    for cell in ((0, 0), (3, 5), (7, 7)):
        assert heat.values[cell] == pytest.approx(falls[cell] * scale, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("method", ["gradient", "integrated", "occlusion"])
def test_a_model_that_ignores_its_pictures_has_no_evidence(chat: Chat, picture: Any, method: str) -> None:
    for layer in chat.model.get_decoder().layers:  # nothing goes from one token to the next
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    found = evidence(chat, ask_messages(picture(1), "What is there?"), ANSWER, method=method)
    assert not found.maps[0].values.any()


@pytest.mark.parametrize("method", list(METHODS))
def test_maps_of_a_batch_are_those_of_each_alone(chat: Chat, picture: Any, method: str) -> None:
    rows = [
        (ask_messages(picture(1), "What is there?"), ANSWER, None),
        (ask_messages([picture(2), picture(3)], "How many cats are there in the picture?"), "no, it is red", "red"),
    ]
    together = evidences(chat, [row[0] for row in rows], [row[1] for row in rows], words=[row[2] for row in rows],
                         method=method)  # fmt: skip
    assert [len(found.maps) for found in together] == [1, 2]
    for (question, answer, word), found in zip(rows, together, strict=True):
        alone = evidence(chat, question, answer, word=word, method=method)
        assert found.logprob == pytest.approx(alone.logprob, abs=1e-3)
        for one, other in zip(found.maps, alone.maps, strict=True):
            np.testing.assert_allclose(one.values, other.values, atol=2e-3)
        peaks = [float(heat.values.max()) for heat in found.maps]
        assert max(peaks) == 1 and min(float(heat.values.min()) for heat in found.maps) >= 0


def test_asking_leaves_the_model_as_it_was(chat: Chat, picture: Any) -> None:
    question = ask_messages(picture(1), "What is there?")
    before, kernels = chat.batch([question], max_new_tokens=8), chat.model.get_decoder().config._attn_implementation
    for method in METHODS:
        evidence(chat, question, ANSWER, method=method)
    assert "get_image_features" not in vars(chat.model.model)
    assert not chat.model.model.connector._forward_pre_hooks
    assert chat.model.get_decoder().config._attn_implementation == kernels
    assert all(parameter.grad is None for parameter in chat.model.parameters())
    assert chat.batch([question], max_new_tokens=8) == before


def test_a_word_is_explained_by_its_own_tokens(chat: Chat, picture: Any) -> None:
    question = ask_messages(picture(1), "What is there?")
    tokenizer = chat.processor.tokenizer
    lesson = asked(chat, [question] * 2, [ANSWER] * 2, ["Cats", "two cats and a dog"])
    told = [tokenizer.decode(lesson.batch["input_ids"][row][lesson.explained[row]]) for row in range(2)]
    assert told[0].strip() == "cats" and told[1] == ANSWER
    whole = asked(chat, [question], [ANSWER], [None])
    assert torch.equal(whole.explained[0], lesson.explained[1]), "the token that closes the answer is not explained"
    parts = [evidence(chat, question, ANSWER, word=word, method="gradient") for word in ("two", "cats", "and a dog")]
    assert sum(part.logprob for part in parts) == pytest.approx(
        evidence(chat, question, ANSWER, method="gradient").logprob, rel=1e-4
    )


def test_of_several_answers_the_last_one_is_explained(chat: Chat, picture: Any) -> None:
    turns = ask_messages(picture(1), "What is there?")
    turns += [{"role": "assistant", "content": "a red circle"}, {"role": "user", "content": "And what else?"}]
    lesson = asked(chat, [turns], ["a blue square"], [None])
    told = chat.processor.tokenizer.decode(lesson.batch["input_ids"][0][lesson.explained[0]])
    assert told == "a blue square"


def test_tokens_without_places_are_told_by_the_patches_they_read(
    tiny_model: Any, tiny_tokenizer: Any, picture: Any
) -> None:
    processor = VLChatProcessor.from_backbones(clip_image_processor(24), tiny_tokenizer, 3, "chatml")
    chat = Chat(tiny_model(QFORMER), processor)
    question = ask_messages([picture(1), picture(2)], "What is there?")
    for method in ("gradient", "integrated"):
        found = evidence(chat, question, ANSWER, method=method)
        assert [heat.values.shape for heat in found.maps] == [(2, 2)] * 2
        assert max(float(heat.values.max()) for heat in found.maps) == 1
    assert evidence(chat, question, ANSWER, method="occlusion").maps[0].values.any()
    with pytest.raises(VLChatError, match="no places in the picture"):
        evidence(chat, question, ANSWER, method="attention")


def test_tiles_make_one_map_of_the_whole_picture(tiny_model: Any, tiny_tokenizer: Any, picture: Any) -> None:
    model = tiny_model(tiles=4)
    tiles = tile_image_processor(clip_image_processor(24), (24, 24), model.config.image_grid_pinpoints)
    chat = Chat(model, VLChatProcessor.from_backbones(tiles, tiny_tokenizer, model.config.image_seq_length, "chatml"))
    shown = picture(1, (96, 48))
    found = evidence(chat, ask_messages(shown, "What is there?"), ANSWER)
    heat = found.maps[0]
    assert heat.values.shape == (2, 4) and heat.seen.size == (96, 48)
    # Two tiles side by side: 4 tokens of the whole, then 2 rows of 4 with a newline each.
    batch = asked(chat, [ask_messages(shown, "?")], [ANSWER], [None]).batch
    told = on_grid(torch.tensor([1.0, 2, 3, 4, *(0, 0, 0, 5, 99), *(0, 6, 0, 0, 99)]), 0, batch, model)
    np.testing.assert_allclose(told, [[0.5, 0.5, 1, 6], [1.5, 7.5, 2, 2]])


@pytest.mark.parametrize(
    ("name", "shape"), [("llava", (2, 2)), ("llava_siglip", (2, 2)), ("llava_next", (2, 4)), ("qwen2_vl", None)]
)
def test_other_makers_models_have_maps(name: str, shape: Any, tmp_path: Path, picture: Any) -> None:
    FAMILIES[name](tmp_path / name)
    chat = Chat.load(tmp_path / name)
    question = ask_messages(picture(1, (48, 24)), "how many cats")
    for method in ("gradient", "integrated", "attention"):
        (heat,) = evidence(chat, question, "two", method=method).maps
        rows, columns = heat.values.shape
        assert (rows, columns) == shape or (shape is None and rows * 2 == columns)
        assert heat.values.max() == 1


@pytest.mark.parametrize(
    ("name", "reason"), [("blip-2, template added", "no places in the picture"), ("idefics3", "no places in it")]
)
def test_models_that_give_no_map_say_why_and_what_works(name: str, reason: str, tmp_path: Path, picture: Any) -> None:
    {**FAMILIES, **BLIPS}[name](tmp_path / "model")
    chat = Chat(*load_whole(tmp_path / "model", None, "auto", torch.device("cpu"), None, ours=False))
    question = ask_messages(picture(1, (48, 24)), "how many cats")
    with pytest.raises(VLChatError, match=reason) as raised:
        evidence(chat, question, "two")
    assert 'method="occlusion"' in str(raised.value)
    assert evidence(chat, question, "two", method="occlusion").maps[0].values.max() == 1


def test_a_model_in_four_bits_gives_the_same_map_before_and_after_it_answered(
    tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, tiny_processor: Any, picture: Any
) -> None:
    pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
    from transformers import LlamaConfig, LlamaForCausalLM

    from vlchat import VLChatForConditionalGeneration

    torch.manual_seed(6)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tiny_tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            pad_token_id=tiny_tokenizer.pad_token_id,
        )
    ).save_pretrained(tmp_path / "llama")  # fmt: skip
    model = VLChatForConditionalGeneration.from_backbones(
        tiny_clip, tmp_path / "llama", {"type": "mlp"}, tokenizer=tiny_tokenizer, quantize="nf4"
    )
    chat = Chat(model, tiny_processor)
    question = ask_messages(picture(1), "What is there?")
    before = evidence(chat, question, ANSWER, method="gradient").maps[0].values
    said = chat.batch([question], max_new_tokens=4)
    after = evidence(chat, question, ANSWER, method="gradient").maps[0].values
    assert before.max() == 1 and before.min() < 0.99
    np.testing.assert_allclose(after, before, atol=0.05)
    assert chat.batch([question], max_new_tokens=4) == said


def test_the_picture_is_shown_as_the_model_saw_it(chat: Chat, picture: Any) -> None:
    wide = Image.new("RGB", (96, 24), "red")
    wide.paste(picture(3), (36, 0))
    (heat,) = evidence(chat, ask_messages(wide, "What is there?"), ANSWER, method="gradient").maps
    assert heat.seen.size == (24, 24)
    off = np.abs(np.asarray(heat.seen, dtype=float) - np.asarray(picture(3), dtype=float))
    assert off.max() <= 2, "the middle, which is what was not cropped away"


@pytest.mark.parametrize(
    ("answer", "word", "method", "message"),
    [
        (" ", None, "gradient", "Answer 1 is empty"),
        (ANSWER, "horse", "gradient", 'does not hold "horse"'),
        (ANSWER, None, "gradiant", 'Did you mean "gradient"'),
    ],
)
def test_what_cannot_be_explained_is_told(
    chat: Chat, picture: Any, answer: str, word: str | None, method: str, message: str
) -> None:
    with pytest.raises(ConfigError if method not in METHODS else VLChatError, match=message):
        evidence(chat, ask_messages(picture(1), "What is there?"), answer, word=word, method=method)


def test_without_a_picture_there_is_no_evidence(chat: Chat) -> None:
    with pytest.raises(VLChatError, match="Conversation 1 has no picture"):
        evidence(chat, ask_messages(None, "What is there?"), ANSWER)


def test_covering_hides_exactly_the_places(picture: Any) -> None:
    shown = picture(1, (30, 20))
    hidden = np.array([[True, False, False], [False, False, True]])
    before, after = (np.asarray(one, dtype=float) for one in (shown, covered(shown, hidden)))
    mean = before.reshape(-1, 3).mean(0)
    assert np.abs(after[:10, :10] - mean).max() <= 0.5 and np.abs(after[10:, 20:] - mean).max() <= 0.5
    assert np.array_equal(after[:10, 10:], before[:10, 10:]) and np.array_equal(after[10:, :20], before[10:, :20])


def test_heat_within_a_box_is_counted_by_parts_of_places() -> None:
    heat = Heat(np.array([[1, 0], [0.5, 0.5]], dtype=np.float32), Image.new("RGB", (8, 8)))
    assert mass_inside(heat, (0, 0, 0.5, 0.5)) == pytest.approx((0.5, 0.25))
    assert mass_inside(heat, (0.25, 0, 0.75, 1)) == pytest.approx((0.5, 0.5))
    assert mass_inside(heat, (0, 0, 1, 1)) == pytest.approx((1, 1))


def test_moved_places_keep_their_number_and_leave_their_own() -> None:
    heats = [Heat(np.zeros((4, 4), dtype=np.float32), Image.new("RGB", (4, 4)))] * 2
    masks = _mask(np.array([0, 1, 20]), heats)
    assert [int(mask.sum()) for mask in masks] == [2, 1] and masks[1][1, 0]
    for seed in range(20):
        moved = _moved(masks, np.random.default_rng(seed))
        assert [int(mask.sum()) for mask in moved] == [2, 1]
        assert not np.array_equal(moved[0], masks[0]) and not np.array_equal(moved[1], masks[1])


def test_a_model_whose_answers_have_a_decoder_of_their_own_gives_none(tmp_path: Path, picture: Any) -> None:
    FAMILIES["blip-2-t5, template added"](tmp_path / "model")
    with pytest.raises(VLChatError, match="gives no evidence map because"):
        evidence(Chat.load(tmp_path / "model"), ask_messages(picture(1), "how many cats"), "two")


@pytest.mark.skipif(not list(EMBEDDED.glob("*.safetensors")), reason="this checkout has no embedded model")
def test_maps_of_the_embedded_model_point_at_what_it_speaks_of() -> None:
    example = Path(__file__).resolve().parent.parent / "vlchat" / "assets" / "examples" / "cat-and-shapes.png"
    chat = Chat.load()
    boxes = {"cat": (0.07, 0.1, 0.47, 0.5), "star": (0.645, 0.115, 0.915, 0.385)}  # as vlchat.scenes.examples has it
    costs, times_area = [], []
    for name, box in boxes.items():
        question = ask_messages(example, f"Where is the {name}?")
        found = evidence(chat, question)
        assert name in found.answer
        heat = found.maps[0]
        cost = deletion_check(chat, question, found, draws=2)
        astray = replace(found, maps=(Heat(1 - heat.values, heat.seen),))
        assert deletion_check(chat, question, astray, draws=1).shown < cost.shown
        costs.append(cost.over_random)
        inside, area = mass_inside(heat, box)
        times_area.append(inside / area)
    assert np.mean(costs) > 0.5 and np.mean(times_area) > 1.5
