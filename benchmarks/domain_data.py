"""The parts of SLAKE and NLVR that the domain study trains, chooses and tests on, as files that vlchat reads.

A row's part is a function of what it shows (SLAKE: its picture) or says (NLVR: its sentence), by a fixed hash:

- SLAKE: `choose` is a fifth of the training pictures; settings are chosen on it, after training on `fit`, the rest.
  What is reported trains on all of train and is tested on the validation part, which nothing was chosen on.
- NLVR: `test` is a fifth of the sentences, `choose` a fifth of the others. A sentence that is given twice, in other
  letters or under another id, is one sentence.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import box_sentences
import boxes
from PIL import Image

Row = dict[str, Any]
SHARES = (10, 30, 100)  # percent of the training pictures, or sentences
_SYNTHETIC = 16_000  # pictures of the drawn world of boxes


def drawn(kind: str, name: str) -> float:
    """A number from 0 to 1 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(f"{kind} {name}".encode()).digest()[:8]) / 2**64


def sentence_of(row: Row) -> str:
    """An NLVR row's sentence without what does not change it: letters' case, punctuation, spaces."""
    return plain(str(row["messages"][0]["content"]).split("True or false: ")[1])


def plain(sentence: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9 ]", " ", sentence.lower()).split())


def part_of_sentence(sentence: str) -> str:
    """test, choose or train; `sentence` as of `plain`."""
    place = drawn("nlvr", sentence)
    return "test" if place < 0.2 else "choose" if place < 0.36 else "train"


def part_of_picture(name: str) -> str:
    """choose or train, of a SLAKE training picture by its file's name."""
    return "choose" if drawn("slake", name) < 0.2 else "train"


def write_slake(data: Path, out: Path) -> None:
    """fit.json, choose.json, test.json, and train-10.json, train-30.json, train-100.json: each in the next one."""

    shutil.copytree(data / "images", out / "images", dirs_exist_ok=True)
    rows: list[Row] = json.loads((data / "train_llava.json").read_text())
    _write(out / "fit.json", [row for row in rows if part_of_picture(row["image"]) == "train"])
    _write(out / "choose.json", [row for row in rows if part_of_picture(row["image"]) == "choose"])
    _write(out / "test.json", json.loads((data / "validation_llava.json").read_text()))
    for share in SHARES:
        some = [row for row in rows if 100 * drawn("share", row["image"]) < share]
        _write(out / f"train-{share}.json", some)


def write_nlvr(data: Path, out: Path) -> None:
    """fit.jsonl (train without choose), choose.jsonl, test.jsonl and train-10, -30, -100 (all but test).

    Each is written three times: with the picture as it is, with its three boxes as three pictures (`-boxes`), and with
    them two by two in one (`-square`).
    """
    rows = [json.loads(line) for line in (data / "dev_messages.jsonl").read_text().splitlines()]
    for row in rows:
        row["sentence"] = sentence_of(row)
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        part = part_of_sentence(row["sentence"])
        parts["fit" if part == "train" else part].append(row)
        if part != "test":
            for share in SHARES:
                if 100 * drawn("share", row["sentence"]) < share:
                    parts[f"train-{share}"].append(row)
    shutil.copytree(data / "images", out / "images", dirs_exist_ok=True)
    for form in ("boxes", "square"):
        (out / form).mkdir(exist_ok=True)
    for row in rows:
        with Image.open(data / row["images"][0]) as picture:
            cut(picture.convert("RGB"), out / "boxes" / Path(row["images"][0]).stem)
            square(picture.convert("RGB")).save(out / "square" / Path(row["images"][0]).name, compress_level=1)
    for name, some in parts.items():
        _write(out / f"{name}.jsonl", some)
        _write(out / f"{name}-boxes.jsonl", [in_boxes(row, "boxes") for row in some])
        squares = [{**row, "images": [f"square/{Path(row['images'][0]).name}"]} for row in some]
        _write(out / f"{name}-square.jsonl", squares)


def cut(picture: Image.Image, stem: Path) -> None:
    """STEM-0.png, -1 and -2: the boxes of a picture of 400 x 100 pixels."""
    for number, left in enumerate(boxes.LEFTS):
        picture.crop((left, 0, left + boxes.SIDE, boxes.SIDE)).save(f"{stem}-{number}.png", compress_level=1)


def square(picture: Image.Image) -> Image.Image:
    """The boxes of a picture of 400 x 100 pixels two by two, in 200 x 200; the fourth place is empty."""
    whole = Image.new("RGB", (2 * boxes.SIDE, 2 * boxes.SIDE), picture.getpixel((boxes.SIDE + 1, 0)))  # between two
    for number, left in enumerate(boxes.LEFTS):
        box = picture.crop((left, 0, left + boxes.SIDE, boxes.SIDE))
        whole.paste(box, (number % 2 * boxes.SIDE, number // 2 * boxes.SIDE))
    return whole


def in_boxes(row: Row, folder: str) -> Row:
    """The same row with three pictures in place of one, in a folder beside the file."""
    stem = f"{folder}/{Path(row['images'][0]).stem}"
    first, *later = row["messages"]
    shown = {**first, "content": first["content"].replace("<image>", "<image><image><image>")}
    return {**row, "images": [f"{stem}-{number}.png" for number in range(3)], "messages": [shown, *later]}


def write_synthetic(out: Path, forbidden: Iterable[str], rows: int = _SYNTHETIC, turns: int = 8) -> None:
    """drawn-boxes.jsonl: drawn boxes, as three pictures each, with statements, counts and descriptions.

    Args:
        forbidden: sentences, as of `plain`, that no statement may say word for word.
    """
    folder = out / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    left_out = set(forbidden)
    found: list[Row] = []
    number = 0
    while len(found) < rows:
        rng = Random(f"vlchat-boxes/{number}")
        world = boxes.sample_world(rng)
        told = [turn for _ in range(turns) if (turn := _turn(rng, world)) and _statement(turn) not in left_out]
        if told:
            stem = folder / f"{number:05}"
            cut(world.picture(), stem)
            messages = [
                {"role": role, "content": text}
                for turn in told
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            messages[0]["content"] = f"<image>\n{messages[0]['content']}"
            row = {"id": f"drawn-{number}", "images": [f"{number:05}.png"], "messages": messages}
            found.append(in_boxes(row, folder.name))
        number += 1
    _write(out / "drawn-boxes.jsonl", found)


def _statement(turn: tuple[str, str]) -> str:
    return plain(turn[0].removeprefix("True or false: "))


def _turn(rng: Random, world: boxes.World) -> tuple[str, str] | None:
    kind = rng.random()
    if kind < 0.08:
        return box_sentences.description(world, rng.randrange(3))
    if kind < 0.25:
        return box_sentences.how_many(rng, world)
    want = rng.random() < 0.5
    said = box_sentences.statement(rng, world, want)
    return (f"True or false: {said}", "true" if want else "false") if said else None


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
