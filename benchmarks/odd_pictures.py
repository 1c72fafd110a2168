"""A thousand odd picture files, made from good ones by seeded mutation, and how `vlchat pictures` fares with them.

    python benchmarks/odd_pictures.py --out benchmarks/results/odd_pictures.json
    python benchmarks/odd_pictures.py --count 50 --keep odd/     # a short try; the files stay

The good pictures are drawn here, in every format and mode that Pillow writes. A mutation flips bits, cuts a file short,
repeats, drops or swaps pieces of it (of a PNG its chunks), edits the numbers in its header (with a PNG's checksums put
right), or puts the beginning of one format before the rest of another.

Wanted: no crash, and at most 2 s and 200 MB for the worst.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import surroundings, write
from PIL import Image

SECONDS, MEGABYTES = 2.0, 200.0
PNG = b"\x89PNG\r\n\x1a\n"
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x3FFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


def good_pictures() -> dict[str, bytes]:
    """By name: small pictures in all formats that are accepted, and in some that are not."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 4), dtype=np.uint8), "RGBA")
    rgba = coarse.resize((96, 72), Image.Resampling.BICUBIC)
    rgb, frames = rgba.convert("RGB"), [rgba.rotate(30 * turn).convert("RGB") for turn in range(1, 4)]
    deep = Image.fromarray(generator.integers(0, 65536, (40, 50)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    moving: dict[str, Any] = {"save_all": True, "append_images": frames}
    made: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (rgb, "JPEG", {}),
        "jpeg-progressive": (rgb, "JPEG", {"progressive": True, "exif": exif}),
        "jpeg-grey": (rgb.convert("L"), "JPEG", {"optimize": True}),
        "jpeg-cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "mpo": (rgb, "MPO", moving),
        "png": (rgb, "PNG", {"exif": exif}),
        "png-alpha": (rgba, "PNG", {}),
        "png-palette": (rgb.convert("P"), "PNG", {"transparency": 3}),
        "png-one-bit": (rgb.convert("1"), "PNG", {}),
        "png-deep": (deep, "PNG", {}),
        "apng": (rgb, "PNG", moving),
        "webp": (rgb, "WEBP", {"exif": exif}),
        "webp-lossless": (rgba, "WEBP", {"lossless": True}),
        "webp-moving": (rgb, "WEBP", moving),
        "gif": (rgb.convert("P"), "GIF", {"transparency": 3}),
        "gif-moving": (rgb, "GIF", moving),
        "bmp": (rgb, "BMP", {}),
        "tiff": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "ico": (rgba, "ICO", {}),
        "jpeg2000": (rgb, "JPEG2000", {}),
    }
    found = {}
    for name, (picture, kind, options) in made.items():
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        found[name] = stream.getvalue()
    return found


def flipped(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 8, 64))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut_short(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    return data[: chance.randrange(len(data))]


def edited_header(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """A number of its header, or two, made extreme; a PNG's checksums are put right."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2))):
        width = chance.choice((1, 2, 4))
        at = chance.randrange(4, min(len(data) - 4, chance.choice((32, 200, 700))))
        value = chance.choice(EXTREMES) & (256**width - 1)
        changed[at : at + width] = value.to_bytes(width, chance.choice(("big", "little")))
    return with_checksums(bytes(changed))


def larger(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Its width and height, wherever they stand, replaced by large ones."""
    sides = [chance.choice((500, 4000, 7999, 16383, 65535)) for _ in range(2)]
    if data.startswith(PNG):
        return with_checksums(data[:16] + b"".join(side.to_bytes(4, "big") for side in sides) + data[24:])
    if data.startswith(b"\xff\xd8"):
        at = next(data.find(b"\xff" + bytes([mark])) for mark in (0xC0, 0xC2) if data.find(b"\xff" + bytes([mark])) > 0)
        return data[: at + 5] + b"".join(side.to_bytes(2, "big") for side in sides) + data[at + 9 :]
    at = {b"GIF": 6, b"RIF": 26}.get(data[:3], 18)
    return data[:at] + b"".join(side.to_bytes(2, "little") for side in sides) + data[at + 4 :]


def pieces_moved(data: bytes, chance: random.Random, _: list[bytes]) -> bytes:
    """Chunks of a PNG, or pieces of another file: one repeated many times, dropped, or two that changed places."""
    pieces = chunks(data) or [data[at : at + 64] for at in range(0, len(data), 64)]
    at, other = chance.randrange(len(pieces)), chance.randrange(len(pieces))
    how = chance.choice(("repeat", "many", "drop", "swap"))
    if how == "swap":
        pieces[at], pieces[other] = pieces[other], pieces[at]
    else:
        pieces[at : at + 1] = [pieces[at]] * {"repeat": 2, "many": 2000, "drop": 0}[how]
    return b"".join(pieces)


def spliced(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    other = chance.choice(others)
    return data[: chance.choice((12, 64, chance.randrange(len(data))))] + other[chance.randrange(len(other)) :]


MUTATIONS: list[Callable[[bytes, random.Random, list[bytes]], bytes]] = [
    flipped, cut_short, edited_header, larger, pieces_moved, spliced,
]  # fmt: skip


def chunks(data: bytes) -> list[bytes]:
    """A PNG as its signature and its chunks; nothing of another file."""
    if not data.startswith(PNG):
        return []
    found, at = [PNG], len(PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        found.append(data[at:end])
        at = end
    return found


def with_checksums(data: bytes) -> bytes:
    """A PNG is refused at once where a chunk's checksum is wrong; other files are left as they are."""
    return b"".join(
        one if one == PNG or len(one) < 12 else one[:-4] + zlib.crc32(one[4:-4]).to_bytes(4, "big")
        for one in chunks(data)
    ) or data  # fmt: skip


def make(folder: Path, count: int, seed: int) -> None:
    """Writes so many files, the same ones for the same seed and version of Pillow."""
    good = good_pictures()
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        name = list(good)[number % len(good)]
        mutation = MUTATIONS[number // len(good) % len(MUTATIONS)]
        made = mutation(good[name], chance, list(good.values()))
        (folder / f"{number:05} {name} {mutation.__name__}").write_bytes(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the files here, and leave them")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, arguments.count, arguments.seed)
        done = subprocess.run(
            [sys.executable, "-m", "vlchat.cli", "pictures", str(folder), "--json"], capture_output=True, text=True
        )
    if not done.stdout:
        raise SystemExit(done.stderr)
    told = json.loads(done.stdout)
    summary, files = told["summary"], told["files"]
    by_mutation = Counter(f"{one['file'].split()[2]} {one['outcome']}" for one in files)
    beyond = [one for one in files if one["seconds"] > SECONDS or (one["megabytes"] or 0) > MEGABYTES]
    met = done.returncode == 0 and not beyond
    command = f"python benchmarks/odd_pictures.py --count {arguments.count} --seed {arguments.seed}"
    write(
        arguments.out,
        {
            **surroundings(command, "pillow", "numpy"),
            "wanted": {"crashes": 0, "seconds": SECONDS, "megabytes": MEGABYTES},
            "met": met,
            **summary,
            "by_mutation": dict(sorted(by_mutation.items())),
            "beyond": beyond,
            "sentences": len({one["reason"] for one in files if one["reason"]}),
        },
    )
    print(json.dumps({**summary, "beyond": len(beyond), "met": met}, indent=2))


if __name__ == "__main__":
    main()
