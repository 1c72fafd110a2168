"""Row -> messages: the published ways of writing down an image-text example, each turned into one shape.

A format is a function `(row, row_id) -> Example`. It reads no file: a picture stays the path, bytes or PIL image that
the row holds; `vlchat.data.dataset` finds the file. To add one, write a function, name it in `FORMATS` and in `detect`.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlchat import video
from vlchat.data.faults import called
from vlchat.errors import DataError, nearest

IMAGE_TAG = "<image>"
CAPTION_INSTRUCTION = "Describe this image briefly."

Row = Mapping[str, Any]
Message = dict[str, Any]  # {"role": str, "content": [{"type": "image", "image": ...} | {"type": "text", "text": str}]}
Part = dict[str, Any]


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
    for number, turn in enumerate(_list(row, "conversations")):
        name = f"conversations[{number}]"
        speaker, value = _field(turn, "from", name), _field(turn, "value", name)
        if not isinstance(speaker, str) or speaker not in roles:
            message = f'{name}.from is "{speaker}"; known: {", ".join(roles)}{nearest(str(speaker), roles)}'
            raise DataError(message, kind="unknown_role")
        turns.append((roles[speaker], _string(value, f"{name}.value")))
    if row.get("system") is not None:
        turns.insert(0, ("system", _string(row["system"], "system")))
    return Example(row_id, _place_images(turns, _images(row)), _meta(row, "conversations", "system"))


def messages(row: Row, row_id: str) -> Example:
    """OpenAI/TRL: `messages` of `role`/`content`; pictures inline, as `data:` URLs, or filled in order from `images`.

    A string content marks its pictures with `<image>` tags; a list content with `{"type": "image"}` parts. A video is a
    part `{"type": "video", "video": path}`, with `"frames": number` if you like.
    """
    roles = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
    turns: list[tuple[str, Any]] = []
    for number, turn in enumerate(_list(row, "messages")):
        name = f"messages[{number}]"
        role, content = _field(turn, "role", name), _field(turn, "content", name)
        if not isinstance(role, str) or role not in roles:
            message = f'{name}.role is "{role}"; known: {", ".join(roles)}{nearest(str(role), roles)}'
            raise DataError(message, kind="unknown_role")
        if isinstance(content, str):
            turns.append((roles[role], content))
        elif isinstance(content, Sequence) and not isinstance(content, bytes):
            turns.append((roles[role], [_part(part, f"{name}.content[{i}]") for i, part in enumerate(content)]))
        else:
            message = f"{name}.content must be a string or a list of parts, not {type(content).__name__}"
            raise DataError(message, kind="wrong_type")
    return Example(row_id, _place_images(turns, _images(row)), _meta(row, "messages"))


def caption(row: Row, row_id: str) -> Example:
    """A picture and its words: `image`, and `caption`, `text`, `name` or `tags`. The words are the assistant's turn."""
    images = _images(row)
    if not images:
        raise DataError("a caption needs a picture in `image`", kind="missing_field")
    key = next((key for key in CAPTION_KEYS if row.get(key) is not None), None)
    if key is None:
        message = f"no caption: one of {', '.join(CAPTION_KEYS)} is needed; the row has {_keys(row)}"
        raise DataError(message, kind="missing_field")
    words = row[key]
    if isinstance(words, Sequence) and not isinstance(words, str | bytes):
        # Several tags describe one picture together; several captions say the same thing, so the first stands for them.
        listed = [_string(word, f"{key}[{i}]") for i, word in enumerate(words)]
        words = (", ".join(listed) if key == "tags" else listed[0]) if listed else ""
    turns = [("user", [_image_part(image) for image in images] + [_text_part(CAPTION_INSTRUCTION)])]
    return Example(row_id, _place_images([*turns, ("assistant", _string(words, key))], []), _meta(row))


def vqa(row: Row, row_id: str) -> Example:
    """A question about a picture: `image`, `question`, and `answer` or `answers` (the most frequent is the reference).

    `answers` are strings or VQA v2's `{"answer": str}`; all of them are kept in `meta["answers"]` for scoring.
    """
    question = _string(_field(row, "question", "row"), "question")
    given = row.get("answers")
    if given is None:
        given = [_field(row, "answer", "row")]
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Sequence) or not given:
        raise DataError("answers must be a list with at least one answer", kind="missing_field")
    answers = [answer_of(answer, f"answers[{i}]") for i, answer in enumerate(given)]
    reference = Counter(answers).most_common(1)[0][0]
    if row.get("answer") is not None:
        reference = answer_of(row["answer"], "answer")
    images = _images(row)
    content: Any = question
    if IMAGE_TAG not in question:
        content, images = [_image_part(image) for image in images] + [_text_part(question)], []
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
        message = f"the row fits several formats ({several}) with the keys {_keys(row)}. Set the format."
        raise DataError(message, kind="ambiguous_row")
    if "question" in has:
        raise DataError("the row has a question but neither answer nor answers.", kind="missing_field")
    known = ", ".join(FORMATS)
    raise DataError(f"no format fits a row with the keys {_keys(row)}. Known formats: {known}.", kind="unknown_format")


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
            parts = _split_tags(content) if role == "user" else [_text_part(content)]
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
            parts.append(_text_part(piece))
    return parts


def _part(part: Any, name: str) -> Part:
    if not isinstance(part, Mapping):
        raise DataError(f"{name} must be an object with a type, not {type(part).__name__}", kind="wrong_type")
    kind = part.get("type")
    if kind == "text":
        return _text_part(_string(part.get("text"), f"{name}.text"))
    if kind == "image":
        keys = ("image", "path", "url", "base64")
        value = next((part[key] for key in keys if part.get(key) is not None), None)
        if value is not None and value is part.get("base64"):
            value = f"data:;base64,{value}"
        return {"type": "image", "image": None if value is None else _image(value, name)}
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        return {"type": "image", "image": _image(_string(url, f"{name}.image_url.url"), name)}
    if kind == "video":
        found = _image(_field(part, "video", name), name, "video")
        frames = part.get("frames")
        if frames is None:
            return {"type": "video", "video": found}
        if type(frames) is not int or not 1 <= frames <= video.DEFAULT_LIMITS.max_frames:
            raise DataError(f"{name}.frames is {frames!r}; from 1 to {video.DEFAULT_LIMITS.max_frames} are possible")
        return {"type": "video", "video": found, "frames": frames}
    known = ("text", "image", "image_url", "video")
    raise DataError(f'{name}.type is "{kind}"; known: {", ".join(known)}{nearest(str(kind), known)}', kind="wrong_type")


def _images(row: Row) -> list[Any]:
    """The pictures of the row's `image` or `images` field, as a list."""
    if row.get("image") is not None and row.get("images") is not None:
        raise DataError("the row has both `image` and `images`; keep one", kind="ambiguous_row", field="image")
    key = "images" if row.get("images") is not None else "image"
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value):
        return []
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_image(image, f"{key}[{i}]") for i, image in enumerate(value)]
    return [_image(value, key)]


def _image(value: Any, name: str, what: str = "picture") -> Any:
    """A path as a string, encoded bytes, or a PIL image. URLs are refused: training must not depend on the network."""
    if isinstance(value, Mapping):  # how datasets hands over an undecoded picture
        value = value.get("bytes") or value.get("path") or value.get("url")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str) and value.startswith("data:"):
        head, comma, body = value.partition(",")
        try:
            if not comma or not head.endswith(";base64"):
                raise ValueError("not a base64 data URL")
            return base64.b64decode(body, validate=True)
        except (ValueError, binascii.Error) as error:
            message = f"{name}: a {what}'s data URL is not valid base64"
            raise DataError(message, kind="bad_data_url", field="image") from error
    if isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value):
        message = f'{name}: "{value[:120]}" is a URL. Download the {what}s and name them by path.'
        raise DataError(message, kind="picture_address", field="image")
    if isinstance(value, str) and value:
        return value
    if what == "picture" and hasattr(value, "convert"):  # a PIL image, without importing PIL for every text row
        return value
    kinds = "a path, bytes, a data URL or a PIL image" if what == "picture" else "a path, bytes or a data URL"
    raise DataError(f"{name}: a {what} must be {kinds}, not {type(value).__name__}", kind="wrong_type", field="image")


def answer_of(value: Any, name: str) -> str:
    """An answer as VQA's annotations hold it: a text, or an object with the field `answer`."""
    return _string(value.get("answer") if isinstance(value, Mapping) else value, name)


def _string(value: Any, name: str) -> str:
    if isinstance(value, float):  # a column of whole numbers with a gap comes as floats, and the gap as NaN
        if not math.isfinite(value):
            raise DataError(f"{name} is {value}, an empty cell: fill it or leave the row out", kind="empty_cell")
        value = int(value) if value.is_integer() else value
    if isinstance(value, bool | int | float):  # writers of JSON turn the answers "2" and "true" into other types
        return str(value).lower()
    if not isinstance(value, str):
        raise DataError(f"{name} must be text, not {type(value).__name__}", kind="wrong_type")
    return value


def _list(row: Row, key: str) -> Sequence[Any]:
    value = row.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        message = f"{key} must be a list with at least one turn; the row's keys are {_keys(row)}"
        raise DataError(message, kind="missing_field" if not value else "wrong_type")
    return value


def _field(mapping: Any, key: str, name: str) -> Any:
    if not isinstance(mapping, Mapping):
        message = f"{name} must be an object with the field `{key}`, not {type(mapping).__name__}"
        raise DataError(message, kind="wrong_type")
    if mapping.get(key) is None:
        raise DataError(f"{name} has no `{key}`; its keys are {_keys(mapping)}", kind="missing_field")
    return mapping[key]


def _meta(row: Row, *used: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in {"image", "images", *used} and value is not None}


def _not_an_object(row: Any) -> DataError:
    return DataError(f"a row must be an object with named fields, not {type(row).__name__}", kind="not_an_object")


def _keys(row: Row) -> str:
    return ", ".join(str(key) for key in row) or "none"


def _text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def _image_part(image: Any) -> Part:
    return {"type": "image", "image": image}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
