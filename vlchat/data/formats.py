"""Row -> messages: the published ways of writing down an image-text example, each turned into one shape.

A format is a function `(row, row_id) -> Example`. It reads no file: a picture stays the path, bytes or PIL image that
the row holds; `vlchat.data.dataset` finds the file. To add one, write a function, name it in `FORMATS` and in `detect`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlchat.data.faults import called
from vlchat.data.fields import Part, Row, keys_of, message_part, pictures, required, string, text_part, turns_of
from vlchat.data.fields import answer_of as answer_of
from vlchat.errors import DataError, nearest

IMAGE_TAG = "<image>"
CAPTION_INSTRUCTION = "Describe this image briefly."

Message = dict[str, Any]  # {"role": str, "content": [{"type": "image", "image": ...} | {"type": "text", "text": str}]}


@dataclass(frozen=True)
class Example:
    """One conversation, as chat templates take it.

    Attributes:
        id: the row's own id, or its number where it has none.
        messages: `{"role": "system"|"user"|"assistant", "content": [parts]}`; a part is `{"type": "text", "text": str}`
            or `{"type": "image", "image": path | bytes | PIL image}` or `{"type": "video", "video": path | bytes}`,
            which may hold `"frames"`, a number. Pictures and videos are not decoded yet.
        meta: the row's other fields (`answer_type`, `answers`, ...).
        source: the name of the source that it comes from.
        row: its number there, from 1; 0 where it comes from no source.
        format: the name in `FORMATS` that it was read as.
    """

    id: str
    messages: list[Message]
    meta: dict[str, Any] = field(default_factory=dict)
    source: str = field(default="", compare=False)
    row: int = field(default=0, compare=False)
    format: str = field(default="", compare=False)

    @property
    def called(self) -> str:
        """How messages name the row, such as `rows.json: row 7 (id "x")`."""
        return called(self.row, self.id, self.source) if self.row else f'Row "{self.id}"'

    @property
    def images(self) -> list[Any]:
        """The pictures in the order in which the conversation shows them."""
        return [part["image"] for message in self.messages for part in message["content"] if part["type"] == "image"]

    @property
    def videos(self) -> list[Any]:
        """The videos in the order in which the conversation shows them."""
        return [part["video"] for message in self.messages for part in message["content"] if part["type"] == "video"]

    @property
    def answer(self) -> str:
        """The text of the last assistant turn, or an empty string."""
        for message in reversed(self.messages):
            if message["role"] == "assistant":
                return text_of(message)
        return ""


def text_of(message: Message) -> str:
    """The text parts of a message, joined by newlines, without surrounding space."""
    return "\n".join(part["text"] for part in message["content"] if part["type"] == "text").strip()


def has_answer(example: Example) -> bool:
    """Whether any assistant turn says anything."""
    return any(text_of(message) for message in example.messages if message["role"] == "assistant")


def llava(row: Row, row_id: str) -> Example:
    """LLaVA: `conversations` of `from`/`value`; `image` a path, a list or absent; `<image>` tags in human turns."""
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
    turns: list[tuple[str, Any]] = []
    for number, turn in enumerate(turns_of(row, "conversations")):
        name = f"conversations[{number}]"
        speaker, value = required(turn, "from", name), required(turn, "value", name)
        if not isinstance(speaker, str) or speaker not in roles:
            message = f'{name}.from is "{speaker}"; known: {", ".join(roles)}{nearest(str(speaker), roles)}'
            raise DataError(message, kind="unknown_role")
        turns.append((roles[speaker], string(value, f"{name}.value")))
    if row.get("system") is not None:
        turns.insert(0, ("system", string(row["system"], "system")))
    return Example(row_id, _place_images(turns, pictures(row)), _meta(row, "conversations", "system"))


def messages(row: Row, row_id: str) -> Example:
    """OpenAI/TRL: `messages` of `role`/`content`; pictures inline, as `data:` URLs, or filled in order from `images`.

    A string content marks its pictures with `<image>` tags; a list content with `{"type": "image"}` parts. A video is a
    part `{"type": "video", "video": path}`, with `"frames": number` if you like.
    """
    roles = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
    turns: list[tuple[str, Any]] = []
    for number, turn in enumerate(turns_of(row, "messages")):
        name = f"messages[{number}]"
        role, content = required(turn, "role", name), required(turn, "content", name)
        if not isinstance(role, str) or role not in roles:
            message = f'{name}.role is "{role}"; known: {", ".join(roles)}{nearest(str(role), roles)}'
            raise DataError(message, kind="unknown_role")
        if isinstance(content, str):
            turns.append((roles[role], content))
        elif isinstance(content, Sequence) and not isinstance(content, bytes):
            turns.append((roles[role], [message_part(part, f"{name}.content[{i}]") for i, part in enumerate(content)]))
        else:
            message = f"{name}.content must be a string or a list of parts, not {type(content).__name__}"
            raise DataError(message, kind="wrong_type")
    return Example(row_id, _place_images(turns, pictures(row)), _meta(row, "messages"))


def caption(row: Row, row_id: str) -> Example:
    """A picture and its words: `image`, and `caption`, `text`, `name` or `tags`. The words are the assistant's turn."""
    images = pictures(row)
    if not images:
        raise DataError("a caption needs a picture in `image`", kind="missing_field")
    key = next((key for key in CAPTION_KEYS if row.get(key) is not None), None)
    if key is None:
        message = f"no caption: one of {', '.join(CAPTION_KEYS)} is needed; the row has {keys_of(row)}"
        raise DataError(message, kind="missing_field")
    words = row[key]
    if isinstance(words, Sequence) and not isinstance(words, str | bytes):
        # Several tags describe one picture together; several captions say the same thing, so the first stands for them.
        listed = [string(word, f"{key}[{i}]") for i, word in enumerate(words)]
        words = (", ".join(listed) if key == "tags" else listed[0]) if listed else ""
    turns = [("user", [_image_part(image) for image in images] + [text_part(CAPTION_INSTRUCTION)])]
    return Example(row_id, _place_images([*turns, ("assistant", string(words, key))], []), _meta(row))


def vqa(row: Row, row_id: str) -> Example:
    """A question about a picture: `image`, `question`, and `answer` or `answers` (the most frequent is the reference).

    `answers` are strings or VQA v2's `{"answer": str}`; all of them are kept in `meta["answers"]` for scoring.
    """
    question = string(required(row, "question", "row"), "question")
    given = row.get("answers")
    if given is None:
        given = [required(row, "answer", "row")]
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Sequence) or not given:
        raise DataError("answers must be a list with at least one answer", kind="missing_field")
    answers = [answer_of(answer, f"answers[{i}]") for i, answer in enumerate(given)]
    reference = Counter(answers).most_common(1)[0][0]
    if row.get("answer") is not None:
        reference = answer_of(row["answer"], "answer")
    images = pictures(row)
    content: Any = question
    if IMAGE_TAG not in question:
        content, images = [_image_part(image) for image in images] + [text_part(question)], []
    turns = [("user", content), ("assistant", reference)]
    return Example(row_id, _place_images(turns, images), _meta(row, "question", "answer") | {"answers": answers})


CAPTION_KEYS = ("caption", "captions", "text", "name", "tags")
FORMATS: dict[str, Callable[[Row, str], Example]] = {
    "llava": llava,
    "messages": messages,
    "caption": caption,
    "vqa": vqa,
}


def detect(row: Row) -> str:
    """The name of the one format whose keys the row has. Fields that are None count as absent (datasets fill gaps so).

    Raises:
        DataError: no format fits, or more than one does; the message names the keys seen.
    """
    if not isinstance(row, Mapping):
        raise _not_an_object(row)
    has = {key for key, value in row.items() if value is not None}
    found = [
        name
        for name, fits in {
            "llava": "conversations" in has,
            "messages": "messages" in has,
            "vqa": "question" in has and bool({"answer", "answers"} & has),
            "caption": bool({"caption", "captions"} & has) and bool({"image", "images"} & has),
        }.items()
        if fits
    ]
    # `text`, `name` and `tags` are common side fields: they make a caption only where nothing else claims the row.
    if not found and {"image", "images"} & has and set(CAPTION_KEYS) & has:
        found = ["caption"]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(found)
        message = f"the row fits several formats ({several}) with the keys {keys_of(row)}. Set the format."
        raise DataError(message, kind="ambiguous_row")
    if "question" in has:
        raise DataError("the row has a question but neither answer nor answers.", kind="missing_field")
    message = f"no format fits a row with the keys {keys_of(row)}. Known formats: {', '.join(FORMATS)}."
    raise DataError(message, kind="unknown_format")


def to_example(row: Row, row_id: str, format: str | None = None) -> Example:
    """One row as an Example; `format` None detects it.

    Raises:
        DataError: an unknown format, or a row that does not fit it; the message begins with the row's id.
    """
    try:
        return read_row(row, row_id, format)
    except DataError as error:
        raise error.within(f'Row "{row_id}"') from error


def read_row(row: Row, row_id: str, format: str | None = None) -> Example:
    """As `to_example`, its errors without the row's name."""
    if format is not None and format not in FORMATS:
        raise DataError(f'Unknown format "{format}"; known: {", ".join(FORMATS)}{nearest(format, FORMATS)}')
    name = detect(row) if format is None else format
    if not isinstance(row, Mapping):
        raise _not_an_object(row)
    return replace(FORMATS[name](row, row_id), format=name)


def _place_images(turns: list[tuple[str, Any]], images: list[Any]) -> list[Message]:
    """Turns with strings and parts -> messages, with `images` put where tags and empty image parts stand, in order."""
    result: list[Message] = []
    for role, content in turns:
        if isinstance(content, str):
            # Only people show pictures: a tag in another turn is text about the tag.
            parts = _split_tags(content) if role == "user" else [text_part(content)]
        else:
            parts = content
            if role != "user" and any(part["type"] != "text" for part in parts):
                message = f"a picture stands in the turn of the {role}: only the user shows pictures"
                raise DataError(message, kind="picture_in_answer")
        result.append({"role": role, "content": [part for part in parts if part["type"] != "text" or part["text"]]})
    holes = [part for message in result for part in message["content"] if part.get("image", "") is None]
    if len(holes) != len(images):
        raise DataError(
            f"{_count(len(holes), 'image tag')} but {_count(len(images), 'image')}: "
            f"each picture needs one {IMAGE_TAG} tag (or image part) at its place, in order",
            kind="too_many_tags" if len(holes) > len(images) else "too_few_tags",
            field="image",
        )
    for part, image in zip(holes, images, strict=True):
        part["image"] = image
    return result


def _split_tags(text: str) -> list[Part]:
    """Text with `<image>` tags -> parts. One line break beside a tag belongs to the tag: the template sets its own."""
    parts: list[Part] = []
    pieces = re.split(rf"(?:[ \t]*\n)?{re.escape(IMAGE_TAG)}(?:\n[ \t]*)?", text)
    for number, piece in enumerate(pieces):
        if number:
            parts.append({"type": "image", "image": None})
        if piece.strip() or len(pieces) == 1:
            parts.append(text_part(piece))
    return parts


def _meta(row: Row, *used: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in {"image", "images", *used} and value is not None}


def _not_an_object(row: Any) -> DataError:
    return DataError(f"a row must be an object with named fields, not {type(row).__name__}", kind="not_an_object")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _image_part(image: Any) -> Part:
    return {"type": "image", "image": image}
