"""What published benchmarks have in common: official files that are found, read and named, and pictures that are there.

Nothing is downloaded. An absent file is told with the page that has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlchat.data import fingerprint
from vlchat.data.paths import resolve_image
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.items import Item, Reading, Reply
from vlchat.evaluate.measures import Measure, mean_of
from vlchat.evaluate.tasks.base import Task

SHORT_ANSWER = "Answer the question using a single word or phrase."  # LLaVA-1.5, docs/Evaluation.md
_LISTED = 20


class OfficialFiles:
    """The files of a benchmark as its page gives them.

    Args:
        data: the main file, or the folder that it lies in.
        benchmark: what messages call it.
        page: where people get it.
    """

    def __init__(self, data: str | Path, benchmark: str, page: str) -> None:
        self.data, self.benchmark, self.page = Path(data), benchmark, page
        if not self.data.exists():
            raise self.error(f"{data} does not exist: the files of {benchmark}, or their folder, are needed.")
        self.folder = self.data if self.data.is_dir() else self.data.parent
        self.read: dict[str, Path] = {}

    def error(self, problem: str) -> DataError:
        """A sentence with where the files are to be had."""
        return DataError(f"{problem} {self.benchmark} is to be had from {self.page}")

    def all(self, *patterns: str) -> list[Path]:
        """The files in the folder whose names fit one of the patterns, such as `v2_*_questions.json`."""
        return sorted({found for pattern in patterns for found in self.folder.glob(pattern) if found.is_file()})

    def main(self, what: str, *patterns: str) -> Path:
        """`data` itself where it is a file, else the one file in it that fits."""
        return self._kept(self.data) if self.data.is_file() else self.one(what, *patterns)

    def one(self, what: str, *patterns: str, given: str | None = None, option: str = "data") -> Path:
        """The file named by an option of the task, else the one in the folder that fits the first pattern that fits.

        Raises:
            DataError: there is none, or there are several.
        """
        if given is not None:
            if not Path(given).is_file():
                raise self.error(f"{option} is {given}, which is no file: {what} is needed.")
            return self._kept(Path(given))
        for pattern in patterns:
            found = self.all(pattern)
            if len(found) > 1:
                names = ", ".join(str(path.relative_to(self.folder)) for path in found[:_LISTED])
                raise DataError(f"{self.folder} has several files for {what}: {names}. Name one of them as {option}.")
            if found:
                return self._kept(found[0])
        raise self.error(f"{self.folder} has no {' or '.join(patterns)}: {what}.")

    def pictures(self, given: str | None, *names: str) -> list[Path]:
        """The folders that pictures may be in: `images` as given and its sub-folders of these names, else those beside
        the files.

        Raises:
            DataError: none of them is there.
        """
        if given is not None and not Path(given).is_dir():
            raise self.error(f"images is {given}, which is no folder: it must hold the pictures.")
        base = self.folder if given is None else Path(given)
        found = [folder for name in names if (folder := base / name).is_dir()]
        if given is not None:
            found.append(base)
        if not found:
            listed = " or ".join(f"{name}/" for name in names)
            raise self.error(f"{self.folder} has no {listed} with pictures; name their folder as images.")
        return list(dict.fromkeys(found))

    def load(self, path: Path) -> Any:
        """What a JSON file holds.

        Raises:
            DataError: it is not JSON, or not UTF-8.
        """
        try:
            return json.loads(self._kept(path).read_bytes().removeprefix(b"\xef\xbb\xbf"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.error(f"{path} is not valid JSON ({error}): is the download complete?") from error

    def rows(self, path: Path, *keys: str) -> list[Any]:
        """The list in a JSON file, under one of these keys or, without keys, by itself.

        Raises:
            DataError: there is no such list, or it is empty.
        """
        content = self.load(path)
        found = next((content[key] for key in keys if key in content), None) if isinstance(content, dict) else content
        if not isinstance(found, list) or not found:
            where = f"a list under `{keys[0]}`" if keys else "a list of questions"
            raise self.error(f"{path} does not hold {where}: is it the official file?")
        return found

    def lines(self, path: Path) -> list[Any]:
        """The objects of a file with one a line, whatever its name ends in.

        Raises:
            DataError: a line is not JSON, or there are none.
        """
        found = []
        for number, line in enumerate(
            self._kept(path).read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1
        ):
            try:
                found += [json.loads(line)] if line.strip() else []
            except (ValueError, RecursionError) as error:
                raise self.error(f"{path}: line {number} is not valid JSON; one object a line is needed.") from error
        if not found:
            raise self.error(f"{path} is empty.")
        return found

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file that was read, by its name."""
        return {name: fingerprint(path) for name, path in sorted(self.read.items())}

    def _kept(self, path: Path) -> Path:
        name = str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else path.name
        self.read[name] = path
        return path


class Benchmark(Task):
    """A published benchmark over its official files.

    Attributes:
        benchmark: its name, as the paper gives it.
        page: where people get its files.
    """

    benchmark: ClassVar[str]
    page: ClassVar[str]
    measures: Sequence[Measure] = [mean_of("score", "accuracy")]
    max_new_tokens = 16

    def _open(self, data: str, limit: int | None) -> OfficialFiles:
        if limit is not None and limit < 1:
            raise ConfigError(f"limit is {limit}; it must be at least 1")
        return OfficialFiles(data, self.benchmark, self.page)

    def _keep(
        self,
        files: OfficialFiles,
        items: Sequence[Item],
        lost: Mapping[str, str],
        limit: int | None,
        missing: str,
        *,
        limited: bool = False,
    ) -> None:
        """Sets items, data and notes.

        Args:
            files: what they were read from.
            items: all of them, in order.
            lost: the picture that an item lacks, by the item's id.
            limit: keep the first so many.
            missing: "error" or "skip".
            limited: the items are already the first so many of each file.

        Raises:
            DataError: pictures are missing, or nothing is left.
        """
        if missing not in ("error", "skip"):
            raise ConfigError(f'missing is "{missing}"; it must be "error" or "skip"')
        chosen = list(items if limited else items[:limit])
        without = [item for item in chosen if item.id in lost]
        names = list(dict.fromkeys(lost[item.id] for item in without))
        if without and (missing == "error" or len(without) == len(chosen)):
            more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
            raise files.error(
                f"{len(names):,} pictures of {len(without):,} of {len(chosen):,} questions are missing: "
                f"{', '.join(names[:_LISTED])}{more}. Name their folder as images, or leave these questions out: "
                "missing=skip."
            )
        self._items = [item for item in chosen if item.id not in lost]
        self.data = {"path": str(files.data), "limit": limit, "files": files.hashes()}
        self.data = {name: value for name, value in self.data.items() if value is not None}
        self.notes = []
        if without:
            self.notes.append(f"{len(without):,} questions were left out: {len(names):,} pictures are missing.")

    def items(self) -> list[Item]:
        return self._items

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        if replies[0].error is not None:
            return Reading("", 0.0, self.stats(item, "", 0.0))
        answer, score = self.scored(item, replies[0].text)
        return Reading(answer, score, self.stats(item, answer, score))

    def scored(self, item: Item, reply: str) -> tuple[str, float]:
        """The reply as it is compared, and its score."""
        raise NotImplementedError

    def stats(self, item: Item, answer: str, score: float) -> dict[str, float]:
        """What the measures are made of, from what `scored` gave; the answer is empty where there was no reply."""
        return {"score": score}


class Pictures:
    """Finds pictures by the names that official files give them, each once, and remembers what is not there.

    Args:
        folders: where they may be.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self._known: dict[str, Path | None] = {}

    def find(self, *names: str) -> Path | None:
        """The first of the names that is a file in one of the folders.

        Raises:
            PathEscapeError: a name leads out of the folders.
        """
        for name in names:
            if name not in self._known:
                self._known[name] = resolve_image(name, self.folders)
            if self._known[name] is not None:
                return self._known[name]
        return None


def field(row: Any, name: str, where: str) -> Any:
    """A field that a row of an official file must have.

    Raises:
        DataError: it has not.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where} must be an object with the field `{name}`, not {type(row).__name__}")
    if row.get(name) is None:
        raise DataError(f"{where} has no `{name}`; its fields are {', '.join(map(str, row)) or 'none'}")
    return row[name]


def text(row: Any, name: str, where: str) -> str:
    """A field that must be a text and say something.

    Raises:
        DataError: it is not.
    """
    found = field(row, name, where)
    if not isinstance(found, str) or not found.strip():
        raise DataError(f"{where}: `{name}` must be a text, not {json.dumps(found)[:60]}")
    return found


def texts(row: Any, name: str, where: str) -> tuple[str, ...]:
    """A field that must be a list of texts with at least one.

    Raises:
        DataError: it is not.
    """
    found = field(row, name, where)
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise DataError(f"{where}: `{name}` must be a list of texts")
    return tuple(found)


def numbered(rows: Sequence[Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Each row with what messages call it."""
    return ((f"{path.name}: entry {number}", row) for number, row in enumerate(rows, start=1))
