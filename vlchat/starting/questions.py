"""Three questions in a terminal, each with its choices and one line of why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from vlchat.errors import VLChatError

Answer = TypeVar("Answer")


def ask(
    question: str,
    choices: Sequence[tuple[str, str]],
    understand: Callable[[str], Answer],
    read: Callable[[str], str] = input,
    say: Callable[[str], None] = print,
) -> Answer:
    """What a person answers: a number of the list, any other words, or Enter for the first choice.

    A mistake is told and asked again.

    Args:
        choices: what may be answered, and why one would.
        understand: makes sense of an answer.

    Raises:
        VLChatError: the input ended.
    """
    say(question)
    width = max((len(name) for name, _ in choices), default=0)
    for number, (name, why) in enumerate(choices, 1):
        say(f"  {number}  {name.ljust(width)}  {why}")
    prompt = f"[Enter: {choices[0][0]}] " if choices else "> "
    while True:
        try:
            text = read(prompt).strip()
        except EOFError:
            raise VLChatError(
                "Stopped: nothing was written. --model, --data and --gpu answer without asking."
            ) from None
        if not text and choices:
            text = choices[0][0]
        elif text.isdigit() and 0 < int(text) <= len(choices):
            text = choices[int(text) - 1][0]
        try:
            return understand(text)
        except VLChatError as error:
            say(f"{error}")
