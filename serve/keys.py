"""API keys: who may ask, read from a file or the environment; kept as digests, never as they are."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from vlchat.errors import VLChatError

VARIABLE = "VLCHAT_API_KEYS"
SHORTEST = 16
_MAKE_ONE = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'


class Keys:
    """Names and keys. Without any, everybody may ask.

    Args:
        lines: `name: key` or a key alone; blank ones and those after `#` are passed over.
        where: what errors call their source.

    Raises:
        VLChatError: a key that is short, odd or there twice, or a name that is there twice; the line is named.
    """

    def __init__(self, lines: Iterable[str] = (), where: str = "keys") -> None:
        self._salt = secrets.token_bytes(32)
        self._digests: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if line and not line.startswith("#"):
                self._add(line, number, f"{where}, line {number}")

    def _add(self, line: str, number: int, where: str) -> None:
        name, colon, key = (part.strip() for part in line.rpartition(":"))
        name = name if colon else f"key-{number}"
        if not name or not name.isprintable() or len(name) > 64:
            raise VLChatError(f"{where}: the name of a key has 1 to 64 characters that can be printed.")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise VLChatError(f"{where}: a key has letters, digits and signs of ASCII alone, and no space.")
        if len(key) < SHORTEST:
            raise VLChatError(f"{where}: a key has at least {SHORTEST} characters, hard to guess: {_MAKE_ONE}")
        digest = self._digest(key)
        if name in self._digests:
            raise VLChatError(f'{where}: the name "{name}" is there already; each key has its own.')
        if digest in self._digests.values():
            raise VLChatError(f"{where}: this key is there already, under another name.")
        self._digests[name] = digest

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None for nobody's. Takes the same time whichever it is: all are compared, none in part."""
        digest, found = self._digest(key), None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _digest(self, key: str) -> bytes:
        # A key is drawn at random, unlike a password: a fast digest is enough, and the salt lives as long as we do.
        return hmac.digest(self._salt, key.encode("utf-8", "surrogatepass"), hashlib.sha256)


def read_keys(file: Path | None) -> Keys:
    """The keys of a file, or else of the environment's VLCHAT_API_KEYS, where commas may stand for line ends.

    Raises:
        VLChatError: the file can't be read or has no key; or as `Keys`.
    """
    told = os.environ.pop(VARIABLE, None)  # no process that is started from here needs to know
    if file is None:
        given = Keys((told or "").replace(",", "\n").splitlines(), VARIABLE)
        if told is not None and not given:
            raise VLChatError(f"{VARIABLE} is set and has no key. Write NAME: KEY, or leave it out.")
        return given
    try:
        keys = Keys(file.read_text(encoding="utf-8").splitlines(), f"--api-keys {file}")
    except (OSError, UnicodeDecodeError) as error:
        raise VLChatError(f"--api-keys {file} can't be read: {getattr(error, 'strerror', 'it is no text')}.") from None
    if not keys:
        raise VLChatError(f"--api-keys {file} has no key. Write one a line, as NAME: KEY.")
    return keys
