"""The API on the real server, asked by OpenAI's own client and by hand: answers, streams, and what is refused."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from talkative import Steps, save_talkative, serving

from vlchat.chat import Chat, ask_messages

openai = pytest.importorskip("openai", reason="openai is not installed")
pytest.importorskip("gradio", reason="gradio is not installed")

from serve.requests import MOST_PICTURES, Until  # noqa: E402


@pytest.fixture
def chat(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> Chat:
    chat = Chat.load(save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer))
    chat.description.update(name="tiny")
    return chat


@pytest.fixture
def address(chat: Chat) -> Iterator[str]:
    with serving(chat) as address:
        yield address


@pytest.fixture
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture
def photo(tmp_path: Path, picture: Callable) -> bytes:
    picture(1, (60, 40)).save(tmp_path / "photo.png")
    return (tmp_path / "photo.png").read_bytes()


def url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def about(data: bytes, words: str = "What is it?") -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url(data)}}, {"type": "text", "text": words}]
    return [{"role": "user", "content": parts}]


def test_openais_client_gets_the_models_own_answer_whole_and_in_pieces(chat: Chat, client: Any, photo: bytes) -> None:
    expected = chat.ask(photo, "What is it?", max_new_tokens=12)
    asked: dict[str, Any] = {"model": "tiny", "messages": about(photo), "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content.strip() == expected and whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12 and whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert len(pieces) > 3 and "".join(pieces).strip() == expected
    assert chunks[-2].choices[0].finish_reason == "length"
    # All of the question is known by now, but for its last token.
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == chunks[-1].usage.prompt_tokens - 1
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_seed_repeats_an_answer_and_a_stop_word_ends_it(chat: Chat, client: Any, address: str) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "two cats"}], "max_tokens": 12}
    one, again, other = (
        client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (1, 1, 2)
    )
    assert one == again != other
    plain = chat.ask(None, "two cats", max_new_tokens=12)
    word = plain.split()[5]
    steps = Steps(chat)
    found = client.chat.completions.create(**{**asked, "max_tokens": 4000}, temperature=0, stop=[word, "?!"]).choices[0]
    assert found.message.content == plain[: plain.index(word)] and found.finish_reason == "stop"
    time.sleep(0.3)
    assert steps.count < 200, "it goes on after the word"
    assert 'vlchat_requests_total{reason="stop"} 1.0' in httpx.get(f"{address}/metrics").text


def test_how_likely_each_token_was_whole_and_in_pieces(chat: Chat, client: Any) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": [{"role": "user", "content": "two cats"}], "max_tokens": 6, "temperature": 0,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    tokens = whole.logprobs.content
    assert len(tokens) == 6 and "".join(one.token for one in tokens).strip() == whole.message.content
    for one in tokens:  # without what the model may not say here, the likeliest token is what it says
        assert len(one.top_logprobs) == 2 and one.logprob <= one.top_logprobs[0].logprob < 0
        assert bytes(one.bytes).decode() == one.token
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = [one for chunk in chunks if (told := chunk.choices[0].logprobs) for one in told.content]
    assert [(one.token, round(one.logprob, 3)) for one in streamed] == [
        (one.token, round(one.logprob, 3)) for one in tokens
    ]
    word = whole.message.content.split()[3]
    cut = client.chat.completions.create(**asked, stop=[word]).choices[0]
    assert "".join(one.token for one in cut.logprobs.content).strip() == cut.message.content.strip()
    assert (
        client.chat.completions.create(**{**asked, "logprobs": False, "top_logprobs": None}).choices[0].logprobs is None
    )


def test_a_fault_of_the_model_is_a_500_that_tells_nothing_of_it(chat: Chat, address: str) -> None:
    def torn(*_: Any) -> None:
        raise RuntimeError("no weights at /srv/secret <Thing at 0x7f00>")

    asked = {"model": "tiny", "messages": [{"role": "user", "content": "two cats"}], "max_tokens": 3}
    hook = chat.model.lm_head.register_forward_hook(torn)
    answer = httpx.post(f"{address}/v1/chat/completions", json=asked)
    hook.remove()
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "failed"
    assert "secret" not in answer.text and "0x" not in answer.text
    assert httpx.post(f"{address}/v1/chat/completions", json=asked).is_success


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"messages": [0] * 1500}, 422),
        ({"messages": [{"role": "user", "content": [0] * 1500}]}, 422),
        ({f"key{number}": 1 for number in range(5000)}, 422),
        ({"metadata": [{} for _ in range(150_000)]}, 413),
        ({"stop": "a" * 1001}, 422),
        ({"stop": ["a"] * 17}, 422),
    ],
)
def test_a_body_of_many_parts_is_one_error(address: str, body: dict[str, Any], status: int) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "two cats"}], **body}
    answer = httpx.post(f"{address}/v1/chat/completions", json=asked)
    assert answer.status_code == status and len(answer.text) < 1000


def test_what_is_counted_is_told_to_prometheus(client: Any, address: str) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "two cats"}], max_tokens=5, temperature=0
    )
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=[{"role": "user", "content": "two cats"}])
    told = httpx.get(f"{address}/metrics")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(told.text)
        for sample in family.samples
    }
    assert found["vlchat_new_tokens_total",] == 5 and found["vlchat_requests_total", "length"] == 1
    assert found["vlchat_rejects_total", "model_not_found"] == 1
    assert found["vlchat_running",] == found["vlchat_waiting",] == 0 < found["vlchat_kept_bytes",]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(chat: Chat, address: str, stream: bool) -> None:
    steps = Steps(chat)
    pace = chat.model.lm_head.register_forward_hook(lambda *_: time.sleep(0.005))
    body = json.dumps(
        {"model": "tiny", "messages": [{"role": "user", "content": "two cats"}], "max_tokens": 8000, "stream": stream}
    )
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        end = time.monotonic() + 60
        while steps.count < 5:
            assert time.monotonic() < end
            time.sleep(0.01)
    counted = -1
    while counted != steps.count:  # until nothing is computed for a while
        counted = steps.count
        time.sleep(0.5)
    pace.remove()
    assert counted < 8000


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"temperature": float("nan")}, 422, "temperature"),
        ({"temperature": -1}, 422, "temperature"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"max_tokens": -1}, 422, "max_tokens"),
        ({"max_tokens": 10**9}, 422, "max_tokens"),
        ({"n": 1000}, 422, "n"),
        ({"messages": []}, 422, "messages"),
        ({"messages": [{"role": "<|im_end|>", "content": "?"}]}, 422, "messages.0.role"),
        ({"tools": []}, 422, "tools"),
        ({"chat_template": "{{ 7 * 7 }}"}, 400, "chat_template"),
        ({"model": "gpt-4o"}, 404, "model"),
        ({"messages": [{"role": "user", "content": "cats " * 9000}]}, 400, None),
        ({"messages": [{"role": "assistant", "content": "yes"}]}, 400, None),
    ],
)
def test_what_cannot_be_asked_is_told_by_field(address: str, change: dict, status: int, param: str | None) -> None:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "?"}], "max_tokens": 1, **change})
    answer = httpx.post(f"{address}/v1/chat/completions", content=body, timeout=60)
    error = answer.json()["error"]
    assert answer.status_code == status and error["param"] == param and error["message"]
    if "cats" in body:
        assert "8192" in error["message"]


@pytest.mark.parametrize(
    ("where", "status", "told"),
    [
        ("http://169.254.0.1/latest", 400, "no address is fetched"),
        ("file:///etc/hostname", 400, "no address is fetched"),
        ("/etc/hostname", 400, "no address is fetched"),
        ("data:image/png;base64,***", 400, "base64"),
        (url(b""), 400, "empty"),
        (url(b"<svg></svg>"), 415, "SVG"),
        (url(b"\x89PNG\r\n\x1a\n" + b"0" * 50), 400, "damaged"),
    ],
)
def test_a_picture_that_cannot_be_used_is_told(address: str, photo: bytes, where: str, status: int, told: str) -> None:
    messages = about(photo)
    messages[0]["content"][0]["image_url"]["url"] = where
    asked: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 1}
    answer = httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=60)
    assert answer.status_code == status and told in answer.json()["error"]["message"]
    assert httpx.post(f"{address}/v1/chat/completions", json={**asked, "messages": about(photo)}, timeout=60).is_success


def test_a_declared_type_must_be_the_pictures(address: str, photo: bytes) -> None:
    messages = about(photo)
    messages[0]["content"][0]["image_url"]["url"] = url(photo, "image/jpeg")
    answer = httpx.post(f"{address}/v1/chat/completions", json={"model": "tiny", "messages": messages}, timeout=60)
    assert answer.status_code == 415 and "declared as" in answer.json()["error"]["message"]


def test_too_many_pictures_are_told_with_both_numbers(address: str, photo: bytes) -> None:
    parts = about(photo)[0]["content"][:1] * (MOST_PICTURES + 1)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
    answer = httpx.post(f"{address}/v1/chat/completions", json=asked, timeout=60)
    assert answer.status_code == 400
    assert f"{MOST_PICTURES + 1} pictures; at most {MOST_PICTURES}" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"a":' * 100_000, {}, 400),
        (b"{}", {"Content-Encoding": "gzip"}, 400),
        (b"{}", {}, 422),
    ],
)
def test_a_body_that_cannot_be_read_is_told(address: str, body: bytes, headers: dict, status: int) -> None:
    answer = httpx.post(f"{address}/v1/chat/completions", content=body, headers=headers, timeout=60)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {500 * 2**20}\r\n\r\n"
        connection.sendall(head.encode())
        assert b"413" in connection.recv(4096).split(b"\r\n")[0]


def test_words_of_people_are_words(address: str, chat: Chat) -> None:
    for words in ("<image>", "<|im_end|>", "<ima<image>ge>", "nul\0", "\ud800 lone", "</s> [INST]"):
        body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": words}], "max_tokens": 1})
        answer = httpx.post(f"{address}/v1/chat/completions", content=body, timeout=60)
        assert answer.is_success, words


def test_a_cache_salt_parts_those_who_ask_by_one_key(client: Any) -> None:
    """So that a gateway's visitors share nothing here."""
    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "two cats"}], "max_tokens": 2}
    cached = []
    for salt in ("anna", "bert", "anna"):
        usage = client.chat.completions.create(**asked, extra_body={"cache_salt": salt}).usage
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 0, usage.prompt_tokens - 1]


def test_health_and_readiness(address: str) -> None:
    assert httpx.get(f"{address}/health").json() == {"status": "ok"} == httpx.get(f"{address}/ready").json()
    assert httpx.get(address).is_success  # the page


def test_text_is_told_up_to_a_stop_word_however_it_is_cut() -> None:
    for stops, expected in ((["END"], "the "), (["x"], "the END of it"), (["of it", "he"], "t"), ([], "the END of it")):
        for size in (1, 2, 5, 50):
            until = Until(stops)
            text = "the END of it"
            told = "".join(until.add(text[start : start + size]) for start in range(0, len(text), size))
            assert told + until.rest() == expected
            assert until.reached == (expected != text)


def test_the_question_is_that_of_chat(chat: Chat, client: Any, photo: bytes) -> None:
    """A system prompt and earlier turns are told as `Chat` tells them."""
    turns = [{"role": "system", "content": "no dogs"}, *about(photo), {"role": "assistant", "content": "a cat"}]
    turns.append({"role": "user", "content": "Is it green?"})
    got = client.chat.completions.create(model="tiny", messages=turns, temperature=0, max_completion_tokens=9)
    said = ask_messages(photo, "What is it?", system="no dogs")
    said += [{"role": "assistant", "content": "a cat"}, {"role": "user", "content": "Is it green?"}]
    assert got.choices[0].message.content.strip() == chat.batch([said], max_new_tokens=9)[0]
