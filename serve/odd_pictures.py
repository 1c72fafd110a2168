"""`vlchat pictures`: how opening each file of a folder goes, by the workers that open a server's uploads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from serve.decode_worker import MEMORY
from serve.decoding import CRASH, OK, REFUSED, TIMEOUT, Decoder, Opened
from vlchat.errors import VLChatError

_MIB = 2**20


def run(folder: Path, *, as_json: bool = False) -> int:
    """Tells how each file went, and the worst. Returns 1 where one crashed its worker or went beyond a limit.

    Raises:
        VLChatError: there is no such folder, or no file in it.
    """
    if not folder.is_dir():
        raise VLChatError(f"There is no folder {folder}.")
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    if not paths:
        raise VLChatError(f"The folder {folder} holds no files.")
    decoder = Decoder(1)  # one after another, so that each has the whole processor
    rows = []
    try:
        for path in paths:
            name = str(path.relative_to(folder))
            rows.append(_row(name, decoder.open(path, name=name)))
            if not as_json:
                print(_line(rows[-1]), flush=True)
    finally:
        decoder.close()
    counted = Counter(row["outcome"] for row in rows)
    counts = {outcome: counted[outcome] for outcome in (OK, REFUSED, CRASH, TIMEOUT, MEMORY)}
    slowest = max(rows, key=lambda row: row["seconds"])
    largest = max(rows, key=lambda row: row["megabytes"] or 0)
    if as_json:
        summary = {"files": len(rows), **counts, "slowest": slowest, "largest": largest}
        print(json.dumps({"summary": summary, "files": rows}, indent=2))
    else:
        print(f"\n{len(rows)} files: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
        print(f"slowest  {_line(slowest)}\nlargest  {_line(largest)}")
    return int(any(counts[outcome] for outcome in (CRASH, TIMEOUT, MEMORY)))


def _row(name: str, opened: Opened) -> dict:
    """One file.

    `seconds` are of the worker's processor, `megabytes` the most that the worker had, of which it has 36 to begin with.
    """
    return {
        "file": name,
        "outcome": opened.outcome,
        "seconds": round(opened.seconds, 4),
        "megabytes": None if opened.peak is None else round(opened.peak / _MIB, 1),
        "size": None if opened.picture is None else list(opened.picture.size),
        "reason": None if opened.error is None else str(opened.error),
    }


def _line(row: dict) -> str:
    megabytes = "-" if row["megabytes"] is None else f"{row['megabytes']:.0f}"
    what = row["reason"] or f"{row['file']}: {row['size'][0]} x {row['size'][1]}"
    return f"{row['outcome']:8} {row['seconds']:7.3f} s {megabytes:>5} MB  {what}"
