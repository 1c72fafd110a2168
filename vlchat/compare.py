"""Several models asked the same in a terminal: their answers side by side, or one under the other."""

from __future__ import annotations

import io
import shutil
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, TextIO

from vlchat import adapters
from vlchat.chat import Chat
from vlchat.errors import VLChatError
from vlchat.models import resolve
from vlchat.places import locate
from vlchat.terminal import Session, answer

NARROWEST = 36  # letters; columns narrower than this are harder to read than a list
GAP = "  |  "


def load(models: Sequence[str], **options: Any) -> dict[str, Chat]:
    """The models by what to call them, on one base in memory where they stand on the same; options as of `Chat.load`.

    Raises:
        VLChatError: fewer than two, or one twice, or one that cannot be loaded.
    """
    if len(models) < 2:
        raise VLChatError("--compare takes two models or more, such as --compare mini runs/mine.")
    if options.get("revision") is not None:
        raise VLChatError("--compare takes no --revision: write it behind the Hub id, as ID@REVISION.")
    places = [resolve(model) for model in models]
    for position, place in enumerate(places):
        if place in places[:position]:
            raise VLChatError(f"--compare names {models[position]} twice.")
        locate(place)  # every wrong name is told before the first model is loaded
    names = adapters.names(places)
    if (shared := adapters.shared_base(places)) is not None:
        base, others = shared
        try:
            chat = Chat.load(base, adapters={names[position]: place for position, place in others.items()}, **options)
            return {name: chat.adapters.get(name, chat) for name in names}
        except adapters.NotShared:  # one of them changes the base itself
            pass
    return {name: Chat.load(place, **options) for name, place in zip(names, places, strict=True)}


def answers(
    chats: Mapping[str, Chat],
    conversations: Mapping[str, Sequence[Mapping[str, Any]]],
    options: Mapping[str, Any],
    out: TextIO,
) -> dict[str, str]:
    """Asks each model its conversation, writes the answers under the models' names, and returns them.

    In columns where `out` is a terminal that is wide enough; else each answer as it comes, one under the other.
    """
    width = (shutil.get_terminal_size().columns - len(GAP) * (len(chats) - 1)) // len(chats) if out.isatty() else 0
    replies: dict[str, str] = {}
    if width < NARROWEST:
        for name, chat in chats.items():
            out.write(f"{name}:\n")
            replies[name] = answer(chat, conversations[name], options, out)
            out.write("\n" * (len(replies) < len(chats)))
        return replies
    shown = {}
    for name, chat in chats.items():
        out.write(f"\r\x1b[K({name} answers)")
        out.flush()
        column = io.StringIO()
        try:
            replies[name] = answer(chat, conversations[name], options, column)
        finally:
            out.write("\r\x1b[K")
        shown[name] = column.getvalue().strip()
    out.write(columns(shown, width) + "\n")
    return replies


def columns(texts: Mapping[str, str], width: int) -> str:
    """Texts beside each other under their names, each `width` letters wide."""
    blocks = []
    for name, text in texts.items():
        lines = [textwrap.shorten(name, width, placeholder="..."), "-" * width]
        for line in text.expandtabs().splitlines():
            lines += _wrap(line, width) or [""]
        blocks.append(lines)
    rows = zip_longest(*blocks, fillvalue="")
    return "\n".join(GAP.join(cell + " " * (width - _wide(cell)) for cell in row).rstrip() for row in rows)


def _wrap(line: str, width: int) -> list[str]:
    wide = _wide(line) > len(line)  # Chinese, Japanese, Korean: two places a letter, and no spaces to break at
    return textwrap.wrap(line, width // 2 if wide else width)


def _wide(text: str) -> int:
    """Places that a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


class Comparison(Session):
    """A conversation with several models at once: each remembers its own answers."""

    def __init__(self, chats: Mapping[str, Chat], system: str | None, options: Mapping[str, Any], out: TextIO) -> None:
        super().__init__(next(iter(chats.values())), system, options, out)
        self.chats = chats
        self.reset()

    def reset(self) -> None:
        super().reset()
        self.conversations = {name: list(self.start) for name in self.chats}

    def ask(self, question: str) -> None:
        content = self.shown(question)
        asked = {name: [*turns, {"role": "user", "content": content}] for name, turns in self.conversations.items()}
        replies = answers(self.chats, asked, self.options, self.out)
        for name, turns in asked.items():
            turns.append({"role": "assistant", "content": [{"type": "text", "text": replies[name]}]})
        self.conversations, self.waiting = asked, []
