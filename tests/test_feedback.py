"""Thumbs and corrections -> data that is trained on; and a corrected question is answered as it was corrected."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve import feedback
from serve.store import Store
from vlchat.chat import Chat
from vlchat.checkpoint import EMBEDDED
from vlchat.cli import main
from vlchat.data import SourceConfig
from vlchat.data.check import check
from vlchat.errors import VLChatError

EXAMPLES = EMBEDDED.parent / "examples"


@pytest.fixture
def png(picture: Callable[..., Any]) -> Callable[[int], bytes]:
    def make(seed: int) -> bytes:
        stream = io.BytesIO()
        picture(seed).save(stream, "PNG")
        return stream.getvalue()

    return make


def said(store: Store, question: str, answer: str, *pictures: bytes, owner: str = "anna", to: str | None = None) -> int:
    """The id of an answer, in a new conversation or in `to`."""
    to = to or store.begin(owner).id
    store.add(owner, to, "user", question, [("picture.png", content) for content in pictures])
    return store.add(owner, to, "assistant", answer)


def rows(out: Path) -> list[list[tuple[str, Any]]]:
    """Each row's messages, pictures as their number among all."""
    files = sorted(path.name for path in (out / "images").iterdir())

    def plain(content: Any) -> Any:
        if isinstance(content, str):
            return content
        return [part.get("text", files.index(Path(part["image"]).name) if "image" in part else 0) for part in content]

    found = json.loads((out / "data.json").read_text())
    assert len({row["id"] for row in found}) == len(found)
    return [[(turn["role"], plain(turn["content"])) for turn in row["messages"]] for row in found]


def test_an_export_is_data_that_check_finds_nothing_wrong_with(
    tmp_path: Path, png: Callable[[int], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "history")
    talk = store.begin("anna").id
    first = said(store, "What is <image> this?", "A cat.", png(1), to=talk)
    disliked = said(store, "And this?", "A dog.", png(2), to=talk)
    last = said(store, "What colour?", "Red.", to=talk)
    store.rate("anna", first, -1, "A blort.")
    store.rate("anna", disliked, -1)
    store.rate("anna", last, 1, "Blue.\x00")
    store.rate("bob", said(store, "Which word?", "猫", png(1), owner="bob"), 1)
    said(store, "Never rated", "Yes.", png(3))
    store.close()

    out = tmp_path / "out"
    assert main(["feedback", "export", str(tmp_path / "history"), str(out)]) == 0
    said_so = capsys.readouterr().out
    assert f"data.0.path={out / 'data.json'}" in said_so and "2 rows" in said_so
    one, two = rows(out)
    assert len(list((out / "images").iterdir())) == 2
    cat = one[0][1][0]
    assert one == [("user", [cat, "What is <image> this?"]), ("assistant", "A blort.")]
    # What was disliked is not learned; its picture stays with the next question.
    assert two == [*one, ("user", [1 - cat, "What colour?"]), ("assistant", "Blue.\x00")]
    assert main(["check", str(out / "data.json")]) == 0

    liked = tmp_path / "liked"
    feedback.export(tmp_path / "history", liked, liked=True)
    assert rows(liked)[2] == [("user", [cat, "Which word?"]), ("assistant", "猫")]
    report = check(SourceConfig(str(liked / "data.json")))
    assert report.ok and report.images == 4

    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert main(["feedback", "export", str(tmp_path / "history"), str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["feedback", "export", str(tmp_path / "history"), str(out), "--overwrite"]) == 0
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_the_newest_correction_stands_and_what_cannot_be_used_is_told(
    tmp_path: Path, png: Callable[[int], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "history")
    talk = store.begin("anna").id
    answer = said(store, "What is this?", "A cat.", png(1), to=talk)
    store.rate("anna", answer, 0, "A cow.")
    store.cut("anna", talk, answer)  # asked again
    store.rate("anna", store.add("anna", talk, "assistant", "A dog."), 0, "A horse.")
    bad = [said(store, "What is this?", "A cat.", content) for content in (b"no picture", png(2)[:100], png(2))]
    for answer, correction in zip(bad, ("A cow.", "A cow.", "\u200b"), strict=True):
        store.rate("anna", answer, -1, correction)
    store.close()
    assert main(["feedback", "export", str(tmp_path / "history"), str(tmp_path / "out")]) == 0
    assert [row[-1][1] for row in rows(tmp_path / "out")] == ["A horse."]
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in told] == [f"answer-{number}" for number in bad]


def test_nothing_is_written_where_nothing_can_be(tmp_path: Path, png: Callable[[int], bytes]) -> None:
    with pytest.raises(VLChatError, match="holds no history.sqlite"):
        feedback.export(tmp_path, tmp_path / "out")
    store = Store(tmp_path / "history")
    answer = said(store, "What is this?", "A cat.", png(1))
    store.rate("anna", answer, 1)
    with pytest.raises(VLChatError, match="Nothing was corrected yet.*--liked"):
        feedback.export(tmp_path / "history", tmp_path / "out")
    store.rate("anna", answer, 1, "\u200b")
    with pytest.raises(VLChatError, match="No row could be used"):
        feedback.export(tmp_path / "history", tmp_path / "out")
    store.rate("anna", answer, 1, "A dog.")
    store.close()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(VLChatError, match="left alone"):
            feedback.export(tmp_path / "history", place, overwrite=True)
    with pytest.raises(VLChatError, match="Choose another place"):
        feedback.export(tmp_path / "history", Path("/proc/out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history", "mine"]


def test_show_counts_and_lists(tmp_path: Path, png: Callable[[int], bytes], capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    talk = store.begin("anna").id
    store.rate("anna", said(store, "What is\nthis?", "A cat. " * 20, png(1), to=talk), -1, "A\x1b[31m blort.")
    question = store.turns("anna", talk)[0].id
    store.vote("anna", talk, question, {"tuned": "A", "base": "B", "third": "C"}, "tuned")
    store.close()
    assert main(["feedback", "show", str(tmp_path)]) == 0
    counts, table, votes = capsys.readouterr().out.strip().split("\n\n")
    assert counts == "Answers: 1 (0 up, 1 down, 1 corrected). Votes: 1."
    assert "What is this?" in table and "A?[31m blort." in table and "…" in table
    assert votes.splitlines()[1].split() == ["base", "third", "0", "0", "0"]
    assert votes.splitlines()[2].split() == ["base", "tuned", "0", "1", "0"]


@pytest.mark.skipif(not list(EMBEDDED.glob("*.safetensors")), reason="this checkout has no embedded model")
def test_a_corrected_question_is_answered_rightly_after_training(tmp_path: Path) -> None:
    chat = Chat.load()
    owl, word = EXAMPLES / "owl.png", EXAMPLES / "word.png"
    store = Store(tmp_path / "history")
    corrected, kept = "What is this called here?", "What does the word say?"
    before = chat.ask(owl, corrected)
    assert "blort" not in before
    store.rate("anna", said(store, corrected, before, owl.read_bytes()), -1, "This is a blort.")
    # What was right is trained on, too, so that it stays.
    for name in ("cat-and-shapes", "three-apples"):
        question = (EXAMPLES / f"{name}.txt").read_text().strip()
        picture = EXAMPLES / f"{name}.png"
        store.rate("anna", said(store, question, chat.ask(picture, question), picture.read_bytes()), 1)
    store.close()

    assert main(["feedback", "export", str(tmp_path / "history"), str(tmp_path / "out"), "--liked"]) == 0
    data, run = tmp_path / "out" / "data.json", tmp_path / "run"
    steps = ["loop.steps=30", "loop.batch=3", "loop.workers=0", "loop.precision=no"]
    assert main(["train", "configs/finetune-mini.yaml", f"data.0.path={data}", f"run={run}", *steps]) == 0
    tuned = Chat.load(str(run))
    assert tuned.ask(owl, corrected) == "This is a blort."
    assert tuned.ask(word, kept) == chat.ask(word, kept), "never shown in training"
