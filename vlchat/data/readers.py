"""Files and Hub ids -> sequences of raw rows. Large files stay as text until a row is asked for."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlchat.errors import DataError

# Columns of a CSV file that may hold JSON: a cell of one of them that begins as JSON is read as JSON.
_NESTED_COLUMNS = {"conversations", "messages", "images", "answers", "tags", "captions"}
_LOCAL_SUFFIXES = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"}


def read_rows(path: str, *, split: str | None = None) -> Sequence[Any]:
    """The rows of a local file, a dataset folder or a Hub id (`owner/name` or `owner/name:subset`).

    Raises:
        DataError: nothing is there, it cannot be parsed, or it has no such split.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if file.is_dir():
        return _saved_dataset(file, split)
    if not file.is_file():
        if suffix in _LOCAL_SUFFIXES or path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise DataError(f"{path} does not exist: a data file, a dataset folder or a Hub id (owner/name) is needed")
        return _hub_dataset(path, split)
    if split is not None and suffix != ".parquet":
        raise DataError(f"{path} is a plain file without splits; leave `split` out")
    try:
        if suffix == ".json":
            return _json(file)
        if suffix in {".jsonl", ".ndjson"}:
            return JsonLines(file)
        if suffix in {".csv", ".tsv"}:
            return _csv(file, "\t" if suffix == ".tsv" else ",")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if suffix == ".parquet":
        return _parquet(file)
    raise DataError(f"{path}: unknown kind of file; known: {', '.join(sorted(_LOCAL_SUFFIXES))}")


class JsonLines(Sequence[Any]):
    """A .jsonl file: one object a line, parsed when asked for; empty lines don't count."""

    def __init__(self, file: Path) -> None:
        self._name = file.name
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        self._lines = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        number, line = self._lines[index]
        return _parse(line, f"line {number}")

    def line(self, index: int) -> bytes:
        """The bytes of a row, as they are."""
        return self._lines[index][1]


class FirstRows(Sequence[Any]):
    """The first `count` rows of `rows`, without reading them."""

    def __init__(self, rows: Sequence[Any], count: int) -> None:
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(f"row {index} of {self._count}")
        return self._rows[index]


class HubRows(Sequence[Any]):
    """A datasets.Dataset whose pictures come as `{"bytes", "path"}`: in Arrow's own format nothing is decoded."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[index].to_pylist()[0]

    def write(self, kept: list[int], file: Path) -> None:
        """Writes some of the rows as a .parquet file."""
        self._dataset.with_format(None).select(kept).to_parquet(str(file))


def cache_folders() -> list[Path]:
    """Where `datasets` keeps the pictures of a Hub dataset that names them by path."""
    from huggingface_hub import constants

    return [Path(_datasets().config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "Hugging Face datasets and .parquet files need the package `datasets`: pip install 'vlchat[train]'"
        ) from error
    return datasets


def _json(file: Path) -> list[Any]:
    data = _parse(file.read_bytes().removeprefix(b"\xef\xbb\xbf"), file.name)
    if not isinstance(data, list):
        raise DataError(f"{file.name} must hold a list of rows, not {type(data).__name__}; one object a line is .jsonl")
    return data


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        at = f"byte {error.start + 1} (0x{text[error.start]:02x})"
        raise DataError(f"{where} is not UTF-8: {at}. Save the file as UTF-8.", kind="bad_encoding") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not valid JSON: {error}", kind="not_json") from error
    except ValueError as error:
        raise DataError(f"{where} holds a number of thousands of digits", kind="not_json") from error
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply to be a data row", kind="not_json") from error


def _csv(file: Path, delimiter: str) -> list[dict[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 1 << 31 - 1))
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file.name} is not valid CSV in UTF-8: {error}") from error
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise DataError(f"{file.name}: row {number} has more cells than the header; quote cells that hold commas")
    return [{key: _cell(key, cell) for key, cell in row.items()} for row in rows]


def _cell(column: str, cell: str | None) -> Any:
    if not cell:  # an empty cell is an absent field
        return None
    if column in _NESTED_COLUMNS and cell.lstrip().startswith(("[", "{")):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _parquet(file: Path) -> Sequence[Any]:
    datasets = _datasets()
    try:
        return HubRows(datasets.load_dataset("parquet", data_files=str(file), split="train"))
    except Exception as error:  # datasets raises whatever its readers raise; the file is the user's
        raise DataError(f"{file} cannot be read as a parquet file: {error}") from error


def _saved_dataset(folder: Path, split: str | None) -> Sequence[Any]:
    datasets = _datasets()
    try:
        if any((folder / name).is_file() for name in ("dataset_info.json", "state.json", "dataset_dict.json")):
            dataset = datasets.load_from_disk(str(folder))
        else:
            dataset = datasets.load_dataset(str(folder))
    except Exception as error:  # datasets raises whatever its readers raise; the folder is the user's
        raise DataError(f"{folder} cannot be read as a dataset folder: {error}") from error
    return HubRows(_one_split(dataset, split, str(folder)))


def _hub_dataset(name: str, split: str | None) -> Sequence[Any]:
    datasets = _datasets()
    path, _, subset = name.partition(":")
    try:
        dataset = datasets.load_dataset(path, subset or None)
    except Exception as error:  # no network, no such id, a gated one: each has its own exception in its own package
        raise DataError(f"{name} is no local file, and loading it from the Hub failed: {error}") from error
    return HubRows(_one_split(dataset, split, name))


def _one_split(dataset: Any, split: str | None, name: str) -> Any:
    if not isinstance(dataset, _datasets().DatasetDict):
        if split is not None:
            raise DataError(f"{name} has no splits; leave `split` out")
        return dataset
    known = list(dataset)
    chosen = split or ("train" if "train" in known else known[0] if len(known) == 1 else None)
    if chosen not in known:
        raise DataError(f"{name} has no split {chosen or 'set'}; known: {', '.join(known)}")
    return dataset[chosen]
