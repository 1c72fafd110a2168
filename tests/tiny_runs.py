"""Tiny runs: coloured squares with questions, and a model small enough to train on them in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from train.__main__ import main
from vlchat import runs
from vlchat.saving import save_full

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (30, 60, 220), "yellow": (240, 220, 40)}
LOOP = {"steps": 4, "batch": 4, "log_every": 1, "sample_every": 100, "save_every": 2, "workers": 0}


def squares(folder: Path, pictures: int = 8, name: str = "data.json", first: int = 0) -> Path:
    """A file of two questions a picture, the colour and whether it is red."""
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + pictures):
        colour = list(COLOURS)[number % len(COLOURS)]
        Image.new("RGB", (24, 24), COLOURS[colour]).save(folder / f"square-{number}.png")
        for kind, question, answer in (
            ("colour", "What colour is it?", colour),
            ("red", "Is it red?", "yes" if colour == "red" else "no"),
        ):
            row = {"id": f"{kind}-{number}", "image": f"square-{number}.png", "question": question, "answer": answer}
            rows.append(row)
    (folder / name).write_text(json.dumps(rows))
    return folder / name


def base(folder: Path, tiny_model: Callable[..., Any], tiny_processor: Any) -> Path:
    """A whole tiny model to start from."""
    save_full(folder / "base", tiny_model(), tiny_processor, trained_on="nothing")
    return folder / "base"


def config_of(folder: Path, model: Path, data: Path, **keys: Any) -> dict[str, Any]:
    """A run of stage 2 with dropout, so that every draw of a random number shows in the weights."""
    loop = LOOP | keys.pop("loop", {})
    return {
        "run": str(folder),
        "objective": {
            "type": "tune", "model": str(model), "lora": {"r": 2, "alpha": 4, "dropout": 0.1}, "sample_tokens": 2,
        },
        "data": [{"path": str(data)}],
        "trainable": {"lora_": 1e-2, "connector": 1e-2},
        "loop": loop,
        **keys,
    }  # fmt: skip


def train(folder: Path, model: Path, data: Path, *extra: str, **keys: Any) -> Path:
    """Trains into `folder` and returns it."""
    file = folder.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config_of(folder, model, data, **keys)))  # JSON is YAML
    assert main([str(file), *extra]) == 0
    return folder


def logged(run: Path, name: str) -> dict[int, float]:
    """One figure of a run by its steps."""
    return {line["step"]: line[name] for line in runs.lines(run / runs.METRICS) if name in line}
