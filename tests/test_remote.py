"""A model behind a URL: a real server with a real model answers over HTTP, and misbehaves as servers do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import torch
from openai_server import MODEL, Server, opened, serving
from PIL import Image

from vlchat.chat import Chat, ask_messages
from vlchat.errors import ConfigError, VLChatError
from vlchat.evaluate import evaluate, make_task, run
from vlchat.evaluate.certificate import certificate
from vlchat.evaluate.endpoint import Endpoint, ServerError
from vlchat.evaluate.items import Request
from vlchat.evaluate.remote import RemoteAnswerer, in_parallel
from vlchat.evaluate.wire import wire


@pytest.fixture
def chat(tiny_model: Any, tiny_processor: Any) -> Chat:
    return Chat(tiny_model(), tiny_processor, {"name": "tiny"})


@pytest.fixture
def server(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # Pauses are random around 1, 2, 4 seconds: here they are passed over, all but those a server asks for.
    monkeypatch.setattr("vlchat.evaluate.endpoint.random.uniform", lambda low, high: 0.0)
    with serving(chat) as made:
        yield made


@pytest.fixture
def requests(picture: Callable[..., Image.Image]) -> list[Request]:
    """Twelve questions that a tiny model answers differently, about no, one or two pictures."""
    shown = [[], [picture(1)], [picture(2), picture(3, (40, 20))]]
    asked = ["What is it?", "How many cats are there?", "a b c d", "Is it red or blue?"]
    made = []
    for number, text in enumerate(asked * 3):
        system = None if number % 5 else "Be brief."
        made.append(Request(ask_messages(shown[(number + number // 4) % 3], f"{text} {number}", system)))
    return made


def texts(answerer: RemoteAnswerer, requests: list[Request]) -> list[str]:
    return [reply.text for reply in answerer.answer(requests, max_new_tokens=8)]


def one(question: str = "What is it?") -> list[Request]:
    return [Request(ask_messages(None, question))]


def test_answers_through_the_url_are_those_of_the_model(server: Server, chat: Chat, requests: list[Request]) -> None:
    expected = [chat.batch([request.messages], max_new_tokens=8)[0] for request in requests]
    answerer = RemoteAnswerer(server.url, concurrency=5)
    replies = answerer.answer(requests, max_new_tokens=8)
    assert [reply.text for reply in replies] == expected == chat.batch([r.messages for r in requests], max_new_tokens=8)
    assert len(set(expected)) > 6 and not any(reply.error for reply in replies)
    assert 2 <= server.most <= 5
    body = server.seen[0][1]
    assert (body["temperature"], body["seed"], body["max_tokens"], body["model"]) == (0, 0, 8, MODEL)
    assert (answerer.usage["completion_tokens"], answerer.usage["prompt_tokens"] > 100) == (
        sum(reply.tokens for reply in replies), True,
    )  # fmt: skip
    assert answerer.notes[-1].startswith(f"The server counted {answerer.usage['prompt_tokens']:,} tokens read")
    longer = answerer.answer([Request(requests[0].messages, max_new_tokens=20)], max_new_tokens=8)[0]
    assert longer.text == chat.batch([requests[0].messages], max_new_tokens=20)[0] != expected[0]


def test_pictures_arrive_pixel_for_pixel(picture: Callable[..., Image.Image], tmp_path: Path) -> None:
    large = Image.linear_gradient("L").resize((2500, 1700)).convert("RGB")
    moving = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    parts = [
        {"type": "image", "image": picture(1)}, {"type": "image", "image": large},
        {"type": "video", "video": str(moving), "frames": 3}, {"type": "text", "text": "half an emoji \ud83d"},
    ]  # fmt: skip
    sent = wire(Request([{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]))
    assert sent[0] == {"role": "system", "content": "Be brief."}
    urls = [part["image_url"]["url"] for part in sent[1]["content"][:-1]]
    assert [url[:15] for url in urls] == ["data:image/png;", "data:image/jpeg", *["data:image/png;"] * 3]
    shown = [part["image"] for part in opened(json.loads(json.dumps(sent[1])))["content"][:-1]]
    assert shown[0].tobytes() == picture(1).tobytes()
    assert [frame.getpixel((0, 0)) for frame in shown[2:]] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    off = torch.frombuffer(bytearray(shown[1].tobytes()), dtype=torch.uint8).int()
    assert (off - torch.frombuffer(bytearray(large.tobytes()), dtype=torch.uint8).int()).abs().max() <= 4
    assert sent[1]["content"][-1]["text"] == "half an emoji \ufffd"


def test_log_probabilities_are_those_of_the_written_tokens(
    server: Server, chat: Chat, requests: list[Request]
) -> None:
    for request, reply in zip(
        requests, RemoteAnswerer(server.url).answer(requests, max_new_tokens=6), strict=True
    ):
        inputs = chat._inputs([request.messages])
        with torch.inference_mode():
            ids = chat.model.generate(**inputs, max_new_tokens=6, do_sample=False)
            start = inputs["input_ids"].shape[1]
            # teacher-forced, in one pass over the whole
            logits = chat.model(input_ids=ids, **{k: v for k, v in inputs.items() if k == "pixel_values"}).logits
        likely = logits[0, start - 1 : -1].double().log_softmax(-1)
        expected = likely.gather(-1, ids[0, start:, None]).sum().item()
        assert reply.logprob == pytest.approx(expected, abs=1e-3) and reply.tokens == ids.shape[1] - start


@pytest.mark.parametrize(
    "trouble",
    [(429, {"Retry-After": "0"}, "Slow down"), (500, {}, "Oops"), (503, {}, "Loading"), "cut", "malformed", "html"],
)
def test_what_passes_is_asked_again(trouble: Any, server: Server, chat: Chat, requests: list[Request]) -> None:
    expected = chat.batch([request.messages for request in requests], max_new_tokens=8)
    server.trouble = [trouble] * 4
    assert texts(RemoteAnswerer(server.url, concurrency=3), requests) == expected
    assert len(server.seen) == len(requests) + 4


def test_a_server_that_is_slow_is_asked_again(server: Server, chat: Chat) -> None:
    server.trouble = ["slow"]
    assert texts(RemoteAnswerer(server.url, timeout=0.5), one()) == chat.batch([one()[0].messages], max_new_tokens=8)
    assert len(server.seen) == 2


@pytest.mark.parametrize("header", ["1", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_a_pause_that_the_server_asks_for_is_kept(header: Any, server: Server) -> None:
    server.trouble = [(429, {"Retry-After": header if isinstance(header, str) else header()}, "Slow down")]
    assert RemoteAnswerer(server.url).answer(one(), max_new_tokens=2)[0].error is None
    (first, _, _), (second, _, _) = server.seen
    assert second - first >= 0.9


def test_a_refusal_costs_one_row_and_is_asked_once(server: Server, chat: Chat, requests: list[Request]) -> None:
    long = Request(ask_messages(None, "word " * 2000))
    replies = RemoteAnswerer(server.url).answer([*requests[:3], long], max_new_tokens=8)
    assert [reply.text for reply in replies[:3]] == chat.batch([r.messages for r in requests[:3]], max_new_tokens=8)
    assert "answered 400: The conversation takes" in str(replies[3].error) and replies[3].text == ""
    assert len(server.seen) == 4
    server.trouble = [(400, {}, "Rejected by our safety system.")]
    (reply,) = RemoteAnswerer(server.url).answer(one(), max_new_tokens=8)
    assert reply.error == f"{server.url}/v1/chat/completions answered 400: Rejected by our safety system."
    withheld = {"choices": [{"finish_reason": "content_filter", "message": {"content": None}}]}
    refusal = {"choices": [{"finish_reason": "stop", "message": {"content": None, "refusal": "I can't."}}]}
    server.trouble = [withheld, refusal, {"choices": []}]
    found = [RemoteAnswerer(server.url).answer(one(), max_new_tokens=8)[0].error or "" for _ in range(3)]
    assert "content filter" in found[0] and "I can't." in found[1] and "without a message" in found[2]


def test_a_row_that_the_server_fails_at_costs_itself_and_a_server_that_fails_at_all_ends_the_run(
    server: Server, requests: list[Request]
) -> None:
    server.trouble = [(500, {}, "CUDA error")] * 3
    answerer = RemoteAnswerer(server.url, retries=2, concurrency=1)
    replies = answerer.answer(requests[:3], max_new_tokens=4)
    assert "answered 500: CUDA error. Asked 3 times." in str(replies[0].error)
    assert [reply.error for reply in replies[1:]] == [None, None]
    server.always = (500, {}, "CUDA error")
    with pytest.raises(ServerError, match=r"failed at each of 12 requests.*CUDA error"):
        answerer.answer(requests, max_new_tokens=4)


def test_a_server_that_goes_ends_the_run(server: Server, requests: list[Request]) -> None:
    answerer = RemoteAnswerer(server.url, retries=1)
    server.shutdown()
    server.server_close()
    with pytest.raises(ServerError, match="There is no server at http://127.0.0.1"):
        answerer.answer(requests, max_new_tokens=4)
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"There is no server at .*: Connection refused. Start it, or correct"):
        RemoteAnswerer(server.url, retries=50)
    assert time.monotonic() - started < 30, "at the start nobody waits for a server that is not there"


@pytest.mark.parametrize("field", ["logprobs", "seed", "temperature", "max_tokens"])
def test_a_field_that_the_server_does_not_take_is_left_out(
    field: str, server: Server, chat: Chat, requests: list[Request]
) -> None:
    server.refuses = {field}
    answerer = RemoteAnswerer(server.url, concurrency=1)
    replies = answerer.answer(requests, max_new_tokens=8)
    assert [reply.text for reply in replies] == chat.batch([r.messages for r in requests], max_new_tokens=8)
    assert len(server.seen) == len(requests) + 1, "it is tried once"
    assert field not in server.seen[-1][1] and (field == "logprobs") == (replies[0].logprob is None)
    told = [note for note in answerer.notes if f'"{field}"' in note]
    assert len(told) == (field != "max_tokens")


def test_a_refusal_that_only_mentions_a_field_leaves_it_in(server: Server) -> None:
    answerer = RemoteAnswerer(server.url)
    server.trouble = [(400, {}, "The picture of a seed cannot be read.")] * 2
    assert "picture of a seed" in str(answerer.answer(one(), max_new_tokens=2)[0].error)
    server.trouble = [(400, {}, "'max_tokens' or 'max_completion_tokens' is too large: 999.")]
    assert "too large" in str(answerer.answer(one(), max_new_tokens=2)[0].error)
    answerer.answer(one(), max_new_tokens=2)
    assert {"seed", "max_tokens"} <= set(server.seen[-1][1]) and len(server.seen) == 4


def test_a_server_without_log_probabilities(server: Server) -> None:
    server.logprobs = False
    answerer = RemoteAnswerer(server.url)
    (reply,) = answerer.answer(one(), max_new_tokens=8)
    assert reply.text and (reply.logprob, reply.tokens) == (None, 0)
    with pytest.raises(ServerError, match="does not say how likely the choices are.*how=letter"):
        answerer.answer([Request(one()[0].messages, choices=("A", "B"))], max_new_tokens=8)


def own_likelihoods(chat: Chat, messages: list[Any], choices: list[str]) -> list[tuple[float, int]]:
    """(log-probability, tokens) of each choice and its closing token, from the prompt's ids and the choice's."""
    found = []
    inputs = chat._inputs([messages])
    start = inputs["input_ids"].shape[1]
    for choice in choices:
        ids = chat.tokenizer(choice, add_special_tokens=False)["input_ids"] + [chat.processor.end_token_id]
        whole = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        with torch.inference_mode():
            shown = {k: v for k, v in inputs.items() if k == "pixel_values"}
            likely = chat.model(input_ids=whole, **shown).logits[0].double().log_softmax(-1)
        found.append((sum(likely[start - 1 + i, token].item() for i, token in enumerate(ids)), len(ids)))
    return found


def test_choices_of_several_words_are_judged_as_whole_answers(
    server: Server, chat: Chat, requests: list[Request]
) -> None:
    choices = ["a cat", "two red cats", "no"]
    answerer = RemoteAnswerer(server.url)
    asked = [Request(request.messages, choices=tuple(choices)) for request in requests]
    for request, reply in zip(asked, answerer.answer(asked, max_new_tokens=8), strict=True):
        expected = own_likelihoods(chat, request.messages, choices)
        assert list(reply.choices) == pytest.approx([value for value, _ in expected], abs=1e-3)
        assert list(reply.choice_tokens) == [count for _, count in expected]
    assert "prompt_logprobs" in answerer.notes[0]


def test_letters_are_judged_by_the_first_token(server: Server, chat: Chat, requests: list[Request]) -> None:
    for most in (20, 5):
        server.alternatives = most
        (reply,) = RemoteAnswerer(server.url).answer(
            [Request(requests[1].messages, choices=("A", "B", "C"))], max_new_tokens=8
        )
        inputs = chat._inputs([requests[1].messages])
        with torch.inference_mode():
            likely = chat.model(**inputs).logits[0, -1].double().log_softmax(-1)
        top = likely.topk(most)
        shown: dict[str, float] = {}
        for index, value in zip(top.indices.tolist(), top.values.exp().tolist(), strict=True):
            shown[text] = shown.get(text := chat.tokenizer.decode([index]).strip(), 0.0) + value
        left = min(top.values.min().exp().item(), 1 - sum(shown.values()))
        expected = [shown.get(letter, left) for letter in "ABC"]
        assert torch.tensor(reply.choices).exp().tolist() == pytest.approx(expected, rel=1e-3)
        assert reply.choice_tokens == (1, 1, 1)


def test_long_choices_and_a_server_that_only_says_first_tokens(server: Server) -> None:
    for server.prompt_logprobs, server.refuses in ((False, set()), (True, {"prompt_logprobs"})):
        with pytest.raises(ServerError, match='"a purple zebra" is not among the first 20.*how=letter'):
            RemoteAnswerer(server.url).answer(
                [Request(one()[0].messages, choices=("a purple zebra", "no"))], max_new_tokens=8
            )


def test_beams_are_refused(server: Server) -> None:
    with pytest.raises(ServerError, match="no beam search, and 3 beams were asked for: set beams=1"):
        RemoteAnswerer(server.url).answer([Request(one()[0].messages, beams=3)], max_new_tokens=8)


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/v1/models"])
def test_a_url_as_people_paste_it(tail: str, server: Server) -> None:
    answerer = RemoteAnswerer(server.url + tail)
    assert answerer.description["url"] == f"{server.url}/v1" and texts(answerer, one())[0]


def test_a_path_before_v1_and_a_query(server: Server) -> None:
    server.root = "/openai/v1"
    answerer = RemoteAnswerer(f"{server.url}/openai?token=geheim1")
    assert answerer.description["url"] == f"{server.url}/openai/v1"
    assert "geheim1" not in json.dumps([answerer.description, answerer.identity])


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1/v1"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="http://localhost:8000/v1"):
        Endpoint(url)


def test_the_only_model_is_taken_and_others_are_listed(server: Server) -> None:
    assert RemoteAnswerer(server.url).model == MODEL
    server.models = ["small", "large"]
    with pytest.raises(ServerError, match="has 2 models: name one, as MODEL. It lists: small, large."):
        RemoteAnswerer(server.url)
    with pytest.raises(ServerError, match='has no model "larg"; it lists: small, large. Did you mean "large"'):
        RemoteAnswerer(server.url, "larg")
    assert RemoteAnswerer(server.url, "small").model == "small"
    server.models = []
    with pytest.raises(ServerError, match="lists no models: name the one"):
        RemoteAnswerer(server.url)
    server.root = "/else"  # a server that keeps no list, and does not know the model
    with pytest.raises(ServerError, match='404: The model `huge` does not exist. The model asked for is "huge"'):
        RemoteAnswerer(server.url, "huge").answer(one(), max_new_tokens=2)


def test_a_key_is_sent_and_never_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "Bearer sk-right"
    with pytest.raises(ServerError, match="No key was given, so give one with --api-key or in the variable OPENAI_API"):
        RemoteAnswerer(server.url)
    with pytest.raises(ServerError, match="not accepted: give another") as told:
        RemoteAnswerer(server.url, key="sk-wrong-secret")
    assert "sk-wrong-secret" not in str(told.value) and "[key]" in str(told.value)
    answerer = RemoteAnswerer(server.url, key=" sk-right\n")
    assert texts(answerer, one())[0]
    assert "sk-right" not in json.dumps([answerer.description, answerer.identity, answerer.notes])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    assert RemoteAnswerer(server.url).model == MODEL
    server.key = "Basic bWU6cEBzcw=="  # me:p@ss
    named = server.url.replace("http://", "http://me:p%40ss@")
    assert RemoteAnswerer(named).description["url"] == f"{server.url}/v1"
    with pytest.raises(ConfigError, match="names a user and there is a key beside it"):
        RemoteAnswerer(named, key="sk-right")
    with pytest.raises(ConfigError, match="characters that no key has"):
        RemoteAnswerer(server.url, key="sk-\nX: y")


def test_a_key_goes_nowhere_else(server: Server, chat: Chat) -> None:
    with serving(chat) as other:
        answerer = RemoteAnswerer(server.url, key="sk-right")
        server.trouble = [(302, {"Location": f"{other.url}/v1/chat/completions"}, "Moved")]
        with pytest.raises(ServerError, match=f"sends askers to {other.url}/v1/chat/completions: give that URL"):
            answerer.answer(one(), max_new_tokens=2)
        assert not other.seen


def test_an_empty_account_is_not_asked_again(server: Server) -> None:
    server.trouble = [(429, {}, "You exceeded your current quota (insufficient_quota).")]
    with pytest.raises(ServerError, match="look at the account"):
        RemoteAnswerer(server.url).answer(one(), max_new_tokens=2)
    assert len(server.seen) == 1


def test_a_web_page_is_no_api(server: Server) -> None:
    answerer = RemoteAnswerer(server.url, retries=0)
    server.always = "html"
    (reply,) = answerer.answer(one(), max_new_tokens=2)
    assert "answered with a web page instead of JSON. Is this the URL of the API?" in str(reply.error)


def test_the_identity_is_that_of_url_and_model(server: Server) -> None:
    server.models = ["small", "large"]
    small = RemoteAnswerer(server.url, "small")
    assert small.identity == RemoteAnswerer(server.url + "/v1/", "small").identity
    assert small.identity != RemoteAnswerer(server.url, "large").identity
    assert small.description["server"] == {"max_model_len": 512} and "PNG" in small.description["pictures"]


def test_an_evaluation_through_the_url_is_that_of_the_model(
    server: Server, chat: Chat, picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    rows = []
    for number in range(10):
        picture(number).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": f"What {number}?", "answer": "yes"})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = str(tmp_path / "rows.json")
    options: dict[str, Any] = {"controls": ["none"], "max_new_tokens": 5, "progress": False}
    expected = evaluate(chat, make_task("vqa", data=data), **options)
    url = f"{server.url}/v1?token=geheim1".replace("//", "//user:geheim2@")
    asking: dict[str, Any] = {"url": url, "cache": tmp_path / "cache", "data": data, **options}
    server.trouble = [(429, {"Retry-After": "0"}, "Slow down")] * 3
    found = run(None, "vqa", **asking)
    for mine, theirs in zip(found.rows, expected.rows, strict=True):
        assert mine["reply"] == theirs["reply"] and mine["controls"] == theirs["controls"]
        # The server, as vLLM does, counts the picture's token among what could have been written; Chat never writes it.
        assert mine["confidence"] == pytest.approx(theirs["confidence"], rel=0.02)
    assert found.model["name"] == MODEL and len(server.seen) == 23
    assert found.settings["url"] == f"{server.url}/v1" and "geheim" not in json.dumps(certificate(found))
    assert run(None, "vqa", **asking).rows == found.rows and len(server.seen) == 23, "nothing is asked twice"
    server.always = (500, {}, "CUDA error")
    with pytest.raises(ServerError, match="failed at each of 10 requests"):
        run(None, "vqa", **{**asking, "cache": tmp_path / "other"}, loading={"retries": 0})
    assert len(server.seen) == 33, "a server that fails at all is not asked row by row again"


def test_work_in_parallel_keeps_its_order_and_ends_with_the_first_error() -> None:
    gate = threading.Barrier(4, timeout=10)

    def slowly(number: int) -> int:
        gate.wait()  # four at a time, or it breaks
        return number * number

    assert in_parallel(slowly, range(8), 4) == [number * number for number in range(8)]
    begun = []

    def fails(number: int) -> int:
        begun.append(number)
        raise VLChatError(f"no {number}")

    with pytest.raises(VLChatError, match="no 0"):
        in_parallel(fails, range(100), 1)
    assert begun == [0] and in_parallel(fails, [], 3) == []
