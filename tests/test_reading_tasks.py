"""Documents, charts, texts and counts as tasks: from data files to figures over all rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted import measured, replied

from vlchat.data.formats import text_of
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.items import Reading
from vlchat.evaluate.tasks.base import Task
from vlchat.evaluate.tasks.reading import ChartTask, CountingTask, DocumentTask, ReadingTask

TASKS = [ChartTask, CountingTask, DocumentTask, ReadingTask]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return tmp_path


def written(folder: Path, answers: list[Any], **fields: Any) -> str:
    rows = [
        {"id": f"q{number}", "image": "a.png", "question": "What is it?", **fields}
        | ({"answers": answer} if isinstance(answer, list) else {"answer": answer})
        for number, answer in enumerate(answers)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(folder / "rows.json")


def read(task: Task, replies: list[str]) -> tuple[dict[str, float], list[Reading]]:
    """The figures as a report makes them, and the readings."""
    readings = [replied(task, item, reply) for item, reply in zip(task.items(), replies, strict=True)]
    return measured(task, readings), readings


def test_documents(folder: Path) -> None:
    task = DocumentTask(data=written(folder, [["Paris", "paris, france"], ["March 1, 2020"], ["abc"]]))
    found, readings = read(task, ["Pariz", "march 1, 2020 ", "something else"])
    assert found == pytest.approx({"ANLS": (0.8 + 1 + 0) / 3, "exact": 1 / 3})
    assert [reading.score for reading in readings] == pytest.approx([0.8, 1.0, 0.0])
    assert readings[1].answer == "march 1, 2020"


def test_charts(folder: Path) -> None:
    task = ChartTask(data=written(folder, ["100", "Yes", "12%"]))
    found, readings = read(task, ["104", "YES", "12"])
    assert found == pytest.approx({"relaxed accuracy": 2 / 3, "exact": 1 / 3})
    assert [reading.score for reading in readings] == [1.0, 1.0, 0.0]


def test_reading_is_all_errors_over_all_words(folder: Path) -> None:
    answers = ["The cat sat on the mat.", "STOP", ["no entry", "No parking"]]
    task = ReadingTask(data=written(folder, answers))
    found, readings = read(task, ["the cat sit on mat", "stop go away now", "no parking!"])
    # 2 of 6 words, 3 of 1 and 0 of 2: 5 of 9 together, not the mean of the three rates.
    assert found["WER"] == pytest.approx((2 + 3 + 0) / (6 + 1 + 2))
    assert found["CER"] == pytest.approx((5 + 12 + 0) / (22 + 4 + 10))
    assert found["read without error"] == pytest.approx(1 / 3)
    assert [reading.score for reading in readings] == pytest.approx([1 - 2 / 6, 0.0, 1.0])
    strict = ReadingTask(data=written(folder, answers), exact=True)
    _, readings = read(strict, ["The cat sat", "STOP", "no parking"])
    assert [reading.score for reading in readings] == pytest.approx([3 / 6, 1.0, 1 / 2])


def test_of_several_texts_the_one_with_the_fewest_wrong_words_counts(folder: Path) -> None:
    task = ReadingTask(data=written(folder, [["go away", "gotomorrow"]]))
    # One of two words is wrong, in most of its letters; of the other text only a space is, but no word is right.
    found, _ = read(task, ["go tomorrow"])
    assert found["WER"] == pytest.approx(1 / 2) and found["CER"] > 1 / 2


def test_the_protocol_of_reading_names_its_normalisation(folder: Path) -> None:
    data = written(folder, ["x"])
    assert "lower case, no punctuation at the edges of words" in ReadingTask(data=data).protocol
    assert "case and punctuation count" in ReadingTask(data=data, exact=True).protocol


def test_counting(folder: Path) -> None:
    answers = ["3", "Two", "12", "0", "many", "5"]
    task = CountingTask(data=written(folder, answers))
    assert [item.reference for item in task.items()] == ["3", "Two", "12", "0", "5"]
    assert [item.slices["count"] for item in task.items()] == ["3", "2", "11 and more", "0", "5"]
    assert "1 of 6 rows is left out: its answer is no number." in task.notes
    found, readings = read(task, ["There are three.", "3 cats", "eight", "none", "I cannot tell."])
    assert found["accuracy"] == pytest.approx(2 / 5)
    assert found["within one"] == pytest.approx(3 / 5)
    # Errors 0, 1, 4 and 0; the reply without a number has none.
    assert found["mean absolute error"] == pytest.approx(5 / 4)
    assert found["RMSE"] == pytest.approx(math.sqrt(17 / 4))
    assert found["states a number"] == pytest.approx(4 / 5)
    assert [reading.answer for reading in readings] == ["3", "3", "8", "0", ""]
    silent, _ = read(task, ["?"] * 5)
    assert silent["accuracy"] == 0 and math.isnan(silent["RMSE"]) and math.isnan(silent["mean absolute error"])


def test_counting_needs_numbers(folder: Path) -> None:
    with pytest.raises(DataError, match='answer is a number, so there is nothing to count; row "q0" has "many"'):
        CountingTask(data=written(folder, ["many", "few"]))


@pytest.mark.parametrize("kind", TASKS)
def test_the_instruction_is_asked_and_the_floor_does_not_see_it(kind: type[Any], folder: Path) -> None:
    (folder / "train.json").write_text(
        json.dumps([{"image": "a.png", "question": question, "answer": answer} for question, answer in
                    (("What is it?", "4"), ("What else?", "5"), ("What else?", "5"))])
    )  # fmt: skip
    data = written(folder, ["3"], answer_type="number")
    task = kind(data=data, floor=str(folder / "train.json"), instruction="Answer with one word.", slices=["id"])
    (item,) = task.items()
    assert text_of(item.messages[-1]) == "What is it?\nAnswer with one word."
    assert len([part for part in item.messages[-1]["content"] if part["type"] == "image"]) == 1
    assert task.floor(item) == "4"
    assert item.slices["answer_type"] == "number"
    plain = kind(data=data)
    assert text_of(plain.items()[0].messages[-1]) == "What is it?" and plain.floor(item) is None


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("reply", ["", "\ud800", "...", "9" * 5000, "word " * 5000, "\0"])
def test_no_reply_breaks_a_task(kind: type[Any], reply: str, folder: Path) -> None:
    found, readings = read(kind(data=written(folder, ["3"])), [reply])
    assert readings[0].score == 0.0 and found[kind.measures[0].name] is not None


@pytest.mark.parametrize("kind", TASKS)
def test_a_bad_slice_or_file_is_a_sentence(kind: type[Any], folder: Path) -> None:
    with pytest.raises(ConfigError, match='has no field "nowhere" to split by'):
        kind(data=written(folder, ["3"]), slices=["nowhere"])
    with pytest.raises(DataError, match="nothing.json does not exist"):
        kind(data=str(folder / "nothing.json"))
