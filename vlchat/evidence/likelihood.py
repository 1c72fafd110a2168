"""How likely a model holds given answers to be, and which of their tokens a word is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlchat import lora, video
from vlchat.chat import Chat
from vlchat.data.collate import IGNORED, Collator, decode_images
from vlchat.data.formats import Example, Message
from vlchat.errors import VLChatError
from vlchat.generation import last_run
from vlchat.prompt import pictures_of, validate

AT_ONCE = 16  # pictures in one pass of many
Words = str | tuple[int, int]  # a word or phrase of an answer, or where it begins and ends in it


class NoMap(VLChatError):
    """A method gives no map of a model; another one does."""


@dataclass(frozen=True)
class Asked:
    """Conversations with their answers, as a model takes them.

    Attributes:
        batch: what its forward takes, padded on the right.
        explained: (rows, tokens), whether a token is one that is to be explained; the first is never.
        conversations: with decoded pictures and without the answers.
        answers, words: as they were given.
    """

    batch: dict[str, torch.Tensor]
    explained: torch.Tensor
    conversations: list[list[dict[str, Any]]]
    answers: list[str]
    words: list[Words | None]

    @property
    def pictures(self) -> list[list[Any]]:
        """The decoded pictures of each row, in reading order."""
        return [pictures_of(messages) for messages in self.conversations]


def bare(chat: Chat) -> Any:
    """The model without a PEFT adapter's wrapper; the adapter's layers stand inside of it and stay in force."""
    return lora.bare(chat.model)


def asked(
    chat: Chat, conversations: Sequence[Sequence[Message]], answers: Sequence[str], words: Sequence[Words | None]
) -> Asked:
    """Tensors of the conversations with `answers` to their last turns.

    Args:
        words: of each answer what of it is to be explained; None is all of it but the tokens that close it.

    Raises:
        VLChatError: an answer that is empty, or does not hold its word; a conversation that the processor refuses.
    """
    if bare(chat).config.is_encoder_decoder:
        raise VLChatError(
            f"{type(bare(chat)).__name__} gives no evidence map because its answers are read by a decoder of their own."
        )
    turns = []
    for number, (conversation, answer) in enumerate(zip(conversations, answers, strict=True), start=1):
        if not answer.strip():
            raise VLChatError(f"Answer {number} is empty, so there is nothing to find evidence for.")
        turns.append(decode_images(validate(video.expanded(conversation)), f"Conversation {number}"))
    said = [{"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]} for answer in answers]
    examples = [Example(str(row + 1), [*turns[row], said[row]]) for row in range(len(turns))]
    batch = Collator(chat.processor, model=chat.model)(examples)
    said_here = last_run(batch.pop("labels"), IGNORED) != IGNORED  # earlier turns have labels of their own
    explained = torch.zeros_like(said_here)
    for row, word in enumerate(words):
        places = said_here[row].nonzero().flatten()
        explained[row, _chosen(chat, batch["input_ids"][row, places], places, word, answers[row])] = True
    device, dtype = chat.model.device, chat.model.dtype
    moved = {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in batch.items()}
    return Asked(moved, explained, turns, list(answers), list(words))


def logprobs(chat: Chat, lesson: Asked, **options: Any) -> tuple[torch.Tensor, Any]:
    """The summed log-probability of each row's explained tokens, (rows,) in float32, and the model's output.

    Args:
        options: go to the forward.
    """
    columns = lesson.explained[:, 1:].any(dim=0).nonzero().flatten()  # positions that say an explained token
    inputs: dict[str, Any] = {**lesson.batch, "use_cache": False, **options}
    if "logits_to_keep" in inspect.signature(bare(chat).forward).parameters:
        inputs["logits_to_keep"] = columns.to(chat.model.device)
    out = chat.model(**inputs, return_dict=True)
    logits = out.logits if out.logits.shape[1] == len(columns) else out.logits[:, columns]
    following = lesson.batch["input_ids"][:, columns + 1].to(logits.device)  # (rows, positions)
    said = torch.log_softmax(logits.float(), dim=-1).gather(-1, following[..., None])[..., 0]
    return (said * lesson.explained[:, columns + 1].to(said)).sum(dim=1), out


def shown(chat: Chat, lesson: Asked, variants: Sequence[tuple[int, list[Any]]], at_once: int = AT_ONCE) -> list[float]:
    """The log-probability of rows' explained tokens when they are shown other pictures, as of `logprobs`.

    Others who use the model come between two passes.

    Args:
        variants: which row, and the pictures it is shown, as many as it had.
        at_once: variants in one pass.
    """
    found: list[float] = []
    for start in range(0, len(variants), at_once):
        some = variants[start : start + at_once]
        rows = [row for row, _ in some]
        turns = [_with_pictures(lesson.conversations[row], pictures) for row, pictures in some]
        other = asked(chat, turns, [lesson.answers[row] for row in rows], [lesson.words[row] for row in rows])
        with chat.turn, torch.no_grad():
            found += logprobs(chat, other)[0].tolist()
    return found


def _with_pictures(messages: list[dict[str, Any]], pictures: list[Any]) -> list[dict[str, Any]]:
    left = iter(pictures)
    return [
        {
            **message,
            "content": [
                {"type": "image", "image": next(left)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _chosen(chat: Chat, ids: torch.Tensor, places: torch.Tensor, word: Words | None, answer: str) -> torch.Tensor:
    tokenizer = getattr(chat.processor, "tokenizer", chat.processor)
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}
    kept = [number for number, token in enumerate(ids.tolist()) if token not in special]
    if word is None:
        return places[kept] if kept else places
    ends = [len(tokenizer.decode(ids[kept[: count + 1]])) for count in range(len(kept))]
    text = tokenizer.decode(ids[kept])
    if isinstance(word, str):
        begin = text.lower().find(word.strip().lower()) if word.strip() else -1
        end = begin + len(word.strip())
    else:
        begin, end = (max(0, text.find(answer.strip())) + place for place in word)
    if not 0 <= begin < end <= len(text):
        raise VLChatError(f'The answer "{answer}" does not hold "{word}", so there is no evidence for that word.')
    touched = [
        place for place, first, last in zip(kept, [0, *ends[:-1]], ends, strict=True) if first < end and last > begin
    ]
    return places[touched]
