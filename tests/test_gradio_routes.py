"""Gradio's own routes on the real server: odd values, what breaks off, and what nobody reads."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from talkative import save_talkative
from test_torture import LEAKS, PHOTO
from tiny_tokenizers import byte_level
from transformers import CLIPVisionConfig, CLIPVisionModel

pytest.importorskip("gradio", reason="gradio is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")

from gradio import routes  # noqa: E402

from serve import gradio_routes  # noqa: E402
from serve.app import launch  # noqa: E402
from vlchat.chat import Chat  # noqa: E402

ASKED: list[Any] = [{"text": "two cats", "files": []}, "", 0, 4, ""]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The real server: its `address`, `page` and the folder of its `uploads`."""
    folder = tmp_path_factory.mktemp("gradio")
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=24, patch_size=12, projection_dim=16)).eval()
    chat = Chat.load(save_talkative(folder / "model", tower, byte_level()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        patch.setenv("TMPDIR", str(folder))
        page = launch(chat, port=port)
        yield SimpleNamespace(
            address=f"http://127.0.0.1:{port}", port=port, page=page, uploads=folder / "uploads", chat=chat
        )
        page.close(verbose=False)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


def refused(answer: httpx.Response, *statuses: int) -> None:
    error = answer.json()["error"]
    assert answer.status_code in statuses, answer.text
    assert set(error) == {"message", "type", "param", "code"} and error["message"] == answer.json()["detail"]
    assert not LEAKS.search(answer.text), answer.text


ODD: list[Any] = [
    None, 5, -1, "x", 1e400, True, [], {}, [[]], {"text": 5}, {"text": None, "files": 5}, "\ud800",
    {"text": "x", "files": [{"path": 5}]}, [{"role": "user"}], [{"role": 5, "content": 5}],
]  # fmt: skip


@pytest.mark.parametrize("path", ["run/chat", "api/chat"])
def test_odd_values_are_no_fault_of_the_server(server: SimpleNamespace, path: str) -> None:
    inputs = 1 + len(ASKED)  # the history as well
    with httpx.Client(base_url=f"{server.address}/gradio_api/", timeout=60) as client:
        for place in range(inputs):
            for odd in ODD:
                values = [ASKED[0], [], *ASKED[1:]]
                values[place] = odd
                body = _json({"data": values})
                answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
                if answer.status_code != 200:
                    refused(answer, 400, 422)
        for body in (b"", b"{", b"[]", b'{"data": 5}', b'{"data": []}', b'{"data": [1, 2, 3, 4, 5, 6, 7, 8, 9]}'):
            refused(client.post(path, content=body, headers={"Content-Type": "application/json"}), 400, 422)
        refused(client.post("run/nobody", json={"data": []}), 404)


def _json(told: Any) -> bytes:
    import json

    return json.dumps(told).encode()


def test_odd_joins_are_no_fault_of_the_server(server: SimpleNamespace) -> None:
    with httpx.Client(base_url=f"{server.address}/gradio_api/", timeout=60) as client:
        odd: list[dict[str, Any]] = [
            {"fn_index": 10_000}, {"fn_index": -1}, {"fn_index": "x"}, {"session_hash": 5}, {"data": 5},
            {"session_hash": None}, {"trigger_id": "x"}, {"fn_index": None}, {"fn_index": 1e400},
        ]  # fmt: skip
        for change in odd:
            body = _json({"data": [], "fn_index": 0, "session_hash": "odd", **change})
            answer = client.post("queue/join", content=body, headers={"Content-Type": "application/json"})
            refused(answer, 400, 404, 422)
        refused(client.post("call/nobody", json={"data": []}), 404)
        refused(client.post("call/chat", json={"data": 5}), 422)
        refused(client.post("cancel", json={"session_hash": 5}), 422)
        refused(client.post("process_recording", files={"video": ("a.webm", b"x")}), 404)
        refused(client.get("file=/etc/hostname"), 403, 404)


def test_a_fault_of_the_model_stays_ours(server: SimpleNamespace) -> None:
    def torn(*_: Any) -> None:
        raise SystemError("torn weights at /srv/secret")

    mended = server.page.engine.submit
    server.page.engine.submit = torn
    try:
        answer = httpx.post(
            f"{server.address}/gradio_api/run/chat", json={"data": [ASKED[0], [], *ASKED[1:]]}, timeout=60
        )
    finally:
        server.page.engine.submit = mended
    refused(answer, 500)


def part(boundary: bytes, name: bytes, data: bytes, filename: bytes = b"a.png") -> bytes:
    head = b'Content-Disposition: form-data; name="' + name + b'"; filename="' + filename + b'"'
    return b"--" + boundary + b"\r\n" + head + b"\r\nContent-Type: image/png\r\n\r\n" + data


def test_of_an_upload_that_breaks_off_nothing_stays(server: SimpleNamespace) -> None:
    kept = httpx.post(f"{server.address}/gradio_api/upload", files={"files": ("a.png", PHOTO)}, timeout=60).json()[0]

    def files() -> set[Path]:
        return {one for one in server.uploads.rglob("*") if one.is_file()}

    before = files()
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + part(b"x", b"files", b"y" * 300_000))
        until(lambda: len(files()) == len(before) + 1)
    until(lambda: files() == before)
    whole = b"\r\n--x--\r\n"
    for body in (
        part(b"x", b"files", b"y" * 5000),  # without its end
        part(b"x", b"others", b"y" * 5000) + whole,
        part(b"x", b"files", b"y" * 5000, b"..") + whole,
        part(b"x", b"files", b"y" * 5000) + b"\r\n" + part(b"x", b"files", b"z", b"..") + whole,
    ):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = httpx.post(
            f"{server.address}/gradio_api/upload?upload_id=a", content=body, headers=headers, timeout=60
        )
        assert answer.status_code < 500
        until(lambda: not {one for one in files() if one.parent == server.uploads})
    assert Path(kept).read_bytes() == PHOTO


def test_progress_of_uploads_is_kept_for_few(server: SimpleNamespace) -> None:
    statuses = routes.file_upload_statuses
    for number in range(2000):
        statuses.track(f"upload {number}")
    assert len(statuses._statuses) == len(statuses._signals) == 1000
    assert statuses.is_done("upload 1999") is False


def test_what_nobody_reads_is_forgotten(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = server.page._queue
    with httpx.Client(base_url=f"{server.address}/gradio_api/", timeout=60) as client:
        answers = [client.post("call/chat", json={"data": ASKED, "session_hash": "one"}) for _ in range(80)]
        assert {answer.status_code for answer in answers} == {200, 503}
        assert sum(answer.is_success for answer in answers) == gradio_routes.MOST_UNREAD
        refused(answers[-1], 503)
        assert int(answers[-1].headers["retry-after"]) > 0
        until(lambda: not queue.event_ids_to_events)
        assert len(queue.pending_event_ids_session["one"]) == gradio_routes.MOST_UNREAD
        monkeypatch.setattr(gradio_routes, "UNREAD", 0.0)
        assert client.post("call/chat", json={"data": ASKED, "session_hash": "two"}).is_success
        assert set(queue.pending_messages_per_session) <= {"two"} >= set(queue.pending_event_ids_session)
    monkeypatch.undo()
    page = gradio_client.Client(server.address, verbose=False)
    expected = server.chat.ask(None, "two cats", max_new_tokens=4)
    assert page.predict(*ASKED, api_name="/chat").strip() == expected
    page.close()
    assert not queue.event_analytics or len(queue.event_analytics) < 100
