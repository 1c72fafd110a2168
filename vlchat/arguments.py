"""Command-line options whose mistakes are sentences."""

from __future__ import annotations

import argparse
from typing import NoReturn

from vlchat.errors import VLChatError


class Parser(argparse.ArgumentParser):
    """argparse's parser, without the usage it prints before a mistake."""

    def error(self, message: str) -> NoReturn:
        """Raises VLChatError: one sentence, as for any other mistake."""
        raise VLChatError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")
