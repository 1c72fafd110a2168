"""Checkpoints on the Hub that are folders of ours or adapters, and what the Hub says of any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlchat.errors import CheckpointError
from vlchat.folders import ADAPTER_CONFIG, MANIFEST, PICKLES
from vlchat.reading import reading


def snapshot(repository: str, revision: str | None = None) -> Path | None:
    """The downloaded folder of a vlchat checkpoint or a PEFT adapter; None for every other repository.

    Raises:
        CheckpointError: it is neither here nor within reach, or cannot be downloaded whole.
    """
    ours = _has(repository, MANIFEST, revision)
    if ours is None:
        here = [name for name in ("config.json", ADAPTER_CONFIG) if _cached(repository, name, revision)]
        if not here:
            raise CheckpointError(
                f"The checkpoint {repository} can't be loaded: there is no such folder here, and as an id on the Hub: "
                "it was not downloaded, and the Hub can't be reached."
            )
        adapter = here == [ADAPTER_CONFIG]
    else:
        whole = _has(repository, "config.json", revision)
        adapter = not ours and not whole and bool(_has(repository, ADAPTER_CONFIG, revision))
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
        config = AutoConfig.from_pretrained(repository, revision=revision, trust_remote_code=False)
    parts = {name: getattr(config, f"{name}_config", None) for name in ("vision", "text")}
    return {
        "vision": getattr(parts["vision"], "model_type", None),
        "language": getattr(parts["text"] or config, "model_type", None),
    }


def facts(repository: str, revision: str | None = None) -> dict[str, Any]:
    """What only the Hub's own page knows: `parameters` and `licence`, as far as it can be reached."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, revision=revision, timeout=10)
    except unreachable():
        return {}
    found = {
        "parameters": getattr(info.safetensors, "total", None),
        "licence": getattr(info.card_data, "license", None),
    }
    return {name: value for name, value in found.items() if value is not None}


def unreachable() -> tuple[Any, ...]:
    """What huggingface_hub raises where the Hub is out of reach or refuses; which HTTP client it uses has changed."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, HfHubHTTPError.__bases__[0])


def _has(repository: str, file: str, revision: str | None) -> bool | None:
    """Whether a repository has a file; None where that is not known here and the Hub is out of reach."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    known = _cached(repository, file, revision)
    if known is not None:
        return known
    try:
        hf_hub_download(repository, file, revision=revision)
    except LocalEntryNotFoundError:
        return None
    except (HFValidationError, *unreachable()):
        return False
    return True


def _cached(repository: str, file: str, revision: str | None) -> bool | None:
    """What earlier downloads know of a file: that it is there, that it is not, or nothing."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, file, revision=revision)
    except HFValidationError:
        return False
    return None if found is None else isinstance(found, str)
