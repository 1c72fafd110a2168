"""Rows of any supported format -> messages -> tensors."""

from __future__ import annotations

from vlchat.data.check import BadRow, Report, check
from vlchat.data.collate import Collator, TooLongError
from vlchat.data.dataset import Mixture, Source, SourceConfig, fingerprint, load_source
from vlchat.data.formats import FORMATS, Example, detect, to_example

__all__ = [
    "FORMATS",
    "BadRow",
    "Collator",
    "Example",
    "Mixture",
    "Report",
    "Source",
    "SourceConfig",
    "TooLongError",
    "check",
    "detect",
    "fingerprint",
    "load_source",
    "to_example",
]
