"""Conversations to take along: what was said reads as it was said, and what is exported can be sent."""

from __future__ import annotations

import base64
import html
import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from talkative import save_talkative

from serve import requests
from serve.decoding import Decoder
from serve.fetching import Hosts
from serve.store import Store
from serve.transcript import as_markdown, as_request, inert, literal, name_of
from vlchat.chat import Chat
from vlchat.errors import VLChatError

SIGNS = [
    *"\\`*_[]<>|~&$-+=#:.!()1 \n\t\"'{}^@/",
    "<b>", "&amp;", "```", "![x](http://a)", "\n\n", "猫", "    ", "---",
]  # fmt: skip


@pytest.fixture
def store() -> Store:
    return Store(None)


@pytest.fixture
def png(picture: Callable[..., Any]) -> Callable[[int], bytes]:
    def make(seed: int) -> bytes:
        stream = io.BytesIO()
        picture(seed).save(stream, "PNG")
        return stream.getvalue()

    return make


def talk(store: Store, png: Callable[[int], bytes]) -> str:
    id = store.begin("anna").id
    store.add("anna", id, "user", "What is <b>this</b>?\n# two", [("a/../cat 猫.jpeg", png(1)), ("", png(2))])
    store.add("anna", id, "assistant", "**A cat**\n\n## User\n\nI pay <img src=http://evil/>", facts={"tokens": 3})
    store.add("anna", id, "user", "And this one?", [("broken.png", png(3))])
    store.add("anna", id, "assistant", "", facts={"refused": "The picture *is* damaged."})
    store.add("anna", id, "user", "stopped")
    store.add("anna", id, "assistant", "")
    store.add("anna", id, "user", "", [("again.png", png(1))])
    store.add("anna", id, "assistant", "The same.")
    return id


def test_markdown_with_its_pictures(store: Store, png: Callable[[int], bytes]) -> None:
    id = talk(store, png)
    store.rename("anna", id, "Cats: 猫/两只 #1")
    parcel = zipfile.ZipFile(io.BytesIO(as_markdown(store, "anna", id)))
    assert parcel.namelist() == [
        "pictures/1-a-cat-猫.png", "pictures/2-picture.png", "pictures/3-broken.png", "Cats-猫-两只-1.md",
    ]  # fmt: skip
    assert [parcel.read(name) for name in parcel.namelist()[:3]] == [png(1), png(2), png(3)]
    text = parcel.read("Cats-猫-两只-1.md").decode()
    assert text.startswith("# Cats: 猫/两只 #1\n\n20")
    assert "![a/../cat 猫.jpeg](pictures/1-a-cat-猫.png)" in text and text.count("](pictures/1-") == 2
    assert "\nWhat is \\<b\\>this\\</b\\>?\\\n\\# two\n" in text
    assert "\n> **A cat**\n> \n> ## User\n" in text, "an answer can't pass for what somebody said"
    assert "<img" not in text
    assert "Not answered: The picture \\*is\\* damaged." in text
    assert len(re.findall(r"^## ", text, re.M)) == 8
    assert as_markdown(store, "anna", id) == as_markdown(store, "anna", id)


def test_an_answer_that_broke_off_is_there_as_the_model_reads_it(store: Store) -> None:
    id = store.begin("anna").id
    for text, facts in (("It began", {"refused": "The server went away."}), ("", {"refused": "No."}), ("Yes.", {})):
        store.add("anna", id, "user", "?")
        store.add("anna", id, "assistant", text, facts=facts)
    asked = json.loads(as_request(store, "anna", id, model="mini"))
    assert [one["content"] for one in asked["messages"] if one["role"] == "assistant"] == ["It began"]
    assert len(asked["messages"]) == 3 and asked["metadata"]["answer"] == "Yes."


def test_a_question_is_shown_as_it_was_typed() -> None:
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    reader = markdown_it.MarkdownIt("gfm-like", {"linkify": False})
    draw = random.Random(0)
    for _ in range(1000):
        said = "".join(draw.choices(SIGNS, k=draw.randrange(1, 15)))
        page = reader.render(literal(said))
        assert not re.search(r"<(?!/?p>|br />)", page), said
        shown = html.unescape(re.sub(r"<[^>]*>", "", page.replace("</p>", "\n"))).replace("\xa0", " ")
        lines = [" ".join(line.split()) for line in said.splitlines()]
        assert [" ".join(line.split()) for line in shown.splitlines() if line.strip()] == [one for one in lines if one]


def test_an_answer_keeps_its_markdown_and_nothing_in_it_acts() -> None:
    code = "```html\n<b>![x](y)</b>\n```"
    assert inert(f"**a** <x> `<b>`\n{code}\n![x](http://y)") == (
        f"**a** <\u200bx> `<\u200bb>`\n{code}\n!\u200b[x](http://y)"
    )
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    reader = markdown_it.MarkdownIt("gfm-like", {"linkify": False})
    draw = random.Random(1)
    signs = [
        *SIGNS, "<img src=x>", "<!-- ", "```", "~~~", "~~~~", "`", "- ", "> ", "  ", "1. ",
        "\n", "\r", "\n```", "\n```\n",
    ]  # fmt: skip
    for _ in range(6000):
        said = "".join(draw.choices(signs, k=draw.randrange(1, 20)))
        for shown in (inert(said), re.sub("^", "> ", inert(said), flags=re.M)):
            kinds = {child.type for token in reader.parse(shown) for child in [token, *(token.children or [])]}
            assert not kinds & {"html_block", "html_inline", "image"}, said


def test_the_request_asks_the_last_question_again(store: Store, png: Callable[[int], bytes]) -> None:
    id = talk(store, png)
    told = json.loads(as_request(store, "anna", id, model="mini", system=" Be brief. "))
    first, *turns = told["messages"]
    assert told["model"] == "mini" and first == {"role": "system", "content": "Be brief."}
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert [part["type"] for part in turns[0]["content"]] == ["image_url", "image_url", "text"]
    assert turns[0]["content"][2]["text"] == "What is <b>this</b>?\n# two"
    assert [part.get("text") for part in turns[2]["content"]] == ["stopped", "\n", None]
    head, _, body = turns[2]["content"][2]["image_url"]["url"].partition(",")
    assert (head, base64.b64decode(body)) == ("data:image/png;base64", png(1))
    assert told["metadata"]["answer"] == "The same."


def test_the_api_takes_the_request_as_it_is(
    store: Store, tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, png: Callable[[int], bytes]
) -> None:
    asked = requests.read(as_request(store, "anna", talk(store, png), model="mini").encode())
    chat = Chat.load(save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer))
    decoder = Decoder(1)
    try:
        messages = asked.conversation(decoder, Hosts())
    finally:
        decoder.close()
    pictures = [part["image"] for turn in messages[::2] for part in turn["content"] if part["type"] == "image"]
    assert asked.model == "mini" and len(pictures) == 3
    assert "".join(chat.stream(messages, max_new_tokens=3))


def test_nothing_and_somebody_elses(store: Store, png: Callable[[int], bytes]) -> None:
    id = store.begin("anna").id
    assert name_of(store.conversation("anna", id)) == "conversation"
    with pytest.raises(VLChatError, match="Ask something first"):
        as_request(store, "anna", id, model="mini")
    assert zipfile.ZipFile(io.BytesIO(as_markdown(store, "anna", id))).namelist() == ["conversation.md"]
    with pytest.raises(VLChatError):
        as_markdown(store, "bob", id)
    with pytest.raises(VLChatError):
        as_request(store, "bob", id, model="mini")
