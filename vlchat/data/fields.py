"""The fields of a row as what they stand for: texts, pictures, parts of a message. What is wrong is told by name.

Nothing is opened here: a picture stays the path, bytes or PIL image that the row holds.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlchat import video
from vlchat.errors import DataError, nearest

Row = Mapping[str, Any]
Part = dict[str, Any]


def message_part(part: Any, name: str) -> Part:
    if not isinstance(part, Mapping):
        raise DataError(f"{name} must be an object with a type, not {type(part).__name__}", kind="wrong_type")
    kind = part.get("type")
    if kind == "text":
        return text_part(string(part.get("text"), f"{name}.text"))
    if kind == "image":
        keys = ("image", "path", "url", "base64")
        value = next((part[key] for key in keys if part.get(key) is not None), None)
        if value is not None and value is part.get("base64"):
            value = f"data:;base64,{value}"
        return {"type": "image", "image": None if value is None else picture(value, name)}
    if kind == "image_url":
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        return {"type": "image", "image": picture(string(url, f"{name}.image_url.url"), name)}
    if kind == "video":
        found = picture(required(part, "video", name), name, "video")
        frames = part.get("frames")
        if frames is None:
            return {"type": "video", "video": found}
        if type(frames) is not int or not 1 <= frames <= video.DEFAULT_LIMITS.max_frames:
            raise DataError(f"{name}.frames is {frames!r}; from 1 to {video.DEFAULT_LIMITS.max_frames} are possible")
        return {"type": "video", "video": found, "frames": frames}
    known = ("text", "image", "image_url", "video")
    raise DataError(f'{name}.type is "{kind}"; known: {", ".join(known)}{nearest(str(kind), known)}', kind="wrong_type")


def pictures(row: Row) -> list[Any]:
    """The pictures of the row's `image` or `images` field, as a list."""
    if row.get("image") is not None and row.get("images") is not None:
        raise DataError("the row has both `image` and `images`; keep one", kind="ambiguous_row", field="image")
    key = "images" if row.get("images") is not None else "image"
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value):
        return []
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [picture(image, f"{key}[{i}]") for i, image in enumerate(value)]
    return [picture(value, key)]


def picture(value: Any, name: str, what: str = "picture") -> Any:
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
    return string(value.get("answer") if isinstance(value, Mapping) else value, name)


def string(value: Any, name: str) -> str:
    if isinstance(value, float):  # a column of whole numbers with a gap comes as floats, and the gap as NaN
        if not math.isfinite(value):
            raise DataError(f"{name} is {value}, an empty cell: fill it or leave the row out", kind="empty_cell")
        value = int(value) if value.is_integer() else value
    if isinstance(value, bool | int | float):  # writers of JSON turn the answers "2" and "true" into other types
        return str(value).lower()
    if not isinstance(value, str):
        raise DataError(f"{name} must be text, not {type(value).__name__}", kind="wrong_type")
    return value


def turns_of(row: Row, key: str) -> Sequence[Any]:
    value = row.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        message = f"{key} must be a list with at least one turn; the row's keys are {keys_of(row)}"
        raise DataError(message, kind="missing_field" if not value else "wrong_type")
    return value


def required(mapping: Any, key: str, name: str) -> Any:
    if not isinstance(mapping, Mapping):
        message = f"{name} must be an object with the field `{key}`, not {type(mapping).__name__}"
        raise DataError(message, kind="wrong_type")
    if mapping.get(key) is None:
        lacks = f"{name} has no `{key}`; its keys are {keys_of(mapping)}"
        raise DataError(f"{name}: `{key}` is null" if key in mapping else lacks, kind="missing_field")
    return mapping[key]


def keys_of(row: Row) -> str:
    return ", ".join(str(key) for key in row) or "none"


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}
