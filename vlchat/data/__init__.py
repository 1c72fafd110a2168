"""Rows of any supported format -> messages -> tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlchat.data.check import Report, check
from vlchat.data.dataset import Kept, Mixture, Source, SourceConfig, fingerprint, load_source
from vlchat.data.faults import KINDS, BadRow, quarantine
from vlchat.data.formats import FORMATS, Example, detect, has_answer, to_example
from vlchat.data.inspection import Inspection, inspect
from vlchat.errors import TooLongError

if TYPE_CHECKING:
    from vlchat.data.collate import Collated, Collator

__all__ = [
    "FORMATS",
    "KINDS",
    "BadRow",
    "Collated",
    "Collator",
    "Example",
    "Inspection",
    "Kept",
    "Mixture",
    "Report",
    "Source",
    "SourceConfig",
    "TooLongError",
    "check",
    "detect",
    "fingerprint",
    "has_answer",
    "inspect",
    "load_source",
    "quarantine",
    "to_example",
]


def __getattr__(name: str) -> Any:
    """Collators need torch and transformers, which take seconds to import; looking at a dataset needs neither."""
    if name not in ("Collated", "Collator"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vlchat.data import collate

    return getattr(collate, name)
