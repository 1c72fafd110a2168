"""Two answers to the same question, side by side, and the one that a visitor finds better."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from serve.page.asking import Answer
from serve.page.markdown import as_html
from serve.page.words import told
from serve.page.words.errors import in_language
from serve.store import Turn


def said(answer: Answer, language: str) -> str:
    """An answer as it stands, as HTML."""
    if answer.place and not answer.text:
        return f"<p>{told('chat.in-line', language, place=answer.place)}</p>"
    return _html(answer.text, answer.refused, language, growing=answer.end is None)


def paired(answers: Sequence[Answer], facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of a turn that was answered once, or twice: then the other answer is among them."""
    if len(answers) == 1:
        return dict(facts[0])
    return {**facts[0], "beside": {"text": answers[1].text.strip(), "facts": dict(facts[1])}}


def pair_of(turn: Turn, language: str) -> tuple[str, str] | None:
    """Both answers of a turn as HTML, while nobody has chosen."""
    other = turn.facts.get("beside")
    if other is None or "chosen" in turn.facts:
        return None
    answers = (turn.text, turn.facts), (other["text"], other["facts"])
    left, right = (_html(text, facts.get("refused"), language) for text, facts in answers)
    return left, right


def settled_pair(turn: Turn, chosen: str, names: Sequence[str]) -> tuple[str, dict[str, Any], dict[str, str]]:
    """A turn of two answers once one was chosen.

    Args:
        chosen: "left", "right" or "same".
        names: of the models; the first one's adapter is "".

    Returns:
        The turn's words, its facts, and the words of both by the name of who said them.
    """
    other = turn.facts["beside"]
    left = {key: value for key, value in turn.facts.items() if key != "beside"}
    right = other["facts"]
    said = {}
    for facts, text in ((left, turn.text), (right, other["text"])):
        name = str(facts.get("adapter") or names[0])
        said[f"{name}, again" if name in said else name] = text
    if chosen == "right":
        return other["text"], {**right, "beside": {"text": turn.text, "facts": left}, "chosen": chosen}, said
    return turn.text, {**left, "beside": other, "chosen": chosen}, said


def _html(text: str, refused: str | None, language: str, growing: bool = False) -> str:
    told = f"<p><b>{html.escape(in_language(refused, language))}</b></p>" if refused else ""
    return as_html(text, growing) + told
