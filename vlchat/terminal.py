"""Asking in a terminal: one question, or a conversation with pictures added on the way."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from PIL import Image

from vlchat import images
from vlchat.errors import VLChatError, nearest

if TYPE_CHECKING:
    from vlchat.chat import Chat

HELP = """\
/image PATH   show a picture with the next question (again for more)
/reset        forget the conversation
/help         this list
/quit         leave, as Ctrl-D does; Ctrl-C stops an answer"""
COMMANDS = ("/image", "/reset", "/help", "/quit")
# Everything a terminal would act on rather than show; line breaks and tabs stay.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def answer(chat: Chat, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], out: TextIO) -> str:
    """Writes the answer as it comes and returns it. Ctrl-C ends the computation, too, and is raised again."""
    text = ""
    pieces = chat.stream(messages, **options)
    try:
        for piece in pieces:
            text += piece
            out.write(piece.translate(_CONTROLS))
            out.flush()
    finally:
        pieces.close()
        out.write("\n")
        out.flush()
    return text.strip()


class Session:
    """A conversation in the terminal.

    Args:
        chat: who answers.
        system: a system prompt, or None.
        options: of `Chat.stream`.
        out: where answers go; what people are told besides goes to stderr.
    """

    def __init__(self, chat: Chat, system: str | None, options: Mapping[str, Any], out: TextIO) -> None:
        self.chat = chat
        self.options = options
        self.out = out
        self.start = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
        self.messages: list[dict[str, Any]] = list(self.start)
        self.waiting: list[Image.Image] = []  # shown with the next question

    def add(self, path: str) -> None:
        """Opens a picture for the next question.

        Raises:
            ImageError: it cannot be used.
        """
        self.waiting.append(images.decode(Path(path).expanduser()))

    def run(self) -> None:
        """Reads lines until /quit or the end of the input."""
        shown = sys.stdin.isatty()
        if shown:
            try:
                import readline  # noqa: F401  (arrow keys and history; not on every platform)
            except ImportError:
                self._tell("(no line editing here)")
            self._tell(HELP)
        while True:
            try:
                line = input("> " if shown else "").strip()
            except (EOFError, KeyboardInterrupt):
                if shown:
                    self._tell("")
                return
            if line == "/quit":
                return
            try:
                self.take(line)
            except VLChatError as error:
                self._tell(str(error))
            except KeyboardInterrupt:
                self._tell("(stopped)")

    def take(self, line: str) -> None:
        """One line: a command or a question.

        Raises:
            VLChatError: it cannot be done; the conversation stays as it was.
        """
        command, _, rest = line.partition(" ")
        if command == "/image":
            if not rest.strip():
                raise VLChatError("Say which picture: /image PATH")
            self.add(rest.strip().strip("'\""))
            self._tell(f"({len(self.waiting)} picture{'s' * (len(self.waiting) > 1)} with the next question)")
        elif command == "/reset":
            self.reset()
            self._tell("(forgotten, the pictures as well)")
        elif command == "/help":
            self._tell(HELP)
        elif command.startswith("/"):
            raise VLChatError(f"There is no command {command}{nearest(command, COMMANDS) or ': try /help'}")
        elif line:
            self.ask(line)

    def reset(self) -> None:
        """Forgets the conversation and the pictures that wait."""
        self.messages, self.waiting = list(self.start), []

    def shown(self, question: str) -> list[dict[str, Any]]:
        """The content of a question: the pictures that wait, then the words."""
        return [*({"type": "image", "image": picture} for picture in self.waiting), {"type": "text", "text": question}]

    def ask(self, question: str) -> None:
        """Asks one question with the pictures that wait, and remembers the answer."""
        content = self.shown(question)
        asked = [*self.messages, {"role": "user", "content": content}]
        reply = answer(self.chat, asked, self.options, self.out)
        self.messages = [*asked, {"role": "assistant", "content": [{"type": "text", "text": reply}]}]
        self.waiting = []

    def _tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
