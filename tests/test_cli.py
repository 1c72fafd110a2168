"""The command line: a mistake is one clear sentence on stderr and exit code 2, an answer is on stdout."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from talkative import save_talkative

from vlchat import __version__, checkpoint
from vlchat.chat import Chat, ask_messages
from vlchat.cli import main
from vlchat.commands import pictures_and_question
from vlchat.terminal import answer

COMMAND = [sys.executable, "-m", "vlchat.cli"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def model(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> Path:
    return save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer)


@pytest.fixture
def good(tmp_path: Path, picture: Callable) -> Path:
    picture(1).save(tmp_path / "good.png")
    return tmp_path / "good.png"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What stderr says to a command that is refused with exit code 2 and not a word on stdout."""
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    said = told.err.strip()
    assert said and "\n" not in said and "Traceback" not in said, said
    return said


@pytest.mark.parametrize("command", ["", "chat", "serve", "models", "train", "check", "eval", "export", "info", "push"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"] if command else ["--help"])
    assert ended.value.code == 0
    assert f"usage: vlchat{' ' * bool(command)}{command} " in capsys.readouterr().out


def test_the_help_lists_every_command_and_needs_no_heavy_import() -> None:
    code = "import sys; from vlchat.cli import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for command in ("chat", "serve", "models", "train", "check", "eval", "export", "info", "push"):
        assert f"\n    {command} " in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"vlchat {__version__}"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["chat", "missing.png", "What is it?"], ["missing.png", "no such file"]),
        (["chat", "broken.png", "What is it?"], ["broken.png"]),
        (["train", "nowhere.yaml"], ["nowhere.yaml"]),
        (["eval", "--qestions", "3"], ["--qestions", "vlchat", "--help"]),
    ],
)
def test_a_mistake_is_one_sentence_in_a_real_process(arguments: list[str], told: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but not quite")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in told:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "COMMAND"),
        (["chta"], "chta"),
        (["chat", "--seed", "one", "two cats"], "--seed"),
        (["chat", "--model", "no/such/folder", "two cats"], "no/such/folder"),
        (["chat", "lone-word"], "lone-word"),
        (["chat", "--quantize", "nf3", "two cats"], "nf3"),
        (["chat", "--attn", "flash", "two cats"], "flash"),
        (["chat", "--attn", "flash_attention_2", "--device", "cpu", "two cats"], "runs on a GPU only"),
        (["chat", "--revision", "v1", "two cats"], "--revision v1 names a version on the Hub, and the embedded model"),
        (["eval", "damaged", "--revision", "v1"], "--revision v1 names a version on the Hub, and damaged is here"),
        (["chat", "--model", "qwen3-vl", "two cats"], "Did you mean"),
        (["chat", "--compare", "mini", "two cats"], "two cats"),
        (["serve", "--adapter", "runs/x"], "is not NAME=FOLDER"),
        (["push", "damaged", "me"], '"me" is no name on the Hub: write YOU/NAME'),
        (["push", "damaged", "me/model", "--dry-run"], "config.json is damaged"),
        (["push", "nowhere", "me/model"], "no folder nowhere"),
        (["serve", "--port", "many"], "--port"),
        (["serve", "--port", "70000"], "--port is 70000"),
        (["check", "nowhere.json"], "nowhere.json"),
        (["check", "rows.json", "--format", "lava"], "lava"),
        (["eval", "--phrasings", "unseen"], "unseen"),
        (["eval", "--task", "scnes"], "scenes"),
        (["eval", "--task", "vqa"], "data"),
        (["eval", "--data", "rows.json", "--format", "lava"], "lava"),
        (["eval", "--data", "rows.json", "--out", "rows.json"], "No result can be written to rows.json"),
        (["eval", "--task", "scenes", "--split", "test"], "split"),
        (["info", "damaged"], "config.json is damaged"),
        (["info", "."], "holds no model"),
        (["export", "no/such/folder", "rows.json/out"], "rows.json/out cannot be written"),
        (["chat", "a.png", "What", "is", "this"], 'There is no picture "What". A question of several words'),
        (["chat", "a.png", ""], "The question is empty"),
        (["chat", "a.png", "Why?", "--sistem", "x"], "Unrecognized arguments: --sistem x"),
        (["eval", "--task", "scenes", "--data", "rows.json"], "data"),
        (["export", "no/such/folder", "out"], "no/such/folder"),
        (["info", "no/such/folder"], "no/such/folder"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "a", "question": "Two?", "answer": "yes"}]))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text('{"model_type": ')
    assert told in refused(capsys, *arguments)


def test_a_missing_picture_is_told_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing.png" in refused(capsys, "chat", "--model", "no/such/folder", "missing.png", "What is it?")


def test_an_unknown_configuration_key_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "tune.yaml"
    config.write_text(f"run: {tmp_path / 'run'}\nobjective: {{type: tune}}\nloop: {{stepz: 3}}\n")
    said = refused(capsys, "train", str(config))
    assert "stepz" in said and "steps" in said
    config.write_text(f"run: {tmp_path / 'run'}\nobjective: {{type: tune}}\n")
    assert "lop" in refused(capsys, "train", str(config), "lop.steps=3")


@pytest.fixture
def mismatched(good: Path) -> Path:
    """Two `<image>` tags and one picture in the second of two rows."""
    rows = [
        {
            "id": name,
            "image": "good.png",
            "conversations": [{"from": "human", "value": f"{tags} What is it?"}, {"from": "gpt", "value": "two cats"}],
        }
        for name, tags in (("fine", "<image>"), ("odd", "<image>\n<image>"))
    ]
    (good.parent / "rows.json").write_text(json.dumps(rows))
    return good.parent / "rows.json"


def test_check_names_a_row_whose_tags_differ_from_its_pictures(
    mismatched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(mismatched)]) == 1
    told = capsys.readouterr().out
    assert 'row 2 (id "odd"), image: 2 image tags but 1 image' in told and '"fine"' not in told
    assert main(["check", str(mismatched), "--limit", "1"]) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_training_refuses_a_row_whose_tags_differ_from_its_pictures(
    mismatched: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    config = tmp_path / "tune.yaml"
    settings = {
        "run": str(tmp_path / "run"),
        "objective": {"type": "tune", "model": str(model)},
        "data": [{"path": str(mismatched)}],
        "trainable": {"connector": 0.001},
        "loop": {"steps": 2, "batch": 2, "workers": workers},
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    assert main(["train", str(config)]) == 2
    told = capfd.readouterr().err
    assert "Traceback" not in told
    first, second = told.partition("vlchat: ")[2].splitlines()[:2]
    assert first == "1 bad row of 2, and max_bad allows 0:"
    assert 'rows.json: row 2 (id "odd"), image: 2 image tags but 1 image' in second


def test_options_may_stand_between_the_picture_and_the_question(
    model: Path, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(model), "--max-new-tokens", "8"]
    assert main(["chat", str(good), *options, "two cats ?"]) == 0
    between = capsys.readouterr().out
    assert main(["chat", *options, str(good), "two cats ?"]) == 0
    assert capsys.readouterr().out == between


def test_a_reader_that_leaves_ends_a_command_in_silence(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"question": "x" * 300}] * 2000))
    done = subprocess.run(
        f"{shlex.join([*COMMAND, 'check', str(tmp_path / 'rows.json')])} | head -c 10",
        shell=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stderr == "" and len(done.stdout) == 10


def test_one_question(model: Path, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = Chat.load(model).ask([good, good], "two cats ?", max_new_tokens=8)
    capsys.readouterr()
    options = ["--model", str(model), "--max-new-tokens", "8"]
    assert main(["chat", *options, str(good), str(good), "two cats ?"]) == 0
    assert capsys.readouterr() == (f"{expected}\n", "")


def test_one_question_in_a_real_process(model: Path, good: Path) -> None:
    """Nothing but the answer is written, to either stream."""
    done = subprocess.run(
        [*COMMAND, "chat", "--model", str(model), "--max-new-tokens", "8", str(good), "What is it?"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0
    assert (done.stdout, done.stderr) == (f"{Chat.load(model).ask(good, 'What is it?', max_new_tokens=8)}\n", "")


def test_a_conversation_through_stdin(
    model: Path, good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = Chat.load(model)

    def said(role: str, text: str, *pictures: Path) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in pictures]
        return {"role": role, "content": [*content, {"type": "text", "text": text}]}

    first = [said("user", "What is it?", good)]
    replies = ["".join(chat.stream(first, max_new_tokens=6)).strip()]
    second = [*first, said("assistant", replies[0]), said("user", "two cats ?", good, good)]
    replies.append("".join(chat.stream(second, max_new_tokens=6)).strip())
    replies.append("".join(chat.stream([said("user", "two cats ?")], max_new_tokens=6)).strip())
    assert len(set(replies)) == 3, "the test needs answers that differ"

    lines = [
        "What is it?", "", "/imge x", "/image", "/image missing.png", f"/image {good}", f"/image '{good}'",
        "two cats ?", "/reset", "two cats ?", "/quit", "not reached",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    capsys.readouterr()
    assert main(["chat", "--model", str(model), "--max-new-tokens", "6", str(good)]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == replies
    assert told.err.splitlines() == [
        'There is no command /imge. Did you mean "/image"?',
        "Say which picture: /image PATH",
        'The picture "missing.png" is not there: no such file. Check the path.',
        "(1 picture with the next question)",
        "(2 pictures with the next question)",
        "(forgotten, the pictures as well)",
    ]


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(model: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "chat", "--model", str(model), "--max-new-tokens", "8000"],
        stdin=slave, stdout=slave, stderr=slave, cwd=ROOT,
    )  # fmt: skip
    os.close(slave)
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([master], [], [], 120)[0], f"waiting for {text!r}, read {seen!r}"
            seen += os.read(master, 4096).decode(errors="replace")
        seen = seen.partition(text)[2]

    try:
        until("/quit")
        until("> ")
        for _ in range(2):
            os.write(master, b"two cats\n")
            until("two cats\r\n")
            until(" ")  # the answer's first word
            process.send_signal(signal.SIGINT)
            until("(stopped)")
            until("> ")
        os.write(master, b"/quit\n")
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_ctrl_c_at_one_question_is_130(model: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "chat", "--model", str(model), "--max-new-tokens", "8000", "two cats"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(3)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert told.strip() == ""


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], ([], None)),
        (["a.png"], (["a.png"], None)),
        (["a.png", "b.JPG"], (["a.png", "b.JPG"], None)),
        (["a.png", "why?"], (["a.png"], "why?")),
        (["a.png", "b.png", "What is in a.png"], (["a.png", "b.png"], "What is in a.png")),
        (["What can you do?"], ([], "What can you do?")),
        (["lone-word"], (["lone-word"], None)),
        (["a.png", "x" * 5000], (["a.png"], "x" * 5000)),
        (["a.png", "nul\0"], (["a.png"], "nul\0")),
    ],
)
def test_pictures_and_the_question_are_told_apart(words: list[str], meant: tuple[list[str], str | None]) -> None:
    assert pictures_and_question(words) == meant


def test_what_a_model_says_cannot_steer_the_terminal(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat.load(model)
    (escape,) = chat.processor.tokenizer("\x1b", add_special_tokens=False)["input_ids"]
    every = range(len(chat.processor.tokenizer))
    chat.model.generation_config.suppress_tokens = [token for token in every if token != escape]
    capsys.readouterr()
    assert "\x1b" in answer(chat, ask_messages(None, "two cats"), {"max_new_tokens": 3}, sys.stdout)
    assert capsys.readouterr().out == "\ufffd\ufffd\ufffd\n"


def test_info_and_export(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(model)]) == 0
    parameters = checkpoint.describe(model)["parameters"]
    assert f"parameters  {parameters:,}\n" in capsys.readouterr().out
    assert main(["export", str(model), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    assert Chat.load(tmp_path / "out").ask(None, "two cats", max_new_tokens=4) == Chat.load(model).ask(
        None, "two cats", max_new_tokens=4
    )
    shutil.rmtree(tmp_path / "out")
