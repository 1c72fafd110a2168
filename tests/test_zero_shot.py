"""Zero-shot classification, against transformers' own logits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs_of_towers import pictures, write_pair
from transformers import PreTrainedTokenizerFast

from vlchat.data import SourceConfig
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.embedders import open_embedder
from vlchat.evaluate.embeddings import evaluate_with
from vlchat.evaluate.labelled import class_names, read_labelled
from vlchat.evaluate.tasks.zero_shot import ZeroShotTask
from vlchat.evaluate.templates import TEMPLATES, prompts, templates_of
from vlchat.towers import clip_image_processor

LABELS = ["cat", "red_circle", "cat", "dog", "dog", "cat", "square"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for number, (picture, label) in enumerate(zip(pictures(len(LABELS)), LABELS, strict=True)):
        picture.save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": label})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


def values(task: ZeroShotTask, done: list[Any]) -> dict[str, float]:
    stats = [reading.stats for _, reading in done]
    sums = {name: np.array(sum(row[name] for row in stats)) for name in stats[0]} | {"rows": np.array(len(stats))}
    return {measure.name: float(measure.value(sums)) for measure in task.measures}


@pytest.mark.parametrize("templates", ["none", ["a picture of a {}", "is it a {}?", "the {}"]])
def test_accuracy_and_confidence_are_those_of_transformers(
    tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast, templates: Any
) -> None:
    model = write_pair(tmp_path / "clip", "clip", tiny_tokenizer).double()
    task, embedder = ZeroShotTask(data=str(data), templates=templates), open_embedder(tmp_path / "clip")
    assert embedder is not None
    done = evaluate_with(embedder, task)
    names = ["cat", "dog", "red circle", "square"]
    with torch.no_grad():
        classes = []
        for name in names:
            asked = [name] if templates == "none" else [one.replace("{}", name) for one in templates]
            tokens = tiny_tokenizer(asked, padding=True, return_tensors="pt")
            each = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
            mean = torch.nn.functional.normalize(each, dim=-1).mean(0)
            classes.append(mean / mean.norm())
        pixels = clip_image_processor(24)(pictures(len(LABELS)), return_tensors="pt")["pixel_values"].double()
        images = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        logits = model.logit_scale.exp() * images @ torch.stack(classes).T
    right = [names.index(label.replace("_", " ")) for label in LABELS]
    taken = logits.argmax(1).tolist()
    hits = [one == other for one, other in zip(right, taken, strict=True)]
    assert [reading.answer for _, reading in done] == [names[one] for one in taken]
    confidence = [reading.confidence for _, reading in done]
    assert confidence == pytest.approx(logits.softmax(1).max(1).values.tolist(), abs=1e-4)
    found = values(task, done)
    assert found["accuracy"] == pytest.approx(np.mean(hits))
    assert found["top-5 accuracy"] == 1.0  # of four classes
    by_class = [np.mean([hit for hit, one in zip(hits, right, strict=True) if one == n]) for n in range(4)]
    assert found["mean per-class accuracy"] == pytest.approx(np.mean(by_class))
    wrong = Counter((names[o], names[t]) for o, t in zip(right, taken, strict=True) if o != t)
    (own, other), count = wrong.most_common(1)[0]
    assert count < 2 or any(f"{own} taken for {other} ({count})" in note for note in task.notes)
    assert any('top-1 25.00 %' in n and 'most frequent class ("cat"): 42.86 %' in n for n in task.notes)


def test_classes_that_all_look_alike_get_chance(
    tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = write_pair(tmp_path / "clip", "clip", tiny_tokenizer)
    with torch.no_grad():
        model.visual_projection.weight.zero_()
    model.save_pretrained(tmp_path / "clip")
    task, embedder = ZeroShotTask(data=str(data)), open_embedder(tmp_path / "clip")
    assert embedder is not None
    assert values(task, evaluate_with(embedder, task))["accuracy"] == pytest.approx(0.25)


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    for number, picture in enumerate(pictures(5)):
        folder = tmp_path / ("polar_bear" if number < 3 else "dog")
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{number}.png")
    task = ZeroShotTask(data=str(tmp_path))
    assert task.names == ["dog", "polar bear"] and task.right == [0, 0, 1, 1, 1]
    assert [one.label for one in read_labelled(SourceConfig(str(tmp_path), limit=3))] == ["dog", "dog", "polar_bear"]
    named = ZeroShotTask(data=str(tmp_path), classes={"polar_bear": "a bear", "dog": "a dog"})
    assert named.names == ["a bear", "a dog"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no folders with pictures"):
        ZeroShotTask(data=str(tmp_path / "empty"))


def test_labels_may_be_numbers_of_names(data: Path) -> None:
    assert class_names(["a", "b", "c"], ["2", "0"]) == (["a", "b", "c"], [2, 0])
    assert class_names("a, b", ["b"]) == (["a", "b"], [1])
    (data.parent / "names.txt").write_text("red circle\nblue square\n")
    assert class_names(str(data.parent / "names.txt"), ["blue_square", "0"])[1] == [1, 0]
    (data.parent / "names.json").write_text('{"n01": "cat", "n02": "dog"}')
    assert class_names(str(data.parent / "names.json"), ["n02"]) == (["cat", "dog"], [1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": "a photo"}, 'templates is "a photo".*Known: photo, none, openai-7, openai-80'),
        ({"templates": "openai-8"}, 'Did you mean "openai-80"'),
        ({"templates": ["a {} {}"]}, "must have {} once"),
        ({"templates": []}, "templates is empty"),
        ({"classes": "cat"}, "classes is cat, and there is no such file"),
        ({"classes": ["cat"]}, "there are 1 classes to choose from"),
        ({"classes": ["cat", "cat"]}, 'two classes are called "cat"'),
    ],
)
def test_options_that_cannot_be_used_are_told(data: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ZeroShotTask(data=str(data), **options)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"image": "0.png"}, {}, "row 1: it has no label or class or category or answer, only image"),
        ({"image": "0.png", "label": None}, {}, "row 1: its label is null: fill it in"),
        ({"label": "cat"}, {}, "row 1: it shows 0 pictures"),
        ({"image": "9.png", "label": "cat"}, {}, 'row 1: "9.png" was not found'),
        ({"image": "0.png", "label": "cat"}, {"classes": ["dog", "cow"]}, 'the label "cat" is none of the 2 classes'),
    ],
)
def test_rows_that_cannot_be_used_are_told(
    data: Path, row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    (data.parent / "bad.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        ZeroShotTask(data=str(data.parent / "bad.jsonl"), **options)


def test_the_published_templates() -> None:
    assert len(set(TEMPLATES["openai-80"])) == 80 and len(set(TEMPLATES["openai-7"])) == 7
    assert set(TEMPLATES["openai-7"]) <= set(TEMPLATES["openai-80"])
    assert all(one.count("{}") == 1 for some in TEMPLATES.values() for one in some)
    assert prompts(["a", "b"], templates_of("it is {}")) == ["it is a", "it is b"]
    assert prompts(["a{}", "b"], ("{} x", "y {}")) == ["a{} x", "y a{}", "b x", "y b"]
