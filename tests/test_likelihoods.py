"""How likely an answer was, and how likely given ones are: against transformers' own loss and transition scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES

from vlchat.chat import Chat, ask_messages
from vlchat.data import Example
from vlchat.data.collate import Collator
from vlchat.errors import VLChatError
from vlchat.generation import last_run


@pytest.fixture
def chat(tiny_model: Any, tiny_processor: Any) -> Chat:
    return Chat(tiny_model(), tiny_processor)


def test_an_answers_probability_is_transformers_own(chat: Chat, picture: Callable) -> None:
    conversations = [ask_messages(picture(1), "What is it?"), ask_messages(None, "Is it a green cat or a red circle?")]
    for together, messages in zip(chat.answers(conversations, max_new_tokens=9), conversations, strict=True):
        (answer,) = chat.answers([messages], max_new_tokens=9)
        inputs = chat.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        options = {"max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
        reference = chat.model.generate(**inputs, **options)
        scores = chat.model.compute_transition_scores(reference.sequences, reference.scores, normalize_logits=True)
        assert answer.tokens == scores.shape[1]
        assert answer.logprob == pytest.approx(float(scores.sum()), abs=1e-4)
        assert together.logprob == pytest.approx(answer.logprob, rel=1e-2) and together.text == answer.text


@pytest.mark.parametrize("beams", [2, 3])
def test_beams_and_their_probability_are_those_of_transformers(chat: Chat, picture: Callable, beams: int) -> None:
    messages = ask_messages(picture(1), "What is in the picture?")
    (answer,) = chat.answers([messages], max_new_tokens=8, beams=beams)
    inputs = chat.processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "early_stopping": True}
    found = chat.model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True)
    written = found.sequences[0, inputs["input_ids"].shape[1] :]
    scores = chat.model.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    assert answer.text == chat.processor.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert answer.logprob == pytest.approx(float(scores.sum()), abs=1e-3)


def test_a_choices_likelihood_is_the_training_loss_of_that_answer(chat: Chat, picture: Callable) -> None:
    messages = [
        *ask_messages(picture(1), "What is it?"),
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        {"role": "user", "content": [{"type": "text", "text": "What color?"}]},
    ]
    asked = chat._inputs([messages])["input_ids"].shape[1]
    choices = ["red", "a green circle", "blue"]
    for choice, found in zip(choices, chat.likelihoods(messages, choices), strict=True):
        answer = {"role": "assistant", "content": [{"type": "text", "text": choice}]}
        batch = Collator(chat.processor)([Example("x", [*messages, answer])])
        batch["labels"][:, :asked] = -100  # the first answer
        counted = int((batch["labels"] != -100).sum())
        with torch.no_grad():
            loss = chat.model(**batch).loss
        assert found.tokens == counted
        assert found.logprob == pytest.approx(-float(loss) * counted, rel=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3", "gemma3", "internvl"])
def test_what_another_makers_model_writes_is_as_likely_as_it_says(
    name: str, tmp_path: Path, picture: Callable
) -> None:
    FAMILIES[name](tmp_path / name)
    chat = Chat.load(tmp_path / name)
    messages = ask_messages(picture(1), "What is it?")
    few = chat.likelihoods(messages, ["red", "a green circle", "a cat"])
    alone = [chat.likelihoods(messages, [answer.text])[0] for answer in few]
    for one, other in zip(few, alone, strict=True):
        assert one.tokens == other.tokens > 0 and one.logprob == pytest.approx(other.logprob, rel=1e-4)
    assert len({round(answer.logprob, 3) for answer in few}) == 3


def test_only_the_last_run_of_labels_stays() -> None:
    labels = torch.tensor([[-100, 1, 2, -100, 3, 4, -100], [-100] * 5 + [5, 6], [7, -100, 8] + [-100] * 4])
    kept = torch.tensor([[-100, -100, -100, -100, 3, 4, -100], [-100] * 5 + [5, 6], [-100, -100, 8] + [-100] * 4])
    assert torch.equal(last_run(labels, -100), kept)


@pytest.mark.parametrize("choices", [[], ["red", " "]])
def test_choices_that_cannot_be_scored_are_told(chat: Chat, choices: list[str]) -> None:
    with pytest.raises(VLChatError, match="none of them empty"):
        chat.likelihoods(ask_messages(None, "What?"), choices)
    with pytest.raises(VLChatError, match="must be at least 1"):
        chat.answers([ask_messages(None, "What?")], beams=0)
    with pytest.raises(VLChatError, match=r"\d+ tokens"):
        chat.likelihoods(ask_messages(None, "cat " * 900), ["red"])


def test_an_encoder_with_a_decoder_says_how_likely_its_answer_is_and_judges_no_choices(
    tmp_path: Path, picture: Callable
) -> None:
    FAMILIES["blip-2-t5, template added"](tmp_path / "t5")
    chat = Chat.load(tmp_path / "t5")
    messages = ask_messages(picture(1), "What is it?")
    (greedy,), (beam,) = (chat.answers([messages], max_new_tokens=6, beams=beams) for beams in (1, 2))
    assert 1 <= greedy.tokens <= 6 and greedy.logprob < 0 and beam.logprob < 0 and beam.tokens <= 6
    with pytest.raises(VLChatError):
        chat.likelihoods(messages, ["red", "blue"])
