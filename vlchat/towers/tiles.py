"""High resolution by tiles, as LLaVA-NeXT does it (anyres).

A picture is scaled to the best fitting of some grids of tiles, and padded there. The tower sees it once as a whole and
then each tile. The tiles' tokens are put together to one map, from which the padding is cut off; every row of the map
ends with a newline embedding. How many tokens that makes depends on the shape of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BaseImageProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from vlchat.errors import ConfigError
from vlchat.towers.features import side_of_grid

# `max_tiles`, or the sizes (height, width) in pixels that a picture may be scaled to.
Tiles = int | Sequence[Sequence[int]]


def grid_pinpoints(tiles: Tiles, size: Sequence[int]) -> list[list[int]]:
    """The sizes (height, width) in pixels that pictures may be scaled to.

    Args:
        tiles: at most so many tiles for a picture: every grid of at least two is taken. Or the sizes themselves.
        size: height and width of one tile.

    Raises:
        ConfigError: for fewer than two tiles, sizes that are no whole numbers of tiles, or tiles that are not square.
    """
    height, width = size
    if height != width:
        raise ConfigError(f"Tiles must be square; this tower is shown {height} x {width} pixels.")
    if isinstance(tiles, int):
        if tiles < 2:
            raise ConfigError(f"tiles is {tiles}; it must be at least 2, or left out for pictures in one piece.")
        shapes = [(rows, columns) for rows in range(1, tiles + 1) for columns in range(1, tiles // rows + 1)]
        return [[rows * height, columns * width] for rows, columns in shapes if rows * columns > 1]
    pinpoints = [list(pinpoint) for pinpoint in tiles]
    if not pinpoints or any(len(p) != 2 or min(p) < 1 or p[0] % height or p[1] % width for p in pinpoints):
        raise ConfigError(
            f"tiles is {pinpoints}; it must be a number, or a list of heights and widths that are multiples of "
            f"{height} pixels, the side of one tile."
        )
    return pinpoints


def tile_image_processor(whole: Any, size: Sequence[int], pinpoints: list[list[int]]) -> BaseImageProcessor:
    """transformers' own image processor of LLaVA-NeXT, with the normalization of a tower's.

    Args:
        whole: the tower's image processor.
        size: height and width of one tile.
    """
    kept = ("resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    options = {name: getattr(whole, name) for name in kept if getattr(whole, name, None) is not None}
    side = {"height": size[0], "width": size[1]}
    return LlavaNextImageProcessorPil(size=side, crop_size=side, image_grid_pinpoints=pinpoints, **options)


def image_lengths(prepared: Any, images: int, image_processor: Any, image_seq_length: int) -> list[int]:
    """How many image tokens each picture takes.

    Args:
        prepared: what the image processor made of the pictures.
        images: how many they are.
        image_seq_length: tokens of one piece, a tile or a picture as a whole.
    """
    if "image_sizes" not in prepared:
        return [image_seq_length] * images
    side = side_of_grid(image_seq_length, "division into tiles")
    tile = prepared["pixel_values"][0].shape[-1]
    lengths = []
    for size in prepared["image_sizes"]:
        height, width = (int(pixels) for pixels in size)
        rows, columns = get_anyres_image_grid_shape((height, width), image_processor.image_grid_pinpoints, tile)
        # Cutting off the padding of an empty map tells the shape of a real one.
        shape = unpad_image(torch.empty(0, rows * side, columns * side), (height, width)).shape
        lengths.append(image_seq_length + shape[1] * (shape[2] + 1))
    return lengths


def flat_tiles(
    pixel_values: torch.Tensor, image_sizes: torch.Tensor, pinpoints: list[list[int]]
) -> tuple[torch.Tensor, list[int]]:
    """The pieces of all pictures in one row, and how many belong to each.

    Args:
        pixel_values: (images, pieces, channels, height, width), filled up with blank pieces.
        image_sizes: (images, 2), height and width of the pictures as they came.
    """
    tile = pixel_values.shape[-1]
    counts = [image_size_to_num_patches(size, pinpoints, tile) for size in image_sizes.tolist()]
    return torch.cat([pieces[:count] for pieces, count in zip(pixel_values, counts, strict=True)]), counts


def pack_tiles(
    features: torch.Tensor, counts: list[int], image_sizes: torch.Tensor, pinpoints: list[list[int]], tile: int,
    newline: torch.Tensor,
) -> list[torch.Tensor]:  # fmt: skip
    """The tokens of each picture: those of the whole, then its tiles row by row.

    Args:
        features: (pieces, tokens, hidden), of `flat_tiles`.
        tile: side of a tile in pixels.
        newline: (hidden,), ends each row.

    Returns:
        For each picture (image_tokens, hidden).
    """
    side = side_of_grid(features.shape[1], "division into tiles")
    packed = []
    for pieces, size in zip(features.split(counts), image_sizes.tolist(), strict=True):
        rows, columns = get_anyres_image_grid_shape(size, pinpoints, tile)
        grid = pieces[1:].view(rows, columns, side, side, -1).permute(4, 0, 2, 1, 3)
        whole = unpad_image(grid.flatten(1, 2).flatten(2, 3), size)  # (hidden, height, width)
        ends = newline[:, None, None].expand(-1, whole.shape[1], 1).to(whole)
        lines = torch.cat([whole, ends], dim=-1).flatten(1).transpose(0, 1)
        packed.append(torch.cat([pieces[0], lines]))
    return packed
