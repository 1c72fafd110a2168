"""What a training looks at by itself before it begins, and the rows it leaves out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlchat.data import Example, Kept, Mixture, Source, SourceConfig, inspect, load_source
from vlchat.data.faults import read_quarantine
from vlchat.errors import DataError


def vqa(number: int, image: str | None = "a.png", answer: str = "a cat") -> dict[str, Any]:
    return {"id": f"id{number}", "image": image, "question": f"What is {number}?", "answer": answer}


@pytest.fixture
def source(tmp_path: Path, picture: Any) -> Source:
    """Rows 2, 4, 5, 7 and 9 cannot be used; of row 6 the pixels cannot; row 10 is worth a look."""
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "page.png").write_bytes(b"<!DOCTYPE html>")
    rows = [
        vqa(1), vqa(2, "none.png"), vqa(3), vqa(4, "page.png"), vqa(5, answer=" "), vqa(6, "torn.png"),
        vqa(7, "../a.png"), vqa(8), vqa(8), vqa(10, answer="..."),
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return load_source(SourceConfig(str(tmp_path / "rows.json")))


class Drawn:
    """A source that draws its rows as it goes."""

    name = "drawn"

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Example:
        raise AssertionError("nothing of a drawn source is looked at")


def test_bad_rows_are_left_out_and_the_others_stay_in_order(source: Source, tmp_path: Path) -> None:
    mixture = Mixture([source, Drawn()], [2.0, 1.0], seed=3)
    found = inspect(mixture, max_bad=5, quarantine=tmp_path / "quarantine.jsonl")
    assert found.left_out == [[1, 3, 4, 6, 8], []] and found.bad_rows == 5 and found.rows == 10
    assert [(fault.row, fault.kind) for fault in found.bad] == [
        (2, "missing_file"), (4, "unsupported_file"), (5, "empty_answer"), (7, "path_leads_up"), (9, "duplicate_id"),
    ]  # fmt: skip
    assert [(fault.row, fault.kind) for fault in found.notes] == [(10, "punctuation_answer")]
    assert read_quarantine(tmp_path / "quarantine.jsonl") == found.bad
    assert "Of 10 rows 5 left out" in found.summary() and "1 noted (1 punctuation_answer)" in found.summary()

    kept = found.keep(mixture)
    assert [len(one) for one in kept.sources] == [5, 7] and kept.counts == [10, 7] and kept.seed == 3
    assert [kept.sources[0][index].id for index in range(5)] == ["id1", "id3", "id6", "id8", "id10"]
    assert kept.sources[0][1].called == 'rows.json: row 3 (id "id3")'  # the number in the file, not among the kept
    again = inspect(mixture, max_bad=5).keep(Mixture([source, Drawn()], [2.0, 1.0], seed=3))
    for epoch in (0, 4):
        for one in (kept, again):
            one.set_epoch(epoch)
        assert [kept.locate(i) for i in range(len(kept))] == [again.locate(i) for i in range(len(again))]


def test_a_run_with_more_bad_rows_than_allowed_does_not_begin(source: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:  # torture rows 51 to 54
        inspect([source], quarantine=tmp_path / "quarantine.jsonl")
    text = str(caught.value)
    assert text.startswith("5 bad rows of 10, and max_bad allows 0:\n")
    for words in ('row 2 (id "id2"), image: "none.png" was not found', 'row 7 (id "id7"), image:', "quarantine.jsonl"):
        assert words in text
    assert len(read_quarantine(tmp_path / "quarantine.jsonl")) == 5, "it is written before the run is refused"
    with pytest.raises(DataError, match="max_bad allows 4"):
        inspect([source], max_bad=4)


def test_the_digest_names_which_rows_are_left_out(source: Source, picture: Any) -> None:
    before = inspect([source], max_bad=9)
    assert inspect([source], max_bad=9).digest == before.digest
    picture(4).save(source.roots[0] / "none.png")  # the missing picture has come
    assert inspect([source], max_bad=9).digest != before.digest


def test_clean_data_is_the_same_mixture_and_says_nothing(source: Source) -> None:
    clean = Source([source.rows[row] for row in (0, 2, 7)], name="clean", roots=source.roots)
    mixture = Mixture([clean], seed=1)
    found = inspect(mixture)
    assert found.keep(mixture) is mixture and found.summary() == "" and found.left_out == [[]] and found.rows == 3


def test_a_source_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    source = Source([vqa(1, "none.png"), vqa(2, "none.png")], name="rows", roots=[tmp_path])
    mixture = Mixture([source])
    with pytest.raises(DataError, match="rows has no rows"):
        inspect(mixture, max_bad=2).keep(mixture)


def test_objectives_without_answers_take_rows_without(tmp_path: Path, picture: Any) -> None:
    picture(0).save(tmp_path / "a.png")
    asked = [{"messages": [{"role": "user", "content": "<image>"}], "images": ["a.png"]}]
    source = Source(asked, roots=[tmp_path])
    assert inspect([source], answers=False).bad == []
    with pytest.raises(DataError, match="no turn of the assistant"):
        inspect([source])


def test_a_kept_source_is_its_rows() -> None:
    source = Source([{"question": str(i), "answer": "x"} for i in range(6)], name="rows")
    kept = Kept(source, [1, 4])
    assert (len(kept), kept.name, [kept[i].row for i in range(2)]) == (2, "rows", [2, 5])
    for index in (-1, 2):
        with pytest.raises(IndexError):
            kept[index]


@pytest.mark.parametrize("path", ["slake/train_llava.json", "nlvr/dev_messages.jsonl", "twemoji/captions.jsonl"])
def test_other_peoples_data_is_trained_on_whole(shared_data: Path, path: str) -> None:
    found = inspect([load_source(SourceConfig(str(shared_data / path)))])
    assert found.left_out == [[]] and {fault.kind for fault in found.notes} <= {"duplicate_row"}


def test_looking_at_data_imports_neither_torch_nor_transformers(source: Source, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from vlchat.cli import main\n"
        f"assert main(['check', {str(source.roots[0] / 'rows.json')!r}]) == 1\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    environment = {"PATH": "", "PYTHONPATH": str(Path(__file__).parent.parent), "XDG_CACHE_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.endswith("\n[]\n"), run.stdout + run.stderr
