"""What stands in the data of a run to be: rows, pictures, alphabets, lengths."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy

from vlchat.data import SourceConfig, inspection, load_source, pictures
from vlchat.data.dataset import Source
from vlchat.data.faults import advice
from vlchat.data.formats import Example, text_of
from vlchat.data.pictures import Verdict
from vlchat.data.rows import Findings, examine
from vlchat.errors import DataError

SAMPLE = 200  # rows whose words and tokens are counted
_TOKENS_A_WORD, _TURN, _IMAGE = 1.6, 12, 576  # where the model's processor is not at hand; LLaVA-1.5's image tokens
_COMMON = 0.05  # share of the letters from which on an alphabet is told


@dataclass(frozen=True)
class Survey:
    """What was seen.

    Attributes:
        config: where the rows are; its `ids` are switched off where ids name pictures.
        rows, usable: all of them, and those that can be trained on.
        advice: what to do about those that can't, where one thing helps many.
        images, text_only: pictures shown, and rows that show none.
        shared_ids: rows with an id that an earlier row has.
        formats: rows of each format.
        answers: words of each answer.
        alphabets: of the letters of some rows, the share of each that is common there.
        tokens: of some rows, as the model reads them.
        counted: whether they were counted by the model's processor, or guessed from words.
    """

    config: SourceConfig
    rows: int
    usable: int
    advice: str
    images: int
    text_only: int
    shared_ids: int
    formats: Counter[str]
    answers: list[int]
    alphabets: dict[str, float]
    tokens: list[int]
    counted: bool

    @property
    def bad(self) -> int:
        return self.rows - self.usable

    @property
    def longest(self) -> int:
        return max(self.tokens)

    def sentences(self) -> list[str]:
        """What was seen, for people."""
        kinds = ", ".join(f"{name} ({count:,})" for name, count in self.formats.most_common())
        shown = f"{self.images:,} pictures shown, {self.text_only:,} rows without one"
        lines = [f"{self.rows:,} rows in the format {kinds}; {shown}."]
        if self.bad:
            lines.append(f"{self.bad:,} rows can't be used: vlchat check lists them. {self.advice}".rstrip())
        if self.shared_ids:
            lines.append(
                f"{self.shared_ids:,} rows share an id with an earlier one, as in LLaVA's files: ids are left aside."
            )
        answers = (
            f"Answers have {int(numpy.median(self.answers)):,} words in the middle and {max(self.answers):,} at most"
        )
        how = "counted" if self.counted else "guessed from words"
        middle, most = int(numpy.median(self.tokens)), self.longest
        lines.append(f"{answers}; rows take {middle:,} tokens in the middle and {most:,} at most ({how}).")
        spread = ", ".join(f"{name.title()} {share:.0%}" for name, share in self.alphabets.items())
        lines.append(f"Letters: {spread or 'none'}.")
        return lines


def survey(config: SourceConfig, processor: Any = None, progress: bool = False) -> Survey:
    """Reads every row and the beginning of every picture, and counts the tokens of a few rows.

    Args:
        processor: of the model to train; None guesses tokens from words.

    Raises:
        DataError: the data cannot be opened, or not one row can be used; says why.
    """
    source, found, verdicts = _examined(config, progress)
    shared = sum(fault.kind == "duplicate_id" for fault in found.faults)
    if shared:
        config = replace(config, ids=False)
        source, found, verdicts = _examined(config, progress)
    usable = found.usable()
    bad = [fault for fault in found.faults if fault.is_error]
    hint = advice(bad, [str(root) for root in source.roots])
    if not usable:
        raise DataError(
            f"Not one of the {found.rows:,} rows of {config.path} can be used. First {bad[0]}. {hint}".rstrip()
        )
    chosen = [usable[int(place)] for place in numpy.linspace(0, len(usable) - 1, min(SAMPLE, len(usable)))]
    examples = [source.example(row) for row in chosen]
    tokens: list[int] = []
    if processor is not None:
        from vlchat.data import lesson  # torch and transformers take seconds to import

        spread = lesson.budget(source, chosen, found.sizes(verdicts), processor, None)[1][0]
        tokens = [int(value) for value in spread.data]
    return Survey(
        config=config,
        rows=found.rows,
        usable=len(usable),
        advice=hint,
        images=found.images,
        text_only=found.text_only,
        shared_ids=shared,
        formats=found.formats,
        answers=found.answers,
        alphabets=alphabets("".join(map(_words, examples))),
        tokens=tokens or [_guess(example) for example in examples],
        counted=bool(tokens),
    )


def alphabets(text: str) -> dict[str, float]:
    """The share of the letters from each alphabet that is common in a text, the most frequent first."""
    found = Counter(unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha())
    total = found.total()
    return {name: count / total for name, count in found.most_common() if count >= _COMMON * total}


def _examined(config: SourceConfig, progress: bool) -> tuple[Source, Findings, dict[Any, Verdict]]:
    source = load_source(config)
    verdicts: dict[Any, Verdict] = {}

    def look(key: Any, file: Any, of: str) -> None:
        verdicts[key] = pictures.header(file, of)

    many = progress and len(source) > inspection.FEW
    found = examine(source, look, numbers=inspection.counted(len(source), source.name) if many else None)
    found.settle(verdicts)
    return source, found, verdicts


def _words(example: Example) -> str:
    return " ".join(text_of(message) for message in example.messages)


def _guess(example: Example) -> int:
    text = _words(example)
    wide = sum(letter > "\u2e7f" for letter in text)  # Chinese, Japanese, Korean: a letter is about a token
    words = len(text.split()) * _TOKENS_A_WORD + wide
    return int(words + _TURN * len(example.messages) + _IMAGE * len(example.images))
