"""`check` lists everything that is wrong with a dataset, by row number, before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlchat.data import SourceConfig, check
from vlchat.errors import DataError


def vqa(name: str, image: str, answer: str = "cat", **more: Any) -> dict[str, Any]:
    return {"id": name, "image": image, "question": "What?", "answer": answer, **more}


def test_every_fault_is_listed_with_its_row_number(tmp_path: Path, picture: Any) -> None:
    picture(0).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    rows: list[Any] = [
        vqa("a", "good.png"),
        vqa("b", "gone.png"),  # torture row 52: all of the missing files, not the first
        vqa("c", "also-gone.png"),
        vqa("d", "gone.png"),
        vqa("e", "broken.png"),
        vqa("f", "../escape.png"),
        vqa("a", "good.png"),  # torture row 53
        vqa("g", "good.png", " "),  # torture row 54
        {"id": "h", "image": "good.png"},
        "not a row",
        {"id": "i", "question": "Two?", "answer": "yes"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{torn\n")
    report = check(SourceConfig(str(tmp_path / "rows.jsonl")))
    assert {(problem.row, problem.field) for problem in report.bad} == {
        (2, "image"), (3, "image"), (4, "image"), (5, "image"), (6, "image"), (7, "id"), (8, "answer"),
        (9, "row"), (10, "row"), (12, "row"),
    }  # fmt: skip
    assert report.missing == ["gone.png", "also-gone.png"]
    assert (report.rows, report.duplicate_ids, report.bad_rows, report.text_only) == (12, 1, 10, 1)
    text = report.render()
    for words in ("row 2 ", "row 12,", '"gone.png" was not found', "broken.png", "row 1 has the same", "leads out of"):
        assert words in text
    assert "and 8 more" in report.render(most=2) and "--images" in report.render(most=2)
    json.dumps(report.to_dict())


def test_a_good_source_is_counted(tmp_path: Path, picture: Any) -> None:
    picture(0).save(tmp_path / "a.png")
    rows = [vqa("1", "a.png"), {"id": "2", "image": "a.png", "caption": "A cat."}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    report = check(SourceConfig(str(tmp_path / "rows.json")))
    assert report.ok and (report.images, report.turns) == (2, 2) and report.formats == {"vqa": 1, "caption": 1}
    assert "Every row can be used" in report.render()


def test_without_decoding_only_headers_are_looked_at(tmp_path: Path, picture: Any) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    (tmp_path / "text.png").write_bytes(b"no picture")
    rows = [vqa("1", "torn.png"), vqa("2", "none.png"), vqa("3", "text.png")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    report = check(SourceConfig(str(tmp_path / "rows.json")), decode=False)
    assert [(problem.row, problem.kind) for problem in report.bad] == [(2, "missing_file"), (3, "unsupported_file")]
    report = check(SourceConfig(str(tmp_path / "rows.json")))
    assert [problem.row for problem in report.bad] == [1, 2, 3]


def test_a_source_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        check(SourceConfig(str(tmp_path / "none.json")))


@pytest.mark.parametrize(
    ("path", "rows"),
    [("slake/train_llava.json", 4917), ("nlvr/dev_messages.jsonl", 5934), ("twemoji/captions.jsonl", 1874)],
)
def test_other_peoples_data_is_clean(shared_data: Path, path: str, rows: int) -> None:
    report = check(SourceConfig(str(shared_data / path)), decode="nlvr" not in path)
    assert report.ok, report.render(most=5)
    assert report.rows == report.images == rows
    # SLAKE has seven questions twice, each about the same picture with the same answer: rows 586 to 592 again.
    twice = [(row, "duplicate_row") for row in range(593, 600)] if "slake" in path else []
    assert [(fault.row, fault.kind) for fault in report.notes] == twice
