"""Datasets of Examples: local JSON, JSONL and CSV files, Hugging Face datasets, and weighted mixtures of them.

Nothing is decoded here: a picture's path is checked against the image folders and becomes a `Path` for the collator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy

from vlchat.data import readers
from vlchat.data.faults import BadRow
from vlchat.data.formats import FORMATS, Example, read_row
from vlchat.data.paths import resolve_image as resolve_image
from vlchat.errors import ConfigError, DataError, nearest
from vlchat.folders import sampled, sha256


@dataclass(frozen=True)
class SourceConfig:
    """Where rows come from.

    Attributes:
        path: a .json, .jsonl, .csv or .parquet file, a folder written by `save_to_disk`, or a Hub id
            (`owner/name`, or `owner/name:subset`).
        format: a name of `FORMATS`; None looks at each row's keys.
        images: the folder that pictures may be read from; None means the data file's folder and its `images/`.
        split: which split of a Hugging Face dataset; None takes `train`, or the only one there is.
        weight: how many times an epoch shows each row (0.5: half of the rows, the other half in the next epoch).
        limit: keep the first so many rows.
        name: what messages call this source; None takes the file's name.
        ids: rows are called by their own ids, which no two may share; False calls them by their numbers, for files
            whose ids name pictures, as LLaVA's do.
    """

    path: str
    format: str | None = None
    images: str | None = None
    split: str | None = None
    weight: float = 1.0
    limit: int | None = None
    name: str | None = None
    ids: bool = True


class Rows(Protocol):
    """What a mixture needs of a dataset."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Source:
    """A map-style dataset of Examples over any sequence of rows.

    Args:
        rows: the raw rows; a row that cannot be read may raise DataError when it is asked for.
        name: what messages call this source.
        roots: the folders that pictures may be read from, in order of preference; empty refuses every path.
        format: a name of `FORMATS`; None looks at each row's keys.
        ids: as of SourceConfig.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        *,
        name: str = "rows",
        roots: Sequence[Path] = (),
        format: str | None = None,
        ids: bool = True,
    ) -> None:
        self.rows = rows
        self.ids = ids
        self.name = name
        self.roots = [Path(root) for root in roots]
        self.format = format

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """The Example at `index` (from 0), its pictures' paths resolved.

        Raises:
            DataError: the row cannot be used, or a picture's file is missing; names source, row and id.
            PathEscapeError: a picture's path leads out of the image folders.
        """
        example = self.example(index)
        try:
            for part in named_parts(example):
                part[part["type"]] = self.find(part[part["type"]], part["type"])
        except DataError as error:
            raise error.within(f"{example.called}, {error.field}") from error
        return example

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def example(self, index: int) -> Example:
        """The Example at `index` with its pictures' paths as the row spells them.

        Raises:
            DataError: the row cannot be used; names source, row and id.
        """
        found = self.read(index)
        if isinstance(found, BadRow):
            raise DataError(f"{self.name}: {found}", kind=found.kind, field=found.field)
        return found

    def read(self, index: int) -> Example | BadRow:
        """As `example`, but a row that cannot be used is returned as what is wrong with it."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row_id = f"#{index + 1}"  # people count rows, and editors lines, from 1
        try:
            row = self.rows[index]
            row_id = self._row_id(row) or row_id
            return replace(read_row(row, row_id, self.format), source=self.name, row=index + 1)
        except DataError as error:
            return BadRow(self.name, index + 1, row_id, error.field, error.kind, str(error))

    def find(self, value: str, kind: str = "image") -> Path:
        """The file of a picture or video that a row names.

        Raises:
            DataError: there is no such file. PathEscapeError: the path leads out of the image folders.
        """
        path = resolve_image(value, self.roots, kind)
        if path is None:
            looked = ", ".join(str(root) for root in self.roots)
            raise DataError(f'"{value}" was not found in {looked}', kind="missing_file", field=kind)
        return path

    def _row_id(self, row: Any) -> str | None:
        if self.ids and isinstance(row, dict):
            for key in ("id", "question_id"):
                if row.get(key) is not None:
                    return str(row[key])
        return None


class Kept:
    """Some rows of a source, in their order: the others are left out.

    Args:
        source: where the rows are.
        rows: the positions (from 0) that stay, in increasing order.
    """

    def __init__(self, source: Rows, rows: Sequence[int]) -> None:
        self.source = source
        self.name = source.name
        self.rows = numpy.asarray(rows, dtype=numpy.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.source[int(self.rows[index])]


def load_source(config: SourceConfig) -> Source:
    """Opens a source; rows are parsed and pictures looked up when they are asked for.

    Raises:
        DataError: the file is missing, empty, not what its suffix says, or has no such split.
        ConfigError: an unknown format, or a limit or weight that makes no sense.
    """
    if config.limit is not None and config.limit < 1:
        raise ConfigError(f"limit is {config.limit} for {config.path}; it must be at least 1")
    if config.format is not None and config.format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ConfigError(f'Unknown format "{config.format}"{nearest(config.format, FORMATS)} Known: {known}.')
    rows = readers.read_rows(config.path, split=config.split)
    if len(rows) == 0:
        raise DataError(f"{config.path} has no rows")
    if config.limit is not None and config.limit < len(rows):
        rows = readers.FirstRows(rows, config.limit)
    name = config.name or Path(config.path).name
    return Source(rows, name=name, roots=_roots(config), format=config.format, ids=config.ids)


class Mixture:
    """Sources mixed by weight: a map-style dataset whose order depends on (seed, epoch, index) alone.

    An epoch shows each row of a source `weight` times. A fraction is filled from a shuffled order that goes on in the
    next epoch, so that two epochs at weight 0.5 show every row once.

    Args:
        sources: the datasets, none of them empty.
        weights: one positive number a source; None is 1 for each.
        seed: fixes the order of every epoch.
    """

    def __init__(self, sources: Sequence[Rows], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if not sources or len(weights) != len(sources):
            raise ConfigError(f"a mixture needs one weight a source; there are {len(weights)} and {len(sources)}")
        for source, weight in zip(sources, weights, strict=True):
            if not 0 < weight < float("inf"):
                raise ConfigError(f"the weight of {source.name} is {weight}; it must be a positive number")
            if len(source) == 0:
                raise DataError(f"{source.name} has no rows")
        self.sources = list(sources)
        self.weights = weights
        self.seed = seed
        self.counts = [max(1, round(weight * len(source))) for source, weight in zip(sources, weights, strict=True)]
        self._epoch = -1
        self.set_epoch(0)

    def __len__(self) -> int:
        return sum(self.counts)

    def set_epoch(self, epoch: int) -> None:
        """Draws the order of `epoch` (from 0). Call it before the workers of a data loader start."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = self._draw(epoch)

    def __getitem__(self, index: int) -> Example:
        source, row = self.locate(index)
        return self.sources[source][row]

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the source, row in it) that position `index` of the current epoch shows."""
        if not 0 <= index < len(self):
            raise IndexError(f"position {index} of {len(self)}")
        source, row = self._order[index]
        return int(source), int(row)

    def _draw(self, epoch: int) -> numpy.ndarray:
        columns = []
        for number, (source, count) in enumerate(zip(self.sources, self.counts, strict=True)):
            rows = _endless_rows(len(source), epoch * count, count, (self.seed, number))
            columns.append(numpy.stack([numpy.full(count, number), rows], axis=1))
        order = numpy.concatenate(columns)  # (positions, 2)
        # The leading 1 keeps this stream of random numbers apart from those of `_endless_rows`.
        return order[numpy.random.default_rng([1, self.seed, epoch]).permutation(len(order))]


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a data file, or of the names, sizes and pieces of the files in a folder; for a Hub id, of the id."""
    file = Path(path)
    if file.is_file():
        return sha256(file)
    digest = hashlib.sha256()
    if file.is_dir():
        for entry in sorted(file.rglob("*")):
            if entry.is_file():
                digest.update(f"{entry.relative_to(file)} {sampled(entry)}\n".encode())
    else:
        digest.update(str(path).encode())
    return digest.hexdigest()


def _endless_rows(length: int, start: int, count: int, seed: tuple[int, int]) -> numpy.ndarray:
    """Positions start .. start+count of an endless run of permutations of `length` rows."""
    passes = range(start // length, (start + count - 1) // length + 1)
    drawn = [numpy.random.default_rng([0, *seed, number]).permutation(length) for number in passes]
    first = start - passes.start * length
    return numpy.concatenate(drawn)[first : first + count]


def named_parts(example: Example) -> list[dict[str, Any]]:
    """The pictures and videos that are still paths written in the row."""
    parts = [part for message in example.messages for part in message["content"]]
    return [part for part in parts if part["type"] != "text" and isinstance(part[part["type"]], str)]


def _roots(config: SourceConfig) -> list[Path]:
    if config.images is not None:
        folder = Path(config.images)
        if not folder.is_dir():
            raise DataError(f"the image folder {config.images} does not exist or is not a folder")
        return [folder]
    path = Path(config.path)
    if not path.exists():
        return readers.cache_folders()
    folder = path if path.is_dir() else path.parent
    # The sub-folder must itself lie inside: a link named `images` that leads elsewhere needs `images` set by the user.
    inner = folder / "images"
    inside = inner.is_dir() and inner.resolve().is_relative_to(folder.resolve())
    return [folder, inner] if inside else [folder]
