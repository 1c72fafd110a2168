"""Rows about the same pictures share their tokens: the pictures once, then each row's own words as a branch.

A branch sees the pictures and itself, and stands where it would stand alone: what is learnt is what the rows one by one
would teach, for a fraction of the work, since most of a short question's row is its picture.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.nn import functional

from vlchat.data.collate import IGNORED
from vlchat.data.opening import PICTURES
from vlchat.errors import ConfigError
from vlchat.lora import bare
from vlchat.model import VLChatForConditionalGeneration
from vlchat.weightless import active

SEGMENTS = "segments"  # of a batch: (rows, tokens), 0 what all branches see, -1 padding
_PIECE = 8  # tokens of each piece that `check_sharing` tries
_APART = 5e-2  # share by which a branch may differ from its row alone: the rounding of bfloat16


def share(
    batch: dict[str, Any], groups: Sequence[Hashable], image_token: int, filler: int, multiple: int = 1
) -> dict[str, Any]:
    """The rows of a batch with those of a group as branches of one.

    Args:
        batch: input_ids, attention_mask and labels (rows, tokens), padded on the right, and pixel_values (images, ...)
            in the rows' order, as many for each row of a group.
        groups: names each row's group; rows of a group stand one after another and show the same pictures. A group
            whose rows do not begin alike, up to their last image token, stays rows of their own.
        image_token: the id that stands for pictures; a row without any shares nothing.
        filler: token id of the padding.
        multiple: of which the new rows' length is one.

    Returns:
        input_ids, labels, position_ids and `segments` (groups, tokens) without an attention mask, of which
        `branch_mask` makes one, and the pixel_values (or names) of each group's first row. The first token of a branch
        is not learnt.
    """
    ids, there, labels = batch["input_ids"], batch["attention_mask"].bool(), batch["labels"]
    rows: list[list[int]] = []
    for row, group in enumerate(groups):
        if rows and groups[rows[-1][0]] == group and _alike(ids, rows[-1][0], row, image_token):
            rows[-1].append(row)
        else:
            rows.append([row])
    made: dict[str, list[torch.Tensor]] = {"input_ids": [], "labels": [], "position_ids": [], SEGMENTS: []}
    for members in rows:
        trunk = _trunk(ids[members[0]], image_token) if len(members) > 1 else 0
        pieces = [(0, 0, trunk, members[0])] if trunk else []
        pieces += [(number + 1, trunk, int(there[row].sum()), row) for number, row in enumerate(members)]
        for name in made:
            made[name].append(torch.cat([_piece(name, ids, labels, *piece) for piece in pieces]))
    length = max(len(row) for row in made["input_ids"])
    length += -length % multiple
    blanks = {"input_ids": filler, "labels": IGNORED, "position_ids": 0, SEGMENTS: -1}
    result = {
        name: torch.stack([functional.pad(row, (0, length - len(row)), value=blanks[name]) for row in found])
        for name, found in made.items()
    }
    rest = {name: value for name, value in batch.items() if name not in (*made, "attention_mask")}
    # Where their features may be known, pictures stand there once, and rows name them.
    images = rest.get(PICTURES, rest.get("pixel_values"))
    if images is not None:
        shown = _pictures(ids, len(images), image_token)
        first = [images[shown[members[0]]] for members in rows]
        if PICTURES in rest:
            rest[PICTURES] = [name for names in first for name in names]
        else:
            rest["pixel_values"] = torch.cat(first)
    return rest | result


def _piece(
    name: str, ids: torch.Tensor, labels: torch.Tensor, segment: int, start: int, end: int, row: int
) -> torch.Tensor:
    if name == "input_ids":
        return ids[row, start:end]
    if name == "labels":
        own = labels[row, start:end].clone()
        own[:1] = IGNORED  # it follows the last token of another branch
        return own
    return torch.arange(start, end) if name == "position_ids" else torch.full((end - start,), segment)


def _trunk(row: torch.Tensor, image_token: int) -> int:
    """How many tokens there are up to the last image token."""
    places = (row == image_token).nonzero()
    return int(places[-1]) + 1 if len(places) else 0


def _alike(ids: torch.Tensor, one: int, other: int, image_token: int) -> bool:
    trunk = _trunk(ids[one], image_token)
    return trunk > 0 and trunk == _trunk(ids[other], image_token) and torch.equal(ids[one, :trunk], ids[other, :trunk])


def _pictures(ids: torch.Tensor, images: int, image_token: int) -> list[slice]:
    """Which of the pictures each row shows; all take equally many tokens."""
    tokens = (ids == image_token).sum(dim=1)
    each = int(tokens.sum()) // max(1, images)
    ends = [int(end) for end in (tokens // max(1, each)).cumsum(0)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def branch_mask(segments: torch.Tensor) -> torch.Tensor:
    """What to add to attention's logits, (rows, 1, tokens, tokens) float32: each token sees trunk and own branch
    up to itself; padding sees itself alone.

    Args:
        segments: (rows, tokens), of `share`.
    """
    of, seen = segments[:, :, None], segments[:, None, :]
    allowed = ((seen == of) | ((seen == 0) & (of >= 0))).tril()
    hidden = torch.finfo(torch.float32).min
    return torch.zeros(allowed.shape, device=segments.device).masked_fill(~allowed, hidden)[:, None]


@torch.no_grad()
def check_sharing(model: Any) -> None:
    """Tries on a few tokens whether branches stay apart in this model.

    Raises:
        ConfigError: they do not, or the model is another maker's, or cuts its pictures into tiles, or its connector
            reads each row's question.
    """
    own = bare(model)
    if not isinstance(own, VLChatForConditionalGeneration):
        raise ConfigError(f"Rows can't share their pictures in a {type(own).__name__}. Set objective.company=0.")
    if own.config.image_grid_pinpoints is not None or (own.config.connector or {}).get("text_vocab_size"):
        raise ConfigError(
            "Rows can't share pictures that are cut into tiles, or that a Q-Former reads with each row's question in "
            "mind. Set objective.company=0."
        )
    if active():
        return  # there is nothing to try it on
    decoder: Any = own.get_decoder()
    table: Any = own.get_input_embeddings()
    ids = torch.arange(3 * _PIECE, device=table.weight.device) % len(table.weight)
    trunk, other, branch = table(ids).split(_PIECE)
    both = torch.arange(3, device=ids.device).repeat_interleave(_PIECE)[None]
    places = torch.arange(2 * _PIECE, device=ids.device)
    training = decoder.training
    decoder.eval()
    try:
        alone = decoder(inputs_embeds=torch.cat([trunk, branch])[None], use_cache=False).last_hidden_state[0, -_PIECE:]
        shared = decoder(
            inputs_embeds=torch.cat([trunk, other, branch])[None],
            position_ids=torch.cat([places, places[_PIECE:]])[None],
            attention_mask=branch_mask(both),
            use_cache=False,
        ).last_hidden_state[0, -_PIECE:]
        works = not getattr(decoder.config, "sliding_window", None)  # our mask would widen its windows
        works = works and bool((shared.float() - alone.float()).norm() <= _APART * alone.float().norm())
    except (TypeError, ValueError, RuntimeError, IndexError):  # from the depths of a model that takes none of this
        works = False
    decoder.train(training)
    if not works:
        raise ConfigError(
            f"Rows can't share their pictures in the {decoder.config.model_type} language model: a token would see "
            "those of other rows, or stand at another place than alone. Set objective.company=0."
        )
