"""The task multiple_choice: choices and answers in every spelling, each way of asking, circular scoring by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted, measured, replied

from vlchat.chat import Chat
from vlchat.data.formats import text_of
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate import evaluate
from vlchat.evaluate.blind import images_of
from vlchat.evaluate.items import Reply
from vlchat.evaluate.tasks.multiple_choice import MultipleChoiceTask

PROMPT = "Which organ?\nA. lung\nB. liver\nC. heart\nAnswer with the option's letter from the given choices directly."


def rows(folder: Path, *found: dict[str, Any], suffix: str = "json") -> str:
    (folder / f"rows.{suffix}").write_text(json.dumps([{"question": "Which organ?", **row} for row in found]))
    return str(folder / f"rows.{suffix}")


def organs(answer: Any, options: Any = ("lung", "liver", "heart"), name: str = "choices") -> dict[str, Any]:
    return {name: options, "answer": answer}


@pytest.mark.parametrize(
    ("row", "letter"),
    [
        (organs("B"), "B"), (organs("b"), "B"), (organs("liver"), "B"), (organs(" Liver "), "B"), (organs(1), "B"),
        (organs("1"), "B"), (organs(0, name="options"), "A"),
        (organs("B", {"A": "lung", "B": "liver"}), "B"), (organs("Y", {"X": "lung", "Y": "liver"}), "B"),
        (organs("2", ["2", "3", "4"]), "A"),  # the text "2"; as a place it would be "4"
        (organs(3, ["2", "3", "4"]), "B"),  # no place 3, so the text
        (organs(1, ["0", "1", "2"]), "B"),
        ({"options": '["lung", "liver"]', "answer": "liver"}, "B"),
    ],
)  # fmt: skip
def test_the_answer_is_a_letter_a_text_or_a_place(row: dict[str, Any], letter: str, tmp_path: Path) -> None:
    (item,) = MultipleChoiceTask(data=rows(tmp_path, row)).items()
    assert item.reference == letter


def test_a_conversation_with_choices_asks_its_last_question(tmp_path: Path) -> None:
    turns = [("human", "Hello."), ("gpt", "Hello!"), ("human", "Which organ?"), ("gpt", "C")]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    (tmp_path / "rows.json").write_text(json.dumps([row | {"choices": ["lung", "liver", "heart"]}]))
    (item,) = MultipleChoiceTask(data=str(tmp_path / "rows.json")).items()
    assert [text_of(message) for message in item.messages] == ["Hello.", "Hello!", PROMPT] and item.reference == "C"


def test_faulty_rows_are_listed_together(tmp_path: Path) -> None:
    bad = [
        organs("D"), {"answer": "x"}, organs("A", ["one"]), organs("A", ["same", "Same"]), organs("B", ["B", "C"]),
        organs(1, ["1", "2"]), organs("A", "lung, liver"), organs(7),
    ]  # fmt: skip
    with pytest.raises(DataError) as caught:
        MultipleChoiceTask(data=rows(tmp_path, organs("A"), *bad))
    lines = str(caught.value).splitlines()
    assert lines[0] == "8 rows cannot be asked:" and len(lines) == 9
    for line, words in zip(
        lines[1:],
        ['row 2: .*"D" is no letter', "neither choices nor options", "1 choices", "two are the same",
         'answer "B" can be 2', 'answer "1" can be 2', "must be a list", '"7" is no letter'],
        strict=True,
    ):  # fmt: skip
        assert re.search(words, line), line


def test_the_model_writes_a_letter_or_a_text(tmp_path: Path) -> None:
    task = MultipleChoiceTask(data=rows(tmp_path, *[organs("B")] * 4))
    items = task.items()
    (request,) = task.requests(items[0], [])
    assert text_of(request.messages[-1]) == PROMPT and not request.choices
    readings = [replied(task, item, said) for item, said in zip(items, ["B.", "liver", "A", "Hm"], strict=True)]
    assert [reading.score for reading in readings] == [1, 1, 0, 0]
    assert [reading.answer for reading in readings] == ["B", "B", "A", "none"]
    assert measured(task, readings) == {"accuracy": 0.5, "no choice named": 0.25}
    assert task.read(items[0], [Reply("B", error="gone")]).score == 0
    assert "33.3 %" in task.notes[0]


def test_circular_scoring_on_rows_worked_by_hand(tmp_path: Path) -> None:
    task = MultipleChoiceTask(data=rows(tmp_path, *[organs("B")] * 4), how="circular")
    items = task.items()
    asked = [text_of(request.messages[-1]).splitlines()[1:4] for request in task.requests(items[0], [])]
    assert asked == [["A. lung", "B. liver", "C. heart"], ["A. liver", "B. heart", "C. lung"],
                     ["A. heart", "B. lung", "C. liver"]]  # fmt: skip
    replies = [
        ("B", "A", "C"),  # liver each time
        ("B", "B", "B"),  # likes B: liver, heart, lung
        ("liver", "Liver.", "B"),  # lung the last time
        ("A", "A", "what?"),  # lung, liver, none
    ]
    readings = [replied(task, item, *said) for item, said in zip(items, replies, strict=True)]
    assert [reading.answer for reading in readings] == ["B", "B C A", "B B A", "A B none"]
    assert measured(task, readings) == pytest.approx(
        {"circular accuracy": 1 / 4, "vanilla accuracy": 3 / 4, "no choice named": 1 / 12}
    )
    assert "3.7 %" in task.notes[0]  # (1/3) ** 3
    sure = [Reply("B", logprob=math.log(share)) for share in (0.5, 0.5, 0.8)]
    assert task.read(items[0], sure).confidence == pytest.approx(0.2), "sure of a row is sure of every rotation"


def test_a_model_that_likes_a_letter_scores_nothing_in_circles(tmp_path: Path) -> None:
    task = MultipleChoiceTask(data=rows(tmp_path, organs("A"), organs("B"), organs("C")), how="circular")
    table = evaluate(Scripted(lambda request: "A"), task, progress=False).table.overall
    assert table["circular accuracy"].value == 0 and table["vanilla accuracy"].value == pytest.approx(1 / 3)


def test_the_likeliest_choice_by_sum_and_per_token(tmp_path: Path) -> None:
    data = rows(tmp_path, organs("B", ["lung", "left lower lobe"]))
    reply = Reply(choices=(math.log(0.3), math.log(0.1)), choice_tokens=(1, 4))
    task = MultipleChoiceTask(data=data, how="likelihood", candidates="texts")
    (item,) = task.items()
    (request,) = task.requests(item, [])
    assert request.choices == ("lung", "left lower lobe") and text_of(request.messages[-1]) == "Which organ?"
    assert (task.read(item, [reply]).answer, task.read(item, [reply]).score) == ("A", 0)
    assert task.read(item, [reply]).confidence == pytest.approx(0.3 / 0.4)
    per_token = MultipleChoiceTask(data=data, how="likelihood", candidates="texts", normalise="token")
    shares = 0.3, 0.1 ** (1 / 4)
    reading = per_token.read(item, [reply])
    assert (reading.answer, reading.score) == ("B", 1) and reading.confidence == pytest.approx(shares[1] / sum(shares))
    letters = MultipleChoiceTask(data=data, how="likelihood")
    (request,) = letters.requests(letters.items()[0], [])
    assert request.choices == ("A", "B") and "B. left lower lobe" in text_of(request.messages[-1])
    assert letters.read(item, [Reply(error="too long")]).score == 0


@pytest.mark.parametrize("how", ["letter", "likelihood", "circular"])
def test_a_real_model_is_asked_with_its_picture(
    how: str, tmp_path: Path, picture: Any, tiny_model: Any, tiny_processor: Any
) -> None:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    data = rows(tmp_path, *[organs("A") | {"image": f"{number}.png"} for number in range(3)])
    task = MultipleChoiceTask(data=data, how=how)
    item = task.items()[0]
    assert all(len(images_of(request.messages)) == 1 for request in task.requests(item, []))
    chat = Chat(tiny_model(), tiny_processor, {"name": "tiny"})
    result = evaluate(chat, task, controls=["shuffled"], max_new_tokens=3, progress=False)
    assert result.counts["unanswered"] == 0 and len(result.rows) == 3
    assert all(0 <= row["confidence"] <= 1 for row in result.rows)
    if how == "likelihood":
        expected = chat.likelihoods(item.messages, ["A", "B", "C"])
        best = max(range(3), key=lambda place: expected[place].logprob)
        assert result.rows[0]["answer"] == "ABC"[best]


def test_unknown_ways_are_refused(tmp_path: Path) -> None:
    data = rows(tmp_path, organs("A"))
    with pytest.raises(ConfigError, match='how is "circle".*"circular"'):
        MultipleChoiceTask(data=data, how="circle")
    with pytest.raises(ConfigError, match="are for how=likelihood"):
        MultipleChoiceTask(data=data, normalise="token")
