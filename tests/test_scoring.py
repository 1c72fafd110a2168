"""`vlchat eval` as people type it: a server, trackers, options, and what a mistake is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import MODEL, Server, serving
from scored import questions, saved

from vlchat.chat import Chat
from vlchat.cli import main
from vlchat.evaluate.known import TASKS, listing


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> Path:
    return saved(tmp_path / "model", tiny_model(), tiny_processor)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Chat.load(folder)) as made:
        yield made


def scored(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (out / "replies.jsonl").read_text().splitlines()
    return json.loads((out / "result.json").read_text()), [json.loads(line) for line in lines]


def test_a_server_gives_the_scores_of_its_model_and_the_key_is_nowhere(
    server: Server, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = questions(tmp_path / "data")
    common = ["--data", str(data), "--controls", "shuffled", "--max-new-tokens", "4", "--cache", str(tmp_path / "c")]
    asked = ["eval", MODEL, "--url", server.url, "--api-key", "sk-secret", "--out", str(tmp_path / "a")]
    assert main([*asked, *common]) == 0
    assert main(["eval", str(folder), *common, "--out", str(tmp_path / "b")]) == 0
    (one, theirs), (other, ours) = scored(tmp_path / "a"), scored(tmp_path / "b")
    assert [row["reply"] for row in theirs] == [row["reply"] for row in ours]
    assert one["overall"] == other["overall"] and one["controls"] == other["controls"]
    written = "".join(path.read_text(errors="replace") for path in (tmp_path / "a").iterdir() if path.is_file())
    assert "sk-secret" not in written + str(capsys.readouterr()) and server.url in written


def test_scores_reach_a_tracker(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data, out = str(questions(tmp_path / "data")), tmp_path / "out"
    common = ["eval", str(folder), "--data", data, "--no-controls", "--max-new-tokens", "3", "--no-cache"]
    assert main([*common, "--out", str(out), "--track", "tensorboard"]) == 0
    found = [EventAccumulator(str(events)).Reload() for events in {file.parent for file in out.rglob("events*")}]
    name = "eval/vqa/accuracy"
    (sent,) = [one.Scalars(name)[0].value for one in found if name in one.Tags()["scalars"]]
    assert sent == pytest.approx(scored(out)[0]["overall"]["accuracy"]["value"])
    assert main([*common, "--track", "tensorboard"]) == 2
    assert "--track needs --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--option", "how"], '--option takes NAME=VALUE, and "how" is not'),
        (["--option", "colour=red"], 'has no option "colour"'),
        (["--controls", "shufled"], 'no control "shufled"'),
        (["--control-rows", "-1"], "control_rows is -1"),
        (["--batch", "0"], "batch_size is 0"),
        (["--track", "tensorbord"], 'no "tensorbord"'),
        (["--slice", "organ"], 'no field "organ" to split by'),
        (["--suite", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["--verify", "nowhere"], "no certificate to verify"),
    ],
)
def test_mistakes_are_sentences(
    folder: Path, tmp_path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(questions(tmp_path / "data"))] if "--suite" not in arguments else []
    assert main(["eval", str(folder), *data, "--cache", str(tmp_path / "c"), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_tables_split_by_a_field(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = questions(tmp_path / "data")
    rows = json.loads(data.read_text())
    data.write_text(json.dumps([row | {"organ": "lung" if number % 3 else "heart"} for number, row in enumerate(rows)]))
    options = ["--slice", "organ", "--max-new-tokens", "3", "--no-cache", "--no-controls", "--json"]
    assert main(["eval", str(folder), "--data", str(data), *options]) == 0
    slices = json.loads(capsys.readouterr().out)["slices"]["organ"]
    assert {name: found["accuracy"]["rows"] for name, found in slices.items()} == {"heart": 3, "lung": 5}


def test_every_task_is_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--list"]) == 0
    lines = listing().splitlines()
    assert capsys.readouterr().out.splitlines() == lines and len(lines) == 2 * len(TASKS)
    assert all(len(line.split()) > 4 and line.endswith(".") for line in lines[::2])
