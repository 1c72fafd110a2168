"""Packing: the rows of a batch one after another in a single row without padding.

Positions begin anew with each row. By that transformers sees where one ends (`find_packed_sequence_indices` in its
masking_utils, and the flash kernels), and no token attends to another row's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from vlchat.data.collate import IGNORED
from vlchat.errors import ConfigError
from vlchat.model import VLChatForConditionalGeneration
from vlchat.weightless import active

_SEGMENT = 8  # tokens of each row that `needs_borders` tries
_LEAK = 1e-2  # share by which another row may move a state: that of 8-bit layers, whose outliers are those of a batch
_APART = 5e-2  # share by which a packed row may differ from the row alone: the rounding of bfloat16


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


@torch.no_grad()
def needs_borders(model: Any) -> bool:
    """Tries on a few tokens whether packed rows stay apart in this model: by their positions (False), or if they are
    told their `borders` as well (True), as OPT is.

    Raises:
        ConfigError: they do not, or the model is another maker's, whose positions only its own code knows.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if active():
        return False  # there is nothing to try it on
    if not isinstance(bare, VLChatForConditionalGeneration):
        raise ConfigError(
            f"Rows can't be packed for a {type(bare).__name__}: how it counts positions around pictures is its own "
            "matter. Set objective.packing=false."
        )
    decoder: Any = bare.get_decoder()
    table: Any = bare.get_input_embeddings()
    ids = torch.arange(3 * _SEGMENT, device=table.weight.device) % len(table.weight)
    first, other, second = table(ids).split(_SEGMENT)
    places = torch.arange(_SEGMENT, device=ids.device).repeat(2).unsqueeze(0)

    def states(mask: bool, *segments: torch.Tensor) -> torch.Tensor:
        """The last segment's, (tokens, hidden)."""
        whole = torch.cat(segments).unsqueeze(0)
        own = places[:, : whole.shape[1]]
        seen = borders(own) if mask else None
        out = decoder(inputs_embeds=whole, position_ids=own, attention_mask=seen, use_cache=False)
        return out.last_hidden_state[0, -_SEGMENT:].float()

    def apart(mask: bool) -> bool:
        packed, beside_another, alone = states(mask, first, second), states(mask, other, second), states(False, second)
        size = alone.norm()
        return bool((packed - beside_another).norm() <= _LEAK * size and (packed - alone).norm() <= _APART * size)

    training = decoder.training
    decoder.eval()
    try:
        # A mask of ours would widen the windows of a model that has some.
        told = [mask for mask in (False, True) if not (mask and getattr(decoder.config, "sliding_window", None))]
        works = next((mask for mask in told if apart(mask)), None)
    except (TypeError, ValueError, RuntimeError, IndexError):  # from the depths of a model that takes none of this
        works = None
    decoder.train(training)
    if works is None:
        raise ConfigError(
            f"Rows can't be packed for the {decoder.config.model_type} language model: a token would see those of "
            "other rows, or stand at another place than alone. Set objective.packing=false."
        )
    return works
