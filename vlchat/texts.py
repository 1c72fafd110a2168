"""Text as people and programs send it -> text that every file, tokenizer and answer takes."""

from __future__ import annotations


def joined(text: str) -> str:
    """Surrogate pairs joined, lone surrogates replaced by U+FFFD: they have no UTF-8."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
