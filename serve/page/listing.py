"""The list of a visitor's conversations: searched, opened, renamed, pinned, saved, deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from serve.page.template import template
from serve.page.words import LANGUAGES, told
from serve.store import Conversation

_WORDS = ("list", "none", "none-found", "pin", "unpin", "rename", "name", "delete", "more", "as-markdown", "as-json")


def listing() -> gr.HTML:
    """The component. It triggers `click` with an action (open, pin, rename, delete), an id, and a new title."""
    return gr.HTML(
        listed([], "", LANGUAGES[0]), elem_id="conversations", apply_default_css=False, **template("listing")
    )  # fmt: skip


def listed(conversations: Sequence[Conversation], current: str, language: str, searched: str = "") -> dict[str, Any]:
    """Its value.

    Args:
        current: the id of the one that is open.
        searched: the words that were looked for.
    """
    words = {name.replace("-", "_"): told(f"chat.{name}", language) for name in _WORDS}
    words["empty"] = words["none_found" if searched else "none"]
    items = [
        {
            "id": one.id,
            "title": one.title,
            "pinned": one.pinned,
            "current": one.id == current,
        }
        for one in conversations
    ]
    return {"conversations": items, "words": words}
