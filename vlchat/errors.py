"""Mistakes a person can mend. Every message says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self


class VLChatError(ValueError):
    """A user's mistake. The command line prints the message and exits with code 2, without a traceback."""


class ConfigError(VLChatError):
    """A configuration that cannot be used: an unknown key, a value of the wrong kind, parts that do not fit."""


class ImageError(VLChatError):
    """A picture that cannot be used.

    Attributes:
        code: a short name for programs, such as `invalid_image`, `image_too_large`, `unsupported_image`.
        status: the HTTP status a server answers with (400, 413 or 415).
        kind: finer than `code`, one of `vlchat.data.faults.KINDS`.
    """

    def __init__(
        self, message: str, *, code: str = "invalid_image", status: int = 400, kind: str = "damaged_file"
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.kind = kind


class DataError(VLChatError):
    """A row, field or file of a dataset that cannot be used.

    Attributes:
        kind: what is wrong, one of `vlchat.data.faults.KINDS`.
        field: where in the row: `row`, `id`, `image`, `video`, `text`, `answer`.
    """

    kind = "unusable_row"
    field = "row"

    def __init__(self, message: str, *, kind: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind or self.kind
        self.field = field or self.field

    def within(self, where: str) -> Self:
        """The same error, its message beginning with `where`."""
        return type(self)(f"{where}: {self}", kind=self.kind, field=self.field)


class PathEscapeError(DataError):
    """A dataset row names a file outside the image folder it may read from."""

    kind = "path_leads_up"
    field = "image"


class EmptySupervisionError(DataError):
    """A training row in which no token would be learned from."""

    kind = "no_answer"
    field = "answer"


class TooLongError(DataError):
    """A row with more tokens than the limit."""

    kind = "too_long"
    field = "text"


class CheckpointError(VLChatError):
    """A checkpoint that cannot be loaded or written."""


class IncompleteCheckpointError(CheckpointError):
    """A checkpoint without all that a run needs to go on from it."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint whose format can run code when it is read."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A closing hint for an unknown name: `. Did you mean "x"?`, or an empty string when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f'. Did you mean "{close[0]}"?' if close else ""
