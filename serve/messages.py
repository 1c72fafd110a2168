"""What the page sends -> messages for `vlchat.chat.Chat`: the pictures opened, what was refused left out."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.decoding import Album, Decoder
from serve.page.words import told
from serve.store import Picture, Turn
from vlchat.errors import ImageError, VLChatError

# The title of a reply that is ours, not the model's. Such an exchange is shown and never sent to the model.
REFUSED = told("chat.refused", "en")
_IN_LINE = told("chat.in-line", "en", place="")


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
    turns = _system(system)
    for turn in _answered(history):
        _append(turns, turn["role"], list(_parts(turn["content"], allowed, album)))
    _append(turns, "user", parts)
    return turns


def uploaded(files: Iterable[Any], roots: Iterable[Path]) -> list[Path]:
    """Where files of a message lie.

    Args:
        files: paths, or `{"path": path}`.
        roots: the folders that they may be read from.

    Raises:
        ImageError: one of them is no upload.
    """
    allowed = [root.resolve() for root in roots]
    return [_inside(_path_of(file), allowed) for file in files]


def turns_as_messages(
    turns: Sequence[Turn], path_of: Callable[[Picture], Path], system: str, decoder: Decoder
) -> list[dict[str, Any]]:
    """Kept turns, the last of them a question, as `Chat.stream` takes them.

    Args:
        path_of: where a picture lies.
        system: the system prompt; blank for none.
        decoder: opens the pictures.

    Raises:
        ImageError: a picture that cannot be used, called by its file's name alone.
    """
    album, messages = Album(decoder), _system(system)
    for turn in without_refused(turns):
        pictures = [
            {"type": "image", "image": album.add(path_of(picture), name=picture.name)} for picture in turn.pictures
        ]
        _append(messages, turn.role, pictures + ([{"type": "text", "text": turn.text}] if turn.text else []))
    return messages


def without_refused(turns: Sequence[Turn]) -> list[Turn]:
    """The turns that the model reads: those without the questions that were refused."""
    kept: list[Turn] = []
    for turn in turns:
        if not turn.facts.get("refused"):
            kept.append(turn)
        elif turn.text:  # it broke off
            kept.append(turn)
        else:
            while kept and kept[-1].role == "user":
                kept.pop()
    return kept


def _system(words: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": [{"type": "text", "text": words.strip()}]}] if words.strip() else []


def refusal(reason: str, language: str = "en") -> dict[str, Any]:
    """A reply that tells a person what to do, marked so that the model never reads it."""
    return {"role": "assistant", "content": reason, "metadata": {"title": told("chat.refused", language)}}


def in_line(place: int, language: str = "en") -> dict[str, Any]:
    """What a person sees until the answer begins, where others are before them; marked as `refusal` is."""
    title = told("chat.in-line", language, place=place)
    return {"role": "assistant", "content": "", "metadata": {"title": title, "status": "pending"}}


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
        elif title.startswith(_IN_LINE):  # stopped before its turn came
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
    return {"type": "image", "image": album.add(_inside(path, allowed), name=path.name)}


def _inside(path: Path, allowed: list[Path]) -> Path:
    try:
        inside = any(path.resolve().is_relative_to(root) for root in allowed)
    except (OSError, ValueError):  # a path that no file can have
        inside = False
    if not inside:
        raise ImageError("A picture in this conversation was not uploaded here. Add it again.")
    return path
