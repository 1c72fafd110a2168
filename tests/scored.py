"""A tiny model's folder and questions about grey squares, for tests of `vlchat eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def questions(folder: Path, count: int = 8) -> Path:
    """Questions about grey pictures, two a picture; half of them closed."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        level = number // 2 * 25 % 250
        Image.new("RGB", (8, 8), (level,) * 3).save(folder / f"{level}.png")
        kind, answer = ("open", str(level)) if number % 2 == 0 else ("closed", "yes")
        rows.append({"id": f"q{number}", "image": f"{level}.png", "question": f"What {kind} {number}?",
                     "answer": answer, "answer_type": kind})  # fmt: skip
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def saved(folder: Path, model: Any, processor: Any) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
