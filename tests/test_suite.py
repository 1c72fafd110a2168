"""Many tasks of one YAML file, asked of one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scored import questions, saved

from vlchat.cli import main
from vlchat.errors import ConfigError
from vlchat.evaluate.suite import read_suite


def suite(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return path


def test_a_suite_asks_every_task_of_one_model(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", tiny_model(), tiny_processor)
    data = questions(tmp_path / "data")
    path = suite(tmp_path, f"""
        controls: [none]
        control_rows: 3
        seed: 4
        tasks:
          - {{task: vqa, data: {data}, max_new_tokens: 3}}
          - {{task: vqa, name: few, data: {data}, limit: 2, max_new_tokens: 3, seed: 5}}
    """)  # fmt: skip
    out = tmp_path / "out"
    assert main(["eval", str(folder), "--suite", str(path), "--out", str(out), "--cache", str(tmp_path / "c")]) == 0
    results = {name: json.loads((out / name / "result.json").read_text()) for name in ("vqa", "few")}
    assert [results[name]["counts"]["questions"] for name in results] == [8, 2]
    assert [results[name]["settings"]["seed"] for name in results] == [4, 5]
    assert results["vqa"]["controls"]["none"]["rows"] == 3 and results["few"]["counts"]["known"] >= 2
    assert "== few" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("task: [vqa]", 'unknown key "task"; known: tasks, controls, control_rows, seed. Did you mean "tasks"'),
        ("tasks: []", "tasks must be a list"),
        ("tasks: [vqa]", "tasks.0 must be a mapping"),
        ("tasks: [{task: vqq}]", 'tasks.0: unknown task "vqq"'),
        ("tasks: [{task: scenes}, {task: scenes}]", 'two tasks are called "scenes"'),
        ("tasks: [{task: scenes, name: a/b}]", 'name is "a/b"'),
        ("[", "is no YAML"),
        ("- a", "must be a mapping"),
    ],
)
def test_mistakes_in_a_suite_are_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_suite(suite(tmp_path, text))
    assert told in str(error.value)


def test_a_missing_option_is_told_before_the_first_question(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", tiny_model(), tiny_processor)
    data = questions(tmp_path / "data")
    path = suite(tmp_path, f"tasks: [{{task: vqa, data: {data}}}, {{task: vqa, name: second}}]")
    assert main(["eval", str(folder), "--suite", str(path), "--cache", str(tmp_path / "c")]) == 2
    captured = capsys.readouterr()
    assert 'Task "second" of the suite' in captured.err and "needs data" in captured.err and not captured.out
    assert main(["eval", "--suite", str(path), "--task", "vqa"]) == 2
    assert "leave --task out" in capsys.readouterr().err
