"""Reading other people's checkpoints: what goes wrong there, in a sentence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from vlchat.errors import CheckpointError, VLChatError

_PACKAGE = re.compile(r"requires the (\S+) library|ackage `(\S+)`|No module named '(\w+)|(\w+) is required")
_LONGEST = 400  # letters of a reason


@contextlib.contextmanager
def reading(source: str | Path, what: str) -> Iterator[None]:
    """Turns what transformers raises for an absent, unreachable or damaged `source` into a CheckpointError.

    Also what it raises for one that needs a package which is not installed.
    """
    try:
        yield
    except VLChatError:
        raise
    except ImportError as error:
        found = _PACKAGE.search(str(error))
        package = next((name for name in found.groups() if name), "") if found else ""
        reason = f"it needs {package.lower()}, which is not installed" if package else " ".join(str(error).split())
        raise CheckpointError(f"The {what} {source} can't be loaded: {reason}.") from error
    except Exception as error:  # other people's files: what is wrong in them comes out as anything
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]} ..."
        if Path(source).exists():
            raise CheckpointError(f"The {what} {source} can't be loaded: {reason}") from error
        raise CheckpointError(
            f"The {what} {source} can't be loaded: there is no such folder here, and as an id on the Hub: {reason}"
        ) from error
