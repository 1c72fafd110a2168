"""Packing: the rows of a batch one after another in a single row without padding.

Positions begin anew with each row, and no token attends to another row's. How a model is told where one ends is what
`packed_mask` finds out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from vlchat.data.collate import IGNORED
from vlchat.data.segments import SEGMENTED, segment_lengths
from vlchat.errors import ConfigError
from vlchat.lora import bare
from vlchat.model import VLChatForConditionalGeneration
from vlchat.weightless import active

_SEGMENT = 8  # tokens of each row that `packed_mask` tries
_LEAK = 1e-2  # share by which another row may move a state: that of 8-bit layers, whose outliers are those of a batch
_DENSE = ("eager", "sdpa")  # kernels that need a mask of all tokens by all tokens to keep rows apart
REMEDY = " Set objective.packing=false."  # at the end of why rows can't be packed
_APART = 5e-2  # share by which a packed row may differ from the row alone: the rounding of bfloat16


Mask = Callable[[torch.Tensor], torch.Tensor | None]
"""Positions (1, tokens) of packed rows -> the attention mask that keeps these apart."""


def pack(batch: dict[str, Any], filler: int, multiple: int = 1) -> dict[str, Any]:
    """The rows of a batch as segments of one row; its pictures stay as they are, in the same order.

    Args:
        batch: input_ids, attention_mask and labels (rows, tokens), padded on either side, and whatever belongs to
            pictures.
        filler: token id that fills the row up at its end, as a segment in which nothing is learnt.
        multiple: of which the row's length is one.

    Returns:
        input_ids, labels and position_ids (1, tokens), without an attention mask. The first token of a segment is not
        learnt: it follows the last one of another row. Models take it with `use_cache=False` only: with a cache they
        see no borders.
    """
    there = batch["attention_mask"].bool()
    places = (there.cumsum(dim=1) - 1)[there]
    extra = -len(places) % multiple
    row = {
        "input_ids": functional.pad(batch["input_ids"][there], (0, extra), value=filler),
        "labels": functional.pad(batch["labels"][there].masked_fill(places == 0, IGNORED), (0, extra), value=IGNORED),
        "position_ids": torch.cat([places, torch.arange(extra)]),
    }
    rest = {name: value for name, value in batch.items() if name != "attention_mask"}
    return rest | {name: tensor.unsqueeze(0) for name, tensor in row.items()}


def borders(position_ids: torch.Tensor) -> torch.Tensor:
    """The attention mask of packed rows, for models that do not see their borders by the positions.

    Args:
        position_ids: (1, tokens), of `pack`.

    Returns:
        (1, 1, tokens, tokens) float32, what to add to attention's logits: each token sees its own row up to itself.
    """
    segment = (position_ids[0] == 0).cumsum(dim=0)
    seen = (segment[:, None] == segment[None, :]).tril()
    hidden = torch.finfo(torch.float32).min
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, hidden)[None, None]


def by_positions(position_ids: torch.Tensor) -> None:
    """No mask: transformers sees by the positions where a row ends (`find_packed_sequence_indices` in its
    masking_utils), and so do the flash kernels. Eager and SDPA attention get a dense mask made of it."""
    return None


def is_dense(model: Any, mask: Mask) -> bool:
    """Whether packed rows cost this model a mask of all tokens by all tokens, which is slower than padding."""
    return mask is borders or (mask is by_positions and model.get_decoder().config._attn_implementation in _DENSE)


def packed_mask(model: Any) -> Mask:
    """How packed rows stay apart in this model, tried on a few tokens: the cheapest way that does.

    A model with SDPA attention is given the kernels of `vlchat.data.segments`, where they work.

    Raises:
        ConfigError: they do not, or the model is another maker's, whose positions only its own code knows.
    """
    own = bare(model)
    if not isinstance(own, VLChatForConditionalGeneration):
        raise ConfigError(
            f"Rows can't be packed for a {type(own).__name__}: how it counts positions around pictures is its own "
            f"matter.{REMEDY}"
        )
    decoder: Any = own.get_decoder()
    config = decoder.config
    if config._attn_implementation in ("sdpa", SEGMENTED) and not getattr(config, "attention_chunk_size", None):
        decoder.set_attn_implementation(SEGMENTED)
        if active() or _stay_apart(own, segment_lengths):  # without weights there is nothing to try
            return segment_lengths
        decoder.set_attn_implementation("sdpa")
    if active() or _stay_apart(own, by_positions):
        return by_positions
    # A mask of ours would widen the windows of a model that has some.
    if not getattr(config, "sliding_window", None) and _stay_apart(own, borders):
        return borders
    raise ConfigError(
        f"Rows can't be packed for the {config.model_type} language model: a token would see those of other rows, or "
        f"stand at another place than alone.{REMEDY}"
    )


@torch.no_grad()
def _stay_apart(model: VLChatForConditionalGeneration, mask: Mask) -> bool:
    decoder: Any = model.get_decoder()
    table: Any = model.get_input_embeddings()
    ids = torch.arange(3 * _SEGMENT, device=table.weight.device) % len(table.weight)
    first, other, second = table(ids).split(_SEGMENT)
    places = torch.arange(_SEGMENT, device=ids.device).repeat(2).unsqueeze(0)

    def states(*segments: torch.Tensor) -> torch.Tensor:
        """The last segment's, (tokens, hidden)."""
        whole = torch.cat(segments).unsqueeze(0)
        own = places[:, : whole.shape[1]]
        told = mask(own) if len(segments) > 1 else None
        out = decoder(inputs_embeds=whole, position_ids=own, attention_mask=told, use_cache=False)
        return out.last_hidden_state[0, -_SEGMENT:].float()

    training = decoder.training
    decoder.eval()
    try:
        packed, beside_another, alone = states(first, second), states(other, second), states(second)
    except (TypeError, ValueError, RuntimeError, IndexError):  # from the depths of a model that takes none of this
        return False
    finally:
        decoder.train(training)
    size = alone.norm()
    return bool((packed - beside_another).norm() <= _LEAK * size and (packed - alone).norm() <= _APART * size)
