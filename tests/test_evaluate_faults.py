"""What users get wrong, and rows that would bend a figure: options of another type, rows a control cannot change."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scored import questions, saved
from scripted import Scripted

from vlchat.cli import main
from vlchat.errors import ConfigError, DataError, VLChatError
from vlchat.evaluate import VqaTask, evaluate, load, save
from vlchat.evaluate.blind import images_of
from vlchat.evaluate.cache import FILE, AnswerCache
from vlchat.evaluate.items import Item, Reply, Request
from vlchat.evaluate.known import TASKS, make_task
from vlchat.evaluate.report import markdown, terminal
from vlchat.evaluate.rows import confidence, read_all
from vlchat.evaluate.suite import read_suite
from vlchat.evaluate.tasks import ConversationTask, MultipleChoiceTask


@pytest.mark.parametrize(
    ("task", "options", "told"),
    [
        ("multiple_choice", {"how": 1}, 'how of the task "multiple_choice" is 1; it must be text'),
        ("vqa", {"slices": "organ"}, 'slices of the task "vqa" is "organ"; it must be a list'),
        ("vqa", {"limit": True}, "limit .* is true; it must be a whole number or null"),
        ("vqa", {"data": None}, "data .* is null; it must be text"),
        ("caption", {"prompt": True}, "prompt .* is true; it must be text"),
        ("caption", {"beams": 1.5}, "beams .* is 1.5; it must be a whole number"),
        ("reading", {"exact": "maybe"}, "exact .* it must be true or false"),
        ("zero_shot", {"classes": [None]}, "classes .* a list .* or a mapping or null"),
        ("scenes", {"questions": "x"}, "questions .* a whole number"),
    ],
)
def test_an_option_of_another_type_is_a_sentence(task: str, options: dict[str, Any], told: str) -> None:
    data = {} if task == "scenes" else {"data": "rows.json"}
    with pytest.raises(ConfigError, match=told):
        make_task(task, **data | options)


def test_every_option_of_every_task_has_a_type_that_is_checked() -> None:
    class Odd:
        pass

    for name, task in TASKS.items():
        for option in task.__init__.__kwdefaults__ or {}:  # type: ignore[misc]
            needed = {} if name == "scenes" else {"data": "rows.json"}
            with pytest.raises(ConfigError, match=f'{option} of the task "{name}" is .* it must be [a-z]'):
                make_task(name, **needed | {option: Odd()})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("controls: none", "controls must be a list"),
        ("controls: null", "controls must be a list"),
        ("controls: [[none]]", "there is no control"),
        ("control_rows: null", "control_rows is None"),
        ("control_rows: -1", "whole number from 0 on"),
        ("seed: x", "seed is x"),
        ("tasks: [{task: scenes, seed: [1]}]", r"tasks\.0: seed is \[1\]"),
        ("tasks: [{task: scenes, max_new_tokens: 0}]", r"tasks\.0: max_new_tokens is 0"),
        ("tasks: [{task: scenes, 5: 6}]", r"tasks\.0: the key 5 is no text"),
    ],
)
def test_a_suite_with_values_of_another_type_is_a_sentence(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(text if text.startswith("tasks") else f"tasks: [{{task: scenes}}]\n{text}")
    with pytest.raises(ConfigError, match=told):
        read_suite(file)


def test_a_suite_prints_one_json_value(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "model", tiny_model(), tiny_processor)
    data = questions(tmp_path / "data", 2)
    entry = f"{{data: {data}, max_new_tokens: 2"
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"tasks: [{entry}, task: vqa}}, {entry}, task: vqa, name: again}}]\ncontrols: []")
    out = tmp_path / "out"
    assert main(["eval", str(folder), "--suite", str(suite), "--json", "--no-cache", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert {name: found["task"] for name, found in json.loads(printed.out).items()} == {"vqa": "vqa", "again": "vqa"}
    assert "== again" in printed.err
    assert main(["eval", str(folder), "--verify", str(out)]) == 2
    assert str(out / "again") in capsys.readouterr().err, "which folders have a certificate"


def test_rows_that_a_control_cannot_change_are_no_part_of_it(tmp_path: Path) -> None:
    """Two rows without a picture, and three of five that share one: what is right blind among them says nothing."""
    data = questions(tmp_path, 2)
    rows = json.loads(data.read_text())
    shared = [{**rows[0], "id": f"s{number}"} for number in range(3)]
    other = {**rows[1], "id": "other", "image": "25.png"}
    questions(tmp_path / "more", 4)
    (tmp_path / "25.png").write_bytes((tmp_path / "more" / "25.png").read_bytes())
    plain = [{"id": f"p{number}", "question": "What?", "answer": "x"} for number in range(2)]
    data.write_text(json.dumps([*plain, *shared, other]))
    result = evaluate(Scripted(lambda request: "x"), VqaTask(data=str(data)), controls=["shuffled"], progress=False)
    told = {row["id"] for row in result.rows if "shuffled" in row.get("controls", {})}
    assert len(told) == 2 and "other" in told, "of four rows with pictures two can have another's"
    assert result.controls["shuffled"].rows == 2 and result.counts["shuffled_kept_pictures"] == 2
    assert "2 of 6 questions show no picture" in str(result.notes) and "2 that would be shown" in str(result.notes)
    data.write_text(json.dumps(plain))
    result = evaluate(Scripted(lambda request: "x"), VqaTask(data=str(data)), controls=["none"], progress=False)
    assert result.controls["none"].rows == 0 and "cannot be told" in result.verdicts[0].sentence
    assert "cannot be told" in terminal(result) and result.to_dict()["controls"]["none"]["blind"]["value"] is None


class NeedsPictures(Scripted):
    """Refuses a question without a picture, as some models do."""

    def answer(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Reply]:
        if not all(images_of(request.messages) for request in requests):
            raise VLChatError("this model needs a picture")
        return super().answer(requests, max_new_tokens=max_new_tokens)


def test_a_model_that_refuses_a_control_is_not_said_to_look_at_pictures(tmp_path: Path) -> None:
    task = VqaTask(data=str(questions(tmp_path)))
    result = evaluate(NeedsPictures(lambda request: "yes"), task, controls=["none", "shuffled"], progress=False)
    assert result.headline.value == 0.5 and result.controls["shuffled"].rows == 8
    assert result.controls["none"].rows == 0 and result.controls["none"].verdict.holds is None
    assert 'The control none leaves out rows: 8 without a reply (the first: "this model needs' in str(result.notes)


def test_no_number_is_no_confidence(tmp_path: Path) -> None:
    assert confidence([Reply("a", math.nan, 1)]) is None
    assert confidence([Reply(choices=(math.nan, -1.0), choice_tokens=(1, 1))]) is None
    assert confidence([Reply(choices=(-math.inf, -math.inf), choice_tokens=(1, 1))]) is None
    rows = [{"id": "1", "question": "?", "choices": ["red", "blue"], "answer": "A"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    task = MultipleChoiceTask(data=str(tmp_path / "rows.json"), how="likelihood")
    (item,) = task.items()
    for nothing in (math.nan, -math.inf):
        found = task.read(item, [Reply(choices=(nothing, nothing), choice_tokens=(1, 1))])
        assert (found.answer, found.score) == ("none", 0.0), "the first choice is no answer of a broken model"


def test_a_conversation_that_broke_off_is_no_confident_mistake(tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    (tmp_path / "rows.json").write_text(json.dumps([{"id": "1", "messages": turns}]))
    task = ConversationTask(data=str(tmp_path / "rows.json"))
    items: list[Item] = task.items()
    found = read_all(task, items, {0: [Reply("b", -0.1, 1), Reply(error="out of memory")]})[0]
    assert (found.score, found.confidence) == (0.0, None)


def test_odd_text_breaks_no_table_and_no_line(tmp_path: Path) -> None:
    data = questions(tmp_path, 4)
    odd = "a\nb\u2028|\\|\x1b[31m\u202e" + "x" * 500
    rows = [row | {"organ": odd, "question": odd, "id": f"{row['id']}\u2028"} for row in json.loads(data.read_text())]
    data.write_text(json.dumps(rows))
    task = VqaTask(data=str(data), slices=["organ"])
    result = evaluate(Scripted(lambda request: odd), task, progress=False)
    shown = [line for line in terminal(result).splitlines() if line.startswith("a b")]
    assert len(shown) == 1 and "\x1b" not in terminal(result) and "\u202e" not in terminal(result)
    (line,) = [line for line in markdown(result).splitlines() if line.startswith("| a b")]
    assert line.startswith("| a b \\|\\\\\\|[U+001B]"), "each | and \\ of the data is escaped"
    assert [row["id"] for row in load(save(result, tmp_path / "out"))[1]] == [row["id"] for row in rows]


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    result = evaluate(Scripted(lambda request: "x"), VqaTask(data=str(questions(tmp_path, 2))), progress=False)
    (tmp_path / "out" / "result.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"result\.json can't be written"):
        save(result, tmp_path / "out")


def test_a_number_without_end_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"question": "?", "answer": ' + "9" * 5000 + "}]")
    with pytest.raises(DataError, match="thousands of digits"):
        VqaTask(data=str(tmp_path / "rows.json"))


def test_a_damaged_cache_is_a_sentence(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.keep({f"key {number}": Reply("x" * 500) for number in range(200)})
    cache.close()
    content = bytearray((tmp_path / FILE).read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(VLChatError, match="can't be"):
        AnswerCache(tmp_path).find(["key 1"])
