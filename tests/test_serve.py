"""The real Gradio server on a tiny model, asked by its own client: answers stream, mistakes are told in the chat."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from talkative import save_talkative, serving

from vlchat import checkpoint
from vlchat.chat import Chat
from vlchat.cli import main
from vlchat.errors import ImageError, VLChatError

pytest.importorskip("gradio", reason="gradio is not installed")
pytest.importorskip("gradio_client", reason="gradio_client is not installed")

from gradio_client import Client, handle_file  # noqa: E402

from serve import messages  # noqa: E402
from serve.app import EXAMPLES, build_app, mount_options  # noqa: E402
from serve.decoding import Decoder  # noqa: E402
from serve.engine import Engine  # noqa: E402
from serve.messages import REFUSED, escaped, in_line, refusal  # noqa: E402
from serve.page.chat_tab import examples_of  # noqa: E402
from serve.page.settings import about  # noqa: E402


def conversation(*told: Any) -> list[dict[str, Any]]:
    with closing(Decoder()) as decoder:  # starts no worker before it is asked for a picture
        return messages.conversation(*told, decoder)


@pytest.fixture
def chat(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Chat:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    chat = Chat.load(save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer))
    chat.description.update(name="Tiny <one>", trained_on="nothing at all")
    return chat


@pytest.fixture
def client(chat: Chat) -> Iterator[Client]:
    with serving(chat) as address:
        client = Client(address, verbose=False)
        yield client
        client.close()


@pytest.fixture
def good(tmp_path: Path, picture: Callable) -> str:
    picture(1, (60, 40)).save(tmp_path / "good.png")
    return str(tmp_path / "good.png")


def ask(client: Client, text: str, *files: str, length: int = 8, system: str = "") -> Any:
    message = {"text": text, "files": [handle_file(file) for file in files]}
    return client.submit(message, system, 0, length, api_name="/chat")


def said(role: str, text: str, *pictures: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "image", "image": Path(path)} for path in pictures]
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


def test_an_answer_streams_and_is_the_models_own(client: Client, chat: Chat, good: str) -> None:
    expected = chat.ask(Path(good), "two cats", max_new_tokens=20, system="no dogs")
    pace = chat.model.lm_head.register_forward_hook(lambda *_: time.sleep(0.05))  # so that it is seen to grow
    job = ask(client, "two cats", good, length=20, system="no dogs")
    assert job.result().strip() == expected
    pace.remove()
    pieces = job.outputs()
    assert len(pieces) > 3
    assert all(later.startswith(earlier) for earlier, later in zip(pieces, pieces[1:], strict=False))


def test_a_bad_picture_is_told_and_the_conversation_goes_on_without_it(
    client: Client, chat: Chat, good: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    first = ask(client, "two cats", good).result()
    told = ask(client, "What is it?", str(tmp_path / "bad.png")).result()
    assert told["metadata"]["title"] == REFUSED
    assert "bad.png" in told["content"] and str(tmp_path) not in told["content"]
    second = ask(client, "is it green ?", good, good).result()
    turns = [said("user", "two cats", good), said("assistant", first), said("user", "is it green ?", good, good)]
    assert second.strip() == chat.batch([turns], max_new_tokens=8)[0]


def test_what_cannot_be_asked_is_told(client: Client, chat: Chat) -> None:
    assert "Type a question" in ask(client, "").result()["content"]
    chat.model.config.text_config.max_position_embeddings = 100
    told = ask(client, "cats and dogs " * 50).result()["content"]
    assert "100" in told and "tokens" in told
    assert isinstance(ask(client, "two cats").result(), str)


def test_two_people_are_answered_at_once(chat: Chat, good: str) -> None:
    expected = chat.ask(Path(good), "two cats", max_new_tokens=4)
    pace = chat.model.lm_head.register_forward_hook(lambda *_: time.sleep(0.03))
    with serving(chat) as address:
        patient, quick = Client(address, verbose=False), Client(address, verbose=False)
        long = patient.submit({"text": "tell me", "files": []}, "", 0, 1000, api_name="/chat")
        assert next(iter(long))
        message = {"text": "two cats", "files": [handle_file(good)]}
        assert quick.predict(message, "", 0, 4, api_name="/chat").strip() == expected
        assert not long.done()
        long.cancel()
        pace.remove()
        patient.close()
        quick.close()


def test_who_waits_sees_how_many_are_before(chat: Chat) -> None:
    pace = chat.model.lm_head.register_forward_hook(lambda *_: time.sleep(0.03))
    with serving(Engine(chat, most=1)) as address:
        people = [Client(address, verbose=False) for _ in range(3)]
        first = people[0].submit({"text": "tell me", "files": []}, "", 0, 1000, api_name="/chat")
        assert next(iter(first))
        second = people[1].submit({"text": "tell me", "files": []}, "", 0, 1000, api_name="/chat")
        assert next(iter(second))["metadata"]["title"] == "In line, place 1"
        third = people[2].submit({"text": "two cats", "files": []}, "", 0, 4, api_name="/chat")
        assert next(iter(third))["metadata"]["title"] == "In line, place 2"
        first.cancel()
        second.cancel()
        pace.remove()
        assert third.result().strip() == chat.ask(None, "two cats", max_new_tokens=4)
        for one in people:
            one.close()


def test_a_place_in_the_line_is_no_answer() -> None:
    history = [{"role": "user", "content": "two cats"}, in_line(2)]
    turns = conversation({"text": "and now?", "files": []}, history, "", [])
    assert [turn["role"] for turn in turns] == ["user"]
    assert [part["text"] for part in turns[0]["content"]] == ["two cats", "\n", "and now?"]


def test_only_the_chat_is_open_to_programs(client: Client) -> None:
    assert list(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == ["/chat"]


def test_a_path_of_the_server_is_not_an_upload(chat: Chat, good: str, tmp_path: Path) -> None:
    """A program that names a file of the server in place of an upload sees nothing of it."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    for path in (good, "/etc/hostname", str(uploads / ".." / "good.png"), "nul\0"):
        with pytest.raises(ImageError, match="not uploaded here"):
            conversation({"text": "?", "files": [path]}, [], "", [uploads])
    (uploads / "in.png").write_bytes(Path(good).read_bytes())
    turns = conversation({"text": "?", "files": [{"path": str(uploads / "in.png")}]}, [], "", [uploads])
    assert [part["type"] for part in turns[0]["content"]] == ["image", "text"]


def test_every_shape_of_history_becomes_the_same_turns(good: str) -> None:
    root = [Path(good).parent]
    page = [
        {"role": "user", "content": [{"type": "text", "text": "a &lt;b> c"}, {"type": "file", "file": {"path": good}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    program = [
        {"role": "user", "content": [{"path": good}, "a <b> c"]},
        {"role": "assistant", "content": "yes"},
    ]
    refused = [{"role": "user", "content": "odd"}, refusal("no")]
    for history in (page, program, [*page, *refused], [*refused, *program]):
        turns = conversation({"text": "next"}, history, "", root)
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        assert [part["type"] for part in turns[0]["content"]] == ["image", "text"]
        assert [turn["content"][-1]["text"] for turn in turns] == ["a <b> c", "yes", "next"]


def test_a_question_stopped_before_its_answer_joins_the_next() -> None:
    turns = conversation({"text": "two"}, [{"role": "user", "content": "one"}], "be kind", [])
    assert [turn["role"] for turn in turns] == ["system", "user"]
    assert "".join(part["text"] for part in turns[1]["content"]) == "one\ntwo"
    with pytest.raises(VLChatError, match="neither text nor a picture"):
        conversation({"text": "two"}, [{"role": "user", "content": [{"type": "video"}]}], "", [])


@pytest.mark.parametrize(
    "text", ["plain", "a < b & c", "<b>bold</b>", "&lt;b&gt;", "&amp;lt;", "<script>", "x</p>", "1 <2", "AT&T &copy;"]
)
def test_texts_are_shown_as_texts_and_come_back_exactly(text: str) -> None:
    shown = escaped({"role": "user", "content": text})["content"][0]
    assert "<b" not in shown and "</" not in shown and "<s" not in shown
    history = [{"role": "user", "content": shown}, {"role": "assistant", "content": "yes"}]
    turns = conversation({"text": "next"}, history, "", [])
    assert turns[0]["content"][0]["text"] == text


def test_the_page_chooses_who_answers_each_message(
    chat: Chat, good: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = checkpoint.load(tmp_path / "model")
    torch.manual_seed(1)
    names = [name for name, _ in model.named_parameters() if ".connector." in name]
    with torch.no_grad():
        for parameter in model.model.connector.parameters():
            parameter.add_(torch.randn_like(parameter))
    base: dict[str, Any] = {"model": tmp_path / "model"}
    checkpoint.save(tmp_path / "run", model, processor, base=base, trained=names, adapter=False, trained_on="")
    shared = Chat.load(tmp_path / "model", adapters={"mine": tmp_path / "run"})
    expected = {"": chat.ask(Path(good), "two cats", max_new_tokens=8)}
    expected["mine"] = Chat.load(tmp_path / "run").ask(Path(good), "two cats", max_new_tokens=8)
    assert expected[""] != expected["mine"]
    with serving(shared) as address:
        for name in ("mine", "", "mine"):
            client = Client(address, verbose=False)  # it remembers the conversation
            message = {"text": "two cats", "files": [handle_file(good)]}
            assert client.predict(message, "", 0, 8, name, api_name="/chat").strip() == expected[name]
            client.close()
    assert main(["serve", "--model", str(tmp_path / "model"), "--adapter", "mine"]) == 2
    assert '--adapter "mine" is not NAME=FOLDER' in capsys.readouterr().err


def test_the_page_says_which_model_answers(chat: Chat) -> None:
    line = about(chat.description)
    assert "Tiny &lt;one&gt;" in line and "trained on nothing at all" in line and "k parameters" in line
    assert "1.5B parameters" in about({"name": "x", "parameters": 1_500_000_000})


def test_the_page_has_examples_each_with_its_question() -> None:
    examples = examples_of(EXAMPLES)
    assert len(examples) == len(list(EXAMPLES.glob("*.png"))) >= 4
    assert all(path.is_file() and question.endswith(("?", ".")) for path, question in examples)
    assert len({question for _, question in examples}) == len(examples)


def test_nothing_is_fetched_from_or_sent_to_elsewhere(chat: Chat) -> None:
    options, app = mount_options(), build_app(chat)
    assert not options["run_history"] and not options["enable_monitoring"] and app.analytics_enabled is False
    assert options["theme"]._stylesheets == []


def test_a_taken_port_is_one_sentence_and_exit_code_2(
    chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(tmp_path / "model"), "--port", str(port)]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("vlchat: Cannot listen") and str(port) in told


def test_an_ipv6_address_is_refused(chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(tmp_path / "model"), "--host", "::1"]) == 2
    assert "vlchat: --host is ::1: the page is served on IPv4" in capsys.readouterr().err


def test_the_command_serves_until_ctrl_c(chat: Chat, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "vlchat.cli", "serve", "--model", str(tmp_path / "model"), "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        env={**os.environ, "http_proxy": "http://127.0.0.1:9"},  # the page is not to be looked for behind a proxy
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "Loading the model ...\n"
        assert process.stdout.readline() == f"model is ready: http://127.0.0.1:{port} (Ctrl-C ends)\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}") as reply:
            page = reply.read().decode()
        assert "216k parameters" in page
        assert "googleapis" not in page and "gstatic" not in page, "no fonts from elsewhere"
        process.send_signal(signal.SIGINT)
        said, told = process.communicate(timeout=120)
        assert said == "Stopping.\n" and "Traceback" not in told
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
