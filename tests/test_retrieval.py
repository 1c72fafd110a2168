"""Retrieval, against brute force over transformers' own scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs_of_towers import pictures, write_pair
from PIL import Image
from transformers import PreTrainedTokenizerFast

from vlchat.data import SourceConfig
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.captioned import read_captioned
from vlchat.evaluate.embedders import open_embedder
from vlchat.evaluate.embeddings import Embeddings, evaluate_with
from vlchat.evaluate.metrics.ranking import chance_of
from vlchat.evaluate.tasks.retrieval import RetrievalTask, first, reranked
from vlchat.towers import clip_image_processor

CAPTIONS = [
    ["a red circle", "a circle"], ["two cats and one dog"], ["no cats", "the blue square", "it is green"],
    ["one dog is in the picture"], ["a yellow picture", "is it green"], ["the picture"],
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six pictures, each row one caption, rows of one picture apart."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, picture in enumerate(pictures(len(CAPTIONS))):
        picture.save(folder / f"{number}.png")
    rows = [(turn, number, said[turn]) for number, said in enumerate(CAPTIONS) for turn in range(len(said))]
    listed = [{"image": f"{number}.png", "caption": text} for _, number, text in sorted(rows)]
    (folder / "rows.json").write_text(json.dumps(listed))
    return folder / "rows.json"


def shown(data: Path) -> list[Image.Image]:
    return [Image.open(data.parent / f"{number}.png") for number in range(len(CAPTIONS))]


def values(task: RetrievalTask, done: list[Any]) -> dict[str, float]:
    """Every measure over all rows."""
    stats = [reading.stats for _, reading in done]
    sums = {name: np.array(sum(row[name] for row in stats)) for name in stats[0]} | {"rows": np.array(len(stats))}
    return {measure.name: float(measure.value(sums)) for measure in task.measures}


def recalls(scores: np.ndarray, right: np.ndarray) -> dict[int, float]:
    """Share of the queries that have a right candidate among the first k, from a plain sort; no ties."""
    order = np.argsort(-scores, axis=1)
    best = [int(np.flatnonzero(right[row][order[row]])[0]) for row in range(len(scores))]
    return {k: float(np.mean([rank < k for rank in best])) for k in (1, 5, 10)}


def test_recalls_are_those_of_sorting_transformers_logits(
    tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = write_pair(tmp_path / "clip", "clip", tiny_tokenizer)
    task, embedder = RetrievalTask(data=str(data)), open_embedder(tmp_path / "clip")
    assert embedder is not None
    done = evaluate_with(embedder, task, batch_size=4)
    texts = [text for said in CAPTIONS for text in said]
    tokens = tiny_tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model.double()(
            pixel_values=clip_image_processor(24)(shown(data), return_tensors="pt")["pixel_values"].double(),
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        ).logits_per_image.numpy()
    right = np.array([[text in said for text in texts] for said in CAPTIONS])
    found = values(task, done)
    expected = {"image to text": recalls(scores, right), "text to image": recalls(scores.T, right.T)}
    for way, by_cut in expected.items():
        for cut, value in by_cut.items():
            assert found[f"{way} R@{cut}"] == pytest.approx(value, abs=1e-9)
    assert 0 < expected["image to text"][5] < 1  # neither all nor nothing
    assert found["mean recall"] == pytest.approx(np.mean([list(some.values()) for some in expected.values()]))
    assert [item.reference for item, _ in done[:6]] == [" | ".join(said) for said in CAPTIONS]
    assert [item.cluster for item, _ in done[6:9]] == ["picture 0", "picture 0", "picture 1"]
    assert done[0][1].answer == texts[int(scores[0].argmax())]
    chances = np.exp(scores[0] - scores[0].max())
    assert done[0][1].confidence == pytest.approx(chances.max() / chances.sum(), abs=1e-4)


def test_a_model_that_embeds_everything_alike_gets_chance(
    tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = write_pair(tmp_path / "clip", "clip", tiny_tokenizer)
    with torch.no_grad():
        model.text_projection.weight.zero_()
    model.save_pretrained(tmp_path / "clip")
    task, embedder = RetrievalTask(data=str(data)), open_embedder(tmp_path / "clip")
    assert embedder is not None
    found = values(task, evaluate_with(embedder, task))
    right = np.arange(6)[:, None] == task.owner
    for way, side in (("image to text", right), ("text to image", right.T)):
        for cut in (1, 5, 10):
            assert found[f"{way} R@{cut}"] == pytest.approx(chance_of(side).hit(cut).mean(), abs=1e-12)
    assert any("chance, text to image: R@1 16.67 %, R@5 83.33 %" in note for note in task.notes)


def test_the_matching_head_ranks_anew_as_blip2s_code_does(
    tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """LAVIS, blip2_qformer.py: a matrix of -100 with itm + itc at the first k of each query."""
    model = write_pair(tmp_path / "blip2", "blip2", tiny_tokenizer)
    embedder = open_embedder(tmp_path / "blip2")
    assert embedder is not None
    texts = [text for said in CAPTIONS for text in said]
    tokens = tiny_tokenizer(texts, padding=True, return_tensors="pt")
    given = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    pixels = clip_image_processor(24)(shown(data), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        itc = model(pixel_values=pixels, **given).logits_per_image
        itm = torch.stack([
            model(pixel_values=one.expand(len(texts), -1, -1, -1), **given, use_image_text_matching_head=True)
            .logits_per_image[:, 1] for one in pixels
        ])  # fmt: skip
    right = np.array([[text in said for text in texts] for said in CAPTIONS])
    for k in (1, 3):
        task = RetrievalTask(data=str(data), rerank=k)
        found = values(task, evaluate_with(embedder, task))
        for way, similar, logits, own in (("image to text", itc, itm, right), ("text to image", itc.T, itm.T, right.T)):
            matrix = torch.full(similar.shape, -100.0)
            for row, sims in enumerate(similar):
                best, index = sims.topk(k)
                matrix[row, index] = logits[row, index] + best
            assert found[f"{way} R@1"] == pytest.approx(own[range(len(own)), matrix.argmax(1)].mean()), (way, k)
        assert f"The first {k} of each query are ranked by similarity + the matching logit." in task.notes
    plain = RetrievalTask(data=str(data), rerank=0)
    found = values(plain, evaluate_with(embedder, plain))
    assert found["image to text R@1"] == pytest.approx(recalls(itc.numpy(), right)[1])
    assert not any("matching logit" in note for note in plain.notes)


def test_what_is_not_reranked_stays_behind_in_its_order() -> None:
    similar = np.array([[0.9, 0.5, 0.7, 0.1]])
    chosen = first(similar, 2)
    assert chosen.tolist() == [[True, False, True, False]]
    scores = reranked(similar, np.array([[-9.0, 99.0, 1.0, 99.0]]), chosen)
    assert np.argsort(-scores[0]).tolist() == [2, 0, 1, 3]
    close = reranked(similar, np.array([[1.0, 0.0, 1.1, 0.0]]), chosen)  # 1.9 and 1.8: both scores count
    assert close[0, [0, 2]] == pytest.approx([1.9, 1.8])
    assert first(np.zeros((200, 10)), 3).mean(axis=0) == pytest.approx(0.3, abs=0.12)  # no place is preferred


def test_the_cache_answers_the_second_time_and_after_a_break(
    tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlchat.evaluate.embeddings._PIECE", 4)
    write_pair(tmp_path / "clip", "clip", tiny_tokenizer)
    embedder: Any = open_embedder(tmp_path / "clip")
    seen: list[int] = []
    embedder.model.vision_model.register_forward_pre_hook(
        lambda _, given, named: seen.append(len(named["pixel_values"])), with_kwargs=True
    )
    task = RetrievalTask(data=str(data))
    plain = values(task, evaluate_with(embedder, task))
    assert sum(seen) == 6
    again = values(task, evaluate_with(embedder, task, cache=tmp_path / "cache"))
    assert sum(seen) == 12
    assert values(task, evaluate_with(embedder, task, cache=tmp_path / "cache")) == again == plain
    assert sum(seen) == 12
    files = sorted((tmp_path / "cache").iterdir())
    for file in files:
        file.write_bytes(file.read_bytes()[:50])  # a damaged piece is made again
    assert values(task, evaluate_with(embedder, task, cache=tmp_path / "cache")) == plain
    assert sum(seen) == 18
    Image.new("RGB", (24, 24)).save(data.parent / "5.png")  # another picture by the same name
    evaluate_with(embedder, RetrievalTask(data=str(data)), cache=tmp_path / "cache")
    assert sum(seen) == 20  # the second piece alone


def test_a_picture_that_cannot_be_read_is_named(
    tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_pair(tmp_path / "clip", "clip", tiny_tokenizer)
    embedder = open_embedder(tmp_path / "clip")
    (data.parent / "3.png").write_bytes((data.parent / "3.png").read_bytes()[:99])
    with pytest.raises(DataError, match="3.png: .*damaged or cut short"):
        evaluate_with(embedder, RetrievalTask(data=str(data)))  # type: ignore[arg-type]


def test_numbers_that_are_not_finite_are_told(
    tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = write_pair(tmp_path / "clip", "clip", tiny_tokenizer)
    with torch.no_grad():
        model.text_projection.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="not finite for texts 1 to 2"):
        Embeddings(open_embedder(tmp_path / "clip")).texts(["a", "b"])  # type: ignore[arg-type]


def test_rows_that_share_a_picture_are_joined(data: Path) -> None:
    found = read_captioned(SourceConfig(str(data)))
    assert [sorted(one.texts) for one in found] == [sorted(said) for said in CAPTIONS]
    assert [len(one.texts) for one in read_captioned(SourceConfig(str(data), limit=3), captions=2)] == [2, 1, 2]
    listed = [{"image": "0.png", "captions": ["one", "two"]}, {"image": "1.png", "name": "x", "tags": ["a", "b"]},
              {"image": "1.png", "tags": ["a", "b"]}]  # fmt: skip
    (data.parent / "more.json").write_text(json.dumps(listed))
    found = read_captioned(SourceConfig(str(data.parent / "more.json")))
    assert [one.texts for one in found] == [("one", "two"), ("x", "a, b")]


def test_the_official_files_are_read(data: Path) -> None:
    karpathy = {"dataset": "flickr30k", "images": [
        {"filename": f"{n}.png", "imgid": n, "split": split, "sentences": [{"raw": f"{n} a"}, {"raw": f"{n} b"}]}
        for n, split in enumerate(["test", "train", "restval", "test"])
    ]}  # fmt: skip
    path = data.parent / "dataset_flickr30k.json"
    path.write_text(json.dumps(karpathy))
    assert [one.texts for one in read_captioned(SourceConfig(str(path)))] == [("0 a", "0 b"), ("3 a", "3 b")]
    assert [one.id for one in read_captioned(SourceConfig(str(path), split="train"))] == ["1", "2"]
    with pytest.raises(DataError, match='no pictures of the split "val"; its splits: restval, test, train'):
        read_captioned(SourceConfig(str(path), split="val"))
    (data.parent / "val2014").mkdir()
    (data.parent / "0.png").rename(data.parent / "val2014" / "0.png")
    karpathy["images"] = [{**karpathy["images"][0], "filepath": "val2014", "cocoid": 77}]  # type: ignore[dict-item]
    path.write_text(json.dumps(karpathy))
    assert read_captioned(SourceConfig(str(path)))[0].id == "77"
    coco = {"images": [{"id": 5, "file_name": "1.png"}, {"id": 6, "file_name": "2.png"}],
            "annotations": [{"image_id": 5, "caption": " one "}, {"image_id": 5, "caption": "two"}]}  # fmt: skip
    (data.parent / "captions_val2017.json").write_text(json.dumps(coco))
    found = read_captioned(SourceConfig(str(data.parent / "captions_val2017.json")))
    assert [(one.id, one.texts) for one in found] == [("5", ("one", "two"))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [{"filename": "no.png", "split": "test", "sentences": [{"raw": "a"}]}]}, '"no.png" was not found'),
        ({"images": [{"filename": "../x.png", "split": "test", "sentences": [{"raw": "a"}]}]}, "leads out"),
        ({"images": [{"filename": "0.png", "split": "test"}]}, "images.0. is not as Karp.*'sentences' is missing"),
        ({"images": [], "annotations": [{"image_id": 1}]}, "not as COCO's captions are"),
        ({"rows": []}, "one object with the keys rows; known are lists of rows"),
        ([{"image": "0.png", "caption": " "}], "says nothing of its picture"),
        ([{"images": ["0.png", "1.png"], "caption": "x"}], "shows 2 pictures; retrieval compares one"),
    ],
)
def test_what_cannot_be_used_is_told(data: Path, content: Any, message: str) -> None:
    (data.parent / "bad.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        RetrievalTask(data=str(data.parent / "bad.json"))


def test_options_out_of_range_are_told(data: Path) -> None:
    with pytest.raises(ConfigError, match="rerank is -1"):
        RetrievalTask(data=str(data), rerank=-1)
    with pytest.raises(ConfigError, match="captions is 0"):
        RetrievalTask(data=str(data), captions=0)
    with pytest.raises(ConfigError, match="limit is 0"):
        RetrievalTask(data=str(data), limit=0)
