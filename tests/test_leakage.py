"""What of a test is found in training data: the bytes, a copy saved again, a near copy, the words, or both together."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scored import questions, saved

from vlchat.cli import main
from vlchat.data import Source, SourceConfig, load_source
from vlchat.evaluate import leakage as module
from vlchat.evaluate import likeness
from vlchat.evaluate.leakage import PARTS, leakage
from vlchat.evaluate.likeness import difference_hash


def scan(seed: int, side: int = 96) -> Image.Image:
    """A smooth random picture, as scans and photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")


def rows(folder: Path, name: str, pictures: Mapping[str, str]) -> Source:
    """A source that asks each question about its picture; pictures are files in `folder`."""
    path = folder / f"{name}.json"
    content = [
        {"id": f"{name}-{number}", "image": picture, "question": question, "answer": "yes"}
        for number, (question, picture) in enumerate(pictures.items())
    ]
    path.write_text(json.dumps(content))
    return load_source(SourceConfig(str(path)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        scan(number).save(tmp_path / f"{number}.png")
    (tmp_path / "same.png").write_bytes((tmp_path / "0.png").read_bytes())
    scan(1).save(tmp_path / "again.webp", lossless=True)
    scan(2).resize((64, 64)).save(tmp_path / "small.jpg", quality=60)
    scan(9).save(tmp_path / "new.png")
    return tmp_path


def test_each_kind_of_copy_is_found_and_a_new_picture_is_not(folder: Path) -> None:
    train = rows(folder, "train", {f"training question {n}": f"{n}.png" for n in range(4)})
    test = rows(folder, "test", {"a": "same.png", "b": "again.webp", "c": "small.jpg", "d": "new.png", "e": "3.png"})
    found = leakage(train, test)
    kinds = {leak.number: (leak.picture, leak.picture_in) for leak in found.leaks}
    assert kinds == {
        number: (kind, f'train.json: row {row} (id "train-{row - 1}")')
        for number, kind, row in ((0, "file", 1), (1, "pixels", 2), (2, "near", 3), (4, "file", 4))
    }
    assert found.counts == {"picture and question": 0, "picture": 4, "question": 0, "nothing": 1}
    assert found.slices()[2:4] == [{"in training": "picture"}, {"in training": "nothing"}]
    told = found.sentences()
    assert told[0] == (
        'Leak: 2 of 5 test rows show a picture that train.json has as the same file: test.json: row 1 (id "test-0") = '
        'train.json: row 1 (id "train-0"); test.json: row 5 (id "test-4") = train.json: row 4 (id "train-3").'
    )
    assert "1 of 5 test rows show a picture that train.json has as the same pixels in another file" in told[1]
    assert told[-1] == "0 of 5 test rows ask what train.json asks in the same words."


def test_words_and_pairs(folder: Path) -> None:
    train = rows(folder, "train", {"Is there a mass?": "0.png", "Which organ?": "1.png"})
    asked = {"is there a mass": "same.png", "which organ ?": "new.png", "Which  Organ?": "0.png", "Where?": "new.png"}
    found = leakage(train, rows(folder, "test", asked))
    assert [leak.part for leak in found.leaks] == ["picture and question", "question", "picture"]
    assert found.leaks[0].both_in == 'train.json: row 1 (id "train-0")'
    assert found.leaks[2].question_in == 'train.json: row 2 (id "train-1")' and found.leaks[2].both_in is None
    assert list(found.counts.items()) == list(zip(PARTS, (1, 1, 1, 1), strict=True))
    assert "1 of them ask the same question about it, so they were trained on" in " ".join(found.sentences())
    written = json.loads(json.dumps(found.to_dict()))
    assert [one["number"] for one in written["examples"]] == [0, 2] and written["counts"] == found.counts


def test_nothing_found_is_said(folder: Path) -> None:
    train, test = rows(folder, "train", {"One?": "0.png"}), rows(folder, "test", {"Two?": "new.png"})
    found = leakage(train, test)
    assert found.leaks == () and found.slices() == [{}]
    assert found.sentences()[0] == "No picture of test.json is in train.json, nor a near copy of one."


def test_small_changes_are_near_and_others_are_not() -> None:
    """Noise and another size keep the hash; a turned, mirrored or other picture, or a spot on it, is another."""
    picture = scan(5)
    grey = np.asarray(picture, dtype=int)
    noisy = Image.fromarray(np.clip(grey + np.random.default_rng(0).normal(0, 4, grey.shape), 0, 255).astype(np.uint8))
    spotted = picture.copy()
    spotted.paste((255, 255, 255) if grey[40:52, 40:52].mean() < 128 else (0, 0, 0), (40, 40, 52, 52))
    tinted = picture.copy()
    tinted.paste((230, 230, 60), (8, 8, 24, 24))
    plain = picture.copy()
    plain.paste((213, 213, 213), (8, 8, 24, 24))  # as bright
    others = {"noisy": noisy, "large": picture.resize((300, 200)), "turned": picture.rotate(90),
              "mirrored": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "spotted": spotted,
              "other": scan(6)}  # fmt: skip
    known = likeness.signatures({"one": ("image", picture)})
    asked = likeness.signatures({name: ("image", other) for name, other in others.items()})
    assert set(likeness.same(asked, known)) == {"noisy", "large"}
    one, two = (likeness.signatures({"it": ("image", shown)}) for shown in (tinted, plain))
    assert one["it"].hash == two["it"].hash and not likeness.same(one, two), "a colour is seen where brightness is not"


def test_the_difference_hash_is_krawetz_s() -> None:
    """Rising brightness sets every bit, falling none; a step down in the last column clears one bit a line."""
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))
    assert difference_hash(Image.fromarray(ramp)) == 2**64 - 1
    assert difference_hash(Image.fromarray(ramp[:, ::-1].copy())) == 0
    ramp[:, 8] = 0
    assert difference_hash(Image.fromarray(ramp)) == int("11111110" * 8, 2)


def test_what_is_known_is_not_decoded_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = rows(folder, "train", {f"training question {n}": f"{n}.png" for n in range(4)})
    test = rows(folder, "test", {"a": "same.png", "b": "again.webp", "c": "small.jpg", "d": "new.png"})
    cache = tmp_path / "cache"
    cache.mkdir()
    first = leakage(train, test, cache=cache)
    decoded = []
    decode = likeness.images.decode
    monkeypatch.setattr(likeness.images, "decode", lambda source: decoded.append(source) or decode(source))
    assert leakage(train, test, cache=cache) == first and not decoded
    (folder / "new.png").write_bytes((folder / "2.png").read_bytes())
    assert leakage(train, test, cache=cache).leaks[-1].picture == "file", "another file of the same name"
    with sqlite3.connect(cache / likeness.FILE) as database:
        database.execute("UPDATE signatures SET made_by = 'another Pillow'")
    leakage(train, test, cache=cache)
    assert decoded
    (cache / likeness.FILE).write_bytes(b"no database")
    assert leakage(train, test, cache=cache).leaks


def test_of_very_many_pictures_only_the_bytes_are_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_DECODED", 3)
    train = rows(folder, "train", {f"training question {n}": f"{n}.png" for n in range(4)})
    found = leakage(train, rows(folder, "test", {"a": "same.png", "b": "again.webp"}))
    assert [leak.picture for leak in found.leaks] == ["file"]
    assert "There are more than 3 pictures, so near copies were not looked for." in found.sentences()


def test_what_cannot_be_read_is_left_out(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    train = rows(folder, "train", {"One?": "0.png", "Two?": "broken.png", "Three?": "missing.png"})
    found = leakage(train, rows(folder, "test", {"a": "same.png"}))
    assert [leak.picture for leak in found.leaks] == ["file"] and found.unreadable == 2
    assert "2 rows or pictures could not be read" in found.sentences()[-1]


def test_an_evaluation_with_a_floor_says_what_leaked_and_scores_it_apart(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = saved(tmp_path / "m", tiny_model(), tiny_processor), questions(tmp_path / "data", 8)
    training = json.loads(data.read_text())[:3]  # both questions about the first picture, one about the second
    train = tmp_path / "data" / "train.json"
    train.write_text(json.dumps([row | {"id": f"t{row['id']}"} for row in training]))
    out = tmp_path / "out"
    asked = ["eval", str(model), "--data", str(data), "--floor", str(train), "--no-controls", "--max-new-tokens", "2"]
    assert main([*asked, "--cache", str(tmp_path / "c"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "3 of them ask the same question about it, so they were trained on: rows.json: row 1" in told
    assert "No picture of" not in told and told.count("Leak: ") == 2 + ("near copy" in told)
    result = json.loads((out / "result.json").read_text())
    kept = [json.loads(line) for line in (out / "replies.jsonl").read_text().splitlines()]
    parts = {part: [row for row in kept if row["slices"]["in training"] == part] for part in PARTS}
    assert [row["id"] for row in parts["picture and question"]] == ["q0", "q1", "q2"]
    assert "q3" in [row["id"] for row in parts["picture"]]
    for part, found in result["slices"]["in training"].items():
        mean = np.mean([row["score"] for row in parts[part]])
        assert found["accuracy"]["value"] == pytest.approx(mean) and found["accuracy"]["rows"] == len(parts[part])
    assert result["leakage"]["counts"] == {part: len(parts[part]) for part in PARTS}
    assert "Leak: " in (out / "result.md").read_text()
    assert (tmp_path / "c" / likeness.FILE).is_file()
    assert main([*asked[:4], *asked[6:], "--no-cache", "--out", str(out)]) == 0
    assert json.loads((out / "result.json").read_text())["leakage"] is None
    assert "Leak" not in capsys.readouterr().out
