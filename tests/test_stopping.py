"""What SIGTERM and Ctrl-C do to the real server: no more questions, running answers end, and a second one ends all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from talkative import save_talkative

pytest.importorskip("gradio", reason="gradio is not installed")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> Path:
    return save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer)


@contextmanager
def running(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command and its address, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlchat.cli", "serve", "--model", str(folder), "--port", str(port), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)][1].startswith("model is ready")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class Streamed(threading.Thread):
    """An answer that is read as it comes."""

    def __init__(self, address: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self.address, self.tokens = address, tokens
        self.begun = threading.Event()
        self.events: list[Any] = []
        self.start()
        assert self.begun.wait(120)

    def run(self) -> None:
        messages = [{"role": "user", "content": "two cats"}]
        asked = {"model": "model", "messages": messages, "max_tokens": self.tokens, "stream": True}
        with httpx.stream("POST", f"{self.address}/v1/chat/completions", json=asked, timeout=300) as answer:
            try:
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        self.events.append(json.loads(line.removeprefix("data: ")))
                    elif line:
                        self.events.append(line)
                    if len(self.events) > 1:  # the first is its head
                        self.begun.set()
            except httpx.HTTPError:
                pass


def test_running_answers_end_and_a_second_signal_ends_all(folder: Path) -> None:
    with running(folder, "--grace", "600") as (process, address):
        long = Streamed(address, 8000)
        short = Streamed(address, 40)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None and process.stdout.readline() == "Stopping.\n"
        while (ready := httpx.get(f"{address}/ready", timeout=60)).status_code == 200:  # the signal is on its way
            pass
        refused = httpx.post(f"{address}/v1/chat/completions", json={}, timeout=60)
        for answer, code in ((ready, "not_ready"), (refused, "stopping")):
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"]["code"] == code
        assert httpx.get(f"{address}/health", timeout=60).is_success
        short.join(120)
        assert short.events[-1] == "data: [DONE]" and short.events[-2]["choices"][0]["finish_reason"] == "length"
        assert long.is_alive() and process.poll() is None
        process.send_signal(signal.SIGINT)
        said, told = process.communicate(timeout=30)
    assert process.returncode == 130 and said == "Stopped.\n" and "Traceback" not in told


def test_what_goes_on_after_the_grace_is_ended_and_told_so(folder: Path) -> None:
    with running(folder, "--grace", "0") as (process, address):
        long = Streamed(address, 8000)
        process.send_signal(signal.SIGTERM)
        said, told = process.communicate(timeout=120)
        long.join(60)
    assert process.returncode == 0 and said == "Stopping.\n" and "Traceback" not in told
    assert long.events[-2]["error"]["code"] == "stopping" and long.events[-1] == "data: [DONE]"
    assert "end=cancelled" in told
