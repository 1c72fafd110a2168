"""Command-line options whose mistakes are sentences."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from vlchat.errors import VLChatError


class Parser(argparse.ArgumentParser):
    """argparse's parser, without the usage it prints before a mistake."""

    def error(self, message: str) -> NoReturn:
        """Raises VLChatError: one sentence, as for any other mistake."""
        raise VLChatError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")


def named(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=FOLDER`, given once or more, as NAME -> FOLDER.

    Raises:
        VLChatError: something else, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not name.strip() or not folder:
            raise VLChatError(f'{option} "{pair}" is not NAME=FOLDER, such as {option} cats=runs/cats.')
        if name in found:
            raise VLChatError(f'{option} names "{name}" twice; give each its own name.')
        found[name] = folder
    return found
