"""Paths that rows name: a file inside the folders that pictures may be read from, or an error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vlchat.errors import DataError, PathEscapeError


def resolve_image(value: str, roots: Sequence[Path], kind: str = "image") -> Path | None:
    """A row's path as a file inside one of `roots`, or None where there is no such file.

    Args:
        kind: `image` or `video`, for messages.

    Raises:
        PathEscapeError: `..` in the path, an absolute path outside of the roots, or a symlink that leads out of them.
    """
    said = f'the {kind} path "{value[:200]}"'
    parts = re.split(r"[\\/]", value)
    if ".." in parts or "\0" in value:
        message = f"{said} leads out of the {kind} folder; name it relative to that folder"
        raise PathEscapeError(message, kind="path_leads_up", field=kind)
    allowed = ", ".join(str(root) for root in roots) or "none"
    if re.match(r"[A-Za-z]:", value):
        message = f"{said} leads out of the {kind} folder (allowed: {allowed}); name it relative to that folder"
        raise PathEscapeError(message, kind="path_absolute", field=kind)
    absolute = Path(value).is_absolute()
    escaped = absolute
    for root in roots:
        inside = root.resolve()
        candidate = root / value  # an absolute value replaces the root, and is then held to the same rule
        try:
            real = candidate.resolve()
            found = candidate.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, or no text; a loop of links
            message = f"{said} cannot be opened: {type(error).__name__}"
            raise DataError(message, kind="unreadable_file", field=kind) from error
        if not real.is_relative_to(inside):
            escaped = True
        elif found:
            return candidate
        elif absolute:
            escaped = False  # inside of a root, only missing
            break
    if escaped:
        raise PathEscapeError(
            f"{said} leads out of the {kind} folder (allowed: {allowed}); "
            "name the folder that pictures may be read from as `images`",
            kind="path_absolute" if absolute else "path_link_out",
            field=kind,
        )
    return None
