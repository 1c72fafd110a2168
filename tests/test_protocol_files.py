"""Official files that are absent, incomplete, damaged or of something else: sentences with the way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from official_layouts import LAYOUTS, write

from vlchat.errors import ConfigError, DataError, PathEscapeError, VLChatError
from vlchat.evaluate.protocols import PROTOCOLS

PICTURES = {
    "vqa-v2": "val2014/COCO_val2014_000000000042.jpg", "textvqa": "train_images/003a8ae2ef43b900.jpg",
    "gqa": "images/n7251.jpg", "pope": "val2014/COCO_val2014_000000310196.jpg", "scienceqa": "images/test/11/image.png",
    "mme": "existence/000001.jpg", "chartqa": "png/5090.png", "docvqa": "documents/xnbl0037_0.png",
}  # fmt: skip
MAIN = {
    "vqa-v2": "v2_OpenEnded_mscoco_val2014_questions.json", "textvqa": "TextVQA_0.5.1_val.json",
    "gqa": "testdev_balanced_questions.json", "pope": "coco_pope_random.json", "scienceqa": "problems.json",
    "chartqa": "test_human.json", "docvqa": "val_v1.0.json",
}  # fmt: skip


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_empty_folder_and_none_are_told_with_the_page(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist.*is to be had from http"):
        PROTOCOLS[name](data=str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r" has (no|none) .*is to be had from http"):
        PROTOCOLS[name](data=str(tmp_path))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_missing_pictures_are_counted_before_anything_is_asked(name: str, tmp_path: Path) -> None:
    folder = LAYOUTS[name](tmp_path)
    whole = PROTOCOLS[name](data=str(folder)).items()
    lost = Path(PICTURES[name])
    (folder / lost).unlink()
    with pytest.raises(DataError, match=rf"(?s)1 pictures of \d+ of \d+ questions are missing: .*{lost.stem}.*http"):
        PROTOCOLS[name](data=str(folder))
    if name == "pope":  # its only picture
        with pytest.raises(DataError, match="12 of 12 questions"):
            PROTOCOLS[name](data=str(folder), missing="skip")
        return
    task = PROTOCOLS[name](data=str(folder), missing="skip")
    left = task.items()
    assert 0 < len(left) < len(whole) and {item.id for item in left} < {item.id for item in whole}
    assert any("were left out: 1 pictures are missing" in note for note in task.notes)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_pictures_may_lie_elsewhere(name: str, tmp_path: Path) -> None:
    folder = LAYOUTS[name](tmp_path / "data")
    whole = PROTOCOLS[name](data=str(folder)).items()
    if name == "mme":  # its pictures belong to its categories' folders
        return
    picture_folder = PICTURES[name].split("/")[0]
    shutil.move(folder / picture_folder, tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"name their folder as images\. .* is to be had from"):
        PROTOCOLS[name](data=str(folder))
    found = PROTOCOLS[name](data=str(folder), images=str(tmp_path / "elsewhere")).items()
    assert [item.id for item in found] == [item.id for item in whole]
    with pytest.raises(DataError, match="images is .*, which is no folder"):
        PROTOCOLS[name](data=str(folder), images=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", MAIN)
def test_damaged_and_foreign_files_are_refused(name: str, tmp_path: Path) -> None:
    folder = LAYOUTS[name](tmp_path)
    main = folder / MAIN[name]
    whole = main.read_text()
    main.write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is not valid JSON"):
        PROTOCOLS[name](data=str(folder))
    main.write_bytes(b'{"questions": "\xff"}')
    with pytest.raises(DataError, match="is not valid JSON"):
        PROTOCOLS[name](data=str(folder))
    for foreign in ({"questions": [{"x": 1}], "data": [{"x": 1}], "4": 3}, [{"x": 1}], [3], [], {}):
        write(main, foreign)
        with pytest.raises(VLChatError):
            PROTOCOLS[name](data=str(folder))


@pytest.mark.parametrize("odd", [None, 3, -1, 1.5, "x", "", [], [None], {}, True])
@pytest.mark.parametrize("name", MAIN)
def test_no_field_of_another_kind_ends_in_a_traceback(name: str, odd: Any, tmp_path: Path) -> None:
    folder = LAYOUTS[name](tmp_path)
    files = [folder / MAIN[name], *folder.glob("*annotations.json"), *folder.glob("pid_splits.json")]
    for file in files:
        whole = file.read_text()
        lines = whole.splitlines() if name == "pope" else [whole]
        content = json.loads(lines[0])
        for place in _places(content):
            changed = json.dumps(_with(content, place, odd))
            file.write_text("\n".join([changed, *lines[1:]]))
            try:
                for item in PROTOCOLS[name](data=str(folder), missing="skip").items():
                    assert all(isinstance(text, str) for text in (item.id, item.reference, *item.answers))
            except VLChatError:
                pass
        file.write_text(whole)


def _places(content: Any, depth: int = 5) -> list[tuple[Any, ...]]:
    """Where values are: of lists the first entry alone, of rows by their ids too."""
    if depth == 0 or not isinstance(content, dict | list) or not content:
        return []
    keys = [0] if isinstance(content, list) else list(content)[:20]
    return [place for key in keys for place in ((key,), *((key, *rest) for rest in _places(content[key], depth - 1)))]


def _with(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copied = list(content) if isinstance(content, list) else dict(content)
    copied[place[0]] = _with(content[place[0]], place[1:], value)
    return copied


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_first_questions_and_hashes(name: str, tmp_path: Path) -> None:
    folder = LAYOUTS[name](tmp_path)
    first = PROTOCOLS[name](data=str(folder), limit=1)
    assert len(first.items()) == {"pope": 3, "chartqa": 2}.get(name, 1) and first.data["limit"] == 1
    for limit in (0, -1):
        with pytest.raises(ConfigError, match=f"limit is {limit}"):
            PROTOCOLS[name](data=str(folder), limit=limit)
    with pytest.raises(ConfigError, match='missing is "drop"'):
        PROTOCOLS[name](data=str(folder), missing="drop")
    before = PROTOCOLS[name](data=str(folder)).data
    changed = folder / MAIN.get(name, "existence/000001.txt")
    changed.write_text(changed.read_text().replace("the", "The").replace("How", "how").replace("a dog", "a fox"))
    changed.write_text(changed.read_text().replace("snowboard", "surfboard").replace("is ", "IS "))
    after = PROTOCOLS[name](data=str(folder)).data
    differ = [file for file in before["files"] if before["files"][file] != after["files"][file]]
    assert len(differ) == 1 and differ[0] in (changed.name, "existence")


def test_a_picture_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = LAYOUTS["docvqa"](tmp_path / "data")
    content = json.loads((folder / "val_v1.0.json").read_text())
    content["data"][0]["image"] = "../../secret.png"
    write(folder / "val_v1.0.json", content)
    with pytest.raises((PathEscapeError, DataError), match="leads out|missing"):
        PROTOCOLS["docvqa"](data=str(folder))
    rows = json.loads((LAYOUTS["chartqa"](tmp_path / "chart") / "test_human.json").read_text())
    write(tmp_path / "chart" / "test_human.json", [rows[0] | {"imgname": "../../secret.png"}])
    with pytest.raises(PathEscapeError, match="leads out"):
        PROTOCOLS["chartqa"](data=str(tmp_path / "chart"))


def test_vqa_v2_needs_annotations_of_the_same_part(tmp_path: Path) -> None:
    folder = LAYOUTS["vqa-v2"](tmp_path)
    annotations = folder / "v2_mscoco_val2014_annotations.json"
    content = json.loads(annotations.read_text())
    moved = tmp_path / "elsewhere.json"
    annotations.rename(moved)
    with pytest.raises(DataError, match=r"has no v2_mscoco_val2014_annotations\.json.*the annotations.*visualqa\.org"):
        PROTOCOLS["vqa-v2"](data=str(folder))
    assert len(PROTOCOLS["vqa-v2"](data=str(folder), annotations=str(moved)).items()) == 5
    with pytest.raises(DataError, match="annotations is .*which is no file"):
        PROTOCOLS["vqa-v2"](data=str(folder), annotations="nowhere.json")
    write(moved, {"annotations": content["annotations"][1:]})
    with pytest.raises(DataError, match=r"42000.*is not in elsewhere\.json"):
        PROTOCOLS["vqa-v2"](data=str(folder), annotations=str(moved))
    for part in ("train2014", "val2014"):
        write(folder / f"v2_OpenEnded_mscoco_{part}_questions.json", {"questions": []})
    with pytest.raises(DataError, match="several files for the questions: .*train2014.*Name one of them as data"):
        PROTOCOLS["vqa-v2"](data=str(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "maybe"}, r"line 1: label is \"maybe\""), ({"label": None}, "line 1 has no `label`"),
        ({"image": None}, "has no `image`; its fields are question_id"),
    ],
)  # fmt: skip
def test_pope_names_the_line(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = LAYOUTS["pope"](tmp_path) / "coco_pope_random.json"
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]))
    with pytest.raises(DataError, match=words):
        PROTOCOLS["pope"](data=str(tmp_path))


def test_scienceqa_names_split_and_problem(tmp_path: Path) -> None:
    folder = LAYOUTS["scienceqa"](tmp_path)
    with pytest.raises(DataError, match='no split "dev"; known: train, val, test'):
        PROTOCOLS["scienceqa"](data=str(folder), split="dev")
    problems = json.loads((folder / "problems.json").read_text())
    write(folder / "problems.json", problems | {"5": problems["5"] | {"answer": 4}})
    with pytest.raises(DataError, match="problem 5: answer 4 is not the place of one of its 4 choices"):
        PROTOCOLS["scienceqa"](data=str(folder))
    write(folder / "problems.json", {pid: row for pid, row in problems.items() if pid != "16"})
    with pytest.raises(DataError, match="problem 16 is in the split test, but not among the problems"):
        PROTOCOLS["scienceqa"](data=str(folder))
    (folder / "pid_splits.json").unlink()
    with pytest.raises(DataError, match=r"has no pid_splits\.json: the ids of each part"):
        PROTOCOLS["scienceqa"](data=str(folder))


def test_mme_names_the_file(tmp_path: Path) -> None:
    folder = LAYOUTS["mme"](tmp_path)
    text = folder / "existence" / "000001.txt"
    text.write_text("Is there a dog? Please answer yes or no.\tYes\n")
    with pytest.raises(DataError, match=r"000001\.txt has 1 questions; MME has two a picture"):
        PROTOCOLS["mme"](data=str(folder))
    text.write_text("Is there a dog? Yes\nIs there a cat?\tNo\n")
    with pytest.raises(DataError, match=r"000001\.txt: \"Is there a dog\? Yes\" is no question"):
        PROTOCOLS["mme"](data=str(folder))


def test_docvqa_says_that_the_test_part_has_no_answers(tmp_path: Path) -> None:
    folder = LAYOUTS["docvqa"](tmp_path)
    content = json.loads((folder / "val_v1.0.json").read_text())
    for row in content["data"]:
        del row["answers"]
        row["image"] = row["image"].split("/")[1]  # as the later archive of pages has it
    write(folder / "test_v1.0.json", content)
    with pytest.raises(DataError, match=r"test_v1\.0\.json: entry 1 has no `answers`"):
        PROTOCOLS["docvqa"](data=str(folder / "test_v1.0.json"))
