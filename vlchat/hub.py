"""Checkpoints on the Hub that are folders of ours or adapters, and what the Hub says of any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlchat.folders import ADAPTER_CONFIG, MANIFEST, PICKLES
from vlchat.reading import reading


def snapshot(repository: str, revision: str | None = None) -> Path | None:
    """The downloaded folder of a vlchat checkpoint or a PEFT adapter; None for every other repository.

    Raises:
        CheckpointError: it is one, and cannot be downloaded whole.
    """
    ours = _has(repository, MANIFEST, revision)
    adapter = not ours and not _has(repository, "config.json", revision) and _has(repository, ADAPTER_CONFIG, revision)
    if not (ours or adapter):
        return None
    from huggingface_hub import snapshot_download

    unread = [f"*{ending}" for ending in PICKLES] + ["training_state/*"]
    with reading(repository, "checkpoint"):
        return Path(snapshot_download(repository, revision=revision, ignore_patterns=unread))


def describe(repository: str, revision: str | None = None) -> dict[str, Any]:
    """The model types of a checkpoint on the Hub, from its configuration.

    Raises:
        CheckpointError: there is none of that name, or it is neither here nor within reach.
    """
    from transformers import AutoConfig

    with reading(repository, "checkpoint"):
        config = AutoConfig.from_pretrained(repository, revision=revision)
    parts = {name: getattr(config, f"{name}_config", None) for name in ("vision", "text")}
    return {
        "vision": getattr(parts["vision"], "model_type", None),
        "language": getattr(parts["text"] or config, "model_type", None),
    }


def facts(repository: str, revision: str | None = None) -> dict[str, Any]:
    """What only the Hub's own page knows: `parameters` and `licence`, as far as it can be reached."""
    import httpx
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=10)
    except (OSError, httpx.HTTPError):
        return {}
    found = {
        "parameters": getattr(info.safetensors, "total", None),
        "licence": getattr(info.card_data, "license", None),
    }
    return {name: value for name, value in found.items() if value is not None}


def _has(repository: str, file: str, revision: str | None) -> bool:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_download(repository, file, revision=revision)
    except (OSError, HFValidationError):  # absent, or out of reach: whoever loads it says so
        return False
    return True
