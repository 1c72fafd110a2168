"""Looks at every row of a source before a run: all that is wrong, by row number, in one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlchat import images, video
from vlchat.data.collate import has_answer
from vlchat.data.dataset import Source, SourceConfig, load_source, resolve_image
from vlchat.data.formats import Example, detect
from vlchat.errors import DataError, ImageError


@dataclass(frozen=True)
class BadRow:
    """What is wrong with one row. `row` counts from 1; `field` is `id`, `image`, `video`, `answer` or `row`."""

    row: int
    id: str
    field: str
    reason: str


@dataclass
class Report:
    """What a source holds and what is wrong with it."""

    name: str
    rows: int = 0
    images: int = 0  # pictures shown, a file shown twice counting twice
    text_only: int = 0  # good rows without a picture
    turns: int = 0  # assistant turns
    formats: Counter[str] = field(default_factory=Counter)
    duplicate_ids: int = 0  # rows whose id an earlier row has
    missing: list[str] = field(default_factory=list)  # files that are not there, each once, in order
    bad: list[BadRow] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.bad

    @property
    def bad_rows(self) -> int:
        """How many rows have at least one fault."""
        return len({problem.row for problem in self.bad})

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "rows": self.rows,
            "images": self.images,
            "text_only": self.text_only,
            "turns": self.turns,
            "formats": dict(self.formats),
            "duplicate_ids": self.duplicate_ids,
            "missing": self.missing,
            "bad_rows": self.bad_rows,
            "bad": [vars(problem) for problem in self.bad],
        }

    def render(self, most: int | None = None) -> str:
        """The report as text, at most `most` faults listed in full."""
        formats = ", ".join(f"{name} ({count})" for name, count in self.formats.most_common()) or "none"
        lines = [
            f"{self.name}: {self.rows:,} rows, {self.images:,} images, {self.text_only:,} rows without an image, "
            f"{self.turns:,} answers; format {formats}"
        ]
        if self.ok:
            return f"{lines[0]}\nEvery row can be used."
        lines.append(
            f"{self.bad_rows:,} bad rows ({len(self.missing):,} missing files, {self.duplicate_ids:,} duplicate ids):"
        )
        shown = self.bad if most is None else self.bad[:most]
        lines += [f'  row {problem.row} (id "{problem.id}"), {problem.field}: {problem.reason}' for problem in shown]
        if len(shown) < len(self.bad):
            lines.append(f"  and {len(self.bad) - len(shown):,} more")
        return "\n".join(lines)


def check(source: Source | SourceConfig, *, decode: bool = True, progress: bool = False) -> Report:
    """Reads every row, and opens every picture once.

    Args:
        source: what to look at.
        decode: also decode each picture; False only looks whether its file is there.
        progress: show a progress bar on stderr.

    Raises:
        DataError: the source itself cannot be opened. Faults of rows are in the report, not raised.
    """
    if isinstance(source, SourceConfig):
        source = load_source(source)
    report = Report(source.name, rows=len(source))
    first_row_of: dict[str, int] = {}
    verdicts: dict[str, str | None] = {}
    for index in _counted(len(source), source.name, progress):
        number = index + 1
        try:
            example = source.example(index)
        except DataError as error:
            report.bad.append(BadRow(number, f"#{number}", "row", str(error)))
            continue
        problems = _problems(source, example, report, verdicts, decode)
        if example.id in first_row_of:
            report.duplicate_ids += 1
            problems.append(("id", f"row {first_row_of[example.id]} has the same id"))
        first_row_of.setdefault(example.id, number)
        report.bad += [BadRow(number, example.id, name, reason) for name, reason in problems]
        report.formats[source.format or detect(source.rows[index])] += 1
        report.images += len(example.images)
        report.text_only += not example.images and not example.videos
        report.turns += sum(message["role"] == "assistant" for message in example.messages)
    return report


def _problems(
    source: Source, example: Example, report: Report, verdicts: dict[str, str | None], decode: bool
) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []
    shown = [("image", picture) for picture in example.images] + [("video", found) for found in example.videos]
    for kind, picture in shown:
        key = picture if isinstance(picture, str) else ""
        if not key or key not in verdicts:
            opened: Callable[[Any], Any] = video.frames if kind == "video" else images.decode
            reason, missing = _picture_fault(source, picture, decode, opened)
            if missing:
                report.missing.append(key)
            verdicts[key] = reason
        if verdicts[key] is not None:
            problems.append((kind, str(verdicts[key])))
    if not has_answer(example):
        problems.append(("answer", "no assistant turn has any text, so nothing would be learned"))
    return problems


def _picture_fault(
    source: Source, picture: Any, decode: bool, open_one: Callable[[Any], Any]
) -> tuple[str | None, bool]:
    """(what is wrong or None, whether the file is missing)."""
    try:
        found: Path | Any | None = resolve_image(picture, source.roots) if isinstance(picture, str) else picture
        if found is None:
            return f"{picture} was not found", True
        if decode:
            open_one(found)
    except (DataError, ImageError) as error:
        name = f"{picture}: " if isinstance(picture, str) and isinstance(error, ImageError) else ""
        return f"{name}{error}", False
    return None, False


def _counted(count: int, name: str, progress: bool) -> Any:
    if not progress:
        return range(count)
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm(range(count), desc=f"checking {name}", unit="row")
