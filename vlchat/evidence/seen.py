"""Where image tokens lie in a picture, and the picture as the model saw it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from vlchat.evidence.likelihood import NoMap


def seen_pictures(
    processor: Any, pictures: Sequence[Image.Image], batch: Mapping[str, torch.Tensor]
) -> list[Image.Image]:
    """The pictures after the processor's crop, scale and padding.

    Pictures that are cut into tiles or strips of patches are shown as they came: the model saw all of each.

    Args:
        pictures: as they came.
        batch: what the processor made of them.
    """
    pixels = batch.get("pixel_values")
    if pixels is None or pixels.ndim != 4 or len(pixels) != len(pictures) or pixels.shape[1] != 3:
        return list(pictures)
    shown = as_pictures(processor, pixels)
    sizes = batch.get("image_sizes")  # of pictures that fill only a part of what all of a batch share
    if sizes is None:
        return shown
    return [one.crop((0, 0, width, height)) for one, (height, width) in zip(shown, sizes.tolist(), strict=True)]


def as_pictures(processor: Any, pixels: torch.Tensor) -> list[Image.Image]:
    """What a processor made of pictures or pieces of them, (pieces, 3, height, width), to be looked at."""
    maker = getattr(processor, "image_processor", processor)
    shown = pixels.detach().float().cpu().permute(0, 2, 3, 1).numpy()  # (pieces, height, width, channels)
    if getattr(maker, "do_normalize", True):
        shown = shown * np.asarray(maker.image_std) + np.asarray(maker.image_mean)
    if getattr(maker, "do_rescale", True):
        shown = shown / maker.rescale_factor
    return [Image.fromarray(one) for one in np.clip(shown.round(), 0, 255).astype(np.uint8)]


def on_grid(signal: torch.Tensor, number: int, batch: dict[str, torch.Tensor], model: Any) -> np.ndarray:
    """A picture's signal, one value a token, as a map (rows, columns) over the picture.

    Args:
        signal: (tokens,) of the picture that is the `number`th of the batch.
        model: without an adapter's wrapper.

    Raises:
        NoMap: tokens that have no places in the picture.
    """
    values = signal.float().cpu()
    grids, sizes = batch.get("image_grid_thw"), batch.get("image_sizes")
    pinpoints = getattr(model.config, "image_grid_pinpoints", None)
    if grids is not None and len(grids) > number:
        merged = getattr(model.config.vision_config, "spatial_merge_size", 1)
        time, height, width = (int(value) for value in grids[number])
        if len(values) == time * (height // merged) * (width // merged):
            return values.view(time, height // merged, width // merged).sum(0).numpy()
    elif sizes is not None and pinpoints is not None and batch["pixel_values"].ndim == 5:
        found = _tiled(values, [int(side) for side in sizes[number]], pinpoints, batch["pixel_values"].shape[-1])
        if found is not None:
            return found
    elif batch["pixel_values"].ndim == 4 and getattr(model.config, "qformer_config", None) is None:
        height, width = batch["pixel_values"].shape[-2:] if sizes is None else sizes[number].tolist()
        rows = round(math.sqrt(len(values) * height / width))
        if rows and rows * round(len(values) / rows) == len(values):
            return values.view(rows, -1).numpy()
    raise NoMap(
        f"This model gives no evidence map by its tokens because the {len(values)} of a picture have no places in it "
        f'(where {type(model).__name__} puts them is not known here). method="occlusion" works with any '
        "model."
    )


def _tiled(values: torch.Tensor, size: list[int], pinpoints: Any, tile: int) -> np.ndarray | None:
    """The map of LLaVA-NeXT's tokens: the whole picture's, then the tiles' rows, each with a newline at its end.

    What the whole picture's tokens tell is spread over the finer map of the tiles. None for another number of tokens.
    """
    rows, columns = get_anyres_image_grid_shape(size, pinpoints, tile)
    for side in range(1, math.isqrt(len(values)) + 1):  # the side of a piece's grid, which the number of tokens tells
        height, width = unpad_image(torch.empty(0, rows * side, columns * side), size).shape[1:]
        if side * side + height * (width + 1) == len(values):
            whole = values[: side * side].view(1, 1, side, side)
            fine = values[side * side :].view(height, width + 1)[:, :-1]  # a newline belongs to no place
            spread = torch.nn.functional.interpolate(whole, (height, width), mode="area")[0, 0]
            total = spread.abs().sum()
            return (fine + (spread * whole.abs().sum() / total if total else spread)).numpy()
    return None
