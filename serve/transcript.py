"""One conversation to take along: as Markdown with its pictures, or as a request that asks its last question again."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from serve.store import Conversation, Picture, Store, Turn
from vlchat import images
from vlchat.errors import ImageError, VLChatError

REFUSED = "refused"  # of a turn's facts: why it was not answered
_LONGEST_NAME = 60


def name_of(conversation: Conversation) -> str:
    """A file's name for it, without an ending: the letters and digits of its title, of any language."""
    return _file_name(conversation.title) or "conversation"


def as_markdown(store: Store, owner: str, conversation: str) -> bytes:
    """A .zip of `NAME.md` and `pictures/`.

    Questions stand as they were typed, every sign of theirs escaped. Answers keep their Markdown, but no HTML of theirs
    is HTML and no picture of theirs is fetched, wherever the file is shown.

    Raises:
        VLChatError: it isn't there.
    """
    about = store.conversation(owner, conversation)
    turns = store.turns(owner, conversation)
    written = time.gmtime(about.changed)
    files: dict[str, str] = {}  # digest -> name
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as parcel:

        def add(name: str, content: str | bytes) -> None:
            parcel.writestr(zipfile.ZipInfo(name, written[:6]), content, zipfile.ZIP_DEFLATED)

        for picture in (picture for turn in turns for picture in turn.pictures):
            if picture.digest not in files:
                content = store.picture(owner, picture.digest)
                files[picture.digest] = f"pictures/{len(files) + 1}-{_picture_name(picture.name, content)}"
                add(files[picture.digest], content)
        parts = [
            f"# {literal(about.title)}",
            time.strftime("%Y-%m-%d", written),
            *(_told(turn, files) for turn in turns),
        ]
        add(f"{name_of(about)}.md", "\n\n".join(parts) + "\n")
    return stream.getvalue()


def as_request(store: Store, owner: str, conversation: str, *, model: str, system: str = "") -> str:
    """JSON for `/v1/chat/completions`, as it is: it asks the last question again, whose answer is in `metadata`.

    Args:
        model: who is asked.
        system: the system prompt; blank for none.

    Raises:
        VLChatError: it isn't there, or nothing was asked in it.
    """
    about = store.conversation(owner, conversation)

    def shown(picture: Picture) -> dict[str, Any]:
        content = store.picture(owner, picture.digest)
        return {"type": "image_url", "image_url": {"url": data_url(content)}}

    messages = messages_of(store.turns(owner, conversation), shown)
    answer = messages.pop()["content"] if messages and messages[-1]["role"] == "assistant" else None
    if not messages:
        raise VLChatError("There is nothing in this conversation yet. Ask something first.")
    if system.strip():
        messages.insert(0, {"role": "system", "content": system.strip()})
    metadata = {"title": about.title} | ({} if answer is None else {"answer": answer})
    return json.dumps({"model": model, "messages": messages, "metadata": metadata}, ensure_ascii=False, indent=2) + "\n"


def messages_of(turns: Iterable[Turn], shown: Callable[[Picture], dict[str, Any]]) -> list[dict[str, Any]]:
    """Turns as messages, without what was refused, roles in turn.

    A user's content is a list of parts, pictures before words as in training; an assistant's is text.

    Args:
        shown: the part of a picture.
    """
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role == "assistant":
            if turn.text and messages and messages[-1]["role"] == "user":  # though it may have broken off
                messages.append({"role": "assistant", "content": turn.text})
            elif REFUSED in turn.facts:
                while messages and messages[-1]["role"] == "user":
                    messages.pop()
            continue
        parts = [shown(picture) for picture in turn.pictures]
        parts += [{"type": "text", "text": turn.text}] if turn.text else []
        # A question that was stopped before the first word of its answer: it and the next one are one turn.
        if messages and messages[-1]["role"] == "user":
            said = messages[-1]["content"]
            said += [*([{"type": "text", "text": "\n"}] if said[-1]["type"] == "text" else []), *parts]
        elif parts:
            messages.append({"role": "user", "content": parts})
    return messages


def data_url(content: bytes) -> str:
    """A picture as a data: URL.

    Raises:
        ImageError: it is none that is accepted.
    """
    return f"data:{images.mime_of(content)};base64,{base64.b64encode(content).decode()}"


def literal(text: str) -> str:
    """Markdown that shows a text as it is, line for line."""
    paragraphs = re.split("\n{2,}", "\n".join(line.rstrip() for line in text.splitlines()).strip("\n"))
    return "\n\n".join("\\\n".join(map(_literal_line, one.splitlines())) for one in paragraphs)


def inert(text: str) -> str:
    """Markdown that reads as before, in which no HTML and no picture works.

    A zero-width space stands in what would begin a tag or a picture: unlike a backslash it is not seen in code either.
    Code between fences stays as it is where all fences begin their lines, and so are surely ones.
    """
    result, fence = [], ""
    certain = not re.search(r"^.+?(```|~~~)", text, re.MULTILINE)
    for line in re.split(r"\r\n?|\n", text):
        if not fence:
            line = re.sub(r"<(?=[a-zA-Z/!?])|!(?=\[)", "\\g<0>\u200b", line)
            if certain and (opened := re.match(r"(`{3,})[^`]*$|(~{3,})", line)):
                fence = opened[1] or opened[2]
        elif re.fullmatch(rf"{re.escape(fence)}{re.escape(fence[0])}*\s*", line):
            fence = ""
        result.append(line)
    return "\n".join(result)


def _told(turn: Turn, files: Mapping[str, str]) -> str:
    speaker = "User" if turn.role == "user" else "Assistant"
    parts = [f"## {speaker}"]
    parts += [f"![{literal(picture.name)}]({files[picture.digest]})" for picture in turn.pictures]
    if reason := turn.facts.get(REFUSED):
        parts.append(literal(f"Not answered: {reason}"))
    elif turn.text:
        # An answer is a quotation, or one with headings could put words into the user's mouth.
        parts.append(literal(turn.text) if turn.role == "user" else re.sub("^", "> ", inert(turn.text), flags=re.M))
    return "\n\n".join(parts)


def _literal_line(line: str) -> str:
    said = line.lstrip()
    indent = "&nbsp;" * len(line[: len(line) - len(said)].expandtabs(4))
    said = re.sub(r"[\\`*_\[\]<>|~&$]", r"\\\g<0>", said)
    said = re.sub(r"^[-+=#:]", r"\\\g<0>", said)
    return indent + re.sub(r"^(\d+)([.)])", r"\1\\\2", said)


def _picture_name(name: str, content: bytes) -> str:
    stem, _, ending = name.rpartition(".")
    try:
        ending = images.mime_of(content).partition("/")[2]
    except ImageError:  # a page or a film is kept by the name that it came with
        ending = _file_name(ending)
    return f"{_file_name(stem or name) or 'picture'}.{ending}"


def _file_name(text: str) -> str:
    return re.sub(r"[\W_]+", "-", text)[:_LONGEST_NAME].strip("-")
