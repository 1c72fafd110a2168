"""Published benchmarks over small folders in their official layouts: prompts, slices and scores worked by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from official_layouts import LAYOUTS
from scripted import Scripted, replied

from vlchat.chat import Chat
from vlchat.data.formats import text_of
from vlchat.evaluate import evaluate
from vlchat.evaluate.blind import images_of
from vlchat.evaluate.items import Reply, Request
from vlchat.evaluate.metrics import vqa_accuracy
from vlchat.evaluate.protocols import PROTOCOLS
from vlchat.evaluate.protocols.mme import mme_yes_no
from vlchat.evaluate.protocols.scienceqa import llava_letter
from vlchat.evaluate.protocols.textvqa import split_words
from vlchat.evaluate.protocols.vqa_v2 import official_accuracy
from vlchat.evaluate.result import Result

SHORT = "\nAnswer the question using a single word or phrase."


def asked_as(request: Request) -> str:
    return text_of(request.messages[-1])


def answered(name: str, folder: Path, replies: Mapping[str, str], **options: Any) -> Result:
    """The benchmark with a reply for each question whose prompt begins so; every question has one."""

    def rule(request: Request) -> str:
        (found,) = (said for question, said in replies.items() if question in asked_as(request))
        return found

    return evaluate(Scripted(rule), PROTOCOLS[name](data=str(LAYOUTS[name](folder)), **options), progress=False)


def values(result: Result, slice_name: str | None = None) -> dict[str, Any]:
    if slice_name is None:
        return {name: pytest.approx(figure.value) for name, figure in result.table.overall.items()}
    found = result.table.slices[slice_name]
    return {value: pytest.approx(figures[next(iter(figures))].value) for value, figures in found.items()}


@pytest.mark.parametrize(
    ("reply", "answers", "score"),
    [
        ("A cat.", ["the cat"] * 5 + ["cat"] * 5, 1),  # articles, a full stop
        ("two", ["2"] * 9 + ["two"], 1),  # digits
        ("dont know", ["don't know"] * 5 + ["no"] * 5, 1),  # contractions
        ("1,000", ["1000"] * 5 + ["1,000"] * 4 + ["x"], 1),  # commas in numbers
        ("red/white", ["red white"] * 9 + ["red"], 1),  # punctuation
        ("no", ["yes"] * 8 + ["no"] * 2, 0.6),  # the figure that its author works out in issue 1
        ("no", ["yes"] * 7 + ["no"] * 3, 0.9),
        ("no", ["yes"] * 9 + ["no"], 0.3),
        ("Stop", ["stop"] * 10, 0), ("stop", ["stop"] * 10, 1), ("stop.", ["stop"] * 10, 0), ("two", ["2"] * 10, 0),
        ("a", ["a"] * 10, 1),  # a letter on a sign, which the normalisation would take away
        (" stop\n", ["stop "] * 10, 1),
    ],
)  # fmt: skip
def test_vqa_v2_keeps_the_scripts_rules(reply: str, answers: list[str], score: float) -> None:
    assert official_accuracy(reply, answers)[1] == pytest.approx(score)
    if len({answer.strip() for answer in answers}) > 1:
        assert vqa_accuracy(reply, answers) == pytest.approx(score), "the task vqa differs on unanimous answers alone"


def test_vqa_v2(tmp_path: Path) -> None:
    replies = {"What animal": "A cat.", "How many": "two", "What does it say": "Stop", "Is it open": "no",
               "What number": "dont know"}  # fmt: skip
    result = answered("vqa-v2", tmp_path, replies)
    assert [row["score"] for row in result.rows] == pytest.approx([1, 1, 0, 0.6, 0.3])
    assert values(result) == {"accuracy": 2.9 / 5}
    assert values(result, "answer_type") == {"other": 0.5, "number": 0.65, "yes/no": 0.6}
    assert values(result, "question_type")["how many"] == 1 and result.rows[1]["question"] == "How many?" + SHORT
    assert result.rows[0]["cluster"] == result.rows[1]["cluster"] != result.rows[3]["cluster"]
    assert [row["reference"] for row in result.rows] == ["the cat", "2", "stop", "yes", "1000"]


def test_textvqa(tmp_path: Path) -> None:
    replies = {"brand": "Nokia.", "sign": "johns", "price": "1,000"}
    result = answered("textvqa", tmp_path, replies)
    assert [row["score"] for row in result.rows] == pytest.approx([1, 0.6, 1])
    assert split_words("John's, right?") == "john 's right" and result.rows[0]["question"].endswith("brand?" + SHORT)


def test_gqa(tmp_path: Path) -> None:
    result = answered("gqa", tmp_path, {"overcast": "No.", "dress": " Woman", "cup": "the red"})
    assert values(result) == {"accuracy": 2 / 3, "binary": 1 / 2, "open": 1}
    assert values(result, "structural") == {"verify": 1, "query": 1, "choose": 0}
    assert set(values(result, "semantic")) == {"scene", "relation", "attribute"}
    assert [row["id"] for row in result.rows] == ["201307251", "201640614", "202225914"], "only balanced questions"


def test_pope(tmp_path: Path) -> None:
    replies = {"snowboard": "Yes", "car": "I think so", "person": "No, there is not.", "dog": "There is no dog"}
    result = answered("pope", tmp_path, replies)
    assert values(result) == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "F1": 0.5, "yes ratio": 0.5}
    assert values(result, "setting") == {"random": 0.5, "popular": 0.5, "adversarial": 0.5}
    assert result.rows[0]["question"] == "Is there a snowboard in the image?" + SHORT
    only = PROTOCOLS["pope"](data=str(tmp_path / "coco_pope_popular.json"), limit=2)
    assert [item.id for item in only.items()] == ["popular/1", "popular/2"]
    assert only.read(only.items()[0], [Reply("", error="gone")]).stats["tp"] == 0, "no reply is no yes"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"), (" B ", "B"), ("B. apostrophe", "B"), ("B\nbecause", None), ("The answer is B.", "B"),
        ("So. The answer is A, as", "A"), ("So. The answer is A", None), ("AB", None), ("B.", None),
        ("The answer is A. No. The answer is B.", None), ("(B)", None), ("b", None), ("apostrophe", None), ("", None),
        ("C", None), ("The answer is C.", None), ("C. x", None),
    ],
)  # fmt: skip
def test_scienceqa_keeps_llavas_rules(reply: str, letter: str | None) -> None:
    assert llava_letter(reply, 2) == letter


def test_scienceqa(tmp_path: Path) -> None:
    replies = {"figure of speech": "B", "Wyoming": "D. Cheyenne", "trait": "The answer is A.", "harder": "(A)"}
    result = answered("scienceqa", tmp_path, replies)
    assert values(result) == {"accuracy": 3 / 4, "IMG accuracy": 1 / 2, "no letter": 1 / 4}
    assert values(result, "subject") == {"LAN": 1, "SOC": 1, "NAT": 0.5}
    assert values(result, "text") == {"TXT": 1, "no text": 0.5} and values(result, "picture")["IMG"] == 0.5
    assert values(result, "context") == {"NO": 1, "with context": 2 / 3}
    assert values(result, "grades") == {"G7-12": 1, "G1-6": 2 / 3}
    assert result.rows[0]["question"] == (
        "Context: Sing, O goddess.\nWhich figure of speech is used?\nA. chiasmus\nB. apostrophe\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert [len(row["pictures"]) for row in result.rows] == [0, 0, 1, 1] and result.data["split"] == "test"
    train = PROTOCOLS["scienceqa"](data=str(tmp_path), split="train")
    assert [item.id for item in train.items()] == ["99"]


@pytest.mark.parametrize(
    ("reply", "said"),
    [("Yes", "yes"), ("no.", "no"), ("Yes, it is", "yes"), ("\nNo", "no"), ("Not", "no"), ("a no", "no"),
     ("It is. Yes", "other"), ("I think no", "other"), ("", "other")],
)  # fmt: skip
def test_mme_keeps_its_parser(reply: str, said: str) -> None:
    assert mme_yes_no(reply) == said


MME_REPLIES = {"dog 1": "Yes", "cat 1": "No", "dog 2": "Yes", "cat 2": "Yes", "painting": "no", "glassware": "No,",
               "Hello": "Yes, 'Hello'", "World": "I think no"}  # fmt: skip


def test_mme(tmp_path: Path) -> None:
    result = answered("mme", tmp_path, MME_REPLIES)
    # existence: 3 of 4 questions and 1 of 2 pictures, so 75 + 50; artwork: 50 + 0; code: 50 + 0.
    assert values(result) == {
        "perception (of 2000)": 175, "cognition (of 800)": 50, "accuracy": 5 / 8, "accuracy+": 1 / 4,
        "neither yes nor no": 1 / 8,
    }  # fmt: skip
    assert values(result, "category")["existence"] == 125 and values(result, "category")["artwork"] == 50
    assert [row["answer"] for row in result.rows] == ["yes no", "yes yes", "no no", "yes other"]
    assert [row["score"] for row in result.rows] == [1, 0.5, 0.5, 0.5]
    assert "count, position, color" in result.notes[0]
    assert result.rows[0]["reply"] == ["Yes", "No"] and len(result.rows[0]["pictures"]) == 1


def test_mme_asks_one_question_at_a_time_as_it_is_written(tmp_path: Path) -> None:
    task = PROTOCOLS["mme"](data=str(LAYOUTS["mme"](tmp_path)))
    requests = task.requests(task.items()[2], [])
    assert [asked_as(request) for request in requests] == [
        "Is it a painting? Please answer yes or no.", "Is it glassware? Please answer yes or no.",
    ]  # fmt: skip
    assert all(len(images_of(request.messages)) == 1 for request in requests)


def test_mme_from_the_files_of_its_evaluation_tool(tmp_path: Path) -> None:
    release = LAYOUTS["mme"](tmp_path / "MME_Benchmark_release_version")
    tool = tmp_path / "eval_tool" / "Your_Results"
    tool.mkdir(parents=True)
    lines = [
        f"00000{number}.jpg\tIs there a {thing} {number}? Please answer yes or no.\t{answer}\n"
        for number in (1, 2)
        for thing, answer in (("dog", "Yes"), ("cat", "No"))
    ]
    (tool / "existence.txt").write_text("".join(lines))
    task = PROTOCOLS["mme"](data=str(tmp_path / "eval_tool"), images=str(release))
    whole = PROTOCOLS["mme"](data=str(release)).items()
    assert [item.messages for item in task.items()] == [item.messages for item in whole[:2]]
    assert [item.answers for item in task.items()] == [("yes", "no")] * 2


def test_chartqa(tmp_path: Path) -> None:
    result = answered("chartqa", tmp_path, {"How many bars": "13.5", "larger": "inspired", "share": "61"})
    assert values(result) == {"accuracy": 2 / 3} and values(result, "asked by") == {"human": 1, "augmented": 0}
    assert result.rows[0]["question"] == "How many bars?" + SHORT


def test_docvqa(tmp_path: Path) -> None:
    result = answered("docvqa", tmp_path, {"date": "1/8/93", "signed": "P. Cartre"})
    assert values(result) == {"ANLS": (1 + 7 / 9) / 2}
    assert replied(PROTOCOLS["docvqa"](data=str(tmp_path)), *_first(tmp_path), "1999").score == 0


def _first(folder: Path) -> list[Any]:
    return PROTOCOLS["docvqa"](data=str(folder)).items()[:1]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_real_model_is_asked_every_question(name: str, tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    task = PROTOCOLS[name](data=str(LAYOUTS[name](tmp_path)))
    assert task.protocol.startswith(f"{name}-1 (")
    chat = Chat(tiny_model(), tiny_processor, {"name": "tiny"})
    result = evaluate(chat, task, controls=["shuffled"], max_new_tokens=3, progress=False)
    assert result.counts["unanswered"] == 0 and len({row["id"] for row in result.rows}) == len(result.rows)
    assert all(figure.rows for figure in result.table.overall.values())
