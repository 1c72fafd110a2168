"""The caption task: what is a picture's references, COCO's own file, and figures that agree with the scorer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pycocoevalcap")

from scripted import Scripted, measured, replied

from vlchat.data.formats import CAPTION_INSTRUCTION, text_of
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate import evaluate
from vlchat.evaluate.blind import images_of
from vlchat.evaluate.items import Reading, Reply
from vlchat.evaluate.metrics.captions import caption_scores
from vlchat.evaluate.metrics.tokens import java_runs, python_tokens
from vlchat.evaluate.tasks.captions import CaptionTask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate("abc"):
        Image.new("RGB", (8, 8), (number * 80,) * 3).save(tmp_path / f"{name}.png")
    return tmp_path


def written(folder: Path, rows: Any, name: str = "rows.json") -> str:
    (folder / name).write_text(json.dumps(rows))
    return str(folder / name)


def answered(task: CaptionTask, captions: list[str]) -> list[Reading]:
    items = task.items()
    readings = [replied(task, item, caption) for item, caption in zip(items, captions, strict=True)]
    return task.finish(items, readings)


def test_rows_of_one_picture_are_one_question(folder: Path) -> None:
    rows = [
        {"id": "1", "image": "a.png", "caption": "A man rides a horse.", "source": "x"},
        {"id": "2", "image": "b.png", "captions": ["Two dogs play.", " ", "Dogs, outside!"], "source": "y"},
        {"id": "3", "image": "a.png", "caption": "A rider on a horse", "source": "z"},
    ]
    task = CaptionTask(data=written(folder, rows), slices=["source"], beams=3, tokenizer="python")
    first, second = task.items()
    assert (first.id, first.answers) == ("1", ("A man rides a horse.", "A rider on a horse"))
    assert (second.id, second.answers) == ("2", ("Two dogs play.", "Dogs, outside!"))
    assert [dict(item.slices) for item in (first, second)] == [{"source": "x"}, {"source": "y"}]
    (request,) = task.requests(first, [])
    assert text_of(request.messages[-1]) == CAPTION_INSTRUCTION and request.beams == 3
    assert [part["image"].name for part in request.messages[-1]["content"] if part["type"] == "image"] == ["a.png"]
    assert task.requests(first, [Reply("x")]) == []
    assert "2 pictures with 2 reference captions each; rows are ranked by ROUGE-L." in task.notes
    # The task's figures are the scorer's.
    readings = answered(task, ["A man rides a big horse!", "dogs outside"])
    references = {item.id: [python_tokens([text])[0] for text in item.answers] for item in task.items()}
    expected = caption_scores(references, {"1": "a man rides a big horse", "2": "dogs outside"})
    assert measured(task, readings) == pytest.approx(expected)
    assert expected["CIDEr"] > 1 and readings[1].answer == "dogs outside"
    assert readings[1].score == readings[1].stats["ROUGE-L"] == pytest.approx(1.0)


def test_part_of_the_rows_scores_as_in_the_whole(folder: Path) -> None:
    rows = [{"image": f"{name}.png", "caption": text} for name, text in (("a", "a man"), ("b", "a dog"), ("c", "cars"))]
    task = CaptionTask(data=written(folder, rows), tokenizer="python")
    whole = answered(task, ["a man", "a cat", "cars"])
    items = task.items()[1:]
    part = task.finish(items, [replied(task, items[0], "a cat"), replied(task, items[1], "cars")])
    assert part == whole[1:]


def test_a_run_with_a_blind_control(folder: Path) -> None:
    names = {0: "a black square", 80: "a dark grey square", 160: "a grey square"}
    rows = [{"image": f"{name}.png", "caption": text} for name, text in zip("abc", names.values(), strict=True)]
    task = CaptionTask(data=written(folder, rows), tokenizer="python")
    model = Scripted(lambda request: names[images_of(request.messages)[0].getpixel((0, 0))[0]].title() + ".")
    result = evaluate(model, task, controls=["shuffled"], control_rows=2, progress=False)
    assert result.headline.value == pytest.approx(sum(task_value(row) for row in result.rows) / 3)
    assert [row["score"] for row in result.rows] == pytest.approx([1.0] * 3)
    assert result.table.overall["BLEU-2"].value == pytest.approx(1.0)
    blind = [row["controls"]["shuffled"] for row in result.rows if "controls" in row]
    # A shown picture is another one's, and its caption shares no more than "a", "square" and perhaps "grey".
    assert len(blind) == 2 and all(0 < found["score"] < 1 and found["stats"]["CIDEr"] < 5 for found in blind)


def task_value(row: dict[str, Any]) -> float:
    return float(row["stats"]["CIDEr"])


def test_every_format_has_its_references(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A horse."}]
    llava = CaptionTask(data=written(folder, [{"image": "a.png", "conversations": turns}]), tokenizer="python")
    assert llava.items()[0].answers == ("A horse.",)
    assert text_of(llava.items()[0].messages[-1]) == CAPTION_INSTRUCTION
    vqa = [{"image": "a.png", "question": "Caption?", "answers": [{"answer": "a horse"}, {"answer": "a mare"}]}]
    task = CaptionTask(data=written(folder, vqa), prompt="Say what you see.", tokenizer="python")
    assert task.items()[0].answers == ("a horse", "a mare")
    assert text_of(task.items()[0].messages[-1]) == "Say what you see."
    system = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nHello"},
        {"role": "assistant", "content": "a horse"},
    ]
    task = CaptionTask(data=written(folder, [{"images": ["a.png"], "messages": system}]), tokenizer="python")
    assert [message["role"] for message in task.items()[0].messages] == ["system", "user"]


def test_two_pictures_with_one_id_stay_two(folder: Path) -> None:
    rows = [{"id": "x", "image": f"{name}.png", "caption": f"{name} thing"} for name in "ab"]
    task = CaptionTask(data=written(folder, rows), tokenizer="python")
    assert [item.id for item in task.items()] == ["x", "x (2)"]
    assert [reading.score for reading in answered(task, ["a thing", "b thing"])] == pytest.approx([1.0, 1.0])


COCO: dict[str, Any] = {
    "info": {"year": 2014},
    "images": [
        {"id": 7, "file_name": "a.png", "height": 8},
        {"id": 3, "file_name": "b.png"},
        {"id": 5, "file_name": "c.png"},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "caption": "A dog. "},
        {"id": 2, "image_id": 7, "caption": "A man"},
        {"id": 3, "image_id": 3, "caption": "Two dogs"},
    ],
}


def test_cocos_own_file(folder: Path) -> None:
    (folder / "annotations").mkdir()
    path = written(folder, COCO, "annotations/captions_val2014.json")
    task = CaptionTask(data=path, images=str(folder), tokenizer="python")
    assert [(item.id, item.answers) for item in task.items()] == [("7", ("A man",)), ("3", ("A dog.", "Two dogs"))]
    assert task.notes[0] == "1 of 3 pictures of captions_val2014.json has no caption and is left out."
    assert "2 pictures with 1 to 2 reference captions each; rows are ranked by ROUGE-L." in task.notes
    assert len(task.data["sha256"]) == 64
    first = CaptionTask(data=path, images=str(folder), limit=1, tokenizer="python")
    assert [item.id for item in first.items()] == ["7"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": None}, "has no list `images`; its keys are info, images, annotations"),
        ({"annotations": [{"image_id": 9, "caption": "x"}]}, r"annotations\[0\]: no picture in `images` has the id 9"),
        ({"annotations": [{"image_id": 3}]}, r"annotations\[0\].caption must be text; it is None"),
        ({"annotations": [{"caption": "x"}]}, r"annotations\[0\].image_id must be a number or text; it is None"),
        ({"annotations": ["x"]}, r"annotations\[0\].image_id must be a number or text"),
        ({"annotations": []}, "no picture has a caption"),
        ({"images": [{"id": 3}]}, r"images\[0\].file_name must be text; it is None"),
        ({"images": [{"id": 3, "file_name": "b.png"}] * 2}, r"images\[1\] has the id 3, which an earlier picture has"),
        ({"images": [{"id": 3, "file_name": "d.png"}], "annotations": COCO["annotations"][:1]}, "d.png"),
        ({"images": [{"id": 3, "file_name": "../b.png"}], "annotations": COCO["annotations"][:1]}, "leads out of"),
    ],
)
def test_a_broken_coco_file_is_told(folder: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        CaptionTask(data=written(folder, COCO | change), tokenizer="python")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beams": 0}, "beams is 0; it must be at least 1"),
        ({"prompt": " "}, "prompt is empty"),
        ({"tokenizer": "pyhton"}, 'Unknown tokenizer "pyhton"; known: stanford, python. Did you mean "python"?'),
        ({"slices": ["nowhere"]}, 'has no field "nowhere" to split by'),
    ],
)
def test_settings_that_make_no_sense(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        CaptionTask(data=written(folder, [{"image": "a.png", "caption": "x"}]), **options)


def test_coco_takes_no_split(folder: Path) -> None:
    with pytest.raises(ConfigError, match="leave `split` and `format` out"):
        CaptionTask(data=written(folder, COCO), split="test", tokenizer="python")


def test_references_need_words_and_pictures(folder: Path) -> None:
    with pytest.raises(DataError, match="no reference caption has a word"):
        CaptionTask(data=written(folder, [{"image": "a.png", "caption": "..."}]), tokenizer="python")
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    with pytest.raises(DataError, match="shows no picture"):
        CaptionTask(data=written(folder, [{"conversations": turns}]), tokenizer="python")


def test_the_protocol_names_the_tokenizer(folder: Path) -> None:
    rows = written(folder, [{"image": "a.png", "caption": "a dog"}])
    assert CaptionTask(data=rows, tokenizer="python").protocol == (
        "vlchat-caption-1 (CIDEr-D, BLEU and ROUGE-L by pycocoevalcap 1.2 after vlchat's own tokenizer, PTB rules 1)"
    )
    expected = "Stanford's PTB tokenizer)" if java_runs() else "PTB rules 1)"
    assert CaptionTask(data=rows).protocol.endswith(expected)


@pytest.mark.parametrize("caption", ["", "\ud800", "...", "🎉" * 50, "word " * 3000, "\0", "\n"])
def test_no_reply_breaks_the_scores(folder: Path, caption: str) -> None:
    rows = [{"image": f"{name}.png", "caption": f"a {name} thing"} for name in "ab"]
    for tokenizer in ("python", "stanford") if java_runs() else ("python",):
        task = CaptionTask(data=written(folder, rows), tokenizer=tokenizer)
        readings = answered(task, [caption, "a b thing"])
        assert readings[0].score == 0.0 and readings[1].score == pytest.approx(1.0)
        assert all(np.isfinite(value) for value in measured(task, readings).values())
