"""Server-sent events as bytes come -> the data of each (the HTML standard's "event stream", section 9.2.6).

httpx's own lines are `str.splitlines`, which cuts JSON at the U+2028 that models write.
"""

from __future__ import annotations

from collections.abc import Iterator

LONGEST = 4 * 2**20  # bytes of an event


class EventStream:
    """Takes bytes cut anywhere; gives the data of each event that is complete."""

    def __init__(self) -> None:
        self._held = b""
        self._data: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> Iterator[str]:
        """The events that these bytes complete.

        Raises:
            ValueError: an event has no end.
        """
        text = self._held + data
        # A last "\r" may be the first half of "\r\n".
        after = b"\r" if text.endswith(b"\r") else b""
        text = text[: len(text) - len(after)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._held = rest + after
        if len(self._held) + self._size > LONGEST:
            raise ValueError("an event without an end")
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
                self._size += len(line)
            elif not line and self._data:
                yield b"\n".join(self._data).decode("utf-8", "replace")
                self._data, self._size = [], 0
