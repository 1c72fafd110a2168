"""What people said of answers -> rows that `vlchat train` and `vlchat check` read as they are; and a table of it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serve.records import Picture, Rated, Turn, Vote
from serve.store import FILE, Store
from serve.transcript import messages_of
from vlchat import images
from vlchat.errors import ImageError, VLChatError

DATA, IMAGES = "data.json", "images"
_WIDTH = 36  # of a column of words


@dataclass(frozen=True)
class Exported:
    """What an export holds.

    Attributes:
        rows: written.
        left_out: why a row was not, a sentence each.
    """

    data: Path
    rows: int
    left_out: Sequence[str]


def opened(history: Path) -> Store:
    """The history of a server, which may be running.

    Raises:
        VLChatError: there is none.
    """
    if not (history / FILE).is_file():
        raise VLChatError(f"{history} holds no {FILE}. Name the folder that vlchat serve keeps its history in.")
    return Store(history)


def export(history: Path, out: Path, *, liked: bool = False, overwrite: bool = False) -> Exported:
    """Writes `data.json` and `images/` to a folder, whole or not at all; the same history gives the same bytes.

    A row is a conversation up to an answer with a correction, which takes the answer's place. Earlier answers stand as
    they were corrected; one with a thumb down and no correction is left out with its question. Where one question was
    corrected more than once, the newest correction stands.

    Args:
        liked: also answers with a thumb up, as they are.
        overwrite: an earlier export in `out` is replaced.

    Raises:
        VLChatError: there is no such history, nothing in it was corrected, or `out` can't be written.
    """
    store = opened(history)
    try:
        found = [one for one in store.rated(None) if one.answer.correction or (liked and one.answer.rating > 0)]
        if not found:
            other = "" if liked else " --liked takes answers with a thumb up, too."
            raise VLChatError(f"Nothing was corrected yet in {history}, so nothing was written.{other}")
        with _replacing(out, overwrite) as stage:
            rows, left_out = _rows(store, found, stage / IMAGES)
            rows, refused = _checked(rows, stage)
            left_out += refused
            if not rows:
                raise VLChatError("No row could be used, so nothing was written: " + " ".join(left_out))
    finally:
        store.close()
    return Exported(out / DATA, len(rows), left_out)


def lesson(turns: Sequence[Turn]) -> list[Turn]:
    """The turns up to an answer as they are to be learned; see `export`. Pictures of what is left out stay."""
    learned: list[Turn] = []
    *before, answer = turns
    for turn in before:
        if turn.correction:
            turn = replace(turn, text=turn.correction)
        elif turn.rating < 0:
            asked = [learned.pop() for _ in range(len(learned)) if learned[-1].role == "user"]
            pictures = tuple(picture for one in reversed(asked) for picture in one.pictures)
            turn = Turn(turn.id, "user", "", pictures, {}, 0, "")
        learned.append(turn)
    return [*learned, replace(answer, text=answer.correction or answer.text)]


def show(history: Path) -> str:
    """Counts and tables of what people said, as text.

    Raises:
        VLChatError: there is no such history.
    """
    store = opened(history)
    try:
        rated, votes = store.rated(None), store.votes(None)
    finally:
        store.close()
    parts = [summary(rated, votes)]
    if rated:
        head = ("when", "question", "answer", "thumb", "correction")
        parts.append(_table([head, *(_line(one) for one in rated)]))
    if votes:
        lines = [(*pair, str(first), str(second), str(even)) for pair, (first, second, even) in tally(votes).items()]
        parts.append(_table([("model", "other model", "better", "worse", "no difference"), *lines]))
    return "\n\n".join(parts)


def summary(rated: Sequence[Rated], votes: Sequence[Vote]) -> str:
    """What there is, in a line."""
    ratings = Counter(one.answer.rating for one in rated)
    corrected = sum(bool(one.answer.correction) for one in rated)
    return f"Answers: {len(rated)} ({ratings[1]} up, {ratings[-1]} down, {corrected} corrected). Votes: {len(votes)}."


def tally(votes: Iterable[Vote]) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(model, other model) -> how often the first was better, the other, and neither; each pair once, by name."""
    counted: dict[tuple[str, str], tuple[int, int, int]] = {}
    for vote in votes:
        names = sorted(vote.answers)
        for pair in ((one, two) for place, one in enumerate(names) for two in names[place + 1 :]):
            first, second, even = counted.get(pair, (0, 0, 0))
            better = (vote.chosen == pair[0], vote.chosen == pair[1])
            counted[pair] = (first + better[0], second + better[1], even + (vote.chosen == ""))
    return dict(sorted(counted.items()))


def pictures_of(rated: Rated) -> Sequence[Picture]:
    """Those shown last before the answer, which it is about."""
    return next((turn.pictures for turn in reversed(rated.turns) if turn.pictures), ())


def question_of(rated: Rated) -> str:
    """The words of the last question before the answer, in one line."""
    return next((" ".join(turn.text.split()) for turn in reversed(rated.turns[:-1]) if turn.role == "user"), "")


def _rows(store: Store, found: Sequence[Rated], folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each, its pictures written to `folder`."""
    folder.mkdir()
    rows: dict[str, dict[str, Any]] = {}
    left_out = []
    for rated in sorted(found, key=lambda one: (one.when, one.answer.id)):

        def shown(picture: Picture, rated: Rated = rated) -> dict[str, Any]:
            content = store.content(rated, picture)
            name = f"{picture.digest[:32]}.{images.mime_of(content).partition('/')[2]}"
            (folder / name).write_bytes(content)
            return {"type": "image", "image": f"{IMAGES}/{name}"}

        name = f"answer-{rated.answer.id}"
        try:
            messages = messages_of(lesson(rated.turns), shown)
        except ImageError as error:
            left_out.append(f"{name} is left out: {error}")
            continue
        rows.pop(asked := json.dumps(messages[:-1]), None)
        rows[asked] = {"id": name, "messages": messages}
    return list(rows.values()), left_out


def _checked(rows: list[dict[str, Any]], stage: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Writes the rows that `vlchat check` finds nothing wrong with; the others are named."""
    from vlchat.data import SourceConfig
    from vlchat.data.check import check

    _write(rows, stage)
    bad = check(SourceConfig(str(stage / DATA)), workers=0).bad if rows else []
    refused = {fault.row for fault in bad}
    kept = [row for number, row in enumerate(rows, 1) if number not in refused]
    _write(kept, stage)
    named = {part["image"] for row in kept for turn in row["messages"] for part in turn["content"] if "image" in part}
    for file in (stage / IMAGES).iterdir():
        if f"{IMAGES}/{file.name}" not in named:
            file.unlink()
    return kept, [f"{fault.id} is left out: {fault.reason.rstrip('.')}." for fault in bad]


def _write(rows: Sequence[dict[str, Any]], stage: Path) -> None:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (stage / DATA).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


@contextmanager
def _replacing(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` at the end."""
    out = out.absolute()
    if out.exists():
        if not out.is_dir() or {path.name for path in out.iterdir()} - {DATA, IMAGES}:
            raise VLChatError(f"{out} holds something else than an export; it is left alone. Choose another name.")
        if any(out.iterdir()) and not overwrite:
            raise VLChatError(f"{out} holds an export already. Choose another name, or say --overwrite.")
    stage, old = (out.parent / f".{out.name}.{what}-{os.getpid()}" for what in ("partial", "old"))
    try:
        stage.mkdir(parents=True)
        yield stage
        if out.exists():
            out.rename(old)
        stage.rename(out)
    except OSError as error:
        raise VLChatError(f"{out} can't be written: {error.strerror}. Choose another place.") from error
    finally:
        for folder in (stage, old):
            shutil.rmtree(folder, ignore_errors=True)


def _line(rated: Rated) -> tuple[str, ...]:
    answer = rated.answer
    thumb = {1: "up", -1: "down", 0: ""}[answer.rating]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(rated.when))
    return when, question_of(rated), answer.text, thumb, answer.correction


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[_short(cell) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _short(text: str) -> str:
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"
