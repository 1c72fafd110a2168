"""What `vlchat.chat.Chat` adds to transformers' `generate`: stopping from outside, a seed, how likely an answer is."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: without special tokens and surrounding space.
        logprob: the sum of the log-probabilities of its tokens, the closing one included. Of a written answer, among
            the tokens that the model may write: a picture's token, say, is none of them.
        tokens: how many tokens that is.
    """

    text: str
    logprob: float
    tokens: int


class Stop(StoppingCriteria):
    def __init__(self, stops: Sequence[threading.Event]) -> None:
        self.stops = stops

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        stopped = any(stop.is_set() for stop in self.stops)
        return torch.full((input_ids.shape[0],), stopped, dtype=torch.bool, device=input_ids.device)


class TokenLogprobs(LogitsProcessor):
    """Remembers how likely each written token was, without keeping the logits of more than one step.

    Transformers hands a step's logits to `__call__` before a token is chosen from them; the next call's ids end in it.
    """

    def __init__(self) -> None:
        self._before: torch.Tensor | None = None  # (batch, vocabulary)
        self._found: list[torch.Tensor] = []  # (batch) of each step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._note(input_ids)
        self._before = scores.float().log_softmax(dim=-1)
        return scores

    def _note(self, input_ids: torch.Tensor) -> None:
        if self._before is not None:
            self._found.append(self._before.gather(-1, input_ids[:, -1:]).squeeze(-1))

    def totals(self, written: torch.Tensor, ends: Collection[int]) -> tuple[list[float], list[int]]:
        """Each row's sum and number of tokens up to and with its first closing token.

        Args:
            written: (batch, new tokens) of `generate`.
            ends: ids of the closing tokens; what follows one is padding.
        """
        self._note(written)
        self._before = None
        found = torch.stack(self._found, dim=1).cpu()  # (batch, new tokens)
        counted = _own(written[:, -found.shape[1] :], ends)  # a decoder of its own begins with a token it never chose
        return found.masked_fill(~counted, 0.0).sum(dim=1).tolist(), counted.sum(dim=1).tolist()


def lengths(written: torch.Tensor, ends: Collection[int]) -> list[int]:
    """How many tokens each row of (batch, new tokens) has, up to and with its first closing one."""
    return _own(written, ends).sum(dim=1).tolist()


def last_run(labels: torch.Tensor, ignored: int) -> torch.Tensor:
    """Labels (rows, tokens) with all but each row's last unbroken run of them ignored: the last answer's."""
    kept = (labels != ignored).int()
    ends = kept - torch.nn.functional.pad(kept, (0, 1))[:, 1:] == 1  # the last token of a run
    runs_after = ends.int().flip(1).cumsum(dim=1).flip(1)
    return labels.masked_fill(runs_after != 1, ignored)


def _own(written: torch.Tensor, ends: Collection[int]) -> torch.Tensor:
    """(batch, new tokens), on the CPU: which tokens are an answer's, its first closing one included."""
    closing = torch.isin(written.cpu(), torch.tensor(sorted(ends), dtype=written.dtype)).int()
    return closing.cumsum(dim=1) - closing == 0


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
