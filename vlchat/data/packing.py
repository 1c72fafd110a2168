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

_SEGMENT = 8  # tokens of each row that `check_packing` tries
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


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Tries on a few tokens whether packed rows stay apart in this model; some language models know no borders.

    Raises:
        ConfigError: they do not, or the model is another maker's, whose positions only its own code knows.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
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

    def states(*segments: torch.Tensor) -> torch.Tensor:
        """The last segment's, (tokens, hidden)."""
        whole = torch.cat(segments).unsqueeze(0)
        out = decoder(inputs_embeds=whole, position_ids=places[:, : whole.shape[1]], use_cache=False)
        return out.last_hidden_state[0, -_SEGMENT:].float()

    training = decoder.training
    decoder.eval()
    packed, beside_another, alone = states(first, second), states(other, second), states(second)
    decoder.train(training)
    size = alone.norm()
    if (packed - beside_another).norm() > _LEAK * size or (packed - alone).norm() > _APART * size:
        raise ConfigError(
            f"Rows can't be packed for the {decoder.config.model_type} language model: a token would see those of "
            "other rows, or stand at another place than alone. Set objective.packing=false."
        )
