"""The task conversation: whose answers are the context, and scores by turn, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted, measured, replied

from vlchat.chat import Chat
from vlchat.data.formats import text_of
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate import evaluate
from vlchat.evaluate.blind import images_of
from vlchat.evaluate.items import Reply, Request
from vlchat.evaluate.tasks.conversation import ConversationTask


def rows(folder: Path, *conversations: list[str], **extra: Any) -> str:
    """Conversations given as question, answer, question, answer; the first turn shows a picture where there is one."""
    found = []
    for number, texts in enumerate(conversations):
        turns = [{"from": "human" if place % 2 == 0 else "gpt", "value": text} for place, text in enumerate(texts)]
        row: dict[str, Any] = {"id": f"c{number}", "conversations": turns, **extra}
        if (folder / f"{number}.png").exists():
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
            row["image"] = f"{number}.png"
        found.append(row)
    (folder / "rows.json").write_text(json.dumps(found))
    return str(folder / "rows.json")


THREE = ["What is it?", "a cat", "Which colour?", "black", "How many?", "two"]


def said(request: Request) -> list[str]:
    return [text_of(message) for message in request.messages]


def test_the_models_own_replies_are_the_context(tmp_path: Path) -> None:
    task = ConversationTask(data=rows(tmp_path, THREE))
    (item,) = task.items()
    replies: list[Reply] = []
    seen = []
    while requests := task.requests(item, replies):
        assert len(requests) == 1, "a turn can only be asked once the one before is answered"
        seen.append(said(requests[0]))
        replies.append(Reply(["A dog.", "black", "2"][len(replies)]))
    assert seen == [
        ["What is it?"],
        ["What is it?", "A dog.", "Which colour?"],
        ["What is it?", "A dog.", "Which colour?", "black", "How many?"],
    ]
    reading = task.read(item, replies)
    assert reading.score == pytest.approx(2 / 3) and reading.stats["whole"] == 0


def test_the_right_answers_are_the_context_if_asked_for(tmp_path: Path) -> None:
    task = ConversationTask(data=rows(tmp_path, THREE), context="reference")
    (item,) = task.items()
    assert [said(request) for request in task.requests(item, [])] == [THREE[:1], THREE[:3], THREE[:5]]
    assert task.requests(item, [Reply("x")] * 3) == [] and "right earlier answers" in task.protocol
    with pytest.raises(ConfigError, match='context is "none"'):
        ConversationTask(data=rows(tmp_path, THREE), context="none")


def test_accuracy_by_turn_and_of_whole_conversations(tmp_path: Path) -> None:
    task = ConversationTask(data=rows(tmp_path, THREE, THREE[:4], THREE[:2]))
    long, middle, short = task.items()
    readings = [
        replied(task, long, "a cat", "white", "2"),  # 2 of 3
        replied(task, middle, "cat", "Black."),  # both
        replied(task, short, "dog"),  # none
    ]
    assert measured(task, readings) == pytest.approx({
        "turn accuracy": 4 / 6, "whole-conversation accuracy": 1 / 3, "turn 1": 2 / 3, "turn 2": 1 / 2, "turn 3": 1.0,
    })  # fmt: skip
    assert "6 turns in 3 conversations of 1 to 3" in task.notes[0]


def test_turns_after_the_tenth_count_together(tmp_path: Path) -> None:
    task = ConversationTask(data=rows(tmp_path, [text for turn in range(13) for text in (f"{turn}?", "yes")]))
    (item,) = task.items()
    found = measured(task, [replied(task, item, *["yes"] * 12, "no")])
    assert len(found) == 2 + 11 and found["turns after 10"] == pytest.approx(2 / 3) and found["turn 10"] == 1


def test_a_turn_without_a_reply_ends_its_conversation(tmp_path: Path) -> None:
    task = ConversationTask(data=rows(tmp_path, THREE))
    (item,) = task.items()
    replies = [Reply("cat"), Reply("black", error="too long")]
    assert task.requests(item, replies) == []
    reading = task.read(item, replies)
    assert reading.score == pytest.approx(1 / 3) and reading.stats["turns"] == 3


def test_answers_of_each_turn(tmp_path: Path) -> None:
    answers = [["cat", "kitten"], [{"answer": "black"}] * 2 + [{"answer": "dark"}] * 8, ["2"]]
    task = ConversationTask(data=rows(tmp_path, THREE, answers=answers))
    (item,) = task.items()
    # Two of ten people said black: 2 x 1/3 and 8 x 2/3, over ten.
    assert replied(task, item, "kitten", "black", "3").score == pytest.approx((1 + 0.6 + 0) / 3)
    with pytest.raises(DataError, match=r'"c0".*one list.*3 answered turns'):
        ConversationTask(data=rows(tmp_path, THREE, answers=answers[:2]))
    task = ConversationTask(data=rows(tmp_path, THREE, answers=["two", "a pair"]))
    assert replied(task, task.items()[0], "", "", "A pair.").score == pytest.approx(1 / 3)


def test_confidence_is_the_mean_over_turns(tmp_path: Path) -> None:
    task = ConversationTask(data=rows(tmp_path, THREE[:4]))
    (item,) = task.items()
    assert task.read(item, [Reply("a", logprob=0.0), Reply("b", logprob=-0.6931471805599453)]).confidence == 0.75


def test_the_runner_asks_turn_by_turn(tmp_path: Path, picture: Any, tiny_model: Any, tiny_processor: Any) -> None:
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    data = rows(tmp_path, THREE, THREE[:2])
    script = Scripted(lambda request: "cat" if len(request.messages) == 1 else "black")
    result = evaluate(script, ConversationTask(data=data), progress=False)
    assert [len(request.messages) for request in script.asked] == [1, 1, 3, 5]
    assert all(len(images_of(request.messages)) == 1 for request in script.asked)
    assert result.rows[0]["reply"] == ["cat", "black", "black"] and result.rows[1]["score"] == 1
    chat = Chat(tiny_model(), tiny_processor, {"name": "tiny"})
    result = evaluate(chat, ConversationTask(data=data), controls=["shuffled"], max_new_tokens=3, progress=False)
    assert [len(row["reply"]) for row in result.rows] == [3, 1] and result.counts["unanswered"] == 0
