"""What a model saw of its pictures: after cropping and scaling, piece by piece, in how many tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from vlchat.chat import Chat
from vlchat.conversation import Message, decoded
from vlchat.evidence.likelihood import bare
from vlchat.evidence.seen import as_pictures, seen_pictures
from vlchat.prompt import pictures_of


@dataclass(frozen=True)
class Saw:
    """One picture of a conversation, as a model took it in. Sizes are (width, height) in pixels.

    Attributes:
        came: its size as it came, upright.
        picture: as the model saw it; None where that is not known here.
        pieces: what it was cut into, the whole picture among them where the model saw that too; none where it saw the
            picture in one piece.
        grid: rows and columns of the tiles, where they are known.
        tokens: that the language model read for it; None where they cannot be told from other pictures'.
    """

    came: tuple[int, int]
    picture: Image.Image | None
    pieces: tuple[Image.Image, ...] = ()
    grid: tuple[int, int] | None = None
    tokens: int | None = None


def saw(chat: Chat, messages: Sequence[Message]) -> list[Saw]:
    """What the model saw of a conversation's pictures, in reading order.

    Raises:
        VLChatError: it cannot take this conversation.
    """
    pictures = pictures_of(decoded(messages))
    if not pictures:
        return []
    batch, _ = chat.prepare(messages)
    found = _pieces(chat, pictures, batch)
    counts = _tokens(chat, batch, len(pictures))
    return [replace(one, tokens=count) for one, count in zip(found, counts, strict=True)]


def _pieces(chat: Chat, pictures: list[Image.Image], batch: Mapping[str, torch.Tensor]) -> list[Saw]:
    pixels, grids = batch.get("pixel_values"), batch.get("image_grid_thw")
    if pixels is not None and grids is not None and len(grids) == len(pictures):
        side = getattr(bare(chat).config.vision_config, "patch_size", None)
        if isinstance(side, int):  # strips of patches, as Qwen's, of a picture that is scaled to fill them
            filled = [(int(columns) * side, int(rows) * side) for _, rows, columns in grids.tolist()]
            return [Saw(one.size, one.resize(size)) for one, size in zip(pictures, filled, strict=True)]
    elif pixels is not None and pixels.ndim == 4 and pixels.shape[1] == 3 and len(pixels) == len(pictures):
        shown = seen_pictures(chat.processor, pictures, batch)
        return [Saw(one.size, seen) for one, seen in zip(pictures, shown, strict=True)]
    elif pixels is not None and pixels.ndim == 5 and pixels.shape[2] == 3:
        own = list(pixels) if len(pixels) == len(pictures) else [pixels[0]] if len(pictures) == 1 else []
        sizes = batch.get("image_sizes")
        pinpoints = getattr(bare(chat).config, "image_grid_pinpoints", None)
        found = []
        for number, pieces in enumerate(own):
            grid = None
            if sizes is not None and pinpoints is not None:  # LLaVA-NeXT's: the whole, then the tiles
                rows, columns = get_anyres_image_grid_shape(sizes[number].tolist(), pinpoints, pieces.shape[-1])
                grid, pieces = (int(rows), int(columns)), pieces[: rows * columns + 1]
            parts = tuple(as_pictures(chat.processor, pieces))
            came = pictures[number].size
            found.append(Saw(came, parts[0], parts, grid) if len(parts) > 1 else Saw(came, parts[0]))
        if found:
            return found
    return [Saw(one.size, None) for one in pictures]


def _tokens(chat: Chat, batch: Mapping[str, torch.Tensor], pictures: int) -> list[int | None]:
    """Image tokens of each picture: of its unbroken run of them, or of all where there is one picture."""
    config: Any = bare(chat).config
    token = getattr(config, "image_token_id", None)
    if token is None:
        token = getattr(config, "image_token_index", None)
    if token is None:
        return [None] * pictures
    placed = (batch["input_ids"][0] == token).tolist()
    runs: list[int | None] = []
    for before, here in zip([False, *placed], placed, strict=False):
        if here:
            runs[-1:] = [(runs[-1] or 0) + 1] if before else [*runs[-1:], 1]
    if pictures == 1 and any(placed):
        return [sum(placed)]
    return runs if len(runs) == pictures else [None] * pictures
