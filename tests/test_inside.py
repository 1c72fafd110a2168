"""Looking inside: the same maps as anywhere, beside answers that do not notice, and a word's and an answer's odds."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image
from talkative import save_talkative

from serve.engine import Engine
from serve.gate import Left
from serve.inside import METHODS, Facts, Inside, words
from serve.tickets import Busy, Closed, Options
from vlchat import checkpoint
from vlchat.chat import Chat, ask_messages
from vlchat.checkpoint import EMBEDDED
from vlchat.errors import VLChatError
from vlchat.evidence import deletion_check, evidence, saw
from vlchat.lora import add_lora

ANSWER = "two cats and a dog"
NOBODY = threading.Event  # has left


@pytest.fixture
def chat(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> Chat:
    return Chat.load(save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer))


@pytest.fixture
def inside(chat: Chat) -> Iterator[Inside]:
    engine = Engine(chat)
    inside = Inside(engine)
    yield inside
    inside.close()
    engine.close()


def test_a_map_beside_answers_is_the_map_and_the_answers_are_theirs(inside: Inside, chat: Chat, picture: Any) -> None:
    question = ask_messages(picture(1), "What is there?")
    expected = evidence(chat, question, ANSWER, word="dog", method=METHODS[0])
    checked = deletion_check(chat, question, expected)
    solo = [chat.ask(picture(seed), "Tell me all.", max_new_tokens=400) for seed in (2, 3)]
    before = {
        name: (one._version, one.requires_grad, one.is_inference()) for name, one in chat.model.named_parameters()
    }

    order: list[str] = []  # what the model did
    chat.model.lm_head.register_forward_hook(lambda *_: order.append("map" if torch.is_grad_enabled() else "step"))
    engine = inside.backend
    tickets = [engine.submit(ask_messages(picture(seed), "Tell me all."), Options(400)) for seed in (2, 3)]
    first = str(tickets[0]._came.get())  # its answer has begun
    span = (ANSWER.index("dog"), len(ANSWER))
    found = inside.explain("a", question, ANSWER, span, None, NOBODY())
    held = inside.check("a", question, ANSWER, span, None, NOBODY())
    said = [first + "".join(tickets[0]), "".join(tickets[1])]

    assert said == solo
    np.testing.assert_allclose(found.maps[0].values, expected.maps[0].values, atol=1e-6)
    assert found.logprob == pytest.approx(expected.logprob) and found.method == METHODS[0]
    assert held.shown == pytest.approx(checked.shown, abs=1e-5)
    passes = [place for place, what in enumerate(order) if what == "map"]
    assert len(passes) == 8, "a pass for each point"
    assert all(after - before > 1 for before, after in zip(passes, passes[1:], strict=False)), "steps come between"
    assert not chat.model.training
    assert before == {
        name: (one._version, one.requires_grad, one.is_inference()) for name, one in chat.model.named_parameters()
    }
    assert inside.explain("a", question, ANSWER, span, None, NOBODY()) is found, "drawn once"
    assert "get_image_features" not in vars(chat.model.model)


def test_an_adapters_answer_is_explained_by_the_adapter(chat: Chat, tmp_path: Path, picture: Any) -> None:
    start, run = tmp_path / "model", tmp_path / "run"
    model, processor = checkpoint.load(start)
    model = add_lora(model, r=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "connector" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    trained = [name for name, _ in model.named_parameters() if "connector" in name]
    checkpoint.save(run, model, processor, base={"model": start}, trained=trained, adapter=True, trained_on="noise")
    question = ask_messages(picture(1), "What colour?")
    engine = Engine(Chat.load(start, adapters={"tuned": run}))
    inside = Inside(engine)
    try:
        for adapter, place in (("tuned", run), (None, start)):
            found = inside.explain("a", question, ANSWER, None, adapter, NOBODY())
            expected = evidence(Chat.load(place), question, ANSWER)
            np.testing.assert_allclose(found.maps[0].values, expected.maps[0].values, atol=1e-4)
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
        with pytest.raises(VLChatError, match='no adapter "tunde"'):
            inside.explain("a", question, ANSWER, None, "tunde", NOBODY())
    finally:
        inside.close()
        engine.close()


def test_who_leaves_frees_the_line_and_who_comes_too_late_is_told(inside: Inside, chat: Chat, picture: Any) -> None:
    inside.most = 2
    question = ask_messages(picture(1), "What is there?")
    begun, go_on = threading.Event(), threading.Event()

    def slow(left: threading.Event) -> Any:
        begun.set()
        go_on.wait()
        return inside.explain("a", question, ANSWER, None, None, left)

    async def visit() -> None:
        first = asyncio.create_task(inside.look(slow))
        second = asyncio.create_task(inside.look(slow))
        await asyncio.to_thread(begun.wait)
        with pytest.raises(Busy, match="Try again"):
            await inside.look(slow)
        for task in (first, second):
            task.cancel()
        await asyncio.wait([first, second])
        go_on.set()
        found = await inside.look(lambda left: inside.explain("b", question, ANSWER, None, None, left))
        assert found.maps[0].values.max() == 1

    asyncio.run(visit())
    assert [key[1] for key in inside._found] == ["b"], "what nobody waits for is not drawn"


def test_a_map_is_called_off_between_two_passes(inside: Inside, chat: Chat, picture: Any) -> None:
    left, passes = threading.Event(), []

    def leave(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 3:
            left.set()

    chat.model.lm_head.register_forward_hook(leave)
    with pytest.raises(Left):
        inside.explain("a", ask_messages(picture(1), "What is there?"), ANSWER, None, None, left)
    assert len(passes) == 3
    assert inside.explain("a", ask_messages(picture(1), "?"), ANSWER, None, None, NOBODY()).maps


def test_faults_are_told_and_hurt_nobody(inside: Inside, chat: Chat, picture: Any) -> None:
    question = ask_messages(picture(1), "What is there?")
    with pytest.raises(VLChatError, match="has no picture"):
        inside.explain("a", ask_messages(None, "?"), ANSWER, None, None, NOBODY())
    with pytest.raises(VLChatError, match="does not hold"):
        inside.explain("a", question, ANSWER, (5, 99), None, NOBODY())

    def broken(*_: Any) -> None:
        raise RuntimeError("/secret/place is torn")

    handle = chat.model.lm_head.register_forward_hook(broken)
    with pytest.raises(VLChatError) as raised:
        inside.explain("a", question, ANSWER, None, None, NOBODY())
    assert "secret" not in str(raised.value) and "Ask again" in str(raised.value)
    handle.remove()
    solo = chat.ask(picture(1), "What is there?", max_new_tokens=5)
    assert "".join(inside.backend.submit(question, Options(5))) == solo
    inside.backend.close()
    with pytest.raises(Closed):
        inside.explain("b", question, ANSWER, None, None, NOBODY())


def test_another_servers_models_are_not_looked_into() -> None:
    from serve.gateway import Gateway

    gateway = Gateway(["http://127.0.0.1:9"], model="there")
    inside = Inside(gateway)
    try:
        assert not inside.here and inside.trust(None) is None
        with pytest.raises(VLChatError, match="on another server"):
            inside.saw(ask_messages(Image.new("RGB", (8, 8)), "?"), None, NOBODY())
    finally:
        inside.close()
        gateway.close()


def test_a_second_the_of_an_answer_has_a_map_of_its_own(chat: Chat, picture: Any) -> None:
    question, answer = ask_messages(picture(1), "What?"), "cats and cats"
    first, second, named = (
        evidence(chat, question, answer, word=word, method="gradient") for word in ((0, 4), (9, 13), "cats")
    )
    assert first.logprob == named.logprob != second.logprob


def test_what_the_model_saw(chat: Chat, tmp_path: Path, picture: Any) -> None:
    question = ask_messages([picture(1, (96, 24)), picture(2)], "What?")
    one, two = saw(chat, question)
    assert (one.came, one.tokens, one.pieces) == ((96, 24), 4, ()) and (two.came, two.tokens) == ((24, 24), 4)
    assert one.picture is not None and one.picture.size == (24, 24)
    assert saw(chat, ask_messages(None, "What?")) == []


@pytest.mark.parametrize(
    ("name", "pieces", "grid"),
    [
        ("llava", 0, None),
        ("llava_next", 3, (1, 2)),
        ("qwen2_vl", 0, None),
        ("idefics3", 3, None),
    ],
)
def test_what_other_makers_models_saw(name: str, pieces: int, grid: Any, tmp_path: Path, picture: Any) -> None:
    FAMILIES[name](tmp_path / name)
    chat = Chat.load(tmp_path / name)
    question = ask_messages(picture(1, (48, 24)), "how many cats")
    (one,) = saw(chat, question)
    ids = chat.prepare(question)[0]["input_ids"][0].tolist()
    assert one.tokens == ids.count(chat.model.config.image_token_id) > 0
    assert one.came == (48, 24) and one.picture is not None
    assert (len(one.pieces), one.grid) == (pieces, grid)


def test_words_and_their_odds() -> None:
    tokens = (
        (" A", math.log(0.5)),
        (" small", math.log(0.9)),
        (" c", math.log(0.8)),
        ("at", math.log(0.5)),
        (".", 0.0),
    )
    facts = Facts(10, 4, 6, "stop", 0.5, 1.5, 100, tokens)
    assert Facts.from_json(facts.to_json()) == facts
    assert facts.rate == pytest.approx(5) and facts.likelihood == pytest.approx(0.18)
    found = words("A small cat.", facts)
    assert [(word.text, word.begin, word.end) for word in found] == [("A", 0, 1), ("small", 2, 7), ("cat.", 8, 12)]
    assert [word.likelihood for word in found] == pytest.approx([0.5, 0.9, 0.4])
    assert [word.text for word in words("红色的 cat，是", Facts())] == ["红", "色", "的", "cat，", "是"]
    assert words("A cat", facts)[0].likelihood is None, "tokens of other words tell nothing"
    assert Facts(reason="length", tokens=tokens).likelihood is None and Facts().likelihood is None


@pytest.mark.skipif(not list(EMBEDDED.glob("*.safetensors")), reason="this checkout has no embedded model")
def test_answers_called_unsure_are_wrong_more_often_on_fresh_scenes() -> None:
    """Drawn from a seed that the calibration has not seen, and answered by the engine as the page asks it."""
    from vlchat.evaluate.items import Reply
    from vlchat.evaluate.known import make_task

    engine = Engine(Chat.load(), waiting=200)
    try:
        known = Inside(engine).trust(None)
        assert known is not None and known.threshold is not None
        task: Any = make_task("scenes", questions=160, phrasings="held", seed=77)
        items = task.items()
        asked = [engine.submit(item.messages, Options(80, logprobs=0)) for item in items]
        unsure: list[float] = []
        sure: list[float] = []
        off = []
        for item, ticket in zip(items, asked, strict=True):
            right = task.read(item, [Reply("".join(ticket).strip())]).score
            facts = Facts(tokens=tuple((one.text, one.logprob) for one in ticket.likely))
            assert facts.likelihood is not None
            (unsure if known.unsure(facts.likelihood) else sure).append(right)
            off.append(known.confidence(facts.likelihood) - right)
        assert len(unsure) >= 10
        assert np.mean(sure) > 0.9 and np.mean(unsure) < np.mean(sure) - 0.1
        assert abs(np.mean(off)) < 0.08, "as often right as it says"
    finally:
        engine.close()
