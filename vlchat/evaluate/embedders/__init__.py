"""Models that say how similar pictures and texts are: CLIP and its like, BLIP-2's first stage, and stage 1 of ours."""

from __future__ import annotations

from pathlib import Path

import torch

from vlchat.errors import CheckpointError, ConfigError, nearest
from vlchat.evaluate.embedders.base import Embedder, similarity
from vlchat.evaluate.embedders.likelihood import LikelihoodMatcher
from vlchat.folders import newest, read_manifest, refuse_pickles, verify
from vlchat.places import locate
from vlchat.reading import reading

__all__ = ["Embedder", "LikelihoodMatcher", "open_embedder", "similarity"]

_DTYPES = {
    "auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip


def open_embedder(
    model: str | Path | None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
) -> Embedder | None:
    """The embedder that a folder, run or Hub id holds; None for a model that only chats, to ask by `LikelihoodMatcher`.

    Args:
        dtype: `auto` is float32.
        device: `auto` is the GPU where there is one.

    Raises:
        CheckpointError: nothing can be read there, or it is damaged. ConfigError: an unknown dtype.
    """
    # Only here: a task that is only described needs no model classes.
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    from vlchat.evaluate.embedders.blip2 import Blip2Embedder
    from vlchat.evaluate.embedders.pairs import PairEmbedder, is_pair
    from vlchat.evaluate.embedders.stage1 import StageOneEmbedder
    from vlchat.heads.reading import is_stage_one

    if dtype not in _DTYPES:
        raise ConfigError(f'dtype is "{dtype}"; use {", ".join(_DTYPES)}{nearest(dtype, _DTYPES)}')
    if model is None:
        return None
    place, revision = locate(model, revision)
    target = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if isinstance(place, Path):
        place = newest(place)
        refuse_pickles(place)
        if (manifest := read_manifest(place)) is not None:
            verify(place, manifest)
            if manifest.get("base") is not None:
                return StageOneEmbedder(place, dtype=dtype, device=target) if is_stage_one(place) else None
        if not (place / "config.json").is_file():
            raise CheckpointError(f"{place} holds no model: it has no config.json.")
    options = {} if revision is None else {"revision": revision}
    with reading(place, "model"):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
    precision = _DTYPES[dtype]
    if "Blip2ForImageTextRetrieval" in (config.architectures or ()):
        return Blip2Embedder(place, dtype=precision, device=target, revision=revision)
    known = type(config) in MODEL_MAPPING and getattr(config, "vision_config", None) is not None
    if known and getattr(config, "text_config", None) is not None and is_pair(MODEL_MAPPING[type(config)]):
        return PairEmbedder(place, dtype=precision, device=target, revision=revision)
    return None
