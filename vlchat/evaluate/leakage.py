"""What of a test is in the training data already: the same pictures, copies of them, the same questions, or both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlchat.data.formats import Example, text_of
from vlchat.errors import DataError
from vlchat.evaluate.likeness import KINDS, same, signatures
from vlchat.evaluate.metrics import vqa_normalize

# What a row of the test belongs to.
PARTS = ("picture and question", "picture", "question", "nothing")
SLICE = "in training"
MOST_DECODED = 20_000  # pictures of a side, about two minutes; of more of them only the files' bytes are compared
EXAMPLES = 100  # leaks that `to_dict` lists


class Rows(Protocol):
    """What is looked at: a `Source`, or a list of Examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True)
class Leak:
    """A row of the test that the training data know something of.

    Attributes:
        row: its name, as messages call it; `number` is its position, from 0.
        picture: of `KINDS`, how a picture of it is there; None where it is not.
        picture_in: the training row that shows the picture.
        question_in: a training row that asks the same; None where none does.
        both_in: a training row that asks the same about the same picture.
    """

    row: str
    number: int
    picture: str | None = None
    picture_in: str | None = None
    question_in: str | None = None
    both_in: str | None = None

    @property
    def part(self) -> str:
        """Of `PARTS`: what of it is there."""
        if self.both_in is not None:
            return "picture and question"
        return "picture" if self.picture is not None else "question"


@dataclass(frozen=True)
class Leakage:
    """What was found.

    Attributes:
        train, test: what the two are called.
        rows: of the test.
        leaks: the rows that have any, in order.
        unreadable: rows and pictures of either side that were left out.
        decoded: whether pictures were decoded; else only the bytes of their files were compared.
    """

    train: str
    test: str
    rows: int
    leaks: tuple[Leak, ...]
    unreadable: int = 0
    decoded: bool = True

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are of each of `PARTS`."""
        found = {part: sum(leak.part == part for leak in self.leaks) for part in PARTS[:-1]}
        return found | {"nothing": self.rows - len(self.leaks)}

    def slices(self) -> list[dict[str, str]]:
        """For each row of the test what of it the training data have, of `PARTS`; none where they have nothing."""
        if not self.leaks:
            return [{} for _ in range(self.rows)]
        found = {leak.number: leak.part for leak in self.leaks}
        return [{SLICE: found.get(number, "nothing")} for number in range(self.rows)]

    def sentences(self, examples: int = 2) -> list[str]:
        """What a reader should know, with examples by the rows' names."""
        told = []
        for kind, words in KINDS.items():
            shown = [leak for leak in self.leaks if leak.picture == kind]
            if shown:
                named = "; ".join(f"{leak.row} = {leak.picture_in}" for leak in shown[:examples])
                told.append(
                    f"Leak: {len(shown):,} of {self.rows:,} test rows show a picture that {self.train} has as {words}: "
                    f"{named}."
                )
        both = [leak for leak in self.leaks if leak.both_in is not None]
        if both:
            named = "; ".join(f"{leak.row} = {leak.both_in}" for leak in both[:examples])
            told.append(
                f"Leak: {len(both):,} of them ask the same question about it, so they were trained on: {named}."
            )
        if not told:
            copy = ", nor a near copy of one" if self.decoded else ", by the bytes of its file"
            told.append(f"No picture of {self.test} is in {self.train}{copy}.")
        if not self.decoded:
            told.append(f"There are more than {MOST_DECODED:,} pictures, so near copies were not looked for.")
        asked = sum(leak.question_in is not None for leak in self.leaks)
        told.append(
            f"{asked:,} of {self.rows:,} test rows ask what {self.train} asks in the same words"
            + (", which a guess from the question alone makes use of." if asked else ".")
        )
        if self.unreadable:
            told.append(f"{self.unreadable:,} rows or pictures could not be read and were left out.")
        return told

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, with the first rows whose picture leaked."""
        shown = [leak for leak in self.leaks if leak.picture is not None][:EXAMPLES]
        plain = {name: value for name, value in vars(self).items() if name != "leaks"}
        listed = [{"part": leak.part, **vars(leak)} for leak in shown]
        return plain | {"counts": self.counts, "sentences": self.sentences(), "examples": listed}


def leakage(
    train: Rows,
    test: Rows,
    *,
    names: tuple[str, str] | None = None,
    workers: int | None = None,
    cache: Path | None = None,
) -> Leakage:
    """Looks for the test's pictures and questions in the training data.

    A picture is the same file by its bytes, the same pixels once decoded, or a near copy: its difference hash (Krawetz
    2013, 8 x 8) is within 4 of 64 bits, and no channel of its 32 x 32 thumbnail more than 48 of 255 levels off, as
    the hash alone takes pictures for one that differ in what is small. A crop or a mirrored copy is not found.
    Questions are compared after the VQA challenge's normalisation.

    Args:
        train, test: a `Source`, whose paths are found, or Examples whose pictures are paths, bytes or PIL images.
        names: what sentences call the two; None takes the sources' names.
        workers: threads that decode; None takes as many as there are cores.
        cache: the folder that keeps what pictures are compared by, under hashes of their bytes; None keeps nothing.
    """
    known, asked = _Side(train), _Side(test)
    decoded = max(len(known.sources), len(asked.sources)) <= MOST_DECODED
    marks = [
        signatures(side.sources, decode=decoded, workers=workers, cache=cache) for side in (known, asked)
    ]  # fmt: skip
    equal = same(marks[1], marks[0])
    leaks = []
    for row in asked.rows:
        found = [(kind, other) for key in row.pictures for kind, other in equal.get(key, {}).items()]
        found.sort(key=lambda one: list(KINDS).index(one[0]))
        question = row.questions[-1] if row.questions else ""
        asked_in = known.by_question.get(question)
        if not found and asked_in is None:
            continue
        kind, others = found[0] if found else (None, [])
        pairs = ((key, question) for _, each in found for key in each)
        both = next((known.by_pair[pair] for pair in pairs if pair in known.by_pair), None)
        place = known.by_picture[others[0]] if others else None
        leaks.append(Leak(row.name, row.number, kind, place, asked_in, both))
    left_out = sum(
        side.unreadable + len(side.sources) - len(read) for side, read in zip((known, asked), marks, strict=True)
    )
    of_train, of_test = names or (getattr(train, "name", "the training data"), getattr(test, "name", "the test"))
    return Leakage(of_train, of_test, len(test), tuple(leaks), left_out, decoded)


@dataclass(frozen=True)
class _Row:
    name: str
    number: int
    pictures: list[str]  # keys of sources
    questions: list[str]


class _Side:
    """Training data or test: its rows, and where each picture and question is first found."""

    def __init__(self, rows: Rows) -> None:
        self.unreadable = 0
        self.rows: list[_Row] = []
        self.sources: dict[str, tuple[str, Any]] = {}
        self.by_picture: dict[str, str] = {}
        self.by_question: dict[str, str] = {}
        self.by_pair: dict[tuple[str, str], str] = {}
        for number in range(len(rows)):
            try:
                example = rows[number]
            except DataError:
                self.unreadable += 1
                continue
            self._add(number, example)

    def _add(self, number: int, example: Example) -> None:
        shown = {_key(part): part for part in _shown(example)}
        self.sources |= {key: part for key, part in shown.items() if key not in self.sources}
        texts = [vqa_normalize(text_of(turn)) for turn in example.messages if turn["role"] == "user"]
        row = _Row(example.called, number, list(shown), [text for text in texts if text])
        self.rows.append(row)
        for key in row.pictures:
            self.by_picture.setdefault(key, row.name)
            for question in row.questions:
                self.by_pair.setdefault((key, question), row.name)
        for question in row.questions:
            self.by_question.setdefault(question, row.name)


def _shown(example: Example) -> Iterator[tuple[str, Any]]:
    for message in example.messages:
        for part in message["content"]:
            if part["type"] != "text":
                yield part["type"], part[part["type"]]


def _key(part: tuple[str, Any]) -> str:
    kind, value = part
    if isinstance(value, str | Path):
        return f"{kind} {value}"
    data = value if isinstance(value, bytes) else f"{value.size} {value.mode}".encode() + value.tobytes()
    return f"{kind} {hashlib.sha256(data).hexdigest()}"
