"""Towers composed of others: `{type: name, **kwargs}` -> a model, and the image processor that goes with it.

To add one, write the model in `vlchat.towers.composed`, put a function that builds it into `TOWERS`, and one that gives
its image processor into `_PROCESSORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BaseImageProcessor, PreTrainedModel

from vlchat.errors import ConfigError
from vlchat.named import named
from vlchat.towers import load_image_processor, load_tower, made_size, picture_size
from vlchat.towers.composed import ConcatTower, ConcatTowerConfig, Layer, MultiscaleTower, MultiscaleTowerConfig, join
from vlchat.towers.features import measure_features
from vlchat.towers.tiles import tile_image_processor

# What a tower is built from: a model, a local folder, a Hub id, or `{type: name of TOWERS, **kwargs}`.
Vision = str | Path | PreTrainedModel | dict[str, Any]


def concat(
    layer: Layer, options: dict[str, Any], towers: list[str], layers: list[Layer] | None = None
) -> PreTrainedModel:
    """Two towers side by side, see `ConcatTower`.

    Args:
        layer: of both towers, where `layers` does not say otherwise.
        options: of `from_pretrained`.
        towers: paths or Hub ids. Pictures are prepared for the first.
        layers: which hidden state of each is taken.
    """
    if not _sources(towers) or len(towers) != 2:
        raise ConfigError(f"A concat tower's towers are a list of 2 paths or Hub ids, not {towers}.")
    if layers is not None and (not isinstance(layers, list) or len(layers) != 2):
        raise ConfigError(f"A concat tower's layers are a list of 2, one for each tower, not {layers}.")
    real = [load_tower(source, **options) for source in towers]
    chosen = layers or [layer, layer]
    sizes = [_working_size(source, tower) for source, tower in zip(towers, real, strict=True)]
    widths = [measure_features(t, which, "patch", size)[1] for t, which, size in zip(real, chosen, sizes, strict=True)]
    (mean, std), (second_mean, second_std) = (_normalization(source) for source in towers)
    config = ConcatTowerConfig(
        first_config=real[0].config,
        second_config=real[1].config,
        first_layer=chosen[0],
        second_layer=chosen[1],
        widths=widths,
        image_size=list(sizes[0]),
        second_image_size=list(sizes[1]),
        second_scale=[a / b for a, b in zip(std, second_std, strict=True)],
        second_shift=[(a - b) / c for a, b, c in zip(mean, second_mean, second_std, strict=True)],
    )
    with torch.device("meta"):
        skeleton = ConcatTower(config)
    return join(skeleton, first=real[0], second=real[1])


def multiscale(
    layer: Layer, options: dict[str, Any], tower: str, scales: Sequence[int] = (1, 2), layers: list[Layer] | None = None
) -> PreTrainedModel:
    """One tower at several scales, see `MultiscaleTower`.

    Args:
        layer: where `layers` does not say otherwise.
        options: of `from_pretrained`.
        tower: path or Hub id.
        scales: 1 is the picture as the tower alone sees it.
        layers: `[which hidden state is taken]`.
    """
    listed = isinstance(scales, list | tuple) and len(scales) > 0
    if not listed or any(type(scale) is not int or scale < 1 for scale in scales):
        raise ConfigError(f"A multiscale tower's scales are a list of whole numbers from 1 on, not {scales}.")
    if layers is not None and (not isinstance(layers, list) or len(layers) != 1):
        raise ConfigError(f"A multiscale tower's layers are a list of 1, for its tower, not {layers}.")
    if not _sources([tower]):
        raise ConfigError(f"A multiscale tower's tower is a path or Hub id, not {tower}.")
    real = load_tower(tower, **options)
    which = layers[0] if layers else layer
    size = _working_size(tower, real)
    config = MultiscaleTowerConfig(
        tower_config=real.config,
        layer=which,
        scales=list(scales),
        width=measure_features(real, which, "patch", size)[1],
        tile_size=list(size),
    )
    with torch.device("meta"):
        skeleton = MultiscaleTower(config)
    return join(skeleton, tower=real)


def image_processor_of(
    vision: str | Path | dict[str, Any], pinpoints: list[list[int]] | None = None
) -> BaseImageProcessor:
    """The image processor that goes with a tower, composed or not.

    A concat tower takes the first tower's; a multiscale tower its tower's, with pictures of the largest scale.

    Args:
        pinpoints: `image_grid_pinpoints` of a model that is shown tiles.

    Raises:
        ConfigError: as `compose_tower`.
        CheckpointError: when a tower has no image processor beside it.
    """
    if isinstance(vision, dict):
        build, options = named(_PROCESSORS, vision, "tower", given=0)
        processor = build(**options)
    else:
        processor = load_image_processor(vision)
    if pinpoints is None:
        return processor
    return tile_image_processor(processor, made_size(processor, str(vision)), pinpoints)


def _first_processor(towers: list[str], layers: Any = None) -> BaseImageProcessor:
    return load_image_processor(towers[0])


def _largest_processor(tower: str, scales: Sequence[int] = (1, 2), layers: Any = None) -> BaseImageProcessor:
    """The tower's own, which makes pictures `max(scales)` times as large."""
    processor: Any = load_image_processor(tower)
    for name in ("size", "crop_size"):
        size = getattr(processor, name, None)
        if size:
            setattr(processor, name, {key: value * max(scales) for key, value in dict(size).items() if value})
    return processor


# Composed towers: NAME -> a function of the layer to take, the options of from_pretrained, and keyword arguments.
TOWERS: dict[str, Callable[..., PreTrainedModel]] = {"concat": concat, "multiscale": multiscale}
_PROCESSORS: dict[str, Callable[..., BaseImageProcessor]] = {
    "concat": _first_processor,
    "multiscale": _largest_processor,
}


def compose_tower(vision: dict[str, Any], layer: Layer, **options: Any) -> PreTrainedModel:
    """A tower of `{type: name, **kwargs}`. Its features are its `last_hidden_state`, patches alone.

    Args:
        layer: which hidden state of its parts is taken, where `vision` does not say otherwise.
        options: of `from_pretrained`.

    Raises:
        ConfigError: for an unknown type or argument, or parts that do not go together.
        CheckpointError: as `load_tower`.
    """
    build, kwargs = named(TOWERS, vision, "tower", given=2)
    return build(layer, options, **kwargs)


def backbone_sources(vision: str | Path | dict[str, Any]) -> list[str]:
    """The paths or Hub ids that a tower is built from."""
    if not isinstance(vision, dict):
        return [str(vision)]
    found = vision.get("towers", vision.get("tower"))
    return [str(source) for source in found] if isinstance(found, list) else [str(found)]


def with_sources(vision: str | Path | dict[str, Any], sources: Sequence[str]) -> str | dict[str, Any]:
    """The same tower, built from other paths or Hub ids, in the order of `backbone_sources`."""
    if not isinstance(vision, dict):
        return sources[0]
    return {**vision, **({"towers": list(sources)} if "towers" in vision else {"tower": sources[0]})}


def tower_spec(config: Any, sources: Sequence[str]) -> str | dict[str, Any]:
    """What builds the tower of this configuration again from the backbones it was built from."""
    if isinstance(config, ConcatTowerConfig):
        return {"type": "concat", "towers": list(sources), "layers": [config.first_layer, config.second_layer]}
    if isinstance(config, MultiscaleTowerConfig):
        return {"type": "multiscale", "tower": sources[0], "scales": list(config.scales), "layers": [config.layer]}
    return sources[0]


def _sources(towers: Any) -> bool:
    return isinstance(towers, list | tuple) and all(isinstance(source, str | Path) for source in towers)


def _working_size(source: str, tower: PreTrainedModel) -> tuple[int, int]:
    size = picture_size(source) or getattr(tower.config, "image_size", None)
    if size is None:
        raise ConfigError(
            f"The tower {source} does not say how large its pictures are: put its preprocessor_config.json beside it."
        )
    return (size, size) if isinstance(size, int) else tuple(size)


def _normalization(source: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel that a tower's pictures are prepared with."""
    processor: Any = load_image_processor(source)
    if not processor.do_normalize:
        return [0.0] * 3, [1.0] * 3
    return list(processor.image_mean), list(processor.image_std)
