"""A vision tower at another resolution than it was trained at: more patches, their position embeddings interpolated.

As in ViT's fine-tuning (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2). What the tower makes of more patches
than it ever saw is worth little until tower or connector have learned from it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from vlchat.errors import ConfigError
from vlchat.model import VLChatForConditionalGeneration
from vlchat.towers.features import side_of_grid

_GRIDLESS = ("linear", "mlp")  # connectors that treat each patch by itself; the others count on a grid or on tokens


def set_image_size(model: Any, processor: Any, side: int) -> None:
    """Let a model see pictures of `side` x `side` pixels, and its processor make them. Both are changed in place.

    The number of image tokens grows with the square of the side.

    Raises:
        ConfigError: a model of another maker, a tower whose positions are no learned table (CLIP's and SigLIP's are),
            pictures in tiles, a connector with a fixed number of tokens, or a side that is no multiple of the patch.
    """
    if not isinstance(model, VLChatForConditionalGeneration):
        raise ConfigError(f"The image size of a {type(model).__name__} can't be changed here; leave image_size out.")
    config, tower = model.config, model.model.vision_tower
    vision: Any = config.vision_config
    place: Any = getattr(tower, "embeddings", None)
    table = getattr(place, "position_embedding", None)
    if not isinstance(table, nn.Embedding) or not hasattr(place, "position_ids"):
        raise ConfigError(f"A {vision.model_type} tower has no table of positions to enlarge; leave image_size out.")
    if config.image_grid_pinpoints is not None:
        raise ConfigError("The model cuts pictures into tiles of its tower's size; leave image_size out.")
    kind = (config.connector or {}).get("type")
    if kind not in _GRIDLESS or config.vision_feature_select_strategy != "patch":
        raise ConfigError(
            f"image_size needs a connector that takes patches one by one ({' or '.join(_GRIDLESS)}), and their own "
            f"tokens alone; this model has {kind} and {config.vision_feature_select_strategy}."
        )
    if side < vision.patch_size or side % vision.patch_size:
        raise ConfigError(f"image_size is {side}; it must be a multiple of the tower's patches of {vision.patch_size}.")
    patches = (side // vision.patch_size) ** 2
    before = (vision.image_size // vision.patch_size) ** 2
    prefix = len(table.weight) - before  # a class token, in CLIP
    larger = resized(table.weight.detach(), prefix, side // vision.patch_size)
    # The embedding stays the same module, with its dtype, its device and whether it trains.
    table.weight = nn.Parameter(larger, requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(larger)
    place.position_ids = torch.arange(len(larger), device=larger.device).expand(1, -1)
    place.image_size, place.num_patches, place.num_positions = side, patches, len(larger)
    for one in {id(vision): vision, id(tower.config): tower.config, id(place.config): place.config}.values():
        one.image_size = side
    config.image_seq_length = processor.image_seq_length = patches
    _enlarge(processor.image_processor, side)


def _enlarge(image_processor: Any, side: int) -> None:
    """Pictures of another side, cut out of the middle or squeezed as before."""
    kind = type(image_processor.size)  # a dict, or transformers' SizeDict
    square = kind(height=side, width=side)
    shortest = dict(image_processor.size).get("shortest_edge")
    image_processor.size = square if shortest is None else kind(shortest_edge=side)
    if getattr(image_processor, "crop_size", None) is not None:
        image_processor.crop_size = square


def resized(table: torch.Tensor, prefix: int, side: int) -> torch.Tensor:
    """Position embeddings of a square grid, interpolated bicubically to `side` x `side`.

    Args:
        table: (prefix + patches, dim); the first `prefix` belong to tokens that are no patches, and stay.

    Returns:
        (prefix + side * side, dim), of the same dtype.
    """
    first, patches = table[:prefix], table[prefix:]
    old = side_of_grid(len(patches), "table of positions")
    if old == side:
        return table.clone()
    grid = patches.float().view(1, old, old, -1).permute(0, 3, 1, 2)  # (1, dim, old, old)
    larger = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, larger.permute(0, 2, 3, 1).reshape(side * side, -1).to(table.dtype)])
