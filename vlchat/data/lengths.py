"""How many tokens a conversation takes, exactly and without work on its pictures; shortening one that is too long."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from vlchat import foreign, prompt
from vlchat.data.formats import Message, text_of
from vlchat.processor import VLChatProcessor

_LONGEST_WORD = 40  # letters; a text without spaces for longer is cut between two letters


@dataclass(frozen=True)
class Tokens:
    """A conversation as one row of a batch.

    Attributes:
        ids: (tokens,), every token of the row.
        learned: (tokens,), whether each is the assistant's.
        pictures: (tokens,), whether each stands for a part of a picture; none where the processor does not tell.
    """

    ids: torch.Tensor
    learned: torch.Tensor
    pictures: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def image_tokens(self) -> int:
        return int(self.pictures.sum())

    def needs(self, limit: int) -> str:
        """The exact budget, such as "needs 2,310 of 2,048 tokens; 576 of them are image tokens"."""
        shown = f"; {self.image_tokens:,} of them are image tokens" if self.image_tokens else ""
        return f"needs {len(self):,} of {limit:,} tokens{shown}"


class _Sizes:
    """Stands in for our image processor where only the number of image tokens is asked for: it reads sizes alone."""

    def __init__(self, image_processor: Any) -> None:
        self.grids = getattr(image_processor, "image_grid_pinpoints", None)
        if self.grids is not None:
            self.image_grid_pinpoints = self.grids
            size = getattr(image_processor, "crop_size", None) or image_processor.size
            self.side = size["height"]

    def __call__(self, images: Sequence[Image.Image], **_: Any) -> BatchFeature:
        if self.grids is None:
            return BatchFeature()
        empty = [torch.empty((1, 3, self.side, self.side), device="meta")] * len(images)
        sizes = [(picture.height, picture.width) for picture in images]
        return BatchFeature({"pixel_values": empty, "image_sizes": sizes})


def measure(processor: Any, messages: Sequence[Message]) -> Tokens:
    """The tokens of one conversation, as `Collator` makes them.

    With our own processor pictures are only asked for their size (see `blank`); others' do their whole work.

    Args:
        messages: as an Example has them, the pictures PIL images.

    Raises:
        VLChatError: the processor refuses the conversation.
    """
    conversation = prompt.validate(list(messages))
    if isinstance(processor, VLChatProcessor):
        light = copy.copy(processor)
        light.image_processor = _Sizes(processor.image_processor)
        light.instruction_length = None  # what a Q-Former reads beside the picture is no token of the row
        found = light.apply_chat_template(
            conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, learned = torch.tensor(found["input_ids"][0]), torch.tensor(found["assistant_masks"][0])
    else:
        batch, mask = foreign.lesson(processor, [conversation])
        ids, learned = batch["input_ids"][0], mask[0]
    return Tokens(ids, learned.bool(), picture_tokens(processor, ids))


def picture_tokens(processor: Any, ids: torch.Tensor) -> torch.Tensor:
    """Whether each of `ids` stands for a part of a picture; none does where the processor names no such token."""
    named = getattr(processor, "image_token_ids", None) or [getattr(processor, "image_token_id", None)]
    known = [token for token in named if isinstance(token, int)]
    if not known and hasattr(processor, "image_token"):  # BLIP-2's knows only its name
        token = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
        known = [token] if isinstance(token, int) and token != processor.tokenizer.unk_token_id else []
    return torch.isin(ids, torch.tensor(known, dtype=ids.dtype))


def blank(width: int, height: int) -> Image.Image:
    """A picture of that size, of one bit a pixel: enough to count tokens."""
    return Image.new("1", (width, height))


def shorten(
    messages: Sequence[Message], limit: int, count: Callable[[Sequence[Message]], int]
) -> tuple[list[Message], str] | None:
    """A conversation that fits the limit, and what was left out of it in words; None where none would.

    Whole exchanges (a turn of the user and what follows it) are left out from the end, with their pictures. Where the
    only one left is still too long, the user's words are cut at their end, at a space where there is one. Answers and
    pictures that are kept are kept whole.

    Args:
        limit: the most tokens.
        count: the tokens of a conversation.
    """
    starts = [number for number, message in enumerate(messages) if message["role"] == "user"]
    starts = [start for start in starts if _answered(messages[start:])]
    if not starts:
        return None
    ends = [*starts[1:], len(messages)]
    # More exchanges never take fewer tokens, so the most that fit are found by halving.
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if count(messages[: ends[middle - 1]]) <= limit:
            low = middle
        else:
            high = middle - 1
    if low:
        left_out = len(ends) - low
        return list(messages[: ends[low - 1]]), f"the last {left_out} of {len(ends)} exchanges were left out"
    kept = list(messages[: ends[0]])
    cut = _cut(kept, starts[0], limit, count)
    if cut is None:
        return None
    others = f", and {len(ends) - 1} of {len(ends)} exchanges were left out" if len(ends) > 1 else ""
    return cut, f"the question was cut at its end{others}"


def _answered(messages: Sequence[Message]) -> bool:
    return any(message["role"] == "assistant" and text_of(message) for message in messages)


def _cut(
    messages: list[Message], turn: int, limit: int, count: Callable[[Sequence[Message]], int]
) -> list[Message] | None:
    """The conversation with the words of `turn` cut as far as needed; None where nothing of them could stay."""
    texts = [part["text"] for part in messages[turn]["content"] if part["type"] == "text"]

    def cut(length: int) -> list[Message]:
        parts, left = [], length
        for part in messages[turn]["content"]:
            if part["type"] == "text":
                part = {**part, "text": part["text"][:left]}
                left -= len(part["text"])
            if part["type"] != "text" or part["text"].strip():
                parts.append(part)
        return [*messages[:turn], {**messages[turn], "content": parts}, *messages[turn + 1 :]]

    low, high = 0, sum(map(len, texts))
    while low < high:
        middle = (low + high + 1) // 2
        if count(cut(middle)) <= limit:
            low = middle
        else:
            high = middle - 1
    whole = "".join(texts)
    space = max(whole.rfind(gap, 0, low + 1) for gap in " \n\t")
    if low - space < _LONGEST_WORD and whole[:space].strip() and count(cut(space)) <= limit:
        low = space
    return cut(low) if whole[:low].strip() else None
