"""One pass over the rows of a source: all that can be told without opening a picture, and which files they show."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlchat.data import wording
from vlchat.data.dataset import Source
from vlchat.data.faults import BadRow
from vlchat.data.formats import Example, text_of
from vlchat.data.pictures import Verdict
from vlchat.errors import DataError

# (key, file or bytes, "image" or "video"): asks for a verdict on a file, which may come later.
Ask = Callable[[Any, Any, str], None]


@dataclass
class Findings:
    """What a pass found.

    Attributes:
        faults: in the order of the rows, as far as they are known.
        missing: files that are not there, as the rows spell them, each once, in order.
        shown: for each (row, id) that shows files, what it calls them: [(key of the verdict, field, name or None)].
        answers, questions: words of each answer, and of each turn of the user.
        turns: answers of each row that can be read.
    """

    source: str
    rows: int = 0
    images: int = 0
    text_only: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    faults: list[BadRow] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    shown: list[tuple[int, str, list[tuple[Any, str, str | None]]]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)

    def settle(self, verdicts: Mapping[Any, Verdict]) -> None:
        """Adds what is wrong with the files, and puts the faults in the order of the rows."""
        for row, row_id, files in self.shown:
            for key, of, name in files:
                verdict = verdicts[key]
                if verdict.kind is not None:
                    self.faults.append(BadRow(self.source, row, row_id, of, verdict.kind, verdict.told(name)))
        self.faults.sort(key=lambda fault: fault.row)

    def usable(self) -> list[int]:
        """Once settled: the positions (from 0) of the rows without an error."""
        bad = {fault.row for fault in self.faults if fault.is_error}
        return [row for row in range(self.rows) if row + 1 not in bad]

    def sizes(self, verdicts: Mapping[Any, Verdict]) -> dict[int, list[tuple[int, int] | None]]:
        """(width, height) of the pictures of each position that shows any, where they are known."""
        return {
            row - 1: [verdicts[key].size for key, of, _ in files if of == "image"] for row, _, files in self.shown
        }


def examine(source: Source, ask: Ask, *, answers: bool = True, numbers: Iterable[int] | None = None) -> Findings:
    """Reads every row once.

    Args:
        ask: is called once for each file and each picture in a row; `Findings.settle` wants the verdicts by its keys.
        answers: the rows are there to learn answers from.
        numbers: positions (from 0), for a progress bar; None is all of them.

    Returns:
        Findings to be settled.
    """
    found = Findings(source.name, rows=len(source))
    first_id: dict[str, int] = {}
    first_content: dict[bytes, int] = {}
    known: dict[tuple[str, str], DataError | None] = {}  # what paths led to
    for index in range(len(source)) if numbers is None else numbers:
        example = source.read(index)
        if isinstance(example, BadRow):
            found.faults.append(example)
            continue
        found.formats[example.format] += 1
        _count(found, example)
        _files(found, source, example, ask, known)
        found.faults += wording.faults(example, answers)
        number = index + 1
        content = _content(example)
        if example.id in first_id:
            same = f"row {first_id[example.id]} has the same id"
            found.faults.append(BadRow(source.name, number, example.id, "id", "duplicate_id", same))
        elif content in first_content:
            same = f"the same picture and conversation as row {first_content[content]}"
            found.faults.append(BadRow(source.name, number, example.id, "row", "duplicate_row", same))
        first_id.setdefault(example.id, number)
        first_content.setdefault(content, number)
    return found


def _count(found: Findings, example: Example) -> None:
    found.images += len(example.images)
    found.text_only += not example.images and not example.videos
    words = {"user": found.questions, "assistant": found.answers}
    for message in example.messages:
        if message["role"] in words:
            words[message["role"]].append(len(text_of(message).split()))
    found.turns.append(sum(message["role"] == "assistant" for message in example.messages))


def _files(
    found: Findings, source: Source, example: Example, ask: Ask, known: dict[tuple[str, str], DataError | None]
) -> None:
    shown: list[tuple[Any, str, str | None]] = []
    listed = [("image", picture) for picture in example.images] + [("video", film) for film in example.videos]
    for number, (of, value) in enumerate(listed):
        if not isinstance(value, str):
            key: Any = (example.row, number)
            ask(key, value, of)
            shown.append((key, of, None))
            continue
        key = (of, value)
        if key not in known:
            known[key] = _look_up(source, value, of, key, ask)
            if known[key] is not None and known[key].kind == "missing_file":  # type: ignore[union-attr]
                found.missing.append(value)
        error = known[key]
        if error is None:
            shown.append((key, of, value))
        else:
            found.faults.append(BadRow(source.name, example.row, example.id, of, error.kind, str(error)))
    if shown:
        found.shown.append((example.row, example.id, shown))


def _look_up(source: Source, value: str, of: str, key: Any, ask: Ask) -> DataError | None:
    try:
        path: Path = source.find(value, of)
    except DataError as error:
        if error.kind == "missing_file":  # where was looked stands once at the end of a report
            return DataError(f'"{value}" was not found', kind=error.kind, field=of)
        return error
    ask(key, path, of)
    return None


def _content(example: Example) -> bytes:
    """A hash of the turns and of what the pictures are called, or hold."""
    digest = hashlib.blake2b(digest_size=16)
    for message in example.messages:
        digest.update(f"\0{message['role']}".encode())
        for part in message["content"]:
            value = part[part["type"]]
            if hasattr(value, "tobytes"):  # a PIL image
                value = value.tobytes()
            digest.update(f"\1{part['type']}\2".encode())
            digest.update(value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass"))
    return digest.digest()
