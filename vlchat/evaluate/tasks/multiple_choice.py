"""Questions with choices: the letter that the model writes, the choice it holds most likely, or every rotation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase as LETTERS
from typing import Any

import numpy as np

from vlchat.data import Example, SourceConfig, load_source
from vlchat.data.fields import string
from vlchat.data.formats import Message
from vlchat.errors import ConfigError, DataError, nearest
from vlchat.evaluate.items import Item, Reading, Reply, Request
from vlchat.evaluate.measures import Measure, mean_of, ratio_of
from vlchat.evaluate.metrics.choices import chosen, probability
from vlchat.evaluate.tasks.base import Task
from vlchat.evaluate.tasks.vqa import data_of, source_config, usable, vqa_item

INSTRUCTION = "Answer with the option's letter from the given choices directly."
_KNOWN = {
    "how": ("letter", "likelihood", "circular"),
    "candidates": ("letters", "texts"),
    "normalise": ("sum", "token"),
}
_LISTED = 20


@dataclass(frozen=True)
class Choices:
    """What a row asks: the text that the choices stand under, the choices, and the place of the right one."""

    text: str
    options: tuple[str, ...]
    right: int

    def laid_out(self, turn: int = 0) -> str:
        """The question, the options rotated left by `turn` places, a line each, and the instruction."""
        return laid_out(self.text, rotated(self.options, turn))


class MultipleChoiceTask(Task):
    """Rows with `choices` or `options` (a list, or an object of letters and texts) and the answer among them.

    The answer is a letter, a text, or a number that counts from 0. A text that is the letter of one choice and the
    text of another, and a number that is the place of one and the text of another, are faults.

    The prompt is that of LLaVA-1.5 (docs/Evaluation.md): the question, then a line "A. ..." for each choice, then
    "Answer with the option's letter from the given choices directly."

    Args:
        data, format, images, split, limit, slices: as for the task vqa.
        how: "letter": the model writes, and `vlchat.evaluate.metrics.choices.chosen` reads which choice it names; a
            reply that names none is wrong. "likelihood": nothing is written, the most likely choice is taken.
            "circular": as "letter", asked once for each rotation of the choices; right is what is right in all of them
            (CircularEval, MMBench, Liu et al. 2023). Vanilla accuracy is that of the order in the data.
        candidates: for "likelihood": "letters" under the listed choices, or "texts" of the choices after the question
            alone.
        normalise: for "likelihood": "sum" of the tokens' log-probabilities, or their mean per "token", which does not
            favour short texts.

    Raises:
        DataError: a row cannot be used; all faults are listed. ConfigError: an unknown way.
    """

    measures: Sequence[Measure]

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        format: str | None = None,
        images: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        slices: Sequence[str] = (),
        how: str = "letter",
        candidates: str = "letters",
        normalise: str = "sum",
    ) -> None:
        for name, value in (("how", how), ("candidates", candidates), ("normalise", normalise)):
            known = _KNOWN[name]
            if value not in known:
                raise ConfigError(f'{name} is "{value}"; known: {", ".join(known)}{nearest(value, known)}')
        if how != "likelihood" and (candidates, normalise) != ("letters", "sum"):
            raise ConfigError(f"candidates and normalise are for how=likelihood; how is {how}")
        self.how, self.candidates, self.normalise = how, candidates, normalise
        config = source_config(data, format=format, images=images, split=split, limit=limit)
        self._items = self._read_rows(config, slices)
        self.protocol, self.measures = _way(how, candidates, normalise)
        self.data: dict[str, Any] = data_of(config)
        guesses = [len(item.source.options) for item in self._items]
        luck = sum(count ** -(count if how == "circular" else 1.0) for count in guesses) / len(guesses)
        self.notes: list[str] = [f"Guessing at random is right on {100 * luck:.1f} %."]

    def _read_rows(self, config: SourceConfig, slices: Sequence[str]) -> list[Item]:
        rows = load_source(config).rows
        items, faults = [], []
        for example in usable(config):
            try:
                choices = choices_of(example, rows[example.row - 1])
            except DataError as error:
                faults.append(f"  {example.called}: {error}")
                continue
            item = vqa_item(example, slices)
            shown = item.messages
            if self.candidates == "letters":
                shown = with_text(shown, choices.laid_out())
            letter = LETTERS[choices.right]
            items.append(replace(item, messages=shown, reference=letter, answers=(letter,), source=choices))
        if faults:
            more = [f"  and {len(faults) - _LISTED:,} more"] if len(faults) > _LISTED else []
            raise DataError("\n".join([f"{len(faults):,} rows cannot be asked:", *faults[:_LISTED], *more]))
        return items

    def items(self) -> list[Item]:
        return self._items

    def requests(self, item: Item, replies: Sequence[Reply]) -> list[Request]:
        if replies:
            return []
        choices: Choices = item.source
        count = len(choices.options)
        if self.how == "circular":
            turns = [with_text(item.messages, choices.laid_out(turn)) for turn in range(count)]
            return [Request(messages, stated=f"rotated by {turn}") for turn, messages in enumerate(turns)]
        if self.how == "likelihood":
            return [Request(item.messages, tuple(LETTERS[:count]) if self.candidates == "letters" else choices.options)]
        return [Request(item.messages)]

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        choices: Choices = item.source
        if self.how == "likelihood":
            return _likeliest(replies[0], choices, self.normalise == "token")
        taken = [
            None if reply.error is not None else _named(reply.text, choices, turn) for turn, reply in enumerate(replies)
        ]
        unread = float(sum(place is None for place in taken))
        letters = ["none" if place is None else LETTERS[place] for place in taken]
        answer = letters[0] if len(set(letters)) == 1 else " ".join(letters)
        first = float(taken[0] == choices.right)
        if self.how == "letter":
            return Reading(answer, first, {"right": first, "unread": unread})
        # A rotation that was not asked is not right.
        complete = len(taken) == len(choices.options)
        every = float(complete and all(place == choices.right for place in taken))
        stats = {"circular": every, "vanilla": first, "unread": unread, "asked": float(len(taken))}
        # Right is only what is right every time.
        sure = [probability(reply) for reply in replies]
        known = [found for found in sure if found is not None]
        return Reading(answer, every, stats, math.prod(known) if len(known) == len(sure) else None)


def laid_out(text: str, options: Sequence[str], instruction: str = INSTRUCTION) -> str:
    """A question with its choices, a line each, and what to do with them."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([*([text] if text else []), *lines, instruction])


def rotated(options: Sequence[str], turn: int) -> tuple[str, ...]:
    """The options from place `turn` on, then those before it."""
    return (*options[turn:], *options[:turn])


def with_text(messages: Sequence[Message], text: str) -> list[Message]:
    """The same conversation with another last text in its last turn; pictures and earlier texts stay."""
    *before, last = messages
    parts = list(last["content"])
    places = [place for place, part in enumerate(parts) if part["type"] == "text"]
    if places:
        parts[places[-1]] = {"type": "text", "text": text}
    else:
        parts.append({"type": "text", "text": text})
    return [*before, {**last, "content": parts}]


def choices_of(example: Example, row: Mapping[str, Any]) -> Choices:
    """The choices of a row and the right one.

    Args:
        example: the row as it was read; the answer is its last one.
        row: as the file holds it, for the type of its `answer`.

    Raises:
        DataError: there are no choices, or too few or many, or two are the same, or the answer is none of them.
    """
    given = example.meta.get("choices")
    given = example.meta.get("options") if given is None else given
    if isinstance(given, str) and given.lstrip().startswith(("[", "{")):  # a cell of a CSV file
        try:
            given = json.loads(given)
        except (json.JSONDecodeError, RecursionError):
            pass
    if given is None:
        raise DataError("the row has neither choices nor options")
    letters: list[str] = list(LETTERS)
    if isinstance(given, Mapping):
        letters, given = [str(key).strip() for key in given], list(given.values())
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise DataError("choices must be a list of texts, or an object of letters and texts")
    options = tuple(string(option, f"choices[{place}]").strip() for place, option in enumerate(given))
    if not 2 <= len(options) <= len(LETTERS):
        raise DataError(f"{len(options)} choices; from 2 to {len(LETTERS)} are possible")
    if len({option.casefold() for option in options}) < len(options) or "" in options:
        raise DataError("a choice is empty, or two are the same")
    last = max(place for place, message in enumerate(example.messages) if message["role"] == "assistant")
    asked = [part["text"] for part in example.messages[last - 1]["content"] if part["type"] == "text"]
    right = _right_one(example.answer, options, letters[: len(options)], isinstance(row.get("answer"), int))
    return Choices(asked[-1].strip() if asked else "", options, right)


def _right_one(answer: str, options: Sequence[str], letters: Sequence[str], is_number: bool) -> int:
    text = answer.strip()
    as_text = {place for place, option in enumerate(options) if option.casefold() == text.casefold()}
    as_letter = {place for place, letter in enumerate(letters) if letter.casefold() == text.casefold()}
    as_place = {int(text)} if text.isdecimal() and text.isascii() and int(text) < len(options) else set()
    # "2" may be a choice's text; the number 2 is a place.
    found = as_text | as_letter | (as_place if is_number or not (as_text | as_letter) else set())
    if not found:
        raise DataError(f'the answer "{text[:60]}" is no letter, place or text of its {len(options)} choices')
    if len(found) > 1:
        raise DataError(f'the answer "{text[:60]}" can be {len(found)} of the choices; give its letter')
    return found.pop()


def _named(reply: str, choices: Choices, turn: int) -> int | None:
    """The place, in the order of the data, of the choice that a reply to the rotated list names."""
    place = chosen(reply, rotated(choices.options, turn))
    return None if place is None else (place + turn) % len(choices.options)


def _likeliest(reply: Reply, choices: Choices, per_token: bool) -> Reading:
    told = len(reply.choices) == len(choices.options) and not np.isnan(reply.choices).any()
    if reply.error is not None or not told or max(reply.choices) == -math.inf:
        return Reading("none", 0.0, {"right": 0.0})
    values = np.asarray(reply.choices, dtype=float)
    if per_token:
        values = values / np.maximum(np.asarray(reply.choice_tokens, dtype=float), 1)
    best = int(np.argmax(values))
    right = float(best == choices.right)
    weights = np.exp(values - values[best])
    share = float(weights[best] / weights.sum())
    return Reading(LETTERS[best], right, {"right": right}, share if math.isfinite(share) else None)


def _way(how: str, candidates: str, normalise: str) -> tuple[str, list[Measure]]:
    """The protocol and the measures of a way of asking."""
    unread = "no choice named"
    if how == "likelihood":
        over = "sum" if normalise == "sum" else "mean"
        protocol = f"vlchat-choice-1 (the likeliest of the {candidates}, by the {over} over its tokens)"
        return protocol, [mean_of("right", "accuracy")]
    if how == "letter":
        protocol = "vlchat-choice-1 (the choice whose letter or text the reply names; none named is wrong)"
        return protocol, [mean_of("right", "accuracy"), mean_of("unread", unread, better="lower")]
    measures = [mean_of("circular", "circular accuracy"), mean_of("vanilla", "vanilla accuracy")]
    measures.append(ratio_of("unread", "asked", unread, better="lower"))
    return "vlchat-choice-1 (circular: right in every rotation of the choices, as in MMBench)", measures
