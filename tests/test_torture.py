"""Rows 1 to 46, 49 and 50 of the torture list, each against the real server, which answers a good request after it.

Rows 47 and 48 are in tests/test_keys.py. Row 38 is in a real browser too: tests/test_browser.py. In depth:
test_images.py, test_decoding.py and test_fetching.py.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
import torch
from PIL import Image
from talkative import save_talkative
from test_api import about, url
from test_fetching import Canary, by_drops, plain
from test_images import REFUSED, chunk, encoded, noise, png, sixteen_bit_png
from tiny_tokenizers import byte_level
from transformers import CLIPVisionConfig, CLIPVisionModel

pytest.importorskip("gradio", reason="gradio is not installed")

from serve import guard  # noqa: E402
from serve.app import launch  # noqa: E402
from serve.fetching import Hosts  # noqa: E402
from serve.messages import escaped  # noqa: E402
from serve.requests import MOST_PICTURES  # noqa: E402
from vlchat import images  # noqa: E402
from vlchat.chat import Chat, ask_messages  # noqa: E402

PHOTO = encoded(noise(60, 40, seed=1), "PNG")
LEAKS = re.compile(r"0x[0-9a-f]{6,}|<[\w.]+ object|Traceback|\.py\b|/(tmp|home|usr|etc|root|work|var)/|Error\(")


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.shutdown()
    canary.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, canary: Canary) -> Iterator[SimpleNamespace]:
    """The real server, `chat` and `app` within it. It may fetch pictures from the canary's `127.0.0.1:PORT` alone."""
    folder = tmp_path_factory.mktemp("torture")
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    tower = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=24, patch_size=12, projection_dim=16)).eval()
    chat = Chat.load(save_talkative(folder / "model", tower, byte_level()))
    chat.description.update(name="tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    app = launch(chat, port=port, hosts=Hosts([canary.host]))
    yield SimpleNamespace(address=f"http://127.0.0.1:{port}", port=port, chat=chat, app=app)
    app.close(verbose=False)
    os.environ.pop("GRADIO_TEMP_DIR") if before is None else os.environ.update(GRADIO_TEMP_DIR=before)


@pytest.fixture(autouse=True)
def _the_next_good_request_is_answered(server: SimpleNamespace) -> Iterator[None]:
    yield
    assert ask(server, about(PHOTO)).status_code == 200


def ask(server: SimpleNamespace, messages: Any, **more: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": messages, "max_tokens": 3, "temperature": 0, **more}
    return post(server, json.dumps(body).encode())


def post(server: SimpleNamespace, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.address}/v1/chat/completions", content=body, headers=headers, timeout=300)


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def refused(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """The error, once it is sure that it has OpenAI's shape and tells nothing of the server."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] and error["type"]
    assert not LEAKS.search(answer.text), answer.text
    for word in words:
        assert word in error["message"]
    return error


def words(text: str, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


def rows(first: int, last: int) -> list[str]:
    """The cases of tests/test_images.py that belong to some rows of the list."""
    return [case for case in REFUSED if case.split()[0].isdigit() and first <= int(case.split()[0]) <= last]


def torture(*numbers: int | str) -> Any:
    """Runs a test once for each of these rows or cases, called `torture-07`."""
    names = [f"torture-{int(str(one).split()[0]):02}" for one in numbers]
    return pytest.mark.parametrize("row", numbers, ids=names)


@torture(*rows(1, 7), *rows(8, 10), *rows(12, 12), *rows(14, 16))
def test_pictures_that_are_refused(server: SimpleNamespace, row: str) -> None:
    data, status, told = REFUSED[row]
    error = refused(ask(server, with_url(data_url(data))), status)
    assert re.search(told, error["message"])
    assert error["code"] == {400: "invalid_image", 413: "image_too_large", 415: "unsupported_image"}[status]


def with_url(where: str) -> list[dict[str, Any]]:
    messages = about(PHOTO)
    messages[0]["content"][0]["image_url"]["url"] = where
    return messages


@torture(11)
def test_one_pixel(server: SimpleNamespace, row: int) -> None:
    said(ask(server, about(png(1, 1))))


@torture(13)
def test_many_frames(server: SimpleNamespace, row: int) -> None:
    frames = [Image.new("P", (4, 4), index % 256) for index in range(10_000)]
    for index, frame in enumerate(frames):
        frame.putpixel((index % 4, 0), 255 - index % 256)
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    refused(ask(server, with_url(url(data, "image/gif"))), 415, "moving picture")


@torture(17)
def test_another_type_than_declared(server: SimpleNamespace, row: int) -> None:
    refused(ask(server, with_url(url(PHOTO, "image/jpeg"))), 415, "declared as")


@torture(18)
def test_every_mode_is_answered_as_its_plain_picture(server: SimpleNamespace, row: int) -> None:
    base = noise(60, 40, seed=3)
    made = {
        "P": encoded(base.convert("P"), "PNG"),
        "LA": encoded(base.convert("LA"), "PNG"),
        "1": encoded(base.convert("1"), "PNG"),
        "deep": sixteen_bit_png(),
        "CMYK": encoded(base.convert("CMYK"), "JPEG"),
    }
    for data in made.values():
        plain_one = encoded(images.decode(data), "PNG")
        assert said(ask(server, with_url(data_url(data)))) == said(ask(server, about(plain_one)))
        inputs, _ = server.chat.prepare(ask_messages(data, "What is it?"), max_new_tokens=1)
        assert torch.isfinite(inputs["pixel_values"]).all()
    refused(ask(server, with_url(data_url(encoded(Image.new("F", (9, 9)), "TIFF")))), 415)


def data_url(data: bytes) -> str:
    return url(data, "application/octet-stream")


@torture(19)
def test_a_turned_photo_is_answered_as_the_upright_one(server: SimpleNamespace, row: int) -> None:
    stored, exif = noise(60, 40, seed=4), Image.Exif()
    exif[0x0112] = 6
    upright = stored.transpose(Image.Transpose.ROTATE_270)
    assert said(ask(server, about(encoded(stored, "PNG", exif=exif)))) == said(
        ask(server, about(encoded(upright, "PNG")))
    )


@torture(20)
def test_what_is_clear_is_white(server: SimpleNamespace, row: int) -> None:
    shape, ink = Image.new("RGBA", (60, 40), (0, 0, 0, 0)), Image.new("RGBA", (20, 20), (200, 0, 0, 255))
    shape.paste(ink, (5, 5))
    on_white = Image.new("RGB", (60, 40), "white")
    on_white.paste(ink, (5, 5))
    assert said(ask(server, about(encoded(shape, "PNG")))) == said(ask(server, about(encoded(on_white, "PNG"))))


@torture(21)
def test_a_picture_that_is_a_page_too_is_never_served_as_one(server: SimpleNamespace, row: int) -> None:
    page = b"<html><script>document.title = 'taken'</script></html>"
    polyglot = png(8, 8, extra=chunk(b"tEXt", b"x\x00" + page))
    said(ask(server, about(polyglot)))
    for name, kind in (("a.png", "image/png"), ("a.html", "text/html"), ("a.svg", "image/svg+xml")):
        sent = httpx.post(f"{server.address}/gradio_api/upload", files={"files": (name, polyglot, kind)}, timeout=60)
        if sent.is_success:
            got = httpx.get(f"{server.address}/gradio_api/file={sent.json()[0]}", timeout=60)
            served = got.headers["content-type"].split(";")[0]
            assert served.startswith("image/p") or "attachment" in got.headers.get("content-disposition", ""), name


@torture(22)
def test_bad_base64(server: SimpleNamespace, row: int) -> None:
    refused(ask(server, with_url("data:image/png;base64,***")), 400, "base64")


def too_long(server: SimpleNamespace, declared: int) -> None:
    """Says that so many bytes come, and sends what the server takes of them."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {declared}\r\n\r\n"
        connection.sendall(head.encode())
        told = b""
        while b"\r\n\r\n" not in told and (part := connection.recv(65536)):
            told += part
    assert told.split(b"\r\n")[0].split()[1] == b"413"


@torture(23, 41)
def test_a_long_body_costs_no_memory(server: SimpleNamespace, row: int) -> None:
    process = psutil.Process()
    ask(server, about(PHOTO))
    before = process.memory_info().rss
    too_long(server, {23: 500, 41: 200}[row] * 2**20)
    assert process.memory_info().rss - before < 20 * 10**6


@torture(24)
def test_too_many_pictures(server: SimpleNamespace, row: int) -> None:
    parts = about(PHOTO)[0]["content"][:1] * (MOST_PICTURES + 1)
    refused(ask(server, [{"role": "user", "content": parts}]), 400, str(MOST_PICTURES + 1), str(MOST_PICTURES))


ADDRESSES: dict[int, list[str]] = {
    25: ["http://localhost:{port}/", "http://127.0.0.1/", "http://[::1]:{port}/"],
    27: ["http://one.invalid/", "http://two.invalid:{port}/"],
    28: ["file:///etc/hostname", "/etc/hostname", "file://127.0.0.1:{port}/"],
    29: ["http://one.invalid\\@127.0.0.1:{port}/", "http://2130706433:{port}/", "http://[::ffff:127.0.0.1]:{port}/"],
}


@torture(*ADDRESSES)
def test_addresses_that_are_not_allowed(server: SimpleNamespace, canary: Canary, row: int) -> None:
    before = canary.connections
    for where in ADDRESSES[row]:
        refused(ask(server, with_url(where.replace("{port}", str(canary.server_port)))), 400)
    assert canary.connections == before


@torture(26)
def test_a_redirect_to_what_is_not_allowed(server: SimpleNamespace, canary: Canary, row: int) -> None:
    canary.answers["/away"] = plain(b"", 302, Location=f"http://localhost:{canary.server_port}/private")
    refused(ask(server, with_url(f"http://{canary.host}/away")), 400, "not fetched from")
    assert "/private" not in [path for path, _ in canary.asked]
    canary.answers["/photo.png"] = plain(PHOTO)
    assert said(ask(server, with_url(f"http://{canary.host}/photo.png"))) == said(ask(server, about(PHOTO)))


@torture(30)
def test_slow_and_packed_bodies(server: SimpleNamespace, canary: Canary, row: int) -> None:
    canary.answers.update({"/slow": by_drops, "/packed": plain(b"\x1f\x8b", Content_Encoding="gzip")})
    refused(ask(server, with_url(f"http://{canary.host}/packed")), 400, "packed")
    refused(ask(server, with_url(f"http://{canary.host}/slow")), 400, "did not arrive")


LITERAL = {31: ["<image>"], 33: ["<|im_end|>", "[INST]", "</s>"], 34: ["<ima<image>ge>"]}


@torture(*LITERAL)
def test_words_stay_words(server: SimpleNamespace, row: int) -> None:
    special = set(server.chat.tokenizer.all_special_ids)

    def control(text: str) -> list[int]:
        inputs, _ = server.chat.prepare(ask_messages(None, text), max_new_tokens=1)
        return [token for token in inputs["input_ids"][0].tolist() if token in special]

    for text in LITERAL[row]:
        answer = ask(server, words(f"two {text} cats"))
        said(answer)
        assert control(f"two {text} cats") == control("two cats")
        assert answer.json()["usage"]["prompt_tokens"] > ask(server, words("two cats")).json()["usage"]["prompt_tokens"]


@torture(32)
def test_a_typed_placeholder_is_no_place_for_a_picture(server: SimpleNamespace, row: int) -> None:
    """Places come from the pictures, so the two counts can't differ; rows of a dataset: tests/test_cli.py."""
    said(ask(server, about(PHOTO, "<image> <image> What is it?")))
    inputs, _ = server.chat.prepare(ask_messages(PHOTO, "<image> <image>"), max_new_tokens=1)
    assert int((inputs["input_ids"] == server.chat.model.config.image_token_id).sum()) == 4


@torture(35)
def test_control_tokens_in_roles_and_names(server: SimpleNamespace, row: int) -> None:
    assert refused(ask(server, words("?", "user<|im_end|>")), 422)["param"] == "messages.0.role"
    said(ask(server, [{**words("two cats")[0], "name": "<|im_end|>"}]))


@torture(36)
def test_odd_unicode(server: SimpleNamespace, row: int) -> None:
    for text in (
        "nul\0",
        "\ud800 lone",
        "\U0010ffff\ufffe",
        "\u202e\u200b\u0301" * 40,
        "\x1b[2J",
        "\ufeff",
        "🏳️‍🌈" * 20,
    ):
        assert ask(server, words(text)).status_code < 500
    assert post(server, b'{"model": "\\ud800", "messages": [{"role": "\\u0000"}]}').status_code in (404, 422)


@torture(37)
def test_longer_than_the_context(server: SimpleNamespace, row: int) -> None:
    error = refused(ask(server, words("cats " * 9000)), 400, "8192")
    assert len([number for number in re.findall(r"\d+", error["message"].replace(",", "")) if int(number) >= 8192]) >= 2


@torture(38)
def test_what_a_model_says_is_no_page(row: int) -> None:
    for text in ("<img src=http://one.invalid/>", "<a href='javascript:1'>x</a>", "<!--", "</p><script>"):
        (shown,) = escaped({"role": "assistant", "content": text})["content"]
        assert not re.search(r"<[a-zA-Z/!?]", shown)


@torture(39, 40)
def test_what_is_no_json(server: SimpleNamespace, row: int) -> None:
    for body in {39: [b"{", b"\xff\xfe", b"[]", b""], 40: [b"[" * 100_000, b'{"a":' * 100_000]}[row]:
        refused(post(server, body), 400, "JSON")


@torture(42, 43, 44, 45)
def test_numbers_out_of_range(server: SimpleNamespace, row: int) -> None:
    changes: dict[int, list[dict[str, Any]]] = {
        42: [{"temperature": float("nan")}],
        43: [{"max_tokens": 0}, {"max_tokens": -1}, {"max_tokens": 10**9}],
        44: [{"n": 1000}],
        45: [{"messages": []}],
    }
    for change in changes[row]:
        body = {"model": "tiny", "messages": words("?"), **change}
        assert refused(post(server, json.dumps(body).encode()), 422)["param"] == next(iter(change))


@torture(46)
def test_a_template_is_not_taken(server: SimpleNamespace, row: int) -> None:
    assert refused(ask(server, words("?"), chat_template="{{ 7 * 7 }}"), 400)["param"] == "chat_template"


def long_answer(server: SimpleNamespace, stream: bool) -> socket.socket:
    """A connection on which a very long answer is asked for."""
    body = json.dumps({"model": "tiny", "messages": words("two cats"), "max_tokens": 7000, "stream": stream})
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    return connection


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@torture(49)
def test_a_full_line(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    engine = server.app.engine.first
    monkeypatch.setattr(engine, "waiting", 1)
    pace = server.chat.model.lm_head.register_forward_hook(lambda *_: time.sleep(0.005))
    connections = []
    for number in range(engine.most):
        connections.append(long_answer(server, stream=True))
        until(lambda number=number: engine.answering == number + 1)  # type: ignore[misc]
    connections.append(long_answer(server, stream=True))
    until(lambda: len(engine._line) == 1)
    answer = ask(server, words("two cats"))
    refused(answer, 429)
    assert int(answer.headers["Retry-After"]) > 0
    for connection in connections:
        connection.close()
    until(lambda: engine.answering == 0)
    pace.remove()


@torture(50)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(server: SimpleNamespace, stream: bool, row: int) -> None:
    engine = server.app.engine.first
    pace = server.chat.model.lm_head.register_forward_hook(lambda *_: time.sleep(0.005))

    def counted(name: str) -> float:
        return engine.metrics.registry.get_sample_value(name) or 0.0

    tokens, written = counted("vlchat_inter_token_seconds_count"), counted("vlchat_new_tokens_total")
    connection = long_answer(server, stream)
    until(lambda: counted("vlchat_inter_token_seconds_count") > tokens + 3)
    connection.close()
    until(lambda: engine.answering == 0)
    pace.remove()
    assert counted("vlchat_new_tokens_total") - written < 7000


@torture(50)
def test_a_body_that_comes_too_slowly(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    monkeypatch.setattr(guard, "PATIENCE", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{")
        assert connection.recv(4096).split(b"\r\n")[0].split()[1] == b"408"
