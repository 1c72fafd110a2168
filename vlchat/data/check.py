"""Looks at every row of a source before a run: all that is wrong, by row number, in one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vlchat.data import faults, pictures
from vlchat.data.dataset import Source, SourceConfig, load_source
from vlchat.data.decoding import Decoders, default_workers
from vlchat.data.faults import KINDS, BadRow
from vlchat.data.histograms import Histogram
from vlchat.data.inspection import counted
from vlchat.data.pictures import Cache, Verdict
from vlchat.data.rows import examine

FEW = 64  # rows for which no process is started


@dataclass
class Report:
    """What a source holds and what is wrong with it.

    Attributes:
        rows, images: pictures shown, a file shown twice counting twice.
        files: different picture and video files, and pictures in the rows themselves.
        text_only: rows that can be read and show nothing.
        turns: answers.
        duplicate_ids: rows whose id an earlier row has.
        missing: files that are not there, as the rows spell them, each once, in order.
        folders: where they were looked for.
        bad: what makes rows unusable, in the order of the rows.
        notes: what is worth a look, in rows that can be used.
        histograms: of answers, turns, pictures, and of tokens where a processor was given.
    """

    name: str
    rows: int = 0
    images: int = 0
    files: int = 0
    text_only: int = 0
    turns: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    duplicate_ids: int = 0
    missing: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    notes: list[BadRow] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every row can be used."""
        return not self.bad

    @property
    def bad_rows(self) -> int:
        """How many rows cannot be used."""
        return len({fault.row for fault in self.bad})

    def add(self, found: Sequence[BadRow]) -> None:
        """Adds what another look found."""
        for fault in found:
            (self.bad if fault.is_error else self.notes).append(fault)
        self.bad.sort(key=lambda fault: fault.row)
        self.notes.sort(key=lambda fault: fault.row)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: counts, faults and histograms."""
        plain = ("name", "rows", "images", "files", "text_only", "turns", "duplicate_ids", "missing", "folders")
        return {
            **{name: getattr(self, name) for name in plain},
            "formats": dict(self.formats),
            "bad_rows": self.bad_rows,
            "kinds": faults.summary([*self.bad, *self.notes]),
            "bad": [asdict(fault) for fault in self.bad],
            "notes": [asdict(fault) for fault in self.notes],
            "histograms": [histogram.to_dict() for histogram in self.histograms],
        }

    def headline(self) -> str:
        """What the source holds, in a line."""
        formats = ", ".join(f"{name} ({count:,})" for name, count in self.formats.most_common()) or "none"
        of_files = f" in {_count(self.files, 'file')}" if 0 < self.files != self.images else ""
        return _clean(
            f"{self.name}: {_count(self.rows, 'row')}, {_count(self.images, 'image')}{of_files}, "
            f"{_count(self.text_only, 'row')} without an image, {_count(self.turns, 'answer')}; format {formats}"
        )

    def bars(self) -> str:
        """How answers, pictures and tokens are spread, as bars of text."""
        return "\n\n".join(histogram.render() for histogram in self.histograms if histogram.count)

    def verdict(self, most: int | None = None) -> str:
        """What is wrong, and whether the rows can be used.

        Args:
            most: at most so many faults are listed, and so many notes; None lists all.
        """
        lines = []
        if self.notes:
            lines += [f"{_rows(self.notes)} worth a look, which can be used:", *_listed(self.notes, most), ""]
        if self.ok:
            lines.append("Every row can be used.")
        else:
            lines += [f"{_rows(self.bad)} of {self.rows:,} cannot be used:", *_listed(self.bad, most)]
            lines += [advice] if (advice := faults.advice(self.bad, self.folders)) else []
        return "\n".join(map(_clean, lines))

    def render(self, most: int | None = None) -> str:
        """The report as text, at most `most` faults and `most` notes listed in full."""
        return f"{self.headline()}\n{self.verdict(most)}"


def check(
    source: Source | SourceConfig,
    *,
    decode: bool = True,
    progress: bool = False,
    workers: int | None = None,
    cache: Cache | None = None,
    answers: bool = True,
    processor: Any = None,
    max_length: int | None = None,
) -> Report:
    """Reads every row, and opens every picture once.

    Args:
        source: what to look at.
        decode: also decode each picture; False only looks at the beginning of its file.
        progress: show a progress bar on stderr.
        workers: processes that decode; None takes a few, and none for a small source.
        cache: of what was found about files earlier; None keeps none.
        answers: the rows are there to learn answers from.
        processor: of the model to train: counts the tokens of every row that can be used otherwise. Of pictures it is
            given the sizes, which only `decode` knows to be upright.
        max_length: the most tokens of a row; None sets no limit.

    Raises:
        DataError: the source itself cannot be opened. Faults of rows are in the report, not raised.
    """
    if isinstance(source, SourceConfig):
        source = load_source(source)
    if workers is None:
        workers = default_workers() if len(source) > FEW else 0
    numbers = counted(len(source), source.name) if progress else None
    verdicts: dict[Any, Verdict] = {}
    if decode:
        with Decoders(workers, cache) as decoders:
            found = examine(source, decoders.ask, answers=answers, numbers=numbers)
        verdicts = decoders.verdicts()
    else:

        def look(key: Any, file: Any, of: str) -> None:
            verdicts[key] = pictures.header(file, of)

        found = examine(source, look, answers=answers, numbers=numbers)
    found.settle(verdicts)
    report = Report(
        source.name,
        rows=found.rows,
        images=found.images,
        files=len(verdicts),
        text_only=found.text_only,
        turns=sum(found.turns),
        formats=found.formats,
        duplicate_ids=sum(fault.kind == "duplicate_id" for fault in found.faults),
        missing=found.missing,
        folders=[str(root) for root in source.roots],
    )
    report.add(found.faults)
    spread: list[Histogram] = []
    if processor is not None:
        from vlchat.data import lesson  # torch and transformers take seconds to import

        usable = found.usable()
        shown = counted(len(usable), "tokens") if progress else range(len(usable))
        more, spread = lesson.budget(
            source, (usable[place] for place in shown), found.sizes(verdicts), processor, max_length
        )
        report.add(more)
    sizes = [verdict.size for verdict in verdicts.values() if verdict.size is not None]
    report.histograms = [
        Histogram("words of an answer", found.answers),
        Histogram("words of a question", found.questions),
        Histogram("answers of a row", found.turns),
        Histogram("width of a picture, pixels", [width for width, _ in sizes]),
        Histogram("height of a picture, pixels", [height for _, height in sizes]),
        Histogram("width / height of a picture", [width / height for width, height in sizes]),
        *spread,
    ]
    return report


def _clean(line: str) -> str:
    """Without what a terminal would act on rather than show."""
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def _rows(found: Sequence[BadRow]) -> str:
    return _count(len({fault.row for fault in found}), "row")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _listed(found: Sequence[BadRow], most: int | None) -> list[str]:
    """How many there are of each kind, then each by its row."""
    kinds = faults.summary(found)
    width = max(map(len, kinds))
    lines = [f"  {kind.ljust(width)}  {count:>6,}  {KINDS[kind].about}" for kind, count in kinds.items()]
    shown = found if most is None else found[:most]
    lines += [f"  {fault}" for fault in shown]
    if len(shown) < len(found):
        lines.append(f"  and {len(found) - len(shown):,} more")
    return lines
