"""Each kind of fault is found where it is, and nothing is found in what people rightly write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import vlchat
from vlchat.data import KINDS, BadRow, Source, SourceConfig, check, load_source, quarantine
from vlchat.data.faults import read_quarantine, too_many
from vlchat.data.wording import faults
from vlchat.errors import DataError

ASKED = {"role": "user", "content": "What is it?"}


def said(text: str) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", "content": text}]}


def llava(*turns: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in turns], **fields}


GOOD = [
    *map(said, ["yes", "no", "2", "+", "-1", "None", "N/A", "n/a", "否", "🙂", "\U0001fae8", "½", "€", "C", "x²"]),
    *map(said, ["a </s> b", "see <image2>", "NÃO", "«MANHÃ»", "café", "naïve – “yes”", "l'été", "a<b>c", "x < 3"]),
    *map(said, ["<s>old</s> new", "new <s>old</s>"]),
    {"messages": [ASKED, {"role": "assistant", "content": "a"}, ASKED, {"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "assistant", "content": "Hello."}, ASKED, {"role": "assistant", "content": "A cat."}]},
    {"messages": [{"role": "system", "content": "Be brief."}, ASKED, {"role": "assistant", "content": "A cat."}]},
    {"question": "How many?", "answer": 2},
    {"question": "Really?", "answer": False},
]
BAD = [
    ("unknown_format", "row", {"pictures": "a.png"}),
    ("not_an_object", "row", ["a.png", "a cat"]),
    ("ambiguous_row", "row", {"messages": [ASKED], "conversations": []}),
    ("ambiguous_row", "image", {"image": "a.png", "images": ["a.png"], "question": "?", "answer": "a"}),
    ("missing_field", "row", {"question": "?"}),
    ("missing_field", "row", {"conversations": []}),
    ("missing_field", "row", {"conversations": [{"from": "human"}]}),
    ("wrong_type", "row", {"conversations": "What?"}),
    ("wrong_type", "row", llava(("human", "a"), ("gpt", ["b"]))),
    ("wrong_type", "image", {"image": 3, "question": "?", "answer": "a"}),
    ("empty_cell", "row", {"question": "?", "answer": float("nan")}),
    ("unknown_role", "row", llava(("human", "a"), ("bot", "b"))),
    ("unknown_role", "row", {"messages": [{"role": "tool", "content": "a"}]}),
    ("too_many_tags", "image", llava(("human", "<image><image>"), ("gpt", "b"), image="a.png")),
    ("too_few_tags", "image", llava(("human", "What?"), ("gpt", "b"), image="a.png")),
    ("picture_in_answer", "row", {"messages": [ASKED, {"role": "assistant", "content": [{"type": "image"}]}]}),
    ("picture_address", "image", {"image": "https://example.org/a.png", "question": "?", "answer": "a"}),
    ("bad_data_url", "image", {"image": "data:image/png;base64,@@", "question": "?", "answer": "a"}),
    ("no_answer", "answer", {"messages": [ASKED]}),
    ("empty_answer", "answer", said(" \n\u2003")),
    ("invisible_answer", "answer", said("\u200b")),
    ("invisible_answer", "answer", said("\u3164\ufe0f")),
    ("no_question", "text", {"messages": [{"role": "assistant", "content": "a"}]}),
    ("punctuation_answer", "answer", said("...")),
    ("punctuation_answer", "answer", said("?!")),
    ("placeholder_answer", "answer", said("NaN")),
    ("placeholder_answer", "answer", said("undefined")),
    ("control_token", "answer", said("A cat.<|im_end|>")),
    ("control_token", "answer", said("<image> shows a cat")),
    ("control_token", "answer", said("A small <b>cat</s>")),
    ("control_token", "text", {"messages": [{"role": "user", "content": "[INST] What?"}, said("a")["messages"][1]]}),
    ("broken_text", "answer", said("caf\ufffd")),
    ("broken_text", "answer", said("it\u00e2\u20ac\u2122s")),
    ("broken_text", "answer", said("cafÃ©")),
    ("broken_text", "answer", said("a\0b")),
    ("broken_text", "answer", said("a\ud83d")),
    ("unanswered", "text", {"messages": [ASKED, {"role": "assistant", "content": "a"}, ASKED]}),
]


@pytest.mark.parametrize(("kind", "field", "row"), BAD, ids=[f"{kind}-{n}" for n, (kind, _, _) in enumerate(BAD)])
def test_a_fault_is_named(kind: str, field: str, row: Any) -> None:
    found = check(Source([row], name="rows"))
    assert [(fault.kind, fault.field) for fault in [*found.bad, *found.notes]] == [(kind, field)]
    assert bool(found.bad) == (KINDS[kind].severity == "error")
    assert "row 1" in found.render() and "\0" not in found.render()


@pytest.mark.parametrize("row", GOOD, ids=str)
def test_nothing_is_found_in_what_is_right(row: Any) -> None:
    found = check(Source([row], name="rows"))
    assert (found.bad, found.notes) == ([], [])


def test_answers_are_not_asked_for_where_none_are_learned() -> None:
    example = load_example({"messages": [ASKED]})
    assert [fault.kind for fault in faults(example)] == ["no_answer"] and faults(example, answers=False) == []


def load_example(row: Any) -> Any:
    return Source([row], name="rows").example(0)


def test_one_empty_answer_among_others_is_named_by_its_place() -> None:
    row = llava(("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", ""))
    found = check(Source([row], name="rows"))
    assert [fault.reason for fault in found.bad] == ["answer 2 of 2 is empty, so nothing would be learned from it"]


def test_duplicates_by_id_and_by_content(tmp_path: Path, picture: Any) -> None:
    picture(0).save(tmp_path / "a.png")
    picture(0).save(tmp_path / "b.jpg")  # the same picture in other bytes is not the same
    rows = [
        {"id": 1, "image": "a.png", "question": "What?", "answer": "a cat"},
        {"id": 2, "image": "a.png", "question": "What?", "answer": "a dog"},
        {"id": 3, "image": "b.jpg", "question": "What?", "answer": "a cat"},
        {"id": 1, "image": "a.png", "question": "How many?", "answer": "1"},
        {"id": 5, "image": "a.png", "question": "What?", "answer": "a cat", "split": "train"},
        {"id": 1, "image": "a.png", "question": "What?", "answer": "a cat"},
        {"question": "What?", "answer": "no picture"},
        {"question": "What?", "answer": "no picture"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = check(SourceConfig(str(tmp_path / "rows.json")))
    assert [(fault.row, fault.kind) for fault in found.bad] == [(4, "duplicate_id"), (6, "duplicate_id")]
    assert [(fault.row, fault.kind) for fault in found.notes] == [(5, "duplicate_row"), (8, "duplicate_row")]
    assert found.notes[1].reason.endswith("as row 7")


def test_ids_that_name_pictures_can_be_left_aside(tmp_path: Path) -> None:
    rows = [{"id": "000000033471", "question": question, "answer": "a cat"} for question in ("What?", "Who?")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert "--no-ids" in check(SourceConfig(str(tmp_path / "rows.json"))).render()
    found = check(SourceConfig(str(tmp_path / "rows.json"), ids=False))
    assert found.ok and not found.duplicate_ids
    source = load_source(SourceConfig(str(tmp_path / "rows.json"), ids=False))
    assert source[1].called == "rows.json: row 2"


def test_lines_that_are_no_json_or_no_utf_8_are_named_with_their_line(tmp_path: Path) -> None:
    good = b'{"question": "a", "answer": "b"}'
    (tmp_path / "rows.jsonl").write_bytes(good + b"\n\n" + good[:-5] + b"\n" + good.replace(b"b", b"\xe9") + b"\n")
    source = load_source(SourceConfig(str(tmp_path / "rows.jsonl")))
    found = check(source)
    assert [(fault.row, fault.kind) for fault in found.bad] == [(2, "not_json"), (3, "bad_encoding")]
    assert found.bad[0].reason.startswith("line 3 ") and "0xe9" in found.bad[1].reason
    with pytest.raises(DataError, match=r"^rows.jsonl: row 3, row: line 4 is not UTF-8: byte 30"):
        source[2]


def test_a_message_names_row_id_and_field_once() -> None:
    rows = [said("a") | {"id": "one"}, said("b") | {"id": "two", "images": ["x.png"]}]
    source = Source(rows, name="data.json")
    with pytest.raises(DataError) as caught:
        source[1]
    assert str(caught.value).startswith('data.json: row 2 (id "two"), image: 0 image tags but 1 image')
    assert str(caught.value).count("two") == 1 and (caught.value.kind, caught.value.field) == ("too_few_tags", "image")


def test_ids_and_reasons_cannot_act_on_the_terminal() -> None:
    row = {"id": "\033[2Jx\n", "image": "\033]0;title\a.png", "question": "?", "answer": "a"}
    text = check(Source([row], name="rows", roots=[Path(".")])).render()
    assert "\033" not in text and "\a" not in text and '(id "?[2Jx?")' in text


def test_every_kind_that_the_source_names_is_known() -> None:
    source = "\n".join(path.read_text() for path in Path(vlchat.__file__).parent.rglob("*.py"))
    named = set(re.findall(r'kind="(\w+)"', source)) | set(re.findall(r'_fault\(example, "\w+", "(\w+)"', source))
    named -= {"stable"}  # a kind of sorting
    assert len(named) > 25 and named <= set(KINDS)
    assert len(KINDS) >= 20 and {kind.severity for kind in KINDS.values()} == {"error", "note"}


def fault(row: int, kind: str = "missing_file") -> BadRow:
    return BadRow("rows.json", row, f"#{row}", "image", kind, f'"{row}.png" was not found \udcff')


def test_a_quarantine_file_takes_each_fault_once_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "quarantine.jsonl"
    assert quarantine(path, [fault(1), fault(2), fault(1)]) == 2
    assert quarantine(path, [fault(2), fault(3)]) == 1  # as a run that resumes does
    assert read_quarantine(path) == [fault(1), fault(2), fault(3)]
    assert set(json.loads(path.read_text().splitlines()[0])) == {"source", "row", "id", "field", "kind", "reason"}
    assert quarantine(path, [fault(9)], anew=True) == 1 and read_quarantine(path) == [fault(9)]
    other = tmp_path / "data.jsonl"
    other.write_text('{"image": "a.png"}\n')
    for anew in (False, True):
        with pytest.raises(DataError, match="is no quarantine file"):
            quarantine(other, [fault(1)], anew=anew)
    assert other.read_text() == '{"image": "a.png"}\n'
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.jsonl", "new"]
    with pytest.raises(DataError, match="There is no quarantine file"):
        read_quarantine(tmp_path / "none.jsonl")


def test_too_many_bad_rows_are_ten_names_a_total_and_what_to_do() -> None:
    faults = [fault(row) for row in range(1, 31)] + [fault(3, "too_few_tags")]
    text = str(too_many(faults, 4, 1000, Path("run/quarantine.jsonl")))
    assert text.startswith("30 bad rows of 1,000, and max_bad allows 4:\n  rows.json: row 1, image:")
    assert text.count("was not found") == 10 and "and 20 more" in text
    assert "max_bad to 30 or more" in text and "run/quarantine.jsonl" in text and "--images FOLDER" in text
    assert "--images" not in str(too_many([fault(1, "too_few_tags")], 0, 5, None))
