"""A server that others reach, asked by real clients: keys, rates, limits, other sites' pages, the log."""

from __future__ import annotations

import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from talkative import save_talkative, serving

from vlchat.chat import Chat

openai = pytest.importorskip("openai", reason="openai is not installed")
pytest.importorskip("gradio", reason="gradio is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")

from serve import guard  # noqa: E402
from serve.allowed_hosts import AllowedHosts, is_loopback  # noqa: E402
from serve.keys import Keys  # noqa: E402
from serve.policy import Policy, Rate  # noqa: E402

ANNA, BERT = "anna-canary-key-0123456789", "bert-canary-key-0123456789"
KEYS = Keys([f"anna: {ANNA}", f"bert: {BERT}"])
WORDS = "canary-words-of-a-question two cats and a dog on a very long road"
OPEN_TO_EXAMPLE = Policy(embedders=["https://example.org"], host_names=["example.org"])
ASKED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": WORDS}], "max_tokens": 3}


@pytest.fixture
def chat(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Chat:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    chat = Chat.load(save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer))
    chat.description.update(name="tiny")
    return chat


@pytest.fixture
def address(chat: Chat) -> Iterator[str]:
    with serving(chat, Policy(keys=KEYS)) as address:
        yield address


@pytest.fixture
def open_address(chat: Chat) -> Iterator[str]:
    with serving(chat) as address:
        yield address


def told(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's shape."""
    error = answer.json()["error"]
    assert answer.status_code == status and set(error) == {"message", "type", "param", "code"}
    return error


def connected(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=120)


def test_nothing_is_reached_without_a_key_but_the_probes(address: str) -> None:
    """Torture row 47. The page and every route of Gradio's ask for the key as the API does."""
    paths = ["/", "/config", "/assets/x.js", "/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/queue/data",
             "/gradio_api/file=/etc/hostname", "/login", "/logout", "/docs", "/openapi.json", "/v1/models", "/metrics",
             "/monitoring", "/gradio_api/heartbeat/x", "/nowhere"]  # fmt: skip
    with httpx.Client(base_url=address, timeout=120) as client:
        for path in paths:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {ANNA}"}):
                answer = client.get(path, headers=headers)
                assert told(answer, 401)["code"] == "invalid_api_key", path
                expected = "Bearer" if path.startswith("/v1/") else "Basic"
                assert answer.headers["www-authenticate"].startswith(f'{expected} realm="vlchat"')
        for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/run/chat",
                     "/gradio_api/call/chat", "/login", "/v1/chat/completions"):  # fmt: skip
            told(client.post(path, json={}), 401)
        assert client.get("/health").is_success and client.get("/ready").is_success
        assert client.get("/", auth=("anybody", ANNA)).is_success
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {BERT}"}).is_success


def test_openais_client_and_gradios_come_in_with_a_key(address: str, chat: Chat) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=ANNA, max_retries=0)
    assert client.chat.completions.create(**ASKED, temperature=0).choices[0].message.content
    page = gradio_client.Client(address, headers={"Authorization": f"Bearer {ANNA}"}, verbose=False)
    message = {"text": WORDS, "files": []}
    assert page.predict(message, "", 0, 8, api_name="/chat").strip() == chat.ask(None, WORDS, max_new_tokens=8)
    page.close()


def test_what_was_computed_for_one_key_is_not_used_for_another(address: str) -> None:
    cached = []
    for key in (ANNA, BERT, ANNA):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
        usage = client.chat.completions.create(**ASKED).usage
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 0, usage.prompt_tokens - 1]


def test_over_the_rate_is_429_with_a_true_retry_after(chat: Chat) -> None:
    """Torture row 48. The page's questions and a program's are counted together, each key's apart."""
    with serving(chat, Policy(keys=KEYS, questions=Rate(2, "second"))) as address:
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {ANNA}"}, timeout=120) as client:
            answers = []
            while not answers or answers[-1].status_code == 200:
                assert len(answers) < 200
                answers.append(client.post("/v1/chat/completions", json=ASKED | {"max_tokens": 1}))
            assert told(answers[-1], 429)["code"] == "rate_limit_exceeded"
            other = {"Authorization": f"Bearer {BERT}"}
            assert client.post("/v1/chat/completions", json=ASKED, headers=other).is_success
            time.sleep(int(answers[-1].headers["retry-after"]))
            assert client.post("/v1/chat/completions", json=ASKED).is_success
    with serving(chat, Policy(questions=Rate(1, "hour"))) as address:
        page = gradio_client.Client(address, verbose=False)
        ask = [{"text": WORDS, "files": []}, "", 0, 4]
        assert page.predict(*ask, api_name="/chat")
        assert "More than 1 a hour questions" in str(page.predict(*ask, api_name="/chat"))
        page.close()
        refused = httpx.post(f"{address}/v1/chat/completions", json=ASKED, headers={"X-Forwarded-For": "10.9.8.7"})
        told(refused, 429)
        assert 3500 < int(refused.headers["retry-after"]) <= 3600


def test_a_proxy_is_believed_where_the_operator_says_so(chat: Chat) -> None:
    with serving(chat, Policy(questions=Rate(1, "hour"), proxies=["127.0.0.1"])) as address:
        statuses = [
            httpx.post(f"{address}/v1/chat/completions", json=ASKED, headers={"X-Forwarded-For": one}).status_code
            for one in ("10.9.8.7", "10.9.8.6", "10.9.8.7", "1.1.1.1, 10.9.8.6", "2001:db8::1", "2001:db8::2")
        ]
    assert statuses == [200, 200, 429, 429, 200, 429]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/gradio_api/upload", "/gradio_api/queue/join"])
def test_a_body_of_500_mb_is_refused_and_not_kept(open_address: str, path: str) -> None:
    """Torture rows 23 and 41: by its declared length at once, and by what has come where no length is declared."""
    with connected(open_address) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {500 * 2**20}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]

    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        piece = b"x" * 2**16
        for _ in range(500 * 2**4):
            yield piece

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kind = {"Content-Type": "multipart/form-data; boundary=x"} if "upload" in path else {}
    told(httpx.post(f"{open_address}{path}", content=body(), headers=kind, timeout=300), 413)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 20
    assert httpx.get(f"{open_address}/health").is_success


def test_a_slow_body_is_408_and_a_slow_or_long_head_is_cut(open_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torture row 50."""
    monkeypatch.setattr(guard, "PATIENCE", 0.3)
    with connected(open_address) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]
    with connected(open_address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 2**17)
        assert b" 400 " in connection.recv(4096).split(b"\r\n")[0]
    monkeypatch.setattr("serve.server.HEAD_PATIENCE", 0.3)
    with connected(open_address) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert connection.recv(4096) == b""


def test_pages_of_other_sites_can_neither_ask_nor_read(chat: Chat) -> None:
    with serving(chat, OPEN_TO_EXAMPLE) as address, httpx.Client(base_url=address) as client:
        host = address.removeprefix("http://")
        for headers in ({"Origin": "https://evil.invalid"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
                        {"Sec-Fetch-Site": "same-site", "Origin": address}):  # fmt: skip
            for path in ("/v1/chat/completions", "/gradio_api/queue/join", "/gradio_api/upload"):
                told(client.post(path, json=ASKED, headers=headers), 403)
        for where in (host, "example.org"):  # Gradio lets any origin read where its own host is not the local one
            for origin in ("https://evil.invalid", "http://localhost:1234"):
                for path in ("/", "/config", "/v1/models", "/gradio_api/info"):
                    seen = {"Origin": origin, "Host": where}
                    preflight = seen | {"Access-Control-Request-Method": "POST"}
                    for answer in (client.get(path, headers=seen), client.options(path, headers=preflight)):
                        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert client.post("/v1/chat/completions", json=ASKED, headers={"Origin": address}, timeout=120).is_success
        headers = client.get("/").headers
    assert "frame-ancestors 'self' https://example.org" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
    assert "x-frame-options" not in headers and "access-control-allow-credentials" not in headers


def test_the_log_has_a_line_for_each_request_and_never_words_pictures_or_keys(
    chat: Chat, capsys: pytest.CaptureFixture[str], tmp_path: Path, picture: Any
) -> None:
    picture(1).save(tmp_path / "canary-picture.png")
    with serving(chat, Policy(keys=KEYS, log_format="json")) as address:
        headers = {"Authorization": f"Bearer {ANNA}", "X-Request-ID": "mine-1"}
        answer = httpx.post(f"{address}/v1/chat/completions", json=ASKED, headers=headers, timeout=120)
        assert answer.headers["x-request-id"] == "mine-1"
        wrong = {"Authorization": f"Bearer {ANNA}x", "X-Request-ID": "two\tlines"}
        other = httpx.get(f"{address}/v1/models?canary-query", headers=wrong)
        assert re.fullmatch("[0-9a-f]{32}", other.headers["x-request-id"])
        page = gradio_client.Client(address, headers={"Authorization": f"Bearer {BERT}"}, verbose=False)
        files = [gradio_client.handle_file(tmp_path / "canary-picture.png")]
        page.predict({"text": WORDS, "files": files}, "", 0, 4, api_name="/chat")
        page.close()
    told = capsys.readouterr().err
    assert "canary" not in told
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    (asked,) = [line for line in lines if line.get("request") == "mine-1"]
    assert asked["key"] == "anna" and asked["route"] == "/v1/chat/completions" and asked["status"] == 200
    assert asked["prompt_tokens"] > asked["cached_tokens"] == 0 and asked["new_tokens"] == 3
    assert asked["end"] == "length" and 0 < asked["first_token_seconds"] <= asked["seconds"]
    (refused,) = [line for line in lines if line.get("status") == 401]
    assert "key" not in refused and refused["route"] == "/v1/models"
    (question,) = [line for line in lines if line["route"] == "page"]
    assert question["key"] == "bert" and question["new_tokens"] == 4 and question["end"] == "length"


def test_gradio_fetches_no_address_and_prints_no_words(
    chat: Chat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up, real = [], socket.getaddrinfo

    def watched(host: Any, *more: Any, **named: Any) -> Any:
        looked_up.append(str(host))
        return real(host, *more, **named)

    with serving(chat) as address:
        monkeypatch.setattr(socket, "getaddrinfo", watched)
        for name in ("file=http://canary-one.invalid/x.png", "file=HTTPS://canary-one.invalid/x.png"):
            assert httpx.get(f"{address}/gradio_api/{name}", timeout=60).status_code == 403
        file = {"path": "http://canary-two.invalid/x.png", "meta": {"_type": "gradio.FileData"}}
        for data in (
            [{"text": "hi", "files": [file]}, None, "", 0, 8],
            [{"text": ["canary-words"], "files": []}, None, "", 0, 8],
            [{"text": ["canary-words"], "files": []}, "", 0, 8],
        ):
            assert not httpx.post(f"{address}/gradio_api/run/chat", json={"data": data}, timeout=60).is_success
        assert httpx.post(f"{address}/v1/chat/completions", json=ASKED, timeout=120).is_success
    assert not [host for host in looked_up if "canary" in host]
    assert "canary-words" not in capsys.readouterr().err


def test_words_are_logged_where_the_operator_asks_for_it(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(chat, Policy(log_prompts=True)) as address:
        httpx.post(f"{address}/v1/chat/completions", json=ASKED, timeout=120)
        httpx.get(f"{address}/no%0Awhere status=200", timeout=120)
    lines = capsys.readouterr().err.splitlines()
    assert any(f'prompt="{WORDS}"' in line and "end=length" in line for line in lines)
    assert sum("status=" in line for line in lines) == 2 == sum(line.startswith("time=") for line in lines)


def test_a_name_that_is_made_to_point_here_is_refused(chat: Chat) -> None:
    """DNS rebinding: to a browser, a page of evil.invalid is then of the same origin."""
    with serving(chat) as address, httpx.Client(base_url=address, timeout=60) as client:
        port = address.rpartition(":")[2]
        for host in ("evil.invalid", f"evil.invalid:{port}", "localhost.evil.invalid", "127.0.0.1.evil.invalid", ""):
            headers = {"Host": host, "Origin": f"http://{host}"}
            for path in ("/", "/config", "/health", "/v1/models", "/gradio_api/info"):
                assert told(client.get(path, headers=headers), 403)["code"] == "host_not_allowed"
            asked = client.post("/v1/chat/completions", json=ASKED, headers=headers)
            assert "--host-name" in told(asked, 403)["message"]
        for host in ("localhost", f"LOCALHOST.:{port}", "a.localhost", "127.0.0.1", f"[::1]:{port}", "10.0.0.7:80"):
            assert client.get("/health", headers={"Host": host}).is_success
        with connected(address) as connection:  # as some proxies probe
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert b" 200 " in connection.recv(4096).split(b"\r\n")[0]


def test_whose_name_is_taken_is_the_operators_decision(chat: Chat) -> None:
    key = {"Authorization": f"Bearer {ANNA}"}
    for policy, taken, refused in (
        (Policy(host_names=["chat.example.org", "*.lan"]), ["chat.example.org:443", "a.b.lan"], ["lan", "example.org"]),
        (Policy(keys=KEYS), ["anything.example"], []),
        (Policy(keys=KEYS, host_names=["one.example"]), ["one.example", "localhost"], ["anything.example"]),
    ):
        with serving(chat, policy) as address:
            for host in taken:
                assert httpx.get(f"{address}/v1/models", headers=key | {"Host": host}).is_success
            for host in refused:
                told(httpx.get(f"{address}/v1/models", headers=key | {"Host": host}), 403)
    assert not is_loopback("0.0.0.0") and is_loopback("127.8.8.8") and is_loopback("localhost")
    AllowedHosts([], local=False).check("anything.example")


def test_refusals_are_counted_by_why(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(chat, Policy(keys=KEYS)) as address:
        key = {"Authorization": f"Bearer {ANNA}"}

        def counted(reason: str) -> float:
            text = httpx.get(f"{address}/metrics", headers=key).text
            found = re.search(rf'^vlchat_rejects_total{{reason="{reason}"}} (.*)$', text, re.MULTILINE)
            return float(found[1]) if found else 0.0

        def post(path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
            return httpx.post(address + path, **{"headers": key, **more}, timeout=60)

        told(post(headers={}), 401)
        told(post(headers={"Authorization": "Bearer wrong"}), 401)
        told(post("/gradio_api/queue/join", content=b"x" * (guard.LONGEST_WORDS + 1)), 413)
        told(post(content=(b"x" * 2**16 for _ in range(2**8))), 413)  # without its length
        told(post(headers=key | {"Sec-Fetch-Site": "cross-site"}), 403)
        monkeypatch.setattr(guard, "PATIENCE", 0.3)
        with connected(address) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ANNA}\r\n"
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]
        found = {reason: counted(reason) for reason in ("invalid_api_key", "too_large", "cross_origin", "timeout")}
    assert found == {"invalid_api_key": 2, "too_large": 2, "cross_origin": 1, "timeout": 1}


def test_uploads_have_a_rate(chat: Chat, tmp_path: Path) -> None:
    with serving(chat, Policy(keys=KEYS, uploads=2**20)) as address:

        def sent(size: int, key: str = ANNA, **more: Any) -> httpx.Response:
            headers = {"Authorization": f"Bearer {key}"}
            files = {"files": ("a.png", b"x" * size, "image/png")}
            return httpx.post(f"{address}/gradio_api/upload", files=files, headers=headers, timeout=60, **more)

        assert told(sent(2**20), 413)["message"] == "At most 1 MiB an hour can be uploaded. Send less."
        assert sent(600_000).is_success
        refused = sent(600_000)
        error = told(refused, 429)
        assert error["code"] == "rate_limit_exceeded" and "More than 1 MiB of uploads per hour" in error["message"]
        assert refused.json()["detail"] == error["message"], "which the page shows"
        assert 0 < int(refused.headers["retry-after"]) <= 3600
        assert sent(600_000, BERT).is_success and sent(300_000).is_success
