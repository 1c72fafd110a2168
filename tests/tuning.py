"""A tiny model and a file of rows to tune it on, and the gradient of a whole batch however it is split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from train.terms import add, loss_of
from vlchat import VLChatProcessor
from vlchat.checkpoint import save_full
from vlchat.processor import add_image_token
from vlchat.towers import clip_image_processor

ANSWERS = ["A red circle.", "Two cats and one dog.", "no", "It is left of the blue square, and it is green.", "yes"]


def write_rows(folder: Path, picture: Callable[..., Any], rows: int = 8) -> Path:
    """Rows of one picture, of two, and of none, of unlike lengths; every third one has two turns."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row in range(rows):
        shown = [2, 1, 1, 0][row % 4]
        names = [f"{row}-{number}.png" for number in range(shown)]
        for number, name in enumerate(names):
            picture(10 * row + number, (24 + 6 * number, 24)).save(folder / name)
        turns = [("<image>\n" * shown + "What is in the picture?", ANSWERS[row % 5])]
        turns += [("How many?", ANSWERS[(row + 2) % 5])] * (row % 3 == 0)
        messages = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        written.append({"id": f"row-{row}", "messages": messages, "images": names})
    file = folder / "rows.json"
    file.write_text(json.dumps(written))
    return file


def write_base(
    folder: Path, model: Any, tokenizer: Any, template: str | Path = "chatml", image_tokens: int | None = None
) -> Path:
    """A whole model with its processor."""
    add_image_token(tokenizer, "<image>")
    count = image_tokens or model.config.image_seq_length
    save_full(
        folder, model, VLChatProcessor.from_backbones(clip_image_processor(24), tokenizer, count, template),
        trained_on="",
    )  # fmt: skip
    return folder


def opened(objective: Any, *words: str) -> dict[str, torch.nn.Parameter]:
    """Opens the parameters whose names hold one of the words, and closes the rest."""
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and any(word in name for word in words))
    return {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}


def step(
    objective: Any, pieces: Sequence[Sequence[int]], learning: dict[str, torch.nn.Parameter]
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """One step over rows in pieces, as the loop makes it: the terms' means over the whole batch, and the gradients."""
    batches = [objective.batch(piece) for piece in pieces]
    counts = add(map(objective.counts, batches))
    objective.zero_grad()
    totals: dict[str, float] = {}
    for batch in batches:
        terms = objective({name: value for name, value in batch.items() if name != "ids"})
        loss_of(terms, counts).backward()
        for name, term in terms.items():
            totals[name] = totals.get(name, 0.0) + term.total.item()
    gradients = {name: parameter.grad.clone() for name, parameter in learning.items() if parameter.grad is not None}
    return {name: total / counts[name] for name, total in totals.items()}, gradients


def same(
    one: tuple[dict[str, float], dict[str, torch.Tensor]], two: tuple[dict[str, float], dict[str, torch.Tensor]]
) -> None:
    """Terms and gradients within 1e-6, of a parameter's largest gradient where that is above 1."""
    assert one[0].keys() == two[0].keys() and one[1].keys() == two[1].keys() and one[1]
    for name, value in one[0].items():
        torch.testing.assert_close(value, two[0][name], rtol=1e-6, atol=1e-6)
    for name, gradient in one[1].items():
        close = 1e-6 * max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(
            gradient, two[1][name], rtol=1e-6, atol=close, msg=lambda text, name=name: f"{name}: {text}"
        )
