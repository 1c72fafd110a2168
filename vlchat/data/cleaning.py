"""A copy of a data file with the rows that can be used, in the same format, the rows as they were."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlchat.data.dataset import Source, SourceConfig
from vlchat.data.readers import HubRows, JsonLines
from vlchat.errors import DataError

_SUFFIXES = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"}


def refuse(config: SourceConfig, out: Path) -> None:
    """Raises DataError where no clean copy could be written: ask before a long check."""
    kind = _kind(config)
    if config.limit is not None:
        raise DataError("A clean copy is made of all rows: leave --limit out, or --clean.")
    if out.suffix.lower() != kind:
        raise DataError(f"{config.path} is copied as a {kind} file; {out} has another ending.")
    if out.exists():
        raise DataError(f"{out} is there already, and nothing is overwritten: name another file.")


def write_clean(config: SourceConfig, source: Source, bad: set[int], out: Path) -> int:
    """Writes all rows of a source but those at the positions `bad` (from 0), whole or not at all.

    JSON lines and CSV cells are written as they were. A JSON list is written with a row a line.

    Returns:
        How many rows were written.

    Raises:
        DataError: as `refuse`; no row would be left; or the file cannot be written.
    """
    refuse(config, out)
    kept = [index for index in range(len(source)) if index not in bad]
    if not kept:
        raise DataError(f"No row of {config.path} can be used, so no clean copy was written.")
    beside = out.with_name(f"{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source.rows, HubRows):
            source.rows.write(kept, beside)
        else:
            with beside.open("wb") as file:
                file.writelines(_WRITERS[_kind(config)](config, source, kept))
        if out.exists():
            raise DataError(f"{out} has come to be there meanwhile, and nothing is overwritten: name another file.")
        beside.rename(out)
    except OSError as error:
        raise DataError(f"The clean copy {out} cannot be written: {error.strerror}. Name another file.") from error
    finally:
        with contextlib.suppress(OSError):  # where a folder could not even be made
            beside.unlink(missing_ok=True)
    return len(kept)


def _kind(config: SourceConfig) -> str:
    """The ending of a copy: the file's own, and .parquet for a dataset of the Hub or a folder."""
    suffix = Path(config.path).suffix.lower()
    return suffix if Path(config.path).is_file() and suffix in _SUFFIXES else ".parquet"


def _json(config: SourceConfig, source: Source, kept: list[int]) -> Iterator[bytes]:
    yield b"[\n"
    for number, index in enumerate(kept):
        yield _dumped(source.rows[index]) + (b",\n" if number + 1 < len(kept) else b"\n")
    yield b"]\n"


def _dumped(row: Any) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, which only JSON's own spelling can hold
        return json.dumps(row).encode()


def _lines(config: SourceConfig, source: Source, kept: list[int]) -> Iterator[bytes]:
    assert isinstance(source.rows, JsonLines)
    for index in kept:
        yield source.rows.line(index).rstrip(b"\r") + b"\n"


def _cells(config: SourceConfig, source: Source, kept: list[int]) -> Iterator[bytes]:
    delimiter = "\t" if Path(config.path).suffix.lower() == ".tsv" else ","
    wanted = set(kept)
    with Path(config.path).open(encoding="utf-8-sig", newline="") as stream:
        filled = (cells for cells in csv.reader(stream, delimiter=delimiter, strict=True) if cells)
        for number, cells in enumerate(filled):
            if number == 0 or number - 1 in wanted:  # the first line is the header
                line = io.StringIO()
                csv.writer(line, delimiter=delimiter, lineterminator="\n").writerow(cells)
                yield line.getvalue().encode()


_WRITERS: dict[str, Callable[[SourceConfig, Source, list[int]], Iterator[bytes]]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".csv": _cells,
    ".tsv": _cells,
}
