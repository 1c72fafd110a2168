"""The configuration as a file for people: every value with its reason."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from vlchat.starting.choices import Choice, Settings
from vlchat.starting.machines import Machine
from vlchat.starting.sizes import Size
from vlchat.starting.survey import Survey

_COMMENT = 46  # the column of comments, where a value leaves room
_WIDTH = 118
_CONNECTORS = "connector|projector|merger|language_projection"  # what families call theirs


def document(run: str, size: Size, machine: Machine, seen: Survey, chosen: Settings) -> str:
    """The YAML of the run.

    Args:
        run: the folder that everything goes to.
    """
    how = {"full": "all of the language model learns", "lora": "LoRA", "qlora": "QLoRA"}[chosen.method]
    head = [
        f"Written by vlchat init: {size.name} on {Path(seen.config.path).name}, {machine}.",
        *seen.sentences(),
        f"{how[:1].upper()}{how[1:]}: {chosen.method_why}.",
        "Every key: docs/training.md.",
    ]
    lines = [line for sentence in head for line in _wrapped(sentence)]
    lines += [_line("run", run, "everything goes here"), "objective:", _line("  type", "tune", "stage 2")]
    whose = "the embedded model" if size.embedded else f"size by {size.source}"
    lines.append(_line("  model", size.model, whose))
    if chosen.method == "qlora":
        lines.append(_line("  quantize", "nf4", "the language model in 4 bits"))
    lines += _chosen("  dtype", chosen.dtype)
    lora = None if chosen.method == "full" else {"r": chosen.rank, "alpha": 2 * chosen.rank, "dropout": 0.05}
    lines.append(_line("  lora", lora, "alpha = 2 r, as LLaVA-1.5" if lora else "no adapter"))
    lines += _chosen("  checkpointing", chosen.checkpointing)
    lines += _chosen("  max_length", chosen.max_length) + _chosen("  too_long", chosen.too_long)
    lines += ["data:", f"  - {_flow(_source(seen))}", *_trainable(size, chosen), *_optim(size)]
    lines += ["loop:", *_loop(chosen)]
    if chosen.heldout.value:
        held = chosen.heldout.value | {"generate": 32, "batch": chosen.micro_batch.value or 16}
        lines.append(_line("heldout", held, chosen.heldout.why))
    else:
        lines.append(f"# heldout: {chosen.heldout.why}")
    lines += _chosen("max_bad", chosen.max_bad)
    return "\n".join(lines) + "\n"


def _source(seen: Survey) -> dict[str, Any]:
    config = seen.config
    given = {"path": config.path, "images": config.images, "format": config.format}
    found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return found if config.ids else found | {"ids": False}


def _trainable(size: Size, chosen: Settings) -> list[str]:
    if size.embedded:
        return [_line("trainable", {"language_model|connector": 1.0e-3}, "as configs/finetune-mini.yaml")]
    if chosen.method == "full":
        return ["# trainable: left out, it is the language model and the connector at 2.0e-5, LLaVA-1.5's rate"]
    return [_line("trainable", {"lora_": 2.0e-4, _CONNECTORS: 2.0e-5}, "LLaVA-1.5's rates")]


def _optim(size: Size) -> list[str]:
    if size.embedded:
        return [_line("optim", {"name": "muon", "warmup": 0.05}, "as configs/finetune-mini.yaml")]
    return [_line("optim", {"warmup": 0.03}, "AdamW without weight decay, then cosine, as LLaVA-1.5")]


def _loop(chosen: Settings) -> list[str]:
    lines = _chosen("  epochs", chosen.epochs) + _chosen("  steps", chosen.steps) + _chosen("  batch", chosen.batch)
    lines += _chosen("  micro_batch", chosen.micro_batch) + _chosen("  precision", chosen.precision)
    lines.append(_line("  workers", chosen.workers, "processes that prepare rows"))
    for key, why in (("sample_every", "steps between sample answers"), ("save_every", "steps between checkpoints")):
        lines.append(_line(f"  {key}", chosen.every, why))
    return lines


def _chosen(key: str, choice: Choice) -> list[str]:
    return [] if choice.value is None else [_line(key, choice.value, choice.why)]


def _line(key: str, value: Any, why: str) -> str:
    text = f"{key}: {_flow(value)}"
    return f"{text.ljust(_COMMENT)}  # {why}"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][\w./-]*", value) and value.lower() not in ("null", "true", "false", "no", "yes")
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and value < 0.01:
        return f"{value:.1e}"
    return json.dumps(value)


def _wrapped(sentence: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(sentence.split()), _WIDTH - 2, break_on_hyphens=False)]
