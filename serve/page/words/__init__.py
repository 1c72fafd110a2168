"""What the page says, in English and Chinese.

A part of the page has a file of its own here, with `WORDS`: key -> (English, Chinese). A key begins with its file's
name. What stands on the page from the beginning is translated by the browser (`label`), what is answered to somebody
by the server (`told`), both into the language that their browser asks for.
"""

from __future__ import annotations

import re
from typing import Any

import gradio as gr
from gradio.i18n import I18n, I18nData

from serve.page.words import chat, feedback, inside, room

LANGUAGES = ("en", "zh")
WORDS: dict[str, tuple[str, str]] = {**chat.WORDS, **feedback.WORDS, **inside.WORDS, **room.WORDS}
_CHINESE = ("zh", "zh-CN", "zh-TW", "zh-HK", "zh-SG", "zh-Hans", "zh-Hant")  # Gradio looks for the whole tag


def translations() -> I18n:
    """For `gr.mount_gradio_app`."""
    english, chinese = ({key: both[place] for key, both in WORDS.items()} for place in (0, 1))
    return I18n(en=english, **dict.fromkeys(_CHINESE, chinese))


def label(key: str) -> Any:
    """For a component's label, placeholder, info or value: the words of `key`, translated by the browser."""
    assert key in WORDS, key
    return I18nData(key)


def told(key: str, language: str, **values: object) -> str:
    """The words of `key`, with `{name}` filled in from `values`.

    Args:
        language: one of `LANGUAGES`, see `language_of`.
    """
    return WORDS[key][LANGUAGES.index(language)].format(**values)


def language_of(request: gr.Request | None) -> str:
    """What the browser of a request asks for most, of `LANGUAGES`; English if it asks for neither."""
    asked = "" if request is None else request.headers.get("accept-language", "")
    for one in asked.split(","):
        if found := re.match(r"\s*(en|zh)\b", one):
            return found[1]
    return "en"
