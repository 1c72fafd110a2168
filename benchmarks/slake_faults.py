"""Plants 20 faults of 20 kinds in a copy of SLAKE for `vlchat check` to find: `python benchmarks/slake_faults.py`.

Each fault is one that people meet: what a failed download, a script of their own, or a spreadsheet leaves behind. The
copy lies in a temporary folder. Exit code 0 when all 20 are found, each by its kind and row, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SLAKE = ROOT.parent / "shared" / "data" / "slake"

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slake", type=Path, default=SLAKE, help="the folder of train_llava.json and images/")
    parser.add_argument("--rows", type=int, help="only so many rows (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the rows that faults are planted in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return run(arguments.slake, Path(folder), arguments.rows, arguments.seed)


def run(slake: Path, folder: Path, rows: int | None, seed: int) -> int:
    """Plants, checks, prints a table. Returns 0 when exactly what was planted is found, else 1."""
    data = copy(slake, folder / "slake", rows)
    before = findings(data)
    planted = plant(data, seed, leave=set(before))
    after = findings(data)
    told = [(fault, after.pop(fault, None)) for fault in planted]
    cheap = before_training(data)
    print(f"{'kind':18} {'row':>5}  {'check':6} {'train':6} what `vlchat check` says")
    for (row, kind), reason in told:
        early = "found" if (row, kind) in cheap else "later"
        print(f"{kind:18} {row:5}  {'found' if reason else 'MISSED':6} {early:6} {(reason or '')[:110]}")
    extra = set(after) - set(before)
    found = sum(reason is not None for _, reason in told)
    print(f"\nFound {found} of {len(planted)} planted faults of {len({kind for _, kind in planted})} kinds.")
    print(f"Found besides: {sorted(extra) or 'nothing'}.")
    own = sorted(set(before))
    print(f"SLAKE's own, found before anything was planted: {len(own)} ({', '.join(sorted({k for _, k in own}))}).")
    complete = found == len(planted) == 20 and not extra and set(before) <= set(after)
    return 0 if complete else 1


def copy(slake: Path, folder: Path, rows: int | None) -> Path:
    """The first rows and their pictures in a folder of their own."""
    (folder / "images").mkdir(parents=True)
    kept = json.loads((slake / "train_llava.json").read_text())[:rows]
    for name in {row["image"] for row in kept}:
        shutil.copyfile(slake / "images" / name, folder / "images" / name)
    (folder / "rows.json").write_text(json.dumps(kept))
    return folder / "rows.json"


def findings(data: Path) -> dict[tuple[int, str], str]:
    """(row, kind) -> reason, as the command line tells them."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    checked = subprocess.run(
        [sys.executable, "-m", "vlchat.cli", "check", str(data), "--model", "--json"],
        env={**os.environ, "PYTHONPATH": paths, "XDG_CACHE_HOME": str(data.parent.parent / "cache")},
        capture_output=True,
        text=True,
    )
    if checked.returncode not in (0, 1):
        raise SystemExit(f"vlchat check ended with {checked.returncode}:\n{checked.stderr}")
    report = json.loads(checked.stdout)
    listed = report["bad"] + report["notes"]
    found = {(fault["row"], fault["kind"]): fault["reason"] for fault in listed}
    if len(found) < len(listed):
        raise SystemExit("vlchat check told a fault twice.")
    if checked.returncode != bool(report["bad"]):
        raise SystemExit(f"vlchat check ended with {checked.returncode} and {len(report['bad'])} faults.")
    return found


def before_training(data: Path) -> set[tuple[int, str]]:
    """What a training finds by itself before it begins."""
    sys.path.insert(0, str(ROOT))
    from vlchat.data import SourceConfig, inspect, load_source

    found = inspect([load_source(SourceConfig(str(data)))], max_bad=100)
    return {(fault.row, fault.kind) for fault in found.bad + found.notes}


def plant(data: Path, seed: int, leave: set[tuple[int, str]]) -> list[tuple[int, str]]:
    """Changes one row for each of `FAULTS`. Returns (row, kind) of each.

    Args:
        leave: findings whose rows stay as they are, and the rows near them.
    """
    rows = json.loads(data.read_text())
    near = {row + step for row, _ in leave for step in range(-20, 21)}
    free = [number for number in range(2, len(rows) + 1) if number not in near]
    chosen = sorted(random.Random(seed).sample(free, len(FAULTS)))
    for number, (kind, change) in zip(chosen, FAULTS.items(), strict=True):
        file = data.parent / "images" / f"planted_{kind}.jpg"
        rows[number - 1] = change(rows[number - 1], file, rows[0])
    data.write_text(json.dumps(rows))
    return list(zip(chosen, FAULTS, strict=True))


def _png(width: int, height: int) -> bytes:
    """A whole, small PNG file that says it has so many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(min(height * (width + 1), 100_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _file(content: Callable[[bytes], bytes]) -> Callable[[Row, Path, Row], Row]:
    """A fault of a picture's file: `content` makes it of the row's own picture."""

    def change(row: Row, file: Path, first: Row) -> Row:
        file.write_bytes(content((file.parent / row["image"]).read_bytes()))
        return row | {"image": file.name}

    return change


def _turn(number: int, **fields: Any) -> Callable[[Row, Path, Row], Row]:
    """A fault of one turn: 0 is the question, 1 the answer."""

    def change(row: Row, file: Path, first: Row) -> Row:
        turns = [dict(turn) for turn in row["conversations"]]
        turns[number] |= fields
        return row | {"conversations": turns}

    return change


def _question(edit: Callable[[str], str]) -> Callable[[Row, Path, Row], Row]:
    def change(row: Row, file: Path, first: Row) -> Row:
        return _turn(0, value=edit(row["conversations"][0]["value"]))(row, file, first)

    return change


def _absolute(row: Row, file: Path, first: Row) -> Row:
    """The path of another machine's, or this one's, home."""
    outside = file.parent.parent.parent / "outside.jpg"
    shutil.copyfile(file.parent / row["image"], outside)
    return row | {"image": str(outside)}


def _link(row: Row, file: Path, first: Row) -> Row:
    outside = file.parent.parent.parent / "linked.jpg"
    shutil.copyfile(file.parent / row["image"], outside)
    file.symlink_to(outside)
    return row | {"image": file.name}


# kind -> (row, a file of its own, the first row) -> the row with that fault
FAULTS: dict[str, Callable[[Row, Path, Row], Any]] = {
    "missing_file": lambda row, file, first: row | {"image": "xmlab1.jpeg"},
    "path_leads_up": lambda row, file, first: row | {"image": f"../images/{row['image']}"},
    "path_absolute": _absolute,
    "path_link_out": _link,
    "damaged_file": _file(lambda data: data[: len(data) // 2]),  # a download that broke off
    "empty_file": _file(lambda data: b""),
    "unsupported_file": _file(lambda data: b"<!DOCTYPE html><title>404 Not Found</title>"),
    "too_many_pixels": _file(lambda data: _png(50_000, 50_000)),
    "side_ratio": _file(lambda data: _png(20_000, 1)),
    "too_many_tags": _question(lambda text: f"<image>\n{text}"),
    "too_few_tags": _question(lambda text: text.replace("<image>\n", "")),
    "unknown_role": _turn(1, **{"from": "chatgpt"}),
    "empty_answer": _turn(1, value=" \n"),
    "invisible_answer": _turn(1, value="\u200b\ufeff"),
    "no_answer": lambda row, file, first: row | {"conversations": row["conversations"][:1]},
    "duplicate_id": lambda row, file, first: row | {"id": first["id"]},
    "duplicate_row": lambda row, file, first: first | {"id": row["id"]},
    "not_an_object": lambda row, file, first: row["id"],
    "unknown_format": lambda row, file, first: {
        {"conversations": "conversation"}.get(key, key): value for key, value in row.items()
    },
    "too_long": _question(lambda text: text + " Look closely at the whole of the picture." * 400),
}

if __name__ == "__main__":
    sys.exit(main())
