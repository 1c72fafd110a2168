"""What can be wrong with a row: kinds with stable names, one record a fault, and the quarantine file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlchat.errors import DataError, EmptySupervisionError, PathEscapeError, TooLongError
from vlchat.folders import replacing

ERROR, NOTE = "error", "note"


@dataclass(frozen=True)
class Kind:
    """A kind of fault. An `error` makes a row unusable; a `note` is worth a look, and the row is used."""

    severity: str
    about: str


def _errors(**kinds: str) -> dict[str, Kind]:
    return {name: Kind(ERROR, about) for name, about in kinds.items()}


def _notes(**kinds: str) -> dict[str, Kind]:
    return {name: Kind(NOTE, about) for name, about in kinds.items()}


# Names are for programs and stay; what they say is for people.
KINDS: dict[str, Kind] = _errors(
    # the row
    not_json="a line that is not valid JSON",
    bad_encoding="bytes that are not UTF-8",
    not_an_object="a row that is no object with named fields",
    unknown_format="fields that no format has",
    ambiguous_row="fields that more than one reading fits",
    missing_field="a field that its format needs is missing",
    wrong_type="a field that holds another type of value",
    empty_cell="a number that is not one (NaN, infinity), as an empty cell becomes",
    unknown_role="a turn of nobody: neither user, assistant nor system",
    duplicate_id="an id that an earlier row has",
    unusable_row="a row that cannot be used",
    # its pictures
    too_many_tags="more <image> tags than pictures",
    too_few_tags="fewer <image> tags than pictures",
    picture_in_answer="a picture in a turn that is not the user's",
    picture_address="a picture named by a URL",
    bad_data_url="a data: URL that cannot be decoded",
    path_leads_up="a path with .. in it",
    path_absolute="an absolute path outside of the image folder",
    path_link_out="a link that leads out of the image folder",
    missing_file="a file that is not there",
    unreadable_file="a file that cannot be opened, or a folder",
    empty_file="a file of 0 bytes",
    unsupported_file="a file of a kind that is not read",
    damaged_file="a file whose picture cannot be decoded",
    moving_picture="a moving picture where a still one belongs",
    too_many_pixels="more pixels than are accepted",
    too_many_bytes="more bytes than are accepted",
    side_ratio="a picture far longer than it is wide, or without any area",
    # what is learned from it
    no_answer="nothing to learn: no turn of the assistant",
    empty_answer="an answer without any text",
    invisible_answer="an answer of characters that nobody sees",
    no_question="answers without any turn of the user",
    no_supervision="nothing to learn: the chat template writes none of the answer",
    template_refuses="a conversation that the model's chat template or processor refuses",
    too_long="more tokens than the limit",
) | _notes(
    duplicate_row="the same picture and conversation as an earlier row",
    punctuation_answer="an answer of punctuation alone",
    placeholder_answer="an answer that says there is none, as an empty cell becomes",
    control_token="a control token or <image> tag in the text, which stays text",
    broken_text="characters that a wrong encoding leaves behind",
    tiny_picture="a picture of a few pixels",
    unanswered="a question behind the last answer",
    left_out="more tokens than the limit, and left out by choice (too_long: drop)",
    shortened="left out by choice (too_long: shorten) so that the rest fits",
)  # fmt: skip


# What all of some rows have wrong is an error of its own for programs.
_ERRORS: dict[frozenset[str], type[DataError]] = {
    frozenset({"path_leads_up", "path_absolute", "path_link_out"}): PathEscapeError,
    frozenset({"no_answer", "empty_answer", "invisible_answer", "no_supervision"}): EmptySupervisionError,
    frozenset({"too_long"}): TooLongError,
}


@dataclass(frozen=True)
class BadRow:
    """What is wrong with one row.

    Attributes:
        source: the name of its source.
        row: counted from 1, as in the source; 0 where it is not known.
        id: the row's own id, or `#` and its number.
        field: `row`, `id`, `image`, `video`, `text` or `answer`.
        kind: a name of `KINDS`.
        reason: a sentence without the row's name.
    """

    source: str
    row: int
    id: str
    field: str
    kind: str
    reason: str

    @property
    def is_error(self) -> bool:
        """Whether the row cannot be used."""
        return KINDS[self.kind].severity == ERROR

    def __str__(self) -> str:
        return f"{called(self.row, self.id)}, {self.field}: {self.reason}"


def called(row: int, id: str, source: str = "") -> str:
    """A row as every message names it: `source: row 7 (id "x")`; without an id of its own `source: row 7`."""
    id = "".join(character if character.isprintable() else "?" for character in id)[:80]
    name = f'row "{id}"' if not row else f"row {row}" if id == f"#{row}" else f'row {row} (id "{id}")'
    return f"{source}: {name}" if source else name


def too_many(bad: Sequence[BadRow], max_bad: int, rows: int, quarantine: Path | None) -> DataError:
    """The error of a run whose data has more than `max_bad` bad rows: ten of them, the total and what to do.

    A PathEscapeError, EmptySupervisionError or TooLongError where that is what all of them are.

    Args:
        bad: all faults; a row with two counts once.
        rows: how many rows there are.
        quarantine: the file that lists them, or None.
    """
    first: dict[tuple[str, int, str], BadRow] = {}
    for fault in bad:
        first.setdefault((fault.source, fault.row, fault.id), fault)
    lines = [f"  {fault.source}: {fault}" for fault in list(first.values())[:10]]
    if len(first) > 10:
        lines.append(f"  and {len(first) - 10:,} more")
    listed = f" All are listed in {quarantine}." if quarantine is not None else ""
    verb = "row" if len(first) == 1 else "rows"
    common = {fault.kind for fault in bad}
    error = next((error for kinds, error in _ERRORS.items() if common <= kinds), DataError)
    return error(
        f"{len(first):,} bad {verb} of {rows:,}, and max_bad allows {max_bad:,}:\n" + "\n".join(lines) + "\n"
        f"Mend them, or set max_bad to {len(first)} or more to go on without them; `vlchat check --model` also finds "
        f"what only pixels and tokens tell.{listed} {advice(bad)}".rstrip()
    )


def advice(bad: Iterable[BadRow], folders: Sequence[str] = ()) -> str:
    """What to do about faults that have one cure for all of their rows, or an empty string.

    Args:
        folders: where pictures were looked for.
    """
    if {fault.kind for fault in bad} & {"missing_file", "path_absolute", "path_link_out"}:
        looked = f"Pictures are looked for in {', '.join(folders)}. " if folders else ""
        return f"{looked}If pictures lie elsewhere, name their folder: --images FOLDER, for a run data.N.images=FOLDER."
    return ""


def quarantine(path: Path, faults: Iterable[BadRow], *, anew: bool = False) -> int:
    """Adds faults to a quarantine file: JSON lines of `source`, `row`, `id`, `field`, `kind`, `reason`.

    What the file has already is not written again, so a run that resumes adds nothing twice. The file is replaced as a
    whole, so that whoever reads it, or is stopped, never has half a line. One process at a time may write it.

    Args:
        anew: leave out what the file had.

    Returns:
        How many were written.

    Raises:
        DataError: the file holds something else, or cannot be written.
    """
    known = _known(path)
    written = [fault for fault in dict.fromkeys(faults) if anew or fault not in known]
    if written or anew:
        lines = (json.dumps(asdict(fault)) + "\n" for fault in ([] if anew else [*known]) + written)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as stage:
                stage.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise DataError(f"The quarantine file {path} cannot be written: {error.strerror}. Name another.") from error
    return len(written)


def read_quarantine(path: Path) -> list[BadRow]:
    """The faults of a quarantine file.

    Raises:
        DataError: it is not there, or is something else.
    """
    if not path.is_file():
        raise DataError(f"There is no quarantine file {path}.")
    return list(_known(path))


def _known(path: Path) -> dict[BadRow, None]:
    found: dict[BadRow, None] = {}
    try:
        lines = path.read_bytes().split(b"\n") if path.exists() else []
    except OSError as error:
        raise DataError(f"The quarantine file {path} cannot be read: {error.strerror}. Name another.") from error
    for line in lines:
        if line.strip():
            try:
                found[BadRow(**json.loads(line))] = None
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(f"{path} is no quarantine file: name one that is not there yet.") from error
    return found


def summary(faults: Iterable[BadRow]) -> dict[str, Any]:
    """How many faults there are of each kind, the most frequent first."""
    counts: dict[str, int] = {}
    for fault in faults:
        counts[fault.kind] = counts.get(fault.kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
