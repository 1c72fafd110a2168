"""Rows in every published format become the same messages; rows that cannot, say why."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from vlchat.data.formats import CAPTION_INSTRUCTION, FORMATS, detect, text_of, to_example
from vlchat.errors import DataError

IMAGE, TEXT = "image", "text"


def image(value: Any) -> dict[str, Any]:
    return {"type": "image", "image": value}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


ROWS: dict[str, dict[str, Any]] = {
    "llava": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}],
    },
    "messages": {
        "images": ["a.png"],
        "messages": [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "A cat."}],
    },
    "caption": {"image": "a.png", "caption": "A cat."},
    "vqa": {"image": "a.png", "question": "What is it?", "answer": "A cat."},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_detected_and_gives_one_shape(name: str) -> None:
    assert detect(ROWS[name]) == name
    question = CAPTION_INSTRUCTION if name == "caption" else "What is it?"
    example = to_example(ROWS[name], "r1")
    assert example.messages == [
        {"role": "user", "content": [image("a.png"), text(question)]},
        {"role": "assistant", "content": [text("A cat.")]},
    ]
    assert (example.id, example.answer, example.images) == ("r1", "A cat.", ["a.png"])
    assert to_example(ROWS[name], "r1", name) == example


def test_fields_that_are_none_count_as_absent() -> None:
    filled = {"question": None, "answer": None, "caption": None, "image": None, "conversations": None}
    assert detect({**filled, **ROWS["vqa"]}) == "vqa"


@pytest.mark.parametrize(
    "row",
    [
        ROWS["llava"] | ROWS["messages"],
        ROWS["vqa"] | {"caption": "A cat."},
        {"picture": "a.png", "words": "A cat."},
    ],
)
def test_an_ambiguous_or_unknown_row_names_the_keys_seen(row: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        to_example(row, "r7")
    assert 'Row "r7"' in str(caught.value)
    assert all(key in str(caught.value) for key in row)


def test_an_explicit_format_settles_an_ambiguous_row() -> None:
    assert to_example(ROWS["vqa"] | {"caption": "Fur."}, "r", "caption").answer == "Fur."
    with pytest.raises(DataError, match='Did you mean "llava"'):
        to_example(ROWS["llava"], "r", "lava")


def test_side_fields_do_not_make_a_conversation_ambiguous() -> None:
    assert detect(ROWS["llava"] | {"tags": ["x"], "name": "n", "text": "t"}) == "llava"


def test_llava_with_system_turns_many_images_and_tags_anywhere() -> None:
    row = {
        "image": ["a.png", "b.png", "c.png"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Compare <image> with <image>."},
            {"from": "gpt", "value": "One is red."},
            {"from": "human", "value": "And this?\n<image>"},
            {"from": "gpt", "value": "Blue."},
        ],
    }
    assert to_example(row, "r").messages == [
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [text("Compare "), image("a.png"), text(" with "), image("b.png"), text(".")]},
        {"role": "assistant", "content": [text("One is red.")]},
        {"role": "user", "content": [text("And this?"), image("c.png")]},
        {"role": "assistant", "content": [text("Blue.")]},
    ]


def test_text_only_rows_keep_their_words_exactly() -> None:
    row = {"conversations": [{"from": "human", "value": " a\n\n b "}, {"from": "gpt", "value": " c\n"}]}
    assert [m["content"] for m in to_example(row, "r").messages] == [[text(" a\n\n b ")], [text(" c\n")]]


def test_a_tag_in_the_answer_is_words() -> None:
    row = {"conversations": [{"from": "human", "value": "Which tag?"}, {"from": "gpt", "value": "<image>"}]}
    assert to_example(row, "r").messages[1]["content"] == [text("<image>")]


def test_openai_parts_and_placeholders_filled_in_order() -> None:
    data_url = "data:image/png;base64," + base64.b64encode(b"pixels").decode()
    row = {
        "images": ["first.png", {"bytes": b"second", "path": None}],
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {
                "role": "user",
                "content": [
                    {"type": "image", "text": None, "image": None},
                    {"type": "image_url", "image_url": {"url": data_url}, "text": None},
                    {"type": "text", "text": "Which <image>?"},
                    {"type": "image"},
                    {"type": "image", "image": "inline.png"},
                ],
            },
            {"role": "assistant", "content": "The first."},
        ],
    }
    example = to_example(row, "r")
    assert example.images == ["first.png", b"pixels", b"second", "inline.png"]
    assert example.messages[1]["content"][2] == text("Which <image>?")  # in a list of parts a tag is words
    assert row["messages"][1]["content"][0]["image"] is None, "the row itself must stay as it is"


@pytest.mark.parametrize(
    ("tags", "images", "said"),
    [
        ("<image> <image> what?", ["a.png"], ("2 image tags", "1 image:")),
        ("what?", ["a.png"], ("0 image tags", "1 image:")),
        ("<image> what?", None, ("1 image tag ", "0 images")),
        ("<image> what?", ["a.png", "b.png"], ("1 image tag ", "2 images")),
    ],
)
@pytest.mark.parametrize("name", ["llava", "messages"])
def test_a_count_mismatch_names_the_row_and_both_numbers(
    name: str, tags: str, images: list[str] | None, said: tuple[str, str]
) -> None:
    turns = [{"role": "user", "content": tags}, {"role": "assistant", "content": "x"}]
    row: dict[str, Any] = {"messages": turns, "images": images}
    if name == "llava":
        turns = [{"from": "human", "value": tags}, {"from": "gpt", "value": "x"}]
        row = {"conversations": turns, "image": images}
    with pytest.raises(DataError) as caught:
        to_example(row, "row-9")
    assert 'Row "row-9"' in str(caught.value)
    assert all(part in str(caught.value) for part in said)


def test_vqa_keeps_every_answer_and_refers_to_the_most_frequent() -> None:
    answers = [{"answer": "two"}, {"answer": "2"}, {"answer": "2"}]
    row = {"image": "a.png", "question": "How many?", "answers": answers, "answer_type": "number"}
    example = to_example(row, "r")
    assert example.answer == "2"
    assert example.meta == {"answers": ["two", "2", "2"], "answer_type": "number"}
    assert to_example({"question": "Is 1 + 1 2?", "answer": True}, "r").answer == "true"
    two = {"question": "<image> bigger than <image>?", "answer": "no", "images": ["a", "b"]}
    assert to_example(two, "r").images == ["a", "b"]


def test_captions_from_tags_names_and_lists() -> None:
    assert to_example({"image": "a", "tags": ["red", "round"]}, "r").answer == "red, round"
    assert to_example({"image": "a", "name": "red apple", "tags": ["x"]}, "r").answer == "red apple"
    assert to_example({"image": "a", "captions": ["An apple.", "Fruit."]}, "r").answer == "An apple."


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": [{"from": "robot", "value": "x"}]}, 'conversations[0].from is "robot"'),
        ({"conversations": [{"from": "human", "value": ["x"]}]}, "conversations[0].value must be text, not list"),
        ({"conversations": [{"from": "human"}]}, "conversations[0] has no `value`"),
        ({"conversations": []}, "conversations must be a list"),
        ({"conversations": ["x"]}, "conversations[0] must be an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 'messages[0].role is "tool"'),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be a string or a list"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, 'messages[0].content[0].type is "audio"'),
        ({"image": "https://example.invalid/a.png", "caption": "x"}, "is a URL"),
        ({"image": "file:///etc/hosts", "caption": "x"}, "is a URL"),
        ({"image": "data:image/png;base64,@@@", "caption": "x"}, "not valid base64"),
        ({"image": 7, "caption": "x"}, "must be a path, bytes"),
        ({"image": "a", "question": "x", "answer": float("nan")}, "is nan, an empty cell"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role is \"['user']\""),
        ({"conversations": [{"from": {}, "value": "x"}]}, 'conversations[0].from is "{}"'),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}]},
            "a picture stands in the turn of the assistant",
        ),
        ({"image": "a", "images": ["b"], "caption": "x"}, "both `image` and `images`"),
        ({"question": "x", "answers": []}, "at least one answer"),
        (["not", "an", "object"], "must be an object"),
    ],
)
def test_a_faulty_row_is_one_sentence_with_row_and_field(row: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        to_example(row, "r5")
    assert str(caught.value).startswith('Row "r5": ')
    assert said in str(caught.value)


def test_whole_numbers_that_came_as_floats_are_whole() -> None:
    answers = [to_example({"question": "x", "answer": value}, "r").answer for value in (3.0, 2.5, 7, True)]
    assert answers == ["3", "2.5", "7", "true"]


def test_text_of_joins_the_text_parts() -> None:
    assert text_of({"role": "user", "content": [text("a "), image("x"), text("b")]}) == "a \nb"
