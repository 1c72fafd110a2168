"""What the page tells of errors, in Chinese: the server's own sentences are known, and what they name stays in them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")

from serve import documents, tickets, uploads  # noqa: E402
from serve.page.words import errors, room_errors  # noqa: E402
from serve.page.words.errors import in_language  # noqa: E402
from serve.records import absent_picture, absent_turn  # noqa: E402
from serve.trainings import Settings, Trainings  # noqa: E402
from vlchat import images  # noqa: E402
from vlchat.data.faults import KINDS  # noqa: E402
from vlchat.errors import VLChatError  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SENTENCES = {**errors.SENTENCES, **room_errors.SENTENCES}


def refused(content: bytes) -> str:
    with pytest.raises(VLChatError) as told:
        images.decode(content, name='ow"l.png')
    return str(told.value)


@pytest.mark.parametrize(
    ("sentence", "kept"),
    [
        (refused(b""), 'ow"l.png'),
        (refused(b"\x89PNG"), "4"),
        (refused(b"\x89PNG\r\n\x1a\n" + bytes(99)), "PNG"),
        (refused(b"%PDF-1.7 and more words"), "PDF"),
        (refused(b"no picture at all, words"), "JPEG, PNG, WebP"),
        (str(absent_turn()), ""),
        (str(absent_picture()), ""),
        (str(tickets.Closed()), ""),
        (str(tickets.Failed(ValueError())), ""),
        (str(tickets.Failed(MemoryError(), memory=True)), ""),
    ],
)
def test_the_servers_sentences_are_told_in_chinese(sentence: str, kept: str) -> None:
    chinese = in_language(sentence, "zh")
    assert chinese != sentence and kept in chinese and re.search("[\u4e00-\u9fff]", chinese)
    assert not re.search(r"\b(the|is|are|again)\b", chinese, re.IGNORECASE) and "{" not in chinese
    assert in_language(sentence, "en") == sentence


def test_a_locked_document_too() -> None:
    with pytest.raises(VLChatError) as told:
        documents.rendered(b"%PDF-1.7 torn", 8, "a.pdf")
    assert "“a.pdf”" in in_language(str(told.value), "zh")


def test_what_is_not_known_and_what_people_write_stay_as_they_are() -> None:
    assert in_language("A sentence of nobody.", "zh") == "A sentence of nobody."
    odd = 'The picture "{0.__class__} {width}" is empty (0 bytes). Save or upload it again.'
    assert "{0.__class__} {width}" in in_language(odd, "zh")


def test_every_sentence_is_one_of_the_source() -> None:
    source = "".join(path.read_text() for folder in ("serve", "vlchat") for path in (ROOT / folder).rglob("*.py")
                     if not path.name.endswith("errors.py") or path.parent.name != "words")  # fmt: skip
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # strings that go on in the next line
    for sentence, chinese in SENTENCES.items():
        assert sorted(re.findall(r"\{\w+\}", sentence)) == sorted(re.findall(r"\{\w+\}", chinese)), sentence
        for part in re.split(r"\{\w+\}|;", sentence):
            assert len(part) < 12 or part.strip() in joined, sentence


def test_the_training_rooms_sentences_too(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "torn.zip").write_bytes(b"PK")
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "b.json").write_text("[]")
    room = Trainings(tmp_path / "runs")
    ready = Settings(tmp_path / "a.json", "finetune", 1, 1)

    def uploaded(*names: str) -> object:
        return uploads.take_in([tmp_path / name for name in names], tmp_path / "kept")

    for wrong, kept in [
        (uploaded, ""),
        (lambda: uploaded("note.txt"), "note.txt"),
        (lambda: uploaded("torn.zip"), "torn.zip"),
        (lambda: uploaded("a.json", "b.json"), "a.json, b.json"),
        (lambda: uploaded("a.json", "a.json"), "a.json"),
        (lambda: room.start("../x", ready), "60"),
        (lambda: room.start("x", replace(ready, choice="none")), ""),
        (lambda: room.start("x", replace(ready, steps=0)), "1"),
        (lambda: room.stop("absent"), "“absent”"),
    ]:
        with pytest.raises(VLChatError) as told:
            wrong()
        chinese = in_language(str(told.value), "zh")
        assert kept in chinese and re.search("[\u4e00-\u9fff]", chinese), str(told.value)
        assert not re.search(r"\b(the|is|are|again|add)\b", chinese, re.IGNORECASE)


def test_every_kind_of_fault_has_its_chinese() -> None:
    assert list(room_errors.KINDS) == list(KINDS)
