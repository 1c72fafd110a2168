"""What the page shows of a conversation: the value of its component, `conversation.js`, which builds it."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.utils import get_upload_folder

from serve.page.markdown import as_html
from serve.page.template import template
from serve.page.words import LANGUAGES, told
from serve.page.words.errors import in_language
from serve.store import Picture, Turn

_SECRET = secrets.token_bytes(32)
_WORDS = (
    "assistant", "cancel", "close", "conversation", "copy", "correct", "dislike", "edit", "enlarge", "like", "look",
    "refused", "retry", "save", "send", "start", "undo", "user", "welcome",
)  # fmt: skip


def conversation_view() -> gr.HTML:
    """The component.

    It triggers `retry`, `undo`, `edit` (with a text), `like` (with a rating), `submit` (with a correction's text) and
    `select` with a turn's id, and `example_select` with an index.
    """
    return gr.HTML(
        shown("", [], LANGUAGES[0]), elem_id="conversation", apply_default_css=False,
        **template("conversation"),
    )  # fmt: skip


def shown(
    conversation: str, turns: Sequence[Mapping[str, Any]], language: str, *, examples: Sequence[Mapping[str, str]] = (),
    busy: bool = False, inside: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Its value.

    Args:
        conversation: an id.
        turns: as of `turn_shown`, `growing` and `waiting`.
        examples: of questions, as of `examples_shown`; in sight while there are no turns.
        busy: whether an answer is on its way.
        inside: whether an answer can be looked into.
    """
    return {
        "id": conversation,
        "turns": [{**turn, "last": place == len(turns) - 1} for place, turn in enumerate(turns)],
        "examples": list(examples),
        "busy": busy,
        "inside": inside,
        "words": {name: told(f"chat.{name}", language) for name in _WORDS},
    }


def turn_shown(
    turn: Turn, path_of: Callable[[Picture], Path], language: str, facts: str = "", unsure: str = ""
) -> dict[str, Any]:
    """One turn.

    Args:
        path_of: where the page finds a picture.
        language: in which it is told why there is no answer.
        facts: what is told under an answer.
        unsure: what is told of an answer that is likely wrong.
    """
    return {
        "id": turn.id,
        "role": turn.role,
        "text": turn.text,
        "html": as_html(turn.text) if turn.role == "assistant" else "",
        "pictures": [{"url": url_of(path_of(one)), "name": one.name} for one in turn.pictures],
        "refused": in_language(str(turn.facts.get("refused", "")), language),
        "rating": turn.rating,
        "correction": turn.correction,
        "facts": facts,
        "unsure": unsure,
    }


def growing(turn: int, text: str) -> dict[str, Any]:
    """An answer on its way; `turn` is its id."""
    return {
        "id": turn,
        "role": "assistant",
        "text": text,
        "html": as_html(text, growing=True),
        "pictures": [],
        "growing": True,
    }


def waiting(place: int, language: str) -> dict[str, Any]:
    """An answer whose turn has not come."""
    return _to_come(told("chat.in-line", language, place=place) if place else "…")


def to_be_opened(names: Sequence[str], language: str) -> dict[str, Any]:
    """A question whose documents are being opened."""
    return _to_come(told("chat.media-opening", language, names=", ".join(names)))


def _to_come(words: str) -> dict[str, Any]:
    return {"id": 0, "role": "assistant", "text": "", "html": "", "pictures": [], "growing": True, "waiting": words}


def examples_shown(examples: Sequence[tuple[Path, str]]) -> list[dict[str, str]]:
    """Pictures and what may be asked of them."""
    return [{"url": url_of(_public(path)), "text": question} for path, question in examples]


def _public(path: Path) -> Path:
    content = path.read_bytes()
    return place_of("", Picture(path.name, hashlib.sha256(content).hexdigest()), lambda _: content)


def url_of(path: Path) -> str:
    """Where a browser finds a file of the page, from the page's own address."""
    return f"gradio_api/file={quote(str(path))}"


def place_of(owner: str, picture: Picture, read: Callable[[str], bytes]) -> Path:
    """A picture of the store as a file that the page may show, where nobody else can guess it. See `forget`.

    Args:
        read: the bytes of a digest.
    """
    path = _copies(owner) / _secret(owner, picture.digest) / (Path(picture.name).name or "picture")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{secrets.token_hex(8)}")
        beside.write_bytes(read(picture.digest))
        os.replace(beside, path)
    return path


def forget(owner: str) -> None:
    """Removes somebody's files of `place_of`; what is still kept is written again when it is shown."""
    shutil.rmtree(_copies(owner), ignore_errors=True)


def forget_all() -> None:
    """Removes everybody's, and those of servers on this machine that ended without doing so."""
    for folder in Path(get_upload_folder()).glob("shown-*"):
        process = folder.name.removeprefix("shown-")
        if process == str(os.getpid()) or not (process.isdigit() and Path(f"/proc/{process}").exists()):
            shutil.rmtree(folder, ignore_errors=True)


def _copies(owner: str) -> Path:
    return Path(get_upload_folder()) / f"shown-{os.getpid()}" / _secret(owner)


def _secret(*of: str) -> str:
    return hmac.digest(_SECRET, "\0".join(of).encode(), hashlib.sha256).hex()
