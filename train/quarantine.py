"""Rows that turn out to be unusable while a run trains: left out, written down, and counted against `max_bad`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train.batches import Batch
from vlchat import runs
from vlchat.data import faults
from vlchat.data.faults import BadRow


class Quarantine:
    """The run's bad rows: what was found before it began, and what pixels and tokens tell on the way.

    Args:
        run: the run's folder; the first process writes the file in it.
        max_bad: how many rows may be bad before the run stops.
        rows: how many rows the run has.
        writes: this is the first process.
        say: shows a line to people.
    """

    def __init__(self, run: Path, max_bad: int, rows: int, writes: bool, say: Callable[[str], None]) -> None:
        self.file, self.max_bad, self.rows, self.writes, self.say = run / runs.QUARANTINE, max_bad, rows, writes, say
        known = faults.read_quarantine(self.file) if self.file.is_file() else []
        self.found = dict.fromkeys(known)

    def take(self, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """The faults that came with these micro-batches, as JSON for the other processes."""
        return [asdict(fault) for batch in batches for fault in batch.pop("faults", ())]

    def add(self, told: Sequence[dict[str, Any]]) -> None:
        """The faults that any process found in a step; every process must call it with the same.

        Raises:
            DataError: more rows than `max_bad` are bad.
        """
        new = [fault for fault in (BadRow(**one) for one in told) if fault not in self.found]
        if not new:
            return
        self.found |= dict.fromkeys(new)
        if self.writes:
            faults.quarantine(self.file, new)
        for fault in new:
            self.say(f"{'Shortened' if fault.kind == 'shortened' else 'Left out'}: {fault.source}: {fault}")
        bad = [fault for fault in self.found if fault.is_error]
        if len({(fault.source, fault.row, fault.id) for fault in bad}) > self.max_bad:
            raise faults.too_many(bad, self.max_bad, self.rows, self.file)
