"""The page and the API in front of other vlchats: real servers with a real model, one of which is killed."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import Launched
from talkative import Steps, save_talkative, serving

from serve.gateway import Gateway
from vlchat.chat import Chat, ask_messages

openai = pytest.importorskip("openai", reason="openai is not installed")
pytest.importorskip("gradio_client", reason="gradio_client is not installed")

from gradio_client import Client, handle_file  # noqa: E402

from serve.messages import REFUSED  # noqa: E402

NAME = "model"  # the folder's


@pytest.fixture
def chat(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Chat:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    return Chat.load(save_talkative(tmp_path / NAME, tiny_clip, tiny_tokenizer))


@pytest.fixture
def photo(tmp_path: Path, picture: Callable[..., Any]) -> str:
    picture(1, (60, 40)).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@contextmanager
def gateway_to(*urls: str, **options: Any) -> Iterator[tuple[str, Gateway]]:
    """The address of a page and an API in front of the others, and what answers there."""
    gateway = Gateway(urls, every=0.5, **options)
    with serving(gateway) as address:
        yield address, gateway


def client_of(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=300)


def question(photo: str, words: str) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(Path(photo).read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
    return [{"role": "user", "content": parts}]


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 240  # other processes may need this one's core
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready", timeout=10).is_success
    except httpx.HTTPError:
        return False


class Process:
    """`vlchat serve` in a process of its own, on a port that it keeps when it is started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.command = ("-m", "vlchat.cli", "serve", "--model", str(folder), "--port", str(port))
        self.start()

    def start(self) -> None:
        self.launched = Launched(self.command, {"OMP_NUM_THREADS": "1"})

    def kill(self) -> None:
        self.launched.kill()
        wait_for(lambda: self.launched.returncode is not None)


def test_page_and_api_answer_as_the_server_behind_them(chat: Chat, photo: str) -> None:
    expected = chat.ask(Path(photo), "two cats", max_new_tokens=12, system="no dogs")
    steps = Steps(chat)
    with serving(chat) as behind, gateway_to(behind) as (address, _):
        page = Client(address, verbose=False)
        message = {"text": "two cats", "files": [handle_file(photo)]}
        pace = chat.model.lm_head.register_forward_hook(lambda *_: time.sleep(0.3))  # so that it is seen to grow
        job = page.submit(message, "no dogs", 0, 12, api_name="/chat")
        assert job.result().strip() == expected and len(job.outputs()) > 3
        pace.remove()
        direct, through = client_of(behind), client_of(address)
        assert [one.id for one in through.models.list()] == [NAME]
        word = expected.split()[4]
        asked: dict[str, Any] = {"model": NAME, "messages": question(photo, "two cats"), "max_tokens": 12}
        for options in (
            {"temperature": 0},
            {"seed": 3},
            {"seed": 4, "temperature": 0.7, "top_p": 0.9},
            {"stop": word, "seed": 3},
        ):
            one, other = (
                client.chat.completions.create(**asked, **options) for client in (direct, through)
            )  # fmt: skip
            assert one.choices[0].message.content == other.choices[0].message.content, options
            assert one.choices[0].finish_reason == other.choices[0].finish_reason
            assert one.usage.completion_tokens == other.usage.completion_tokens
            assert one.usage.prompt_tokens == other.usage.prompt_tokens
        for stream in (False, True):  # both as a status, before the first word
            with pytest.raises(openai.BadRequestError, match="8192"):
                long = [{"role": "user", "content": "cats " * 9000}]
                through.chat.completions.create(model=NAME, messages=long, stream=stream)
        with pytest.raises(openai.NotFoundError, match="known: model"):
            through.chat.completions.create(model="gpt-4o", messages=question(photo, "?"))
        told = page.predict({"text": "cats " * 9000, "files": []}, "", 0, 12, api_name="/chat")
        assert told["metadata"]["title"] == REFUSED and "8192" in told["content"]
        page.close()
        # Who leaves frees the slot behind the gateway, streaming or not.
        pace = chat.model.lm_head.register_forward_hook(lambda *_: time.sleep(0.01))
        for stream in (False, True):
            begun = steps.count
            body = {**asked, "max_tokens": 8000, "stream": stream}
            with httpx.Client(timeout=300) as http:
                request = http.build_request("POST", f"{address}/v1/chat/completions", json=body)
                if stream:
                    answer = http.send(request, stream=True)
                    next(answer.iter_bytes())
                    answer.close()
                else:
                    with pytest.raises(httpx.ReadTimeout):
                        request.extensions["timeout"] = {"connect": 60, "read": 2.0, "write": 60, "pool": 60}
                        http.send(request)
            counted = -1
            while counted != steps.count:  # until nothing is computed for a while
                counted = steps.count
                time.sleep(0.5)
            assert steps.count - begun < 7000
        pace.remove()


def test_one_of_two_servers_is_killed_and_no_conversation_is_lost(chat: Chat, photo: str, tmp_path: Path) -> None:
    servers = [Process(tmp_path / NAME) for _ in range(2)]
    try:
        wait_for(lambda: all(up(one.url) for one in servers))
        with gateway_to(*(one.url for one in servers)) as (address, gateway):
            through = client_of(address)

            def killed() -> Process:
                """Whoever is answering is killed."""
                (busy,) = [one.url for one in gateway.upstreams if one.under_way]
                (server,) = [one for one in servers if one.url == busy]
                server.kill()
                return server

            def back(server: Process) -> None:
                server.start()
                wait_for(lambda: up(server.url))
                wait_for(lambda: all(one.alive for one in gateway.upstreams))

            # A conversation's turns reach the server that keeps what it computed.
            for number in range(3):
                turns = question(photo, f"{number} cats")
                first = through.chat.completions.create(model=NAME, messages=turns, max_tokens=8, temperature=0)
                said = first.choices[0].message.content
                turns += [{"role": "assistant", "content": said}, {"role": "user", "content": "is it green ?"}]
                second = through.chat.completions.create(model=NAME, messages=turns, max_tokens=8, temperature=0)
                assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1

            # In the middle of an answer that another server would give again: nobody notices.
            expected = chat.ask(Path(photo), "tell me", max_new_tokens=600)
            asked: dict[str, Any] = {"model": NAME, "messages": question(photo, "tell me"), "stream": True}
            pieces = _pieces(through.chat.completions.create(**asked, max_tokens=600, temperature=0))
            text = next(pieces)
            gone = killed()
            assert (text + "".join(pieces)).strip() == expected

            # Between two turns, on the page: the next one is answered by the other server.
            back(gone)
            page = Client(address, verbose=False)
            message = {"text": "two cats", "files": [handle_file(photo)]}
            first_said = page.predict(message, "", 0, 8, api_name="/chat").strip()
            assert first_said == chat.ask(Path(photo), "two cats", max_new_tokens=8)
            servers[0].kill()
            turns = ask_messages(Path(photo), "two cats")
            turns += [{"role": "assistant", "content": first_said}, {"role": "user", "content": "is it green ?"}]
            follow = {"text": "is it green ?", "files": []}
            assert page.predict(follow, "", 0, 8, api_name="/chat").strip() == chat.batch([turns], max_new_tokens=8)[0]

            # In the middle of one that is drawn: a sentence, and the conversation goes on.
            back(servers[0])
            pieces = _pieces(through.chat.completions.create(**asked, max_tokens=4000, temperature=1))
            next(pieces)
            gone = killed()
            with pytest.raises(openai.APIError, match="ask again"):
                list(pieces)
            assert (
                through.chat.completions.create(**{**asked, "stream": False}, max_tokens=4).choices[0].message.content
            )

            # Nobody is left: told so, by status, until one is back.
            for server in servers:
                if server is not gone:
                    server.kill()
            wait_for(lambda: httpx.get(f"{address}/ready").status_code == 503)
            with pytest.raises(openai.InternalServerError, match="None of the servers") as told:
                through.chat.completions.create(**asked)
            assert told.value.status_code == 503 and "127.0.0.1" not in str(told.value)
            sentence = page.predict(follow, "", 0, 8, api_name="/chat")["content"]
            assert "Ask again" in sentence
            gone.start()
            wait_for(lambda: up(address))
            turns += [{"role": "assistant", "content": chat.batch([turns], max_new_tokens=8)[0]}]
            turns += [{"role": "user", "content": "two cats"}]
            said = page.predict({"text": "two cats", "files": []}, "", 0, 8, api_name="/chat")
            assert said.strip() == chat.batch([turns], max_new_tokens=8)[0]
            page.close()
    finally:
        for server in servers:
            server.kill()


def _pieces(stream: Any) -> Iterator[str]:
    for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                yield choice.delta.content
