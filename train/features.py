"""The features of pictures that a frozen tower gives, kept on disk between steps, epochs and runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
import transformers

from vlchat.data.opening import KNOWN, KNOWN_FEATURES, PICTURES, SHOWN
from vlchat.data.pictures import cache_folder
from vlchat.errors import ConfigError
from vlchat.feature_cache import FeatureCache, tensors_digest
from vlchat.lora import bare
from vlchat.model import VLChatForConditionalGeneration

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WHY = {
    "augment": "which shows each picture in another way each time",
    "distill": "whose teacher looks at the pictures themselves",
}
_LATER = ("_name_or_path", "transformers_version", "dtype")  # of a configuration: told apart, or of no matter


@dataclass
class FeatureCacheConfig:
    """Where features are kept, and how many.

    Attributes:
        path: a folder, which runs and models may share; null is `vlchat/features` in the user's cache folder.
        gib: how much all of it may take.
    """

    path: str | None = None
    gib: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.gib < math.inf:
            raise ConfigError(f"objective.feature_cache.gib must be above 0, not {self.gib:g}.")


class TowerFeatures:
    """A frozen tower behind a cache.

    A picture that is not known is encoded by itself, never among others: on some machines a row of a larger product
    has other last bits, and what stands on disk must not depend on which pictures met in a batch.

    Args:
        cache: as `features_on_disk` opens it.
        model: with or without a peft adapter around it.
        precision: of the run: "no", "bf16" or "fp16".
        device: that the model is on.

    Raises:
        ConfigError: the tower learns.
    """

    def __init__(self, cache: FeatureCache, model: Any, precision: str, device: torch.device) -> None:
        self.cache, self.precision, self.device = cache, precision, device
        self.model = bare(model).model
        trained = (name for name, parameter in self.model.vision_tower.named_parameters() if parameter.requires_grad)
        if learning := next(trained, None):
            raise ConfigError(
                f"objective.feature_cache keeps what a frozen tower makes of pictures, and {learning} of this tower "
                "trains. Leave objective.feature_cache out, or close the tower in trainable."
            )

    def of(self, batch: dict[str, Any], pixel_values: torch.Tensor | None) -> torch.Tensor:
        """The features of a batch's pictures in reading order, (images, patches, vision_dim). New ones are kept.

        Args:
            batch: with what `Opening` puts into it.
            pixel_values: of the pictures in SHOWN, as the tower takes them.
        """
        found = dict(zip(batch[KNOWN], batch.get(KNOWN_FEATURES, ()), strict=True))
        dtype, device = _DTYPES.get(self.precision), self.device.type
        # As in a step, wherever this is called from: a warm start is under no autocast.
        with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            for key, pixels in zip(batch[SHOWN], () if pixel_values is None else pixel_values, strict=True):
                found[key] = self.model.get_tower_features(pixels[None])[1][0]
                self.cache.put(key, found[key])
        return torch.stack([found[key] for key in batch[PICTURES]])


def features_on_disk(
    config: FeatureCacheConfig, model: Any, processor: Any, scaled: bool, precision: str, device: torch.device
) -> FeatureCache:
    """Where the features of a model's tower are kept: apart from those of any other weights or settings.

    Args:
        model, precision, device: as of `TowerFeatures`.
        processor: the model's own.
        scaled: how pictures are decoded, as of `vlchat.data.opening.Opening`.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    inner = bare(model).model
    own, tower = inner.config, inner.vision_tower
    looks = {name: value for name, value in tower.config.to_dict().items() if name not in _LATER}
    depends = {
        "format": 1,
        "weights": tensors_digest(tower),
        "tower": looks,
        "layer": own.vision_feature_layer,
        "strategy": own.vision_feature_select_strategy,
        "attention": tower.config._attn_implementation,
        "precision": precision,
        "device": device.type,
        "processor": processor.image_processor.to_dict(),
        "scaled": scaled,
        "versions": [torch.__version__, transformers.__version__, PIL.__version__],
    }
    folder = Path(config.path) if config.path is not None else cache_folder() / "features"
    return FeatureCache(folder, config.gib, depends)


def check_features(model: Any, **others: Any) -> None:
    """Whether what the model's tower makes of pictures can be kept.

    Args:
        others: keys of the objective, by name, that look at pictures in another way; those that are set are refused.

    Raises:
        ConfigError: it can't.
    """
    own = bare(model)
    if not isinstance(own, VLChatForConditionalGeneration):
        raise ConfigError(
            f"objective.feature_cache: how a {type(own).__name__} joins pictures and text is its own matter, and their "
            "features can't be put in. Leave objective.feature_cache out."
        )
    if own.config.image_grid_pinpoints is not None:
        raise ConfigError(
            "objective.feature_cache keeps pictures that are seen whole, and this model cuts them into tiles. Leave "
            "objective.feature_cache out."
        )
    for name in [name for name, chosen in others.items() if chosen]:
        raise ConfigError(
            f"objective.feature_cache can't be used beside objective.{name}, {_WHY[name]}. Choose one of them."
        )
