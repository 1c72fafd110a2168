"""How the next token of an answer is chosen, as `generate` chooses it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessorList

from serve.rows import Row
from serve.tickets import Likely


def prepare(model: Any, row: Row) -> None:
    """By transformers' own processors of logits, and a generator where tokens are drawn."""
    device = row.inputs["input_ids"].device
    config, _ = model._prepare_generation_config(row.config)
    model._prepare_special_tokens(config, True, device=device)
    row.processors = model._get_logits_processor(
        generation_config=config, input_ids_seq_length=len(row.ids), encoder_input_ids=row.inputs["input_ids"],
        logits_processor=LogitsProcessorList(), device=str(device),
    )  # fmt: skip
    if config.do_sample:
        row.generator = torch.Generator(device=device)
        row.generator.manual_seed(row.options.seed) if row.options.seed is not None else row.generator.seed()


def chosen(row: Row, logits: torch.Tensor) -> int:
    """The next token, of (1, vocabulary)."""
    if row.processors:
        so_far: Any = torch.tensor([row.ids + row.written], device=logits.device)
        logits = row.processors(so_far, logits)
    if row.generator is None:
        return int(logits.argmax(dim=-1))
    return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=row.generator))


def likely(tokenizer: Any, token: int, logits: torch.Tensor, most: int) -> Likely:
    """How likely a token was, and the likeliest ones, by the model itself: no temperature, nothing held back.

    Args:
        logits: (vocabulary).
        most: how many of the likeliest are told.
    """
    logprobs = logits.log_softmax(dim=-1)
    values, tokens = logprobs.topk(min(most, len(logprobs)))
    others = zip(tokens.tolist(), values.tolist(), strict=True)
    return Likely(
        tokenizer.decode([token]),
        float(logprobs[token]),
        tuple((tokenizer.decode([other]), value) for other, value in others),
    )
