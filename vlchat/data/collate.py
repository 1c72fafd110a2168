"""Examples -> the tensors of one training batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from vlchat import foreign, images, prompt, video
from vlchat.data.faults import BadRow
from vlchat.data.formats import Example, Message
from vlchat.data.formats import has_answer as has_answer
from vlchat.data.lengths import Tokens, measure, picture_tokens, shorten
from vlchat.data.opening import Opening
from vlchat.errors import ConfigError, DataError, EmptySupervisionError, ImageError, TooLongError, VLChatError, nearest
from vlchat.processor import VLChatProcessor

IGNORED = -100  # the label that cross-entropy skips
TOO_LONG = ("refuse", "drop", "shorten")


class Collated(NamedTuple):
    """What `Collator.collate` made of some rows.

    Attributes:
        batch: as of `Collator.__call__`, of the rows that are kept; None where none is.
        kept: which of the rows these are, counted from 0.
        bad: what is wrong with rows that are left out; they count against a run's `max_bad`.
        notes: what was done by choice: rows that `drop` left out (kind `left_out`), and that `shorten` made fit (kind
            `shortened`). They belong into the quarantine file and the log, and do not count as bad.
    """

    batch: dict[str, torch.Tensor] | None
    kept: list[int]
    bad: list[BadRow]
    notes: list[BadRow]


class Collator:
    """Turns a list of Examples into one batch, with any Hugging Face processor that has a chat template.

    Labels are the input tokens that the assistant speaks, else -100: our own processor tells them by the template's
    `{% generation %}` marks, of another library's `vlchat.foreign.lesson` tells them.

    Args:
        processor: ours or any other with a chat template.
        max_length: the most tokens a row may have, its pictures' included; None sets no limit.
        model: what its processor gives but the model does not take is left out of the batch.
        too_long: what happens to a row with more tokens. "refuse": it is a bad row. "drop": it is left out, and told.
            "shorten": its last exchanges are left out, each whole with its pictures, until the rest fits; of a single
            exchange the user's words are cut at their end. An answer or a picture that is kept is never cut. A row
            that no such cut makes fit is dropped.
        opening: how pictures are opened, and what the batch holds of them; None decodes every pixel, and gives what
            the processor gives.

    Raises:
        ConfigError: another value of `too_long`.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        model: Any = None,
        too_long: str = "refuse",
        opening: Opening | None = None,
    ) -> None:
        if too_long not in TOO_LONG:
            raise ConfigError(f'too_long is "{too_long}"; use {", ".join(TOO_LONG)}{nearest(too_long, TOO_LONG)}')
        self.processor = processor if opening is None else opening.processor
        self.open = images.decode if opening is None else opening.open
        self.max_length = max_length
        self.model = model
        self.too_long = too_long

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """The batch: input_ids, attention_mask, labels (rows, tokens), padded on the right, and what the processor
        makes of the pictures, such as pixel_values (images, 3, height, width).

        Raises:
            DataError: a picture cannot be read, or the processor refuses a row; names the row.
            EmptySupervisionError: a row in which no token would be learned from.
            TooLongError: a row longer than `max_length`, unless it can be shortened and may be; names both numbers.
        """
        found = self._collate(examples, strict=True)
        assert found.batch is not None
        return found.batch

    def collate(self, examples: Sequence[Example]) -> Collated:
        """As the call, but a row that cannot be used is left out of the batch and told.

        Raises:
            VLChatError: the processor takes each row alone, and not all of them in one batch.
        """
        return self._collate(examples, strict=False)

    def _collate(self, examples: Sequence[Example], strict: bool) -> Collated:
        bad: list[BadRow] = []
        notes: list[BadRow] = []
        waiting: list[tuple[int, list[Message]]] = []  # (which example, its messages with pictures decoded)
        for number, example in enumerate(examples):
            try:
                waiting.append((number, self._decoded(example)))
            except DataError as error:
                bad.append(_told(example, error, strict))
        batch = self._tokenized(examples, waiting, bad, strict)
        if batch is not None and self.max_length is not None:
            kept = self._fitting(examples, waiting, batch, bad, notes, strict)
            if kept != waiting:
                waiting = kept
                batch = self._tokenized(examples, waiting, bad, strict)
        return Collated(batch, [number for number, _ in waiting], bad, notes)

    def _tokenized(
        self, examples: Sequence[Example], waiting: list[tuple[int, list[Message]]], bad: list[BadRow], strict: bool
    ) -> dict[str, torch.Tensor] | None:
        """The batch of the rows that wait. Those that the processor refuses are taken out of `waiting`."""
        if not waiting:
            return None
        try:
            batch, assistant = self._tensors([messages for _, messages in waiting])
        except VLChatError:
            # The processor speaks of the whole batch: ask it about each row alone to name the one at fault.
            refused = {number: found for number, one in waiting if (found := self._refusal(one)) is not None}
            if not refused:
                raise
            bad += [_told(examples[number], found, strict) for number, found in refused.items()]
            waiting[:] = [(number, one) for number, one in waiting if number not in refused]
            return self._tokenized(examples, waiting, bad, strict)
        silent = {number for (number, _), row in zip(waiting, assistant, strict=True) if not row.any()}
        if silent:
            reason = "no token to learn from: the chat template writes none of the answer"
            error = EmptySupervisionError(reason, kind="no_supervision")
            bad += [_told(examples[number], error, strict) for number in sorted(silent)]
            waiting[:] = [(number, one) for number, one in waiting if number not in silent]
            return self._tokenized(examples, waiting, bad, strict)
        batch["labels"] = batch["input_ids"].masked_fill(~assistant, IGNORED)
        return batch

    def _fitting(
        self,
        examples: Sequence[Example],
        waiting: list[tuple[int, list[Message]]],
        batch: dict[str, torch.Tensor],
        bad: list[BadRow],
        notes: list[BadRow],
        strict: bool,
    ) -> list[tuple[int, list[Message]]]:
        """The rows that wait without those that are too long, or with what of them fits."""
        limit = self.max_length or 0
        pictures = picture_tokens(self.processor, batch["input_ids"])
        kept = []
        for place, (number, messages) in enumerate(waiting):
            own = batch["attention_mask"][place].bool()
            if int(own.sum()) <= limit:
                kept.append((number, messages))
                continue
            tokens = Tokens(batch["input_ids"][place][own], own[own], pictures[place][own])
            shorter = None
            if self.too_long == "shorten":
                shorter = shorten(messages, limit, lambda some: len(measure(self.processor, some)))
            if shorter is not None:
                kept.append((number, shorter[0]))
                notes.append(_note(examples[number], "shortened", f"{tokens.needs(limit)}: {shorter[1]}"))
                continue
            reason = f"{tokens.needs(limit)}. Shorten it, raise max_length, or choose too_long: drop or shorten"
            error = TooLongError(reason)
            if strict or self.too_long == "refuse":
                bad.append(_told(examples[number], error, strict))
            else:
                notes.append(_note(examples[number], "left_out", tokens.needs(limit)))
        return kept

    def _decoded(self, example: Example) -> list[Message]:
        if not has_answer(example):
            raise EmptySupervisionError("no token to learn from: no assistant turn has text")
        return decode_images(example.messages, open=self.open)

    def _refusal(self, messages: list[Message]) -> DataError | None:
        """Why the processor refuses a row by itself, or None."""
        try:
            self._tensors([messages])
        except VLChatError as error:
            return DataError(str(error), kind="template_refuses", field="text")
        return None

    def _tensors(self, conversations: list[list[Message]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """A batch without labels, and (rows, tokens), whether a token is the assistant's."""
        if not isinstance(self.processor, VLChatProcessor):
            batch, mask = foreign.lesson(self.processor, [prompt.validate(one) for one in conversations])
            batch = foreign.accepted(batch, self.model)
        else:
            batch = dict(
                self.processor.apply_chat_template(
                    conversations,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                    return_assistant_tokens_mask=True,
                    processor_kwargs={"padding": True, "padding_side": "right"},
                )
            )
            mask = batch.pop("assistant_masks")
        return batch, mask.bool() & batch["attention_mask"].bool()


def _told(example: Example, error: DataError, strict: bool) -> BadRow:
    """The fault of a row; raised, with the row's name, where it must not be left out."""
    if strict:
        raise error.within(example.called) from error
    return BadRow(example.source, example.row, example.id, error.field, error.kind, str(error))


def _note(example: Example, kind: str, reason: str) -> BadRow:
    return BadRow(example.source, example.row, example.id, "text", kind, reason)


def decode_images(
    messages: list[Message], where: str = "", open: Callable[[Any], Image.Image] = images.decode
) -> list[Message]:
    """The same messages with every picture decoded to RGB, and every video as pictures of its frames.

    Args:
        open: decodes a picture.

    Raises:
        DataError: a picture that cannot be read; begins with `where` and names the file.
    """
    try:
        try:
            messages = video.expanded(messages)
        except ImageError as error:
            raise DataError(str(error), kind=error.kind, field="video") from error
        return [{**message, "content": [_opened(part, open) for part in message["content"]]} for message in messages]
    except DataError as error:
        raise (error.within(where) if where else error) from error.__cause__


def _opened(part: dict[str, Any], open: Callable[[Any], Image.Image]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    try:
        return {"type": "image", "image": open(part["image"])}
    except ImageError as error:
        raise DataError(str(error), kind=error.kind, field="image") from error
