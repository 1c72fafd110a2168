"""A gateway before servers that break off, refuse and lie: what is asked again, what is told, who is left out."""

from __future__ import annotations

import json
import logging
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scripted_server import MODEL, scripted

from serve.events import EventStream
from serve.gateway import Gateway
from serve.requests import RequestError
from serve.requests import told as told_error
from serve.tickets import Closed, Options, Ticket
from serve.upstreams import ALWAYS, Upstream, chosen, parsed
from vlchat.chat import ask_messages
from vlchat.cli import main
from vlchat.errors import ConfigError, VLChatError

WORDS = ["a", " green", " cat", " on", " it"]
DRAWN = Options(temperature=1.0)


@contextmanager
def before(*urls: str, **options: Any) -> Iterator[Gateway]:
    gateway = Gateway(urls, every=0.2, **options)
    try:
        yield gateway
    finally:
        gateway.close(0)


def said(gateway: Gateway, options: Options | None = None, question: str = "What is it?") -> str:
    return "".join(gateway.submit(ask_messages(None, question), options))


def nobody() -> str:
    """The address of a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_events_are_those_that_were_sent_however_they_are_cut(newline: str) -> None:
    told = [json.dumps({"text": text}, ensure_ascii=False) for text in ("a\u2028b\x85c", "", "\U0001f600" * 9, "\\r\n")]
    lines = [": a remark", *(line for text in told for line in ("event: x", f"data: {text}", ""))]
    sent = (newline.join(lines) + newline).encode()
    for seed in range(30):
        draw, stream, found, start = random.Random(seed), EventStream(), list[str](), 0
        while start < len(sent):
            size = draw.randint(1, 9)
            found += stream.add(sent[start : start + size])
            start += size
        found += stream.add(b"\n")  # a lone "\r" at the end waits for what follows
        assert found == told
    with pytest.raises(ValueError):
        for _ in range(100):
            list(stream.add(b"data: " + b"x" * 2**20))


def test_equal_beginnings_go_to_the_same_server_as_far_as_its_load_allows() -> None:
    ups = parsed([f"http://gpu-{number}:8000/v1/" for number in range(4)])
    keys = [str(number).encode() for number in range(200)]
    first = {key: chosen(key, ups) for key in keys}
    assert all(one == chosen(key, ups[::-1]) for key, one in first.items())
    counts = [sum(one is up for one in first.values()) for up in ups]
    assert min(counts) > 25
    gone, rest = ups[0], ups[1:]
    assert all((chosen(key, rest) is one) == (one is not gone) for key, one in first.items())
    gone.under_way = ALWAYS - 1
    assert all(chosen(key, ups) is one for key, one in first.items())
    gone.under_way = 3 * ALWAYS
    assert all((chosen(key, ups) is one) == (one is not gone) for key, one in first.items())
    for up in ups:
        up.under_way = 3 * ALWAYS
    assert all(chosen(key, ups) is one for key, one in first.items())
    assert chosen(b"x", []) is None


@pytest.mark.parametrize(
    "trouble", [[None], (503, {}), (502, {}), (429, {"error": {"message": "Too many.", "code": "x"}})]
)
def test_what_failed_before_its_first_word_is_asked_elsewhere(trouble: Any) -> None:
    with scripted(trouble) as bad, scripted(WORDS) as good, before(bad.url, good.url) as gateway:
        wait_for(lambda: all(one.alive for one in gateway.upstreams))
        for number in range(20):
            wait_for(lambda: all(one.alive for one in gateway.upstreams))
            assert said(gateway, DRAWN, f"{number}?") == "a green cat on it"
        assert len(good.seen) == 20 and 0 < len(bad.seen) < 20


def test_what_was_refused_is_asked_nowhere_else() -> None:
    refused = (400, {"error": {"message": "9000 tokens; at most 8192, says http://10.0.0.1:8000/v1.", "code": "long"}})
    with scripted(refused) as one, scripted(refused) as other, before(one.url, other.url) as gateway:
        with pytest.raises(RequestError, match=r"9000 tokens; at most 8192, says \[address\]") as told:
            said(gateway)
        assert (told.value.status, told.value.code) == (400, "long") and len(one.seen) + len(other.seen) == 1


@pytest.mark.parametrize(
    ("trouble", "status"),
    [
        ((413, {"error": {"message": "Too large."}}), 413),
        ((422, {"error": {"message": "No.", "param": "temperature"}}), 422),
        ((429, {"error": {"message": "Too many."}}), 429),
        ((429, "<html>"), 429),
        ((413, "<html>"), 413),
        ((500, {"error": {"message": "Traceback at /srv/secret.py 0x7f00"}}), 502),
        ((503, {"error": {"message": "at 10.0.0.1"}}), 503),
        ((401, {"error": {"message": "Incorrect key sk-secret."}}), 502),
        ((404, {"detail": "Not Found"}), 502),
        ((302, {}), 502),
        ((200, {"choices": []}), 502),
        ([None], 503),
    ],
)
def test_a_servers_trouble_is_a_sentence_with_a_status(trouble: Any, status: int) -> None:
    with scripted(trouble) as server, before(server.url) as gateway:
        with pytest.raises(RequestError) as told:
            said(gateway)
        assert told.value.status == status and str(told.value).endswith(".")
        assert not any(word in str(told.value) for word in ("127.0.0.1", "10.0.0.1", "secret", "0x7f", "<html"))


@pytest.mark.parametrize("how", [None, told_error(Closed())[1]], ids=["cut", "stopping"])
def test_an_answer_that_breaks_off_is_gone_on_with_only_where_the_other_one_begins_alike(how: Any) -> None:
    cut = [*WORDS[:3], how]
    for other, options, whole in (
        (WORDS, Options(), True),
        (["a gr", "een cat on", " it"], Options(temperature=1.0, seed=3), True),
        (WORDS, DRAWN, False),
        (["a", " red", " cat", " on", " it"], Options(), False),
        (["a", " green"], Options(), False),
        (cut, Options(), False),
    ):
        with scripted(cut, other) as one, scripted(cut, other) as two, before(one.url, two.url) as gateway:
            two.answers = one.answers  # whoever is asked first breaks off
            pieces: list[str] = []
            if whole:
                pieces += gateway.submit(ask_messages(None, "?"), options)
                assert "".join(pieces) == "a green cat on it"
                continue
            with pytest.raises(RequestError, match="in the middle of its answer") as told:
                for piece in gateway.submit(ask_messages(None, "?"), options):
                    pieces.append(piece)
            assert told.value.status == 502 and "".join(pieces) == "a green cat"
            assert len(one.seen) + len(two.seen) == (1 if options is DRAWN else 2)


def test_what_is_asked_is_what_was_given(picture: Callable[..., Any]) -> None:
    from openai_server import opened

    shown = picture(1, (60, 40))
    with scripted(WORDS) as server, before(server.url) as gateway:
        options = Options(9, 0.5, 0.9, 3, stop=("END",))
        ticket = gateway.submit(ask_messages(shown, "Is it <image> green?", "Be brief."), options)
        assert "".join(ticket) == "a green cat on it"
        assert ticket.end is not None and (ticket.end.reason, ticket.end.prompt_tokens, ticket.end.new_tokens) == (
            "stop", 7, 5,
        )  # fmt: skip
    (asked,) = server.seen
    expected = {"model": MODEL, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["END"]}
    assert {name: asked[name] for name in expected} == expected
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    image, text = opened(asked["messages"][1])["content"]
    assert text["text"] == "Is it <image> green?" and image["image"].tobytes() == shown.tobytes()


def test_a_server_that_is_silent_ends_the_answer_but_not_the_server() -> None:
    with socket.socket() as silent, scripted(WORDS) as server, before(server.url, patience=0.5) as gateway:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        gateway.upstreams[0].url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RequestError, match="said nothing for too long") as told:
            said(gateway)
        assert told.value.status == 503


def test_a_key_goes_to_the_server_and_into_no_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with scripted(WORDS, key="Bearer sk-right") as server:
        with before(server.url, key="sk-right") as gateway:
            assert said(gateway) == "a green cat on it"
        monkeypatch.setenv("VLCHAT_BACKEND_KEY", "sk-wrong")
        assert main(["serve", "--backend", "openai", "--base-url", server.url]) == 2
    told = capsys.readouterr().err
    assert "does not accept the key" in told and "VLCHAT_BACKEND_KEY" in told
    assert not {"sk-right", "sk-wrong"} & set(re.split(r"[^\w-]", told + caplog.text))
    with pytest.raises(ConfigError, match="no key has"):
        Gateway([server.url], key="two\nlines")


def test_a_server_that_is_gone_is_left_out_until_it_is_back() -> None:
    with scripted(WORDS) as server, before(server.url, nobody(), model=MODEL) as gateway:
        assert [one.alive for one in gateway.upstreams] == [True, False] and gateway.open
        there, away = gateway.upstreams
        assert "".join(said(gateway, question=f"{number}?") for number in range(5)) == "a green cat on it" * 5
        away.url, there.url = there.url, away.url  # the other one is started, and this one goes
        wait_for(lambda: away.alive and not there.alive)
        assert said(gateway) == "a green cat on it"
        away.url = there.url
        wait_for(lambda: not gateway.open)
        with pytest.raises(RequestError, match="None of the servers") as told:
            said(gateway)
        assert told.value.status == 503
    with pytest.raises(Closed):
        said(gateway)


def test_models_are_those_of_all_servers_and_a_model_is_asked_where_it_is() -> None:
    with scripted(["one"]) as one, scripted(["two"]) as two, before(one.url, two.url) as gateway:
        wait_for(lambda: all(up.alive for up in gateway.upstreams))
        gateway.upstreams[0].models, gateway.upstreams[1].models = ("a", "b"), ("b", "c")
        assert gateway.names == ["a", "b", "c"] and gateway.description["name"] == "a and 2 more"
        assert said(gateway) == "one" == said(gateway, Options(adapter="a"))
        gateway.upstreams[1].models = ("b", "c")
        assert said(gateway, Options(adapter="c")) == "two"
        with pytest.raises(VLChatError, match="no model"):
            said(gateway, Options(adapter="gpt-4o"))


def cancelled(ticket: Ticket, gateway: Gateway, more: int) -> None:
    """So many times, one in each round of the gateway's loop."""
    ticket.cancel()
    if more:
        gateway.loop.call_soon(cancelled, ticket, gateway, more - 1)


def test_whoever_leaves_closes_the_connection() -> None:
    with socket.socket() as listener, scripted(WORDS) as server, before(server.url) as gateway:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        gateway.upstreams[0].url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for words in (b"", b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'):
            ticket = gateway.submit(ask_messages(None, "?"))
            connection = listener.accept()[0]
            while b"POST" not in connection.recv(65536):  # a check
                connection.close()
                connection = listener.accept()[0]
            connection.settimeout(60)
            if words:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + words)
                assert next(iter(ticket)) == "a"
            # Told again and again while it closes, as by a request and its answer that both end.
            gateway.loop.call_soon_threadsafe(cancelled, ticket, gateway, 50)
            while connection.recv(65536):  # what was still to be read of the question
                pass
            connection.close()
            wait_for(lambda ticket=ticket: ticket.end is not None)
            assert (
                ticket.end is not None
                and ticket.end.reason == "cancelled"
                and ticket.end.error is None
                and gateway.answering == 0
            )
            gateway.upstreams[0].alive = True


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--backend", "opnai"], 'no backend "opnai"; known: local, openai. Did you mean "openai"?'),
        (["--backend", "openai"], "needs --base-url"),
        (["--base-url", "http://127.0.0.1:1"], "--base-url goes with --backend openai"),
        (["--backend", "openai", "--base-url", "http://127.0.0.1:1", "--quantize", "nf4"], "--quantize goes with"),
        (["--backend", "openai", "--base-url", "http://127.0.0.1:1", "--adapter", "a=b"], "--adapter goes with"),
        (["--backend", "openai", "--base-url", "127.0.0.1:1"], "is no URL"),
        (["--backend", "openai", "--base-url", "http://127.0.0.1:1", "http://127.0.0.1:1/v1"], "twice"),
        (["--backend", "openai", "--base-url", "http://me:secret@127.0.0.1:1"], "VLCHAT_BACKEND_KEY"),
        (["--backend", "openai", "--base-url", "http://127.0.0.1:1", "--backend-timeout", "0"], "above 0 seconds"),
        (["--backend", "openai", "--base-url", "http://127.0.0.1:1"], "nobody to ask"),
    ],
)
def test_flags_that_cannot_be_meant_are_told(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert main(["serve", *words]) == 2
    said = capsys.readouterr().err
    assert told in said and "secret" not in said and said.count("\n") == 1


def test_a_model_that_no_server_lists_is_told_with_the_nearest(tmp_path: Path) -> None:
    with scripted(WORDS) as server, pytest.raises(ConfigError, match='list: scripted. Did you mean "scripted"?'):
        Gateway([server.url], model="scriptd")


def test_a_server_without_a_list_of_models_takes_the_one_that_is_named() -> None:
    with scripted(WORDS) as server:
        server.paths = {"/health": (200, {})}
        with pytest.raises(ConfigError, match="it keeps no list of models"):
            Gateway([server.url])
        with before(server.url, model="mine") as gateway:
            assert gateway.names == ["mine"] and gateway.open and said(gateway) == "a green cat on it"
    assert server.seen[0]["model"] == "mine"


def test_a_server_that_fails_at_a_question_gets_no_more_before_it_has_answered_a_check() -> None:
    """Its own checks are answered all the while: only questions tell."""
    with scripted([None]) as bad, scripted(WORDS) as good:
        gateway = Gateway([bad.url, good.url], every=3600)  # no check but those that a failure asks for
        try:
            failing, _ = gateway.upstreams
            checks = bad.checks
            questions = iter(range(1000))
            while not bad.seen:
                assert said(gateway, DRAWN, f"{next(questions)}?") == "a green cat on it"
            wait_for(lambda: failing.alive and bad.checks > checks)
            bad.paths = {"/v1/models": (500, {}), "/health": (500, {})}
            asked = len(bad.seen)
            while len(bad.seen) == asked:
                assert said(gateway, DRAWN, f"{next(questions)}?") == "a green cat on it"
            wait_for(lambda: "500" in failing.amiss)
            for _ in range(20):
                assert said(gateway, DRAWN, f"{next(questions)}?") == "a green cat on it"
            assert len(bad.seen) == asked + 1 and not failing.alive
        finally:
            gateway.close(0)


def test_who_asks_is_told_as_a_digest_where_the_operator_says_so() -> None:
    with scripted(WORDS) as server:
        for salted in (False, True):
            with before(server.url, cache_salt=salted) as gateway:
                for scope in ("api/anna", "api/bert", "api/anna"):
                    said(gateway, Options(scope=scope))
    plain, told = server.seen[:3], [one["cache_salt"] for one in server.seen[3:]]
    assert not [one for one in plain if "cache_salt" in one]
    assert told[0] == told[2] != told[1] and not [one for one in told if "anna" in one] and len(told[0]) == 64


def test_an_upstream_without_a_list_takes_any_name() -> None:
    assert Upstream("http://x", models=None).serves("anything") and not Upstream("http://x").serves("anything")
