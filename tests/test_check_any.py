"""Rows of any shape: the check never stumbles, and what it passes can be trained on."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from vlchat.data import Collator, Source, check, inspect, quarantine

JUNK: list[Any] = [
    None, "", 0, -1, 1.5, float("nan"), float("inf"), True, [], {}, [[]], [None], {"a": 1}, "\0", "\ud800", "../x",
    "/etc/hostname", "<image>", "<image><image>", "data:;base64,aa", "http://a/b", {"bytes": None, "path": None},
    {"type": "image"}, [{"type": "image"}], [{"type": "text"}], [{"type": "video", "video": "a.gif"}], b"abc", "C:\\x",
    "a" * 300, "\u200b", ["a", "b"], {"from": "human"}, {"role": "user", "content": "x"},
]  # fmt: skip
KEYS = ("image", "images", "messages", "conversations", "text", "role", "from", "value", "content", "question")


def spoiled(value: Any, rng: random.Random) -> Any:
    """A value with some of its parts exchanged, left out, renamed or doubled."""
    if rng.random() < 0.08:
        return copy.deepcopy(rng.choice(JUNK))
    if isinstance(value, dict):
        kept = {key: spoiled(part, rng) for key, part in value.items() if rng.random() > 0.04}
        return {key if rng.random() > 0.03 else rng.choice(KEYS): part for key, part in kept.items()}
    if isinstance(value, list):
        parts = [spoiled(part, rng) for part in value]
        return parts + [copy.deepcopy(rng.choice(parts))] if parts and rng.random() < 0.1 else parts
    return value


@pytest.mark.parametrize("seed", range(6))
def test_no_row_ends_the_check_and_what_passes_it_can_be_trained_on(
    tmp_path: Path, tiny_processor: Any, picture: Any, seed: int
) -> None:
    for name in ("a.png", "b.png"):
        picture(seed, (40, 30)).save(tmp_path / name)
    good: list[dict[str, Any]] = [
        {"id": "l", "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red circle."}]},
        {"id": "m", "images": ["a.png", "b.png"], "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]},
            {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."}]},
        {"id": "c", "image": "b.png", "caption": "A cat."},
        {"id": "v", "image": "a.png", "question": "How many?", "answers": ["2", "2", "3"]},
    ]  # fmt: skip
    rng = random.Random(seed)
    rows = [spoiled(row | {"id": f"{row['id']}{number}"}, rng) for number in range(40) for row in good]
    source = Source(rows, name="rows", roots=[tmp_path])
    found = check(source, processor=tiny_processor, max_length=400, workers=0)
    assert 20 < found.bad_rows < 150, "some are spoiled and some are not"
    json.loads(json.dumps(found.to_dict()))
    found.render().encode()
    assert quarantine(tmp_path / "quarantine.jsonl", found.bad) == len(set(found.bad))
    left_out = {fault.row - 1 for fault in found.bad}
    cheap = set(inspect([source], max_bad=len(rows)).left_out[0])
    assert cheap <= left_out, "the cheap part finds nothing that the whole does not"
    usable = [source[row] for row in range(len(rows)) if row not in left_out]
    collated = Collator(tiny_processor, 400).collate(usable)
    assert collated.bad == [] and len(collated.kept) == len(usable)
