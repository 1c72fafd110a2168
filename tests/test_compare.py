"""Models side by side: each answer is the model's own, each model remembers its own, the base is shared."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from talkative import save_talkative

from vlchat import checkpoint
from vlchat.chat import Chat
from vlchat.cli import main
from vlchat.commands import models_and_words
from vlchat.compare import columns, load
from vlchat.errors import VLChatError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def base(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> Path:
    return save_talkative(tmp_path / "base", tiny_clip, tiny_tokenizer)


@pytest.fixture
def run(base: Path) -> Path:
    """A run on the base that trained its connector."""
    model, processor = checkpoint.load(base)
    torch.manual_seed(4)
    names = [name for name, _ in model.named_parameters() if ".connector." in name]
    with torch.no_grad():
        for parameter in model.model.connector.parameters():
            parameter.add_(torch.randn_like(parameter))
    folder = base.parent / "tuned" / "step-3"
    folder.parent.mkdir()
    checkpoint.save(folder, model, processor, base={"model": base}, trained=names, adapter=False, trained_on="")
    return folder.parent


@pytest.fixture
def good(tmp_path: Path, picture: Callable) -> Path:
    picture(1).save(tmp_path / "good.png")
    return tmp_path / "good.png"


def test_each_answer_stands_under_its_name(
    base: Path, run: Path, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {model: Chat.load(model).ask(good, "two cats ?", max_new_tokens=8) for model in (run, base)}
    assert len(set(expected.values())) == 2
    capsys.readouterr()
    options = ["--max-new-tokens", "8"]
    told = f"tuned:\n{expected[run]}\n\nbase:\n{expected[base]}\n"
    for words in (
        ["--compare", str(run), str(base), str(good), "two cats ?", *options],
        [str(good), *options, "--compare", str(run), str(base), "two cats ?"],
        ["--compare", str(run), str(base), str(good), *options, "two cats ?"],
        [str(good), "two cats ?", *options, "--compare", str(run), str(base)],
    ):
        assert main(["chat", *words]) == 0
        assert capsys.readouterr() == (told, "")


def test_the_base_is_in_memory_once(base: Path, run: Path, tmp_path: Path) -> None:
    chats = load([str(run), str(base)])
    assert list(chats) == ["tuned", "base"]
    tables = {id(chat.model.get_input_embeddings().weight) for chat in chats.values()}
    assert len(tables) == 1
    apart = load([str(run), "mini"])
    assert list(apart) == ["tuned", "embedded"]
    assert len({id(chat.model.get_input_embeddings().weight) for chat in apart.values()}) == 2


def test_each_model_remembers_its_own_answers(
    base: Path, run: Path, good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(role: str, text: str, *pictures: Path) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in pictures]
        return {"role": role, "content": [*content, {"type": "text", "text": text}]}

    lines = ["What is it?", "two cats ?", "/reset", "two cats ?", "/quit"]
    expected = []
    for model in (base, run):
        chat = Chat.load(model)
        turns = [said("user", "What is it?", good)]
        first = "".join(chat.stream(turns, max_new_tokens=6)).strip()
        second = [*turns, said("assistant", first), said("user", "two cats ?")]
        expected.append([first, *("".join(chat.stream(asked, max_new_tokens=6)).strip()
                                  for asked in (second, [said("user", "two cats ?")]))])  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    capsys.readouterr()
    assert main(["chat", "--compare", str(base), str(run), str(good), "--max-new-tokens", "6"]) == 0
    told = capsys.readouterr().out
    rounds = zip(*expected, strict=True)
    assert told == "".join(f"base:\n{one}\n\ntuned:\n{other}\n" for one, other in rounds)


def test_a_wide_terminal_shows_columns(base: Path, run: Path, good: Path) -> None:
    def shown(width: int) -> str:
        master, slave = pty.openpty()
        words = ["--compare", str(base), str(run), str(good), "two cats ?", "--max-new-tokens", "12"]
        process = subprocess.Popen(
            [sys.executable, "-m", "vlchat.cli", "chat", *words],
            stdin=slave, stdout=slave, stderr=subprocess.PIPE, cwd=ROOT, env={**os.environ, "COLUMNS": str(width)},
        )  # fmt: skip
        os.close(slave)
        seen = b""
        try:
            while True:
                seen += os.read(master, 4096)
        except OSError:  # the other end is closed
            pass
        assert process.wait(timeout=120) == 0
        os.close(master)
        return seen.decode().replace("\r\n", "\n")

    expected = [Chat.load(model).ask(good, "two cats ?", max_new_tokens=12) for model in (base, run)]
    wide = shown(100).rpartition("\x1b[K")[2].splitlines()
    assert all(len(line) <= 100 for line in wide)
    cells = [[cell.strip() for cell in f"{line}  ".split("  |  ")] for line in wide]
    assert cells[0] == ["base", "tuned"]
    for column, words in enumerate(expected):
        assert " ".join(row[column] for row in cells[2:] if len(row) > column).strip() == " ".join(words.split())
    assert shown(60) == f"base:\n{expected[0]}\n\ntuned:\n{expected[1]}\n"


def test_columns_are_as_wide_as_they_are_told() -> None:
    told = columns({"a": "one two three four\n\nfive", "b": "\u732b\u304c\u4e8c\u5339\u3044\u307e\u3059", "c": ""}, 10)
    assert told.splitlines() == [
        "a           |  b           |  c",
        "----------  |  ----------  |  ----------",
        "one two     |  \u732b\u304c\u4e8c\u5339\u3044  |",
        "three four  |  \u307e\u3059        |",
        "            |              |",
        "five        |              |",
    ]


@pytest.mark.parametrize(
    ("words", "models"),
    [
        (["a", "b"], 2),
        (["a", "b", "photo.png", "What is it?"], 2),
        (["a", "b", "mini", "What is it?"], 3),
        (["a", "b", "me/model", "me/model-v1.5", "pictures/photo.png", "Why?"], 4),
        (["a", "b", "either/or what?"], 2),
        (["a", "b", "x" * 5000], 2),
    ],
)
def test_models_and_what_follows_are_told_apart(words: list[str], models: int) -> None:
    assert models_and_words(words) == (words[:models], words[models:])


def test_mistakes_are_sentences(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(VLChatError, match="takes two models or more"):
        load([str(base)])
    with pytest.raises(VLChatError, match="names .*base twice"):
        load([str(base), str(base)])
    with pytest.raises(VLChatError, match="as ID@REVISION"):
        load([str(base), "mini"], revision="v1")
    assert main(["chat", "--compare", "mini", "mini", "--model", str(base), "two cats"]) == 2
    assert "--compare names the models: leave --model out." in capsys.readouterr().err
    assert main(["chat", "--compare", "mini", "runs/none", "two cats"]) == 2
    assert "no checkpoint folder at runs/none" in capsys.readouterr().err
