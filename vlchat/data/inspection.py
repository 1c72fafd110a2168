"""The cheap part of the check, which a training runs by itself: which rows it leaves out, or why it does not begin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlchat.data import faults, pictures
from vlchat.data.dataset import Kept, Mixture, Rows, Source
from vlchat.data.faults import BadRow
from vlchat.data.pictures import Verdict
from vlchat.data.rows import examine

FEW = 20_000  # rows that are looked at in a few seconds: no progress bar


@dataclass
class Inspection:
    """What `inspect` found.

    Attributes:
        rows: how many rows were looked at; those of sources that draw their rows as they go are not.
        bad: the faults of rows that cannot be used, in the order of sources and rows.
        notes: what is worth a look, in rows that are used.
        left_out: for each source the positions (from 0) of the rows to leave out, in increasing order.
    """

    rows: int = 0
    bad: list[BadRow] = field(default_factory=list)
    notes: list[BadRow] = field(default_factory=list)
    left_out: list[list[int]] = field(default_factory=list)

    @property
    def bad_rows(self) -> int:
        """How many rows cannot be used."""
        return sum(map(len, self.left_out))

    @property
    def digest(self) -> str:
        """Names which rows are left out: a run that resumes with another digest would see other rows in its order."""
        return hashlib.sha256(repr(self.left_out).encode()).hexdigest()[:16]

    def keep(self, mixture: Mixture) -> Mixture:
        """The mixture without the rows that cannot be used: the same weights and seed, its order drawn anew.

        Raises:
            DataError: a source has no row left.
        """
        if not self.bad_rows:
            return mixture
        kept: list[Rows] = []
        for source, left_out in zip(mixture.sources, self.left_out, strict=True):
            out = set(left_out)
            rows = [row for row in range(len(source)) if row not in out] if out else []
            kept.append(Kept(source, rows) if out else source)
        return Mixture(kept, mixture.weights, mixture.seed)

    def summary(self) -> str:
        """One line for the terminal; an empty string where there is nothing to say."""
        said = []
        for count, what, found in ((self.bad_rows, "left out", self.bad), (len(self.notes), "noted", self.notes)):
            if count:
                kinds = ", ".join(f"{number:,} {kind}" for kind, number in faults.summary(found).items())
                said.append(f"{count:,} {what} ({kinds})")
        return f"Of {self.rows:,} rows {' and '.join(said)}. `vlchat check` lists them." if said else ""


def inspect(
    sources: Mixture | Sequence[Rows],
    *,
    max_bad: int = 0,
    quarantine: Path | None = None,
    answers: bool = True,
    progress: bool = False,
) -> Inspection:
    """Reads every row of a run's sources before it begins: fields, tags against pictures, ids, answers, and of every
    picture whether its file is there, inside the image folder, and by its header a picture of a size that is accepted.

    No pixel is decoded and no text is tokenized; what only these would show, `Collator.collate` tells on the way.
    Five thousand rows take about a second. The result depends on the data alone: with several processes each may call
    it, one of them with `quarantine`.

    Args:
        sources: a Mixture, or its sources. Those that are no `Source` (the drawn world) are taken as they are.
        max_bad: how many rows may be left out before the run refuses to begin.
        quarantine: a JSON lines file to which the faults of bad rows are added (what it has, it keeps, once).
        answers: the rows are there to learn answers from; False for objectives that read no answer.
        progress: show a progress bar on stderr where there are many rows.

    Raises:
        DataError: more than `max_bad` rows are bad; names ten of them, the total and the quarantine file.
    """
    listed = sources.sources if isinstance(sources, Mixture) else list(sources)
    found = Inspection()
    for source in listed:
        if not isinstance(source, Source):
            found.left_out.append([])
            continue
        verdicts: dict[Any, Verdict] = {}

        def look(key: Any, file: Any, of: str, verdicts: dict[Any, Verdict] = verdicts) -> None:
            verdicts[key] = pictures.header(file, of)

        shown = counted(len(source), source.name) if progress and len(source) > FEW else None
        findings = examine(source, look, answers=answers, numbers=shown)
        findings.settle(verdicts)
        found.rows += findings.rows
        found.bad += [fault for fault in findings.faults if fault.is_error]
        found.notes += [fault for fault in findings.faults if not fault.is_error]
        found.left_out.append(sorted({fault.row - 1 for fault in findings.faults if fault.is_error}))
    if quarantine is not None and found.bad:
        faults.quarantine(quarantine, found.bad)
    if found.bad_rows > max_bad:
        raise faults.too_many(found.bad, max_bad, found.rows, quarantine)
    return found


def counted(count: int, name: str) -> Iterable[int]:
    """0 .. count - 1 with a progress bar on stderr."""
    from tqdm import tqdm

    return tqdm(range(count), desc=f"checking {name}", unit="row")
