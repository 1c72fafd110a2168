"""What is wrong with the words of a conversation, as far as they tell it without a model."""

from __future__ import annotations

import re
import unicodedata

from vlchat.data.faults import BadRow
from vlchat.data.formats import Example, Message, text_of

# Format characters (zero-width space, direction marks), fillers that fonts draw as nothing, and variation selectors.
_UNSEEN_CATEGORIES = {"Cc", "Cf", "Zs", "Zl", "Zp", "Cs"}
_UNSEEN = {"\u115f", "\u1160", "\u3164", "\uffa0", "\u2800", "\u034f", *map(chr, range(0xFE00, 0xFE10))}
# What programs write into an empty cell. "none" and "n/a" are answers that people give ("What is he holding?").
_EMPTY_CELLS = {"nan", "null", "undefined", "<na>", "#n/a", "#ref!", "#value!", "todo", "tbd", "[object object]"}
# Control tokens that nobody writes by chance: a template that was rendered into the data, or a tag in the wrong turn.
_CONTROL = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|start_header_id|end_header_id|end|user|assistant|system"
    r"|image|image_pad|vision_start|vision_end|image_\d+)\|>|<(?:start|end)_of_turn>|<(?:image|img|video)>"
    r"|\[/?INST\]|<</?SYS>>|\A(?:[^<]|<(?!s>))*</s>\s*\Z"  # an end token; <s>struck out</s> is HTML
)
# U+FFFD, control characters, lone surrogates; and UTF-8 that was read as Windows-1252.
_BROKEN = re.compile(
    r"[\ufffd\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff]"
    r"|\u00e2\u20ac[\u0153\u201d\u2122\u0161\u00a6\u02dc\u201c]|\u00c3[\u00a1-\u00aa\u00ac-\u00ba\u00bc-\u00bf]"
)


def faults(example: Example, answers: bool = True) -> list[BadRow]:
    """What is wrong with the words of a row, errors before notes.

    Args:
        answers: the row is there to learn answers from; False leaves out what concerns only them.
    """
    found = [*_answer_faults(example), *_order(example)] if answers else []
    for message in example.messages:
        text = text_of(message)
        field = "answer" if message["role"] == "assistant" else "text"
        if match := _CONTROL.search(text):
            token = match[0][-40:].split()[-1]
            found.append(_fault(example, field, "control_token", f"{token} in the text: it is taken for plain text"))
        if match := _BROKEN.search(text):
            seen = match[0].encode("unicode_escape", "surrogatepass").decode()
            near = "".join(c if c.isprintable() else "?" for c in text[max(0, match.start() - 15) : match.end() + 15])
            found.append(_fault(example, field, "broken_text", f'broken characters ({seen}) in "{near}"'))
    return found


def _answer_faults(example: Example) -> list[BadRow]:
    turns = [message for message in example.messages if message["role"] == "assistant"]
    if not turns:
        return [_fault(example, "answer", "no_answer", "no turn of the assistant, so nothing would be learned")]
    return [found for number, turn in enumerate(turns) for found in _one_answer(example, turn, number, len(turns))]


def _one_answer(example: Example, turn: Message, number: int, of: int) -> list[BadRow]:
    where = "the answer" if of == 1 else f"answer {number + 1} of {of}"
    text = text_of(turn)
    if not text:
        return [_fault(example, "answer", "empty_answer", f"{where} is empty, so nothing would be learned from it")]
    if all(_unseen(character) for character in text):
        points = " ".join(f"U+{ord(character):04X}" for character in text[:5])
        return [_fault(example, "answer", "invisible_answer", f"{where} shows nothing: it is made of {points}")]
    if not any(_says_something(character) for character in text):
        return [_fault(example, "answer", "punctuation_answer", f'{where} is only "{text[:20]}"')]
    if text.casefold() in _EMPTY_CELLS:
        return [_fault(example, "answer", "placeholder_answer", f'{where} is "{text}", as an empty cell becomes')]
    return []


def _order(example: Example) -> list[BadRow]:
    roles = [message["role"] for message in example.messages]
    if "assistant" in roles and "user" not in roles:
        return [_fault(example, "text", "no_question", "no turn of the user, so the answer answers nothing")]
    if "assistant" in roles and roles[-1] == "user":
        return [_fault(example, "text", "unanswered", "the last turn is the user's; nothing is learned from it")]
    return []


def _unseen(character: str) -> bool:
    return character in _UNSEEN or unicodedata.category(character) in _UNSEEN_CATEGORIES


def _says_something(character: str) -> bool:
    """A letter, a digit, or a symbol such as + or an emoji; no punctuation mark and nothing unseen."""
    return unicodedata.category(character)[0] not in "PM" and not _unseen(character)


def _fault(example: Example, field: str, kind: str, reason: str) -> BadRow:
    return BadRow(example.source, example.row, example.id, field, kind, reason)
