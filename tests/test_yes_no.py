"""The task yes_no: rows, prompts, scores and faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted import Scripted, measured, replied

from vlchat.errors import ConfigError, DataError
from vlchat.evaluate import evaluate
from vlchat.evaluate.items import Reply
from vlchat.evaluate.tasks.yes_no import YesNoTask

ANSWERS = ["Yes", "yes.", "true", "No", "no", "False"]


def rows(folder: Path, answers: list[str]) -> str:
    found = [
        {"id": f"q{number}", "question": f"Is it {number}?", "answer": answer, "kind": "k"}
        for number, answer in enumerate(answers)
    ]
    (folder / "rows.json").write_text(json.dumps(found))
    return str(folder / "rows.json")


def test_replies_are_read_by_their_first_word(tmp_path: Path) -> None:
    task = YesNoTask(data=rows(tmp_path, ANSWERS), slices=["kind"])
    items = task.items()
    assert items[0].slices == {"kind": "k"}
    said = ["Yes, it is.", "no", "It is.", "No.", "yes", "There is none."]  # tp fn neither tn fp neither
    readings = [replied(task, item, text) for item, text in zip(items, said, strict=True)]
    assert [reading.score for reading in readings] == [1, 0, 0, 1, 0, 0]
    assert [reading.answer for reading in readings] == ["yes", "no", "neither", "no", "yes", "neither"]
    found = measured(task, readings)
    assert found == pytest.approx({
        "accuracy": 2 / 6, "precision": 1 / 2, "recall": 1 / 3, "F1": 0.4, "yes ratio": 2 / 6, "neither": 2 / 6,
    })  # fmt: skip


def test_a_request_without_a_reply_is_neither(tmp_path: Path) -> None:
    task = YesNoTask(data=rows(tmp_path, ["yes", "no"]))
    for item in task.items():
        reading = task.read(item, [Reply("yes no", error="too long")])
        assert reading.score == 0 and reading.stats["neither"] == 1 and reading.stats["tn"] == reading.stats["tp"] == 0


def test_other_answers_are_listed_or_left_out(tmp_path: Path) -> None:
    data = rows(tmp_path, ["yes", "left", "Nothing"])
    with pytest.raises(DataError, match=r'(?s)2 of 3 rows.*row 2 \(id "q1"\): "left".*others=skip'):
        YesNoTask(data=data)
    task = YesNoTask(data=data, others="skip")
    assert [item.id for item in task.items()] == ["q0"] and "2 rows" in task.notes[0]
    with pytest.raises(DataError, match="2 of 2 rows"):
        YesNoTask(data=rows(tmp_path, ["left", "right"]), others="skip")
    with pytest.raises(ConfigError, match='others is "drop"'):
        YesNoTask(data=data, others="drop")


def test_the_runner_shows_every_measure(tmp_path: Path) -> None:
    result = evaluate(Scripted(lambda request: "Yes."), YesNoTask(data=rows(tmp_path, ANSWERS)), progress=False)
    assert [row["score"] for row in result.rows] == [1, 1, 1, 0, 0, 0]
    shown = {name: figure.value for name, figure in result.table.overall.items()}
    assert shown["accuracy"] == 0.5 and shown["recall"] == 1 and shown["yes ratio"] == 1 and shown["neither"] == 0
