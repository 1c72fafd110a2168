"""Examples -> the tensors of one training batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlchat import foreign, images, prompt, video
from vlchat.data.formats import Example, Message
from vlchat.errors import DataError, EmptySupervisionError, ImageError, VLChatError
from vlchat.processor import VLChatProcessor

IGNORED = -100  # the label that cross-entropy skips


class TooLongError(DataError):
    """A row with more tokens than the limit. It is never cut: that would lose the answer or part of a picture."""


class Collator:
    """Turns a list of Examples into one batch, with any Hugging Face processor that has a chat template.

    Labels are the input tokens that the assistant speaks, else -100: our own processor tells them by the template's
    `{% generation %}` marks, of another library's `vlchat.foreign.lesson` tells them.

    Args:
        processor: ours or any other with a chat template.
        max_length: the most tokens a row may have, its pictures' included; None sets no limit.
        model: what its processor gives but the model does not take is left out of the batch.
    """

    def __init__(self, processor: Any, max_length: int | None = None, model: Any = None) -> None:
        self.processor = processor
        self.max_length = max_length
        self.model = model

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """The batch: input_ids, attention_mask, labels (rows, tokens), padded on the right, and what the processor
        makes of the pictures, such as pixel_values (images, 3, height, width).

        Raises:
            DataError: a picture cannot be read, or the processor refuses a row; names the row.
            EmptySupervisionError: a row in which no token would be learned from.
            TooLongError: a row longer than `max_length`; names both numbers.
        """
        conversations = [self._decoded(example) for example in examples]
        batch = self._tokenize(examples, conversations)
        assistant = batch.pop("assistant_masks").bool() & batch["attention_mask"].bool()  # (rows, tokens)
        for example, length, supervised in zip(
            examples, batch["attention_mask"].sum(dim=1).tolist(), assistant.sum(dim=1).tolist(), strict=True
        ):
            if self.max_length is not None and length > self.max_length:
                raise TooLongError(
                    f'Row "{example.id}" has {length} tokens, more than the limit of {self.max_length}. '
                    "Shorten the row or raise max_length."
                )
            if not supervised:
                raise EmptySupervisionError(
                    f'Row "{example.id}" has no token to learn from: the chat template writes none of the answer.'
                )
        batch["labels"] = batch["input_ids"].masked_fill(~assistant, IGNORED)
        return batch

    def _decoded(self, example: Example) -> list[Message]:
        if not has_answer(example):
            raise EmptySupervisionError(f'Row "{example.id}" has no token to learn from: no assistant turn has text.')
        return decode_images(example.messages, f'Row "{example.id}"')

    def _tokenize(self, examples: Sequence[Example], conversations: list[list[Message]]) -> dict[str, Any]:
        try:
            if not isinstance(self.processor, VLChatProcessor):
                batch, mask = foreign.lesson(self.processor, [prompt.validate(one) for one in conversations])
                return {**foreign.accepted(batch, self.model), "assistant_masks": mask}
            return dict(
                self.processor.apply_chat_template(
                    conversations,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                    return_assistant_tokens_mask=True,
                    processor_kwargs={"padding": True, "padding_side": "right"},
                )
            )
        except VLChatError as error:
            # The processor speaks of the whole batch: ask it about each row alone to name the one at fault.
            if len(examples) > 1:
                for example, conversation in zip(examples, conversations, strict=True):
                    self._tokenize([example], [conversation])
                raise
            raise DataError(f'Row "{examples[0].id}": {error}') from error


def has_answer(example: Example) -> bool:
    """Whether any assistant turn says anything."""
    return any(
        part["type"] == "text" and part["text"].strip()
        for message in example.messages
        if message["role"] == "assistant"
        for part in message["content"]
    )


def decode_images(messages: list[Message], where: str) -> list[Message]:
    """The same messages with every picture decoded to RGB, and every video as pictures of its frames.

    Raises:
        DataError: a picture that cannot be read; begins with `where` and names the file.
    """
    try:
        messages = video.expanded(messages)
    except ImageError as error:
        raise DataError(f"{where}: {error}") from error
    decoded: list[Message] = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "image":
                try:
                    part = {"type": "image", "image": images.decode(part["image"])}
                except ImageError as error:
                    name = f"image {part['image']}" if isinstance(part["image"], str | Path) else "its image"
                    raise DataError(f"{where}: {name} cannot be used: {error}") from error
            parts.append(part)
        decoded.append({"role": message["role"], "content": parts})
    return decoded
