"""How likely a model finds the answers: the next-token loss, with logits on the supervised positions only.

A batch is mostly pictures and questions. Logits of those positions are the largest tensor of a step and enter no loss,
so the output layer reads the supervised positions alone; that took a step from 2.2 to 1.5 seconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vlchat.data.collate import IGNORED
from vlchat.logits import finish_logits
from vlchat.lora import bare
from vlchat.model import VLChatForConditionalGeneration

AT_ONCE = 2**26  # float32 logits held at once, a quarter of a GiB; more are computed again in the backward pass


@dataclass(frozen=True)
class Answers:
    """What a model says at the positions that it learns from, in the order of the rows.

    Attributes:
        states: (tokens, hidden), or (tokens, vocabulary) where the model's own forward made logits of them.
        targets: (tokens,), the tokens that follow.
        logits: some of `states` -> (some, vocabulary) in float32.
        vocabulary: how many logits a token has.
        image_hidden_states: (image tokens, hidden), what the language model was shown; None without pictures.
    """

    states: torch.Tensor
    targets: torch.Tensor
    logits: Callable[[torch.Tensor], torch.Tensor]
    vocabulary: int
    image_hidden_states: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class TokenLosses:
    """`total`: the float32 sum of the next-token cross-entropies over `count` supervised tokens; see `token_losses`."""

    total: torch.Tensor
    count: int
    answers: Answers


def token_losses(model: Any, batch: dict[str, Any]) -> TokenLosses:
    """The next-token cross-entropy of a batch, summed over its supervised tokens.

    The same as `model(**batch).loss` times their number. A micro-batch may have none: its sum is 0 with gradients of 0.

    Args:
        model: any causal vision-language model of transformers, with or without a peft adapter around it.
        batch: what its forward takes, and `labels` (rows, tokens), -100 where nothing is learnt.
    """
    found = answers(model, batch)
    total = summed(
        lambda states, targets: functional.cross_entropy(found.logits(states), targets, reduction="sum"),
        found.vocabulary,
        found.states,
        found.targets,
    )
    return TokenLosses(total, len(found), found)


def supervised(labels: torch.Tensor) -> torch.Tensor:
    """Positions whose next token is learnt, (rows, tokens). The first token of a row follows nothing."""
    return _next(labels) != IGNORED


def answers(model: Any, batch: dict[str, Any]) -> Answers:
    """One pass over a batch, as of `token_losses`, up to what stands before the output layer."""
    inputs = {name: value for name, value in batch.items() if name != "labels"} | {"use_cache": False}
    following = _next(batch["labels"])
    wanted = following != IGNORED
    own = bare(model)
    if isinstance(own, VLChatForConditionalGeneration):  # peft's layers stand inside of it
        body = own.model(**inputs, return_dict=True)
        states = body.last_hidden_state
        wanted, following = wanted.to(states.device), following.to(states.device)
        config: Any = own.config.text_config
        head = own.lm_head

        def logits(states: torch.Tensor) -> torch.Tensor:
            return finish_logits(head(states), config).float()

        images, vocabulary = body.image_hidden_states, config.vocab_size
        return Answers(states[wanted], following[wanted], logits, vocabulary, images)
    columns = wanted.any(dim=0).nonzero().flatten()  # positions that any row learns from
    if "token_type_ids" in inputs:  # in some releases PaliGemma and Gemma 3 see by the labels that this is training
        inputs["labels"] = batch["labels"]
    elif "logits_to_keep" in inspect.signature(own.forward).parameters:
        inputs["logits_to_keep"] = columns
    out = model(**inputs, return_dict=True)
    found = out.logits if out.logits.shape[1] == len(columns) else out.logits[:, columns]
    wanted, following = (some[:, columns].to(found.device) for some in (wanted, following))
    images = getattr(out, "image_hidden_states", None)
    return Answers(found[wanted], following[wanted], torch.Tensor.float, found.shape[-1], images)


def summed(function: Callable[..., torch.Tensor], width: int, *rows: torch.Tensor) -> torch.Tensor:
    """The sum of `function(*some rows)` over all rows, without more than `AT_ONCE` numbers of a kind at once.

    Args:
        function: equally many rows of each tensor -> a scalar that is a sum over them; it draws nothing at random.
        width: numbers that it makes of a row.
        rows: tensors (tokens, ...), cut alike.
    """
    step = max(1, AT_ONCE // width)
    if len(rows[0]) <= step:
        return function(*rows)
    parts = zip(*(tensor.split(step) for tensor in rows), strict=True)
    totals = [checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(totals).sum()


def _next(labels: torch.Tensor) -> torch.Tensor:
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
