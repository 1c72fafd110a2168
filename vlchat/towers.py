"""Vision towers: any transformers vision model, by path or Hub id, with its image processor.

A tower of one backbone needs no code here. One composed of several goes into `TOWERS` as a function that builds it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    BaseImageProcessor,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPImageProcessorPil,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
    PreTrainedModel,
)

# Not from transformers itself: in 5.17 that name insists on torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from vlchat.errors import ConfigError
from vlchat.reading import reading

# transformers knows these towers inside their own families alone.
AutoModel.register(Blip2VisionConfig, Blip2VisionModel, exist_ok=True)
AutoModel.register(InstructBlipVisionConfig, InstructBlipVisionModel, exist_ok=True)

# Composed towers: NAME -> a function that builds one from keyword arguments.
TOWERS: dict[str, Callable[..., PreTrainedModel]] = {}


def load_tower(source: str | Path | PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
    """A vision tower from a model, a local folder or a Hub id. Of a CLIP-like pair, the vision half is taken.

    Args:
        source: where the tower is.
        kwargs: passed to `from_pretrained` (dtype, device_map, revision ...).

    Raises:
        ConfigError: when what is found there is not a vision model.
        CheckpointError: when nothing can be read there; pickled weights are not.
    """
    if isinstance(source, PreTrainedModel):
        model: PreTrainedModel = source
    elif str(source) in TOWERS:
        return TOWERS[str(source)](**kwargs)
    else:
        with reading(source, "vision tower"):
            # A pair is loaded as a pair, so that its text half's tensors are not reported as unexpected.
            model = AutoModel.from_pretrained(source, use_safetensors=True, **kwargs)
    if getattr(model.config, "vision_config", None) is not None and hasattr(model, "vision_model"):
        model = model.vision_model  # type: ignore[assignment]
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise ConfigError(f"{model.__class__.__name__} at {_name(source)} is not a vision model: it takes no pictures.")
    return model


def load_image_processor(source: str | Path, **kwargs: Any) -> BaseImageProcessor:
    """The image processor beside a tower, in its Pillow variant, which needs no torchvision."""
    with reading(source, "image processor"):
        return AutoImageProcessor.from_pretrained(source, backend="pil", **kwargs)


def clip_image_processor(image_size: int) -> CLIPImageProcessorPil:
    """CLIP's own picture preparation, to `image_size` pixels square: the shorter side scaled, the middle cut out."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def num_patches(vision_config: Any, height: int | None = None, width: int | None = None) -> int:
    """How many patch tokens a picture of that many pixels (the tower's own size when absent) becomes.

    Raises:
        ConfigError: for a tower without patches.
    """
    patch, size = getattr(vision_config, "patch_size", None), getattr(vision_config, "image_size", None)
    if patch is None or (size is None and height is None):
        raise ConfigError(
            f"A {vision_config.model_type} tower has no patch_size and image_size; "
            'use vision_feature_select_strategy="full" with it.'
        )
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    if height is None or width is None:
        height, width = (size, size) if isinstance(size, int) else size  # type: ignore[misc]
    return (height // patch_height) * (width // patch_width)


def count_features(tower: PreTrainedModel, strategy: str) -> int:
    """How many features one picture of the tower's own size gives under a select strategy."""
    if strategy == "cls":
        return 1
    if strategy == "patch":
        return num_patches(tower.config)
    size = tower.config.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    pixels = torch.zeros(1, getattr(tower.config, "num_channels", 3), height, width)
    with torch.no_grad():
        return tower(pixels.to(tower.device, tower.dtype)).last_hidden_state.shape[1]


def select_features(features: torch.Tensor, strategy: str, patches: int) -> torch.Tensor:
    """Keeps the tokens of `features` (images, tokens, dim) that the strategy names.

    The class token and any registers come before the patches; towers differ in how many (CLIP 1, SigLIP 0), so they
    are counted from the end instead of assuming one.

    Raises:
        ConfigError: for `cls` on a tower that has no class token.
    """
    if strategy == "full":
        return features
    prefix = features.shape[1] - patches
    if strategy == "patch":
        return features[:, prefix:]
    if prefix < 1:
        raise ConfigError('This tower has no class token; use vision_feature_select_strategy="patch" or "full".')
    return features[:, :1]


def _name(source: str | Path | PreTrainedModel) -> str:
    return "memory" if isinstance(source, PreTrainedModel) else str(source)
