"""What the page sends -> messages for `vlchat.chat.Chat`: the pictures opened, what was refused left out."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.decoding import Album, Decoder
from vlchat.errors import ImageError, VLChatError

# The title of a reply that is ours, not the model's. Such an exchange is shown and never sent to the model.
REFUSED = "This could not be answered"
IN_LINE = "In line"


def conversation(
    message: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    system: str,
    roots: Iterable[Path],
    decoder: Decoder,
) -> list[dict[str, Any]]:
    """The turns so far and the new one, as `Chat.stream` takes them.

    Args:
        message: `{"text": str, "files": [path | {"path": path}]}`.
        history: Gradio's messages, in any of the shapes that the page and the API send, their texts escaped.
        system: the system prompt; blank for none.
        roots: the folders that pictures may be read from; a path elsewhere is not an upload.
        decoder: opens them.

    Raises:
        ImageError: a picture that cannot be used, called by its file's name alone.
        VLChatError: there is neither a picture nor a word in the new message.
    """
    allowed = [root.resolve() for root in roots]
    text = str(message.get("text") or "").strip()
    album = Album(decoder)
    parts = [_picture(_path_of(file), allowed, album) for file in message.get("files") or []]
    if text:
        parts.append({"type": "text", "text": text})
    if not parts:
        raise VLChatError("Type a question, or add a picture.")
    turns: list[dict[str, Any]] = []
    if system.strip():
        turns.append({"role": "system", "content": [{"type": "text", "text": system.strip()}]})
    for turn in _answered(history):
        _append(turns, turn["role"], list(_parts(turn["content"], allowed, album)))
    _append(turns, "user", parts)
    return turns


def refusal(reason: str) -> dict[str, Any]:
    """A reply that tells a person what to do, marked so that the model never reads it."""
    return {"role": "assistant", "content": reason, "metadata": {"title": REFUSED}}


def in_line(place: int) -> dict[str, Any]:
    """What a person sees until the answer begins, where others are before them; marked as `refusal` is."""
    return {"role": "assistant", "content": "", "metadata": {"title": f"{IN_LINE}, place {place}", "status": "pending"}}


def escaped(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn with its texts safe to stand in HTML; `html.unescape` gives them back exactly."""
    content = turn["content"]
    parts = content if isinstance(content, list) else [content]
    return {**turn, "content": [_escaped(part) if isinstance(part, str) else part for part in parts]}


def _escaped(text: str) -> str:
    # Only what HTML would act on, since Gradio's edit box and copy button show the escaped text.
    if html.unescape(text) != text:
        text = text.replace("&", "&amp;")
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)


def _answered(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The history without our own replies and the questions they refused."""
    kept: list[Mapping[str, Any]] = []
    for turn in history:
        title = (turn.get("metadata") or {}).get("title") or ""
        if title == REFUSED:
            while kept and kept[-1]["role"] == "user":
                kept.pop()
        elif title.startswith(IN_LINE):  # stopped before its turn came
            continue
        elif turn.get("role") in ("user", "assistant"):
            kept.append(turn)
    return kept


def _append(turns: list[dict[str, Any]], role: str, parts: list[dict[str, Any]]) -> None:
    parts.sort(key=lambda part: part["type"] != "image")  # pictures before words, as in training
    # A question stopped before its first word has no answer: it and the next one are one turn, or templates refuse.
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += [{"type": "text", "text": "\n"}, *parts]
    elif parts:
        turns.append({"role": role, "content": parts})


def _parts(content: Any, allowed: list[Path], album: Album) -> Iterator[dict[str, Any]]:
    for item in content if isinstance(content, (list, tuple)) else [content]:
        if isinstance(item, str):
            yield {"type": "text", "text": html.unescape(item)}
        elif isinstance(item, Mapping) and item.get("type") == "text":
            yield {"type": "text", "text": html.unescape(str(item["text"]))}
        elif isinstance(item, Mapping) and ("file" in item or "path" in item):
            yield _picture(_path_of(item.get("file", item)), allowed, album)
        else:
            raise VLChatError("The conversation holds something that is neither text nor a picture. Start a new one.")


def _path_of(file: Any) -> Path:
    path = file.get("path") if isinstance(file, Mapping) else file
    if not isinstance(path, (str, Path)) or not str(path):
        raise ImageError("A picture did not arrive. Add it again.")
    return Path(path)


def _picture(path: Path, allowed: list[Path], album: Album) -> dict[str, Any]:
    try:
        inside = any(path.resolve().is_relative_to(root) for root in allowed)
    except (OSError, ValueError):  # a path that no file can have
        inside = False
    if not inside:
        raise ImageError("A picture in this conversation was not uploaded here. Add it again.")
    return {"type": "image", "image": album.add(path, name=path.name)}
