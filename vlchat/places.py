"""Where a checkpoint is: a folder, the embedded model or an id on the Hub; and where the base of a run is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlchat import hub, models
from vlchat.errors import CheckpointError
from vlchat.folders import EMBEDDED, newest, weights_digest


def locate(path_or_id: str | Path | None, revision: str | None = None) -> tuple[Path | str, str | None]:
    """The folder of a checkpoint, or the id of one on the Hub with its revision; arguments as of `load`.

    Raises:
        CheckpointError: there is no such folder, or it is one and a revision was asked for.
    """
    known = models.resolve(path_or_id)
    short, path_or_id = known is not path_or_id, known
    if path_or_id is None:
        if not (EMBEDDED / "config.json").is_file():
            raise CheckpointError("This copy of vlchat has no embedded model; name a checkpoint with --model.")
        return _here(EMBEDDED, revision)
    try:
        path = Path(path_or_id).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{str(path_or_id)[:80]} is no name of a folder, nor of a model on the Hub.") from error
    if path.is_dir():
        return _here(newest(path), revision)
    text, _, stated = str(path_or_id).partition("@")
    local = isinstance(path_or_id, Path) or path.exists() or text.startswith((".", "/", "~", "runs/"))
    hidden = path.parent.is_dir() and not short  # a folder here is meant sooner than one on the Hub
    if local or text.count("/") != 1 or hidden:
        beside = sorted(found.name for found in path.parent.glob("*/") if newest(found) != found)
        known = f" {path.parent} holds the runs {', '.join(beside)}." if beside else models.hint(text)
        raise CheckpointError(f"There is no checkpoint folder at {path_or_id}.{known}")
    if stated and revision not in (None, stated):
        raise CheckpointError(f"{path_or_id} names one revision and --revision {revision} another: leave one out.")
    revision = revision or stated or None
    return hub.snapshot(text, revision) or text, revision


def _here(folder: Path, revision: str | None) -> tuple[Path, None]:
    if revision is not None:
        what = "the embedded model" if folder == EMBEDDED else str(folder)
        raise CheckpointError(f"--revision {revision} names a version on the Hub, and {what} is here: leave it out.")
    return folder, None


def resolve_base(folder: Path, manifest: dict[str, Any]) -> dict[str, str | Path | None]:
    """Where each part of what a run stands on is: a path, a Hub id, or None for the embedded model.

    Raises:
        CheckpointError: it is not there any more, or has changed since.
    """
    return {key: _resolve(folder, manifest, key) for key in manifest["base"]}


def _resolve(folder: Path, manifest: dict[str, Any], key: str) -> str | Path | None:
    """Where a part of the base is: beside the checkpoint as it was when it was saved, or at its old place."""
    found = manifest["base"][key]
    relative = manifest.get("base_relative", {}).get(key)
    if relative is not None and (folder / relative).exists():
        found = (folder / relative).resolve()
    elif found is not None and os.path.isabs(found) and not os.path.exists(found):
        raise CheckpointError(f"{folder} was trained on top of {found}, which is not there any more.")
    digest = manifest.get("base_weights", {}).get(key)
    if digest is not None and digest != weights_digest(newest(Path(found or EMBEDDED))):
        raise CheckpointError(
            f"{folder} was trained on top of {found or 'the embedded model'}, whose weights have changed since. Bring "
            "that version back, or train again."
        )
    return found
