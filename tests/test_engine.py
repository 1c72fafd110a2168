"""The engine: what it answers to many at once is what each is answered alone, and what was computed is used again."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from talkative import Steps, save_talkative
from tiny_models import LANGUAGES, tiny
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from serve import attention
from serve.engine import MIB, Engine
from serve.prefixes import Kept, Pictures, Prefixes, common, named
from serve.products import FEW, rearrange
from serve.slots import filled, fits
from serve.tickets import Busy, Closed, End, Options
from vlchat.chat import Chat, ask_messages
from vlchat.errors import VLChatError
from vlchat.towers import clip_image_processor


@pytest.fixture
def chat(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> Chat:
    """Never ends an answer by itself."""
    return Chat.load(save_talkative(tmp_path / "talkative", tiny_clip, tiny_tokenizer))


@pytest.fixture
def engine(chat: Chat) -> Iterator[Engine]:
    made = Engine(chat, most=3)
    assert made.joins
    yield made
    made.close()


def until(what: Callable[[], bool]) -> None:
    """Waits for something; the test's own time limit is a minute."""
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.002)


def unlike(picture: Callable) -> list[list[dict[str, Any]]]:
    return [
        ask_messages(picture(1), "What is it?"),
        ask_messages([picture(2), picture(3, (40, 20))], "How many cats are there in the two pictures, left to right?"),
        ask_messages(None, "Is it green?"),
        ask_messages(picture(4), "a red circle", system="You are an assistant."),
        ask_messages(picture(1), "two cats"),
        ask_messages(None, "three cats"),
        ask_messages(picture(5), "What?"),
    ]


def test_seven_conversations_in_three_slots_are_answered_as_alone(
    chat: Chat, engine: Engine, picture: Callable
) -> None:
    conversations, lengths = unlike(picture), [9, 30, 4, 17, 1, 12, 23]
    alone = [
        "".join(chat.stream(messages, max_new_tokens=tokens))
        for messages, tokens in zip(conversations, lengths, strict=True)
    ]
    assert len(set(alone)) == len(alone), "the test needs answers that differ"
    for piece in (256, 3):  # of a prompt, between two steps
        engine.piece = piece
        engine.prefixes.clear()
        asked = zip(conversations, lengths, strict=True)
        tickets = [engine.submit(messages, Options(tokens)) for messages, tokens in asked]
        assert ["".join(ticket) for ticket in tickets] == alone
        assert [ticket.end.new_tokens for ticket in tickets if ticket.end] == lengths
        assert {ticket.end.reason for ticket in tickets if ticket.end} == {"length"}


def test_drawn_answers_are_those_of_their_seed(chat: Chat, engine: Engine, picture: Callable) -> None:
    conversations = unlike(picture)[:3]
    options = [Options(8, temperature=1.3, top_p=0.9, seed=seed) for seed in (1, 2, 3)]
    alone = [
        "".join(chat.stream(one, max_new_tokens=8, temperature=1.3, top_p=0.9, seed=chosen.seed))
        for one, chosen in zip(conversations, options, strict=True)
    ]
    tickets = [engine.submit(one, chosen) for one, chosen in zip(conversations, options, strict=True)]
    assert ["".join(ticket) for ticket in tickets] == alone


def test_a_search_over_beams_is_the_models_own(chat: Chat, engine: Engine, picture: Callable) -> None:
    messages = ask_messages(picture(1), "two cats")
    (expected,) = chat.answers([messages], max_new_tokens=6, beams=4)
    assert expected.text != chat.batch([messages], max_new_tokens=6)[0], "the test needs beams that find another"
    beside = engine.submit(messages, Options(6))
    assert "".join(engine.submit(messages, Options(6, beams=4))) == expected.text
    assert "".join(beside).strip() == chat.batch([messages], max_new_tokens=6)[0]


def test_a_second_turn_begins_where_the_first_one_ended(chat: Chat, engine: Engine, picture: Callable) -> None:
    messages = ask_messages(picture(1), "What is it?")
    first = engine.submit(messages, Options(6, scope="ann"))
    answer = "".join(first)
    more = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "two cats"}]
    expected = "".join(chat.stream(more, max_new_tokens=6))
    second = engine.submit(more, Options(6, scope="ann"))
    assert "".join(second) == expected
    assert first.end is not None and second.end is not None and first.end.cached_tokens == 0
    assert second.end.cached_tokens >= first.end.prompt_tokens
    # Not for others, and not with another picture of the same size: that one is known up to its first pixel.
    stranger = engine.submit(more, Options(6, scope="bob"))
    assert "".join(stranger) == expected and stranger.end is not None and stranger.end.cached_tokens == 0
    other = [ask_messages(picture(2), "What is it?")[0], *more[1:]]
    swapped = engine.submit(other, Options(6, scope="ann"))
    assert "".join(swapped) == "".join(chat.stream(other, max_new_tokens=6)) != expected
    before = chat.prepare(other)[0]["input_ids"][0].tolist().index(chat.model.config.image_token_id)
    assert swapped.end is not None and swapped.end.cached_tokens == before


def test_a_picture_is_looked_at_once(chat: Chat, engine: Engine, picture: Callable) -> None:
    looks = []
    chat.model.model.vision_tower.register_forward_hook(lambda *_: looks.append(1))
    for question in ("What is it?", "two cats"):
        "".join(engine.submit(ask_messages(picture(1), question), Options(2, scope=question)))
    assert len(looks) == 1
    "".join(engine.submit(ask_messages([picture(2), picture(1)], "What is it?"), Options(2)))
    assert len(looks) == 2
    engine.pictures.clear()
    "".join(engine.submit(ask_messages(picture(1), "Is it green?"), Options(2)))
    assert len(looks) == 3


def test_who_leaves_frees_the_slot_and_the_others_go_on(chat: Chat, engine: Engine, picture: Callable) -> None:
    conversations = unlike(picture)
    stays = engine.submit(conversations[1], Options(60))
    leaves = engine.submit(conversations[0], Options(4000))
    pieces = iter(leaves)
    assert next(pieces)
    waits = [engine.submit(one, Options(4000)) for one in conversations[2:5]]
    until(lambda: waits[-1].place > 0)
    waits[-1].cancel()  # in the line
    pieces.close()  # while it is answered
    for one in waits[:2]:
        one.cancel()
    assert "".join(stays) == "".join(chat.stream(conversations[1], max_new_tokens=60))
    assert all(one.end is not None and one.end.reason == "cancelled" for one in [leaves, *waits])
    until(lambda: engine.answering == 0)
    steps = Steps(chat)
    time.sleep(0.2)
    assert steps.count == 0, "it computes for people who left"


def test_a_long_prompt_does_not_stop_the_others(chat: Chat, engine: Engine, picture: Callable) -> None:
    engine.piece = 8
    words: list[str] = []
    done = threading.Event()

    def deliver(came: str | End) -> None:
        done.set() if isinstance(came, End) else words.append(came)

    talks = engine.submit(ask_messages(None, "Is it green?"), Options(4000), deliver)
    until(lambda: len(words) > 3)
    before = len(words)
    long = engine.submit(ask_messages(picture(1), "two cats " * 400), Options(1))
    "".join(long)
    assert long.end is not None and len(words) - before > long.end.prompt_tokens / engine.piece / 2
    talks.cancel()
    assert done.wait(60)


def test_many_pictures_do_not_stop_the_others(chat: Chat, engine: Engine, picture: Callable) -> None:
    """One is looked at between two steps of theirs."""
    asked = ask_messages([picture(seed) for seed in (11, 12, 13, 12, 14)], "two cats")
    expected = "".join(chat.stream(asked, max_new_tokens=4))
    engine.piece = 1  # which a picture costs as well, since its tower is tiny
    begun, told = threading.Event(), list[str]()
    talks = engine.submit(ask_messages(None, "Is it green?"), Options(4000), lambda _: begun.set())
    assert begun.wait(60)
    chat.model.model.vision_tower.register_forward_hook(lambda _, given, seen: told.append("look"))
    chat.model.lm_head.register_forward_hook(lambda *_: told.append("step"))
    assert "".join(engine.submit(asked, Options(4))) == expected
    talks.cancel()
    looks = [place for place, what in enumerate(told) if what == "look"]
    assert len(looks) == 4
    assert all("step" in told[one:other] for one, other in itertools.pairwise(looks))


@pytest.mark.parametrize("fails", [False, True])
def test_short_prompts_that_wait_are_computed_in_one_pass(
    chat: Chat, engine: Engine, picture: Callable, fails: bool
) -> None:
    """Where that fails, each by itself, so that nobody ends through another's fault."""
    conversations = [ask_messages(picture(seed), "two cats" * (seed % 2 + 1)) for seed in (1, 2, 3)]
    alone = ["".join(chat.stream(one, max_new_tokens=6)) for one in conversations]
    together = list[int]()

    def watched(_: Any, given: Any, named: dict[str, Any]) -> None:
        rows, tokens = named["inputs_embeds"].shape[:2]
        if rows > 1 and tokens > 1:
            together.append(rows)
            if fails:
                raise RuntimeError("torn weights")

    chat.model.model.language_model.register_forward_pre_hook(watched, with_kwargs=True)
    with chat.turn:  # until all of them wait
        tickets = [engine.submit(one, Options(6)) for one in conversations]
    assert ["".join(ticket) for ticket in tickets] == alone
    assert together and max(together) >= 2


def test_the_line_is_bounded_and_tells_each_its_place(chat: Chat, picture: Callable) -> None:
    engine = Engine(chat, most=1, waiting=2)
    messages = ask_messages(None, "Is it green?")
    first = engine.submit(messages, Options(4000))
    until(lambda: engine.answering == 1)
    second, third = engine.submit(messages), engine.submit(messages)
    assert (first.place, second.place, third.place) == (0, 1, 2)
    with pytest.raises(Busy, match="All 2 places in the line are taken"):
        engine.submit(messages)
    engine.close(wait=0.1)
    with pytest.raises(VLChatError, match="stopping"):
        "".join(second)
    with pytest.raises(VLChatError, match="stopping"):
        engine.submit(messages)
    assert first.end is not None and first.end.reason == "cancelled" and engine.answering == 0


@pytest.mark.parametrize(
    ("failure", "told"),
    [(RuntimeError("torn weights"), "failed at this answer"), (torch.OutOfMemoryError("22 GiB"), "memory is full")],
)
def test_a_failure_ends_one_answer_and_not_the_service(
    chat: Chat, engine: Engine, picture: Callable, failure: Exception, told: str
) -> None:
    stays = engine.submit(ask_messages(None, "Is it green?"), Options(40))
    pieces = iter(stays)
    began = next(pieces)

    def fail(*_: Any) -> None:
        raise failure

    hook = chat.model.model.vision_tower.register_forward_pre_hook(fail)
    with pytest.raises(VLChatError, match=told):
        "".join(engine.submit(ask_messages(picture(1), "two cats")))
    hook.remove()
    assert began + "".join(pieces) == "".join(chat.stream(ask_messages(None, "Is it green?"), max_new_tokens=40))
    with pytest.raises(VLChatError, match="reads at most 8192"):
        engine.submit(ask_messages(None, "cats " * 9000))
    assert "".join(engine.submit(ask_messages(picture(1), "two cats"), Options(2)))


def test_a_full_memory_gives_back_what_was_kept_first(chat: Chat, engine: Engine) -> None:
    messages = ask_messages(None, "Is it green?")
    "".join(engine.submit(messages, Options(3)))
    assert engine.prefixes.bytes
    failures = [torch.OutOfMemoryError("22 GiB")]

    def fail(*_: Any) -> None:
        if failures:
            raise failures.pop()

    chat.model.lm_head.register_forward_pre_hook(fail)
    answer = "".join(engine.submit(messages, Options(3, scope="ann")))
    assert answer == "".join(chat.stream(messages, max_new_tokens=3)) and not failures


def test_other_makers_models_answer_one_after_another(
    tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any, picture: Callable
) -> None:
    image = tiny_tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=tiny_clip.config, text_config=tiny_llama.config, image_token_id=image,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    torch.manual_seed(0)
    processor = LlavaProcessor(
        clip_image_processor(24), tiny_tokenizer, patch_size=12, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}"
        "{% endfor %}{% endfor %}",
    )  # fmt: skip
    chat = Chat(LlavaForConditionalGeneration(config), processor)
    engine = Engine(chat)
    assert not engine.joins
    conversations = [ask_messages(picture(1), "two cats"), ask_messages(picture(2), "a red circle")]
    tickets = [engine.submit(one, Options(5)) for one in conversations]
    assert ["".join(one) for one in tickets] == ["".join(chat.stream(one, max_new_tokens=5)) for one in conversations]
    engine.close()


@pytest.mark.parametrize("language", LANGUAGES)
def test_which_language_models_answer_several_at_once(language: str) -> None:
    windows = language in ("mistral", "gemma3_text")
    assert fits(tiny(language=language).get_decoder()) is not windows


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_compute_the_same_for_few_rows(bias: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 64, bias=bias), torch.nn.Linear(64, 200, bias=bias))
    double = copy.deepcopy(model).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rearrange(model)
    for rows in (1, FEW[0] - 1, *FEW, FEW[-1] + 1):
        for shape in ((rows, 96), (1, rows, 96), (rows, 1, 96)):
            states = torch.randn(shape)
            found, expected = model(states), double(states.double())
            assert found.shape == expected.shape and found.is_contiguous()
            torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    half = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
    rearrange(half)
    assert type(half) is torch.nn.Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_to_what_is_kept_is_that_of_transformers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    query = torch.randn(2, 6, 5, 16, dtype=dtype)
    key, value = (torch.randn(2, 2, 9, 16, dtype=dtype) for _ in range(2))
    seen = torch.ones(5, 9, dtype=torch.bool).tril(4)[None, None]
    added = torch.zeros(1, 1, 5, 9, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    for mask in (seen, added):
        expected, _ = attention.sdpa_attention_forward(module, query, key, value, mask, scaling=0.2)
        with monkeypatch.context() as patch:
            patch.setattr(attention, "sdpa_attention_forward", None)
            found, _ = attention.attention(module, query, key, value, mask, scaling=0.2)
        assert torch.equal(found, expected)
        assert not torch.equal(found, attention.attention(module, query, key, value, mask, scaling=0.1)[0])
    for states, mask in ((query, None), (query[:, :, -1:], seen[:, :, -1:])):
        expected, _ = attention.sdpa_attention_forward(module, states, key, value, mask)
        assert torch.equal(attention.attention(module, states, key, value, mask)[0], expected)


def test_an_engine_attends_so_and_does_not_copy_what_is_kept(chat: Chat) -> None:
    engine = Engine(chat)
    assert chat.model.get_decoder().config._attn_implementation == attention.GROUPED
    kept = [(torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 4))]
    before = kept[0][0].clone()
    cache = filled(kept, 5)
    assert cache.get_seq_length() == 5 and cache.layers[0].keys.data_ptr() == kept[0][0].data_ptr()
    keys, _ = cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 0)
    assert torch.equal(keys, torch.cat([before[:, :, :5], torch.ones(1, 2, 1, 4)], 2))
    assert torch.equal(kept[0][0], before)
    engine.close()


def test_a_picture_shown_twice_is_kept_once(chat: Chat, picture: Callable) -> None:
    room = sum(one.nbytes for one in [torch.zeros(4, chat.model.config.get_text_config().hidden_size)])
    engine = Engine(chat, pictures=2 * room)
    twice = ask_messages([picture(1), picture(1)], "two cats")
    expected = chat.ask([picture(1), picture(1)], "two cats", max_new_tokens=4)
    for _ in range(4):
        assert "".join(engine.submit(twice, Options(4))) == expected
        assert engine.pictures.bytes == room
    ticket = engine.submit(twice, Options(4))
    "".join(ticket)
    assert ticket.end is not None and ticket.end.cached_tokens == ticket.end.prompt_tokens - 1
    engine.close()


def test_what_an_overflow_leaves_in_a_slot_reaches_nobody(chat: Chat, engine: Engine, picture: Callable) -> None:
    short, long = ask_messages(None, "two cats"), ask_messages(picture(1), "is it green? " * 20)
    expected = ["".join(chat.stream(one, max_new_tokens=8)) for one in (short, long)]
    "".join(engine.submit(ask_messages(picture(2), "three cats " * 60), Options(8)))
    slots = engine._batches[""]._slots
    until(lambda: engine.answering == 0)
    for layer in slots.layers:  # as a conversation leaves them whose states were beyond float16
        with torch.inference_mode():
            layer.keys[0, :, : slots.used[0]] = float("nan")
            layer.values[0, :, : slots.used[0]] = float("nan")
    engine.prefixes.clear()
    tickets = [engine.submit(one, Options(8)) for one in (short, long)]
    assert ["".join(one) for one in tickets] == expected


def test_much_room_is_given_back_where_nobody_is_answered(chat: Chat, engine: Engine) -> None:
    slots = engine._batches[""]._slots
    "".join(engine.submit(ask_messages(None, "two cats " * 1100), Options(4)))
    assert slots.room == 256 and not slots.layers
    "".join(engine.submit(ask_messages(None, "two cats"), Options(4)))
    assert slots.layers[0].keys.shape[2] == 256


def test_an_engine_that_broke_says_so(chat: Chat, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise SystemError("nobody foresaw this")

    ticket = engine.submit(ask_messages(None, "Is it green?"), Options(4000))
    next(iter(ticket))
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)
    monkeypatch.setattr(engine._batches[""], "drop_left", broken)
    until(lambda: ticket.end is not None)
    assert isinstance(ticket.end.error, Closed) and not engine.open
    with pytest.raises(Closed):
        engine.submit(ask_messages(None, "Is it green?"))


def test_hardly_any_temperature_is_none(chat: Chat, engine: Engine) -> None:
    messages = ask_messages(None, "two cats")
    assert "".join(engine.submit(messages, Options(6, temperature=1e-40))) == chat.ask(
        None, "two cats", max_new_tokens=6
    )


def test_how_likely_each_token_was_is_told(chat: Chat, engine: Engine, picture: Callable) -> None:
    messages = ask_messages(picture(1), "two cats")
    ticket = engine.submit(messages, Options(4, logprobs=3))
    answer = "".join(ticket)
    inputs, _ = chat.prepare(messages)
    likely = list(ticket.likely)
    assert "".join(one.text for one in likely).strip() == answer and len(likely) == 4
    written = chat.tokenizer(" " + answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([inputs["input_ids"], written], dim=1)
    with torch.no_grad():
        logits = chat.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -5:-1]
    for one, row, token in zip(likely, logits.log_softmax(dim=-1), ids[0, -4:], strict=True):
        assert one.logprob == pytest.approx(float(row[token]), abs=1e-4)
        values, tokens = row.topk(3)
        assert [text for text, _ in one.others] == [chat.tokenizer.decode([each]) for each in tokens.tolist()]
        assert [value for _, value in one.others] == pytest.approx(values.tolist(), abs=1e-4)
    assert not engine.submit(messages, Options(4)).likely


def test_what_happens_is_counted(engine: Engine, picture: Callable) -> None:
    def value(name: str, **labels: str) -> float:
        return engine.metrics.registry.get_sample_value(name, labels) or 0.0

    messages = ask_messages(picture(1), "two cats")
    ends = []
    for _ in range(2):
        ticket = engine.submit(messages, Options(5))
        "".join(ticket)
        ends.append(ticket.end)
    first, second = ends
    assert value("vlchat_requests_total", reason="length") == 2
    assert value("vlchat_new_tokens_total") == 10 == value("vlchat_inter_token_seconds_count") + 2
    assert value("vlchat_first_token_seconds_count") == value("vlchat_answer_seconds_count") == 2
    assert value("vlchat_prompt_tokens_total") == first.prompt_tokens + second.prompt_tokens
    assert value("vlchat_cached_tokens_total") == second.cached_tokens > 0 == first.cached_tokens
    assert value("vlchat_kept_bytes") == engine.prefixes.bytes > 0 < value("vlchat_pictures_bytes")
    until(lambda: value("vlchat_running") == 0)
    ticket = engine.submit(messages, Options(4000))
    next(iter(ticket))
    assert value("vlchat_running") == 1
    ticket.cancel()
    until(lambda: value("vlchat_requests_total", reason="cancelled") == 1)
    assert b"vlchat_running 0.0" in engine.metrics.text()


def kept(names: list[int]) -> Kept:
    return Kept(np.array(names), [(torch.zeros(1, 1, len(names), 4), torch.zeros(1, 1, len(names), 4))])


def test_what_is_kept_stays_within_its_budget_and_the_longest_unused_goes_first() -> None:
    token = kept([1]).bytes
    prefixes = Prefixes(10 * token)
    prefixes.keep(("", ""), kept([1, 2, 3]))
    prefixes.keep(("", ""), kept([1, 2, 3, 4, 5]))  # goes on from it
    assert prefixes.bytes == 5 * token
    prefixes.keep(("", ""), kept([9, 8, 7, 6]))
    assert prefixes.longest(("", ""), np.array([1, 2, 3, 7]))[0] == 3
    prefixes.keep(("", ""), kept([4, 4, 4]))  # too much with both: the one that was just used stays
    assert prefixes.bytes == 8 * token and prefixes.longest(("", ""), np.array([9, 8]))[0] == 0
    assert prefixes.longest(("", "other"), np.array([1, 2])) == (0, [])
    assert prefixes.longest(("adapter", ""), np.array([1, 2])) == (0, [])
    prefixes.keep(("", ""), kept(list(range(11))))  # more than all of it
    assert prefixes.bytes == 8 * token


def test_pictures_have_names_of_their_own() -> None:
    pictures = Pictures(MIB)
    one, other = (pictures.keep(name, torch.zeros(2, 4)) for name in ("one", "other"))
    ids = [5, 9, 9, 6, 9, 9, 7]
    first, second = named(ids, 9, [one, other]), named(ids, 9, [one, one])
    assert first.tolist()[::3] == [5, 6, 7] and len(set(first.tolist())) == 7
    assert common(first, second) == 4 and common(first, first[:3]) == 3
    assert ids == [5, 9, 9, 6, 9, 9, 7]


def test_pictures_are_told_apart_by_all_that_the_model_is_given() -> None:
    inputs = {"input_ids": torch.zeros(1, 3), "pixel_values": torch.zeros(2, 3, 4, 4)}
    same, again = Pictures.digests(inputs)
    assert same == again
    instructed = Pictures.digests(inputs | {"instruction_input_ids": torch.tensor([[1, 2], [1, 3]])})
    assert len({same, *instructed}) == 3
    assert Pictures.digests({"input_ids": torch.zeros(1, 3)}) == []
