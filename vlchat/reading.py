"""Reading other people's checkpoints: what goes wrong there, in a sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from vlchat.errors import CheckpointError, VLChatError


@contextlib.contextmanager
def reading(source: str | Path, what: str) -> Iterator[None]:
    """Turns what transformers raises for an absent, unreachable or damaged `source` into a CheckpointError.

    Also what it raises for one that needs a package which is not installed.
    """
    try:
        yield
    except VLChatError:
        raise
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if Path(source).exists():
            raise CheckpointError(f"The {what} {source} can't be loaded: {reason}") from error
        raise CheckpointError(
            f"The {what} {source} can't be loaded: there is no such folder here, and as an id on the Hub: {reason}"
        ) from error
