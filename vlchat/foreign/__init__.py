"""Conversations as the tensors that other makers' models take, to answer and to learn from.

Speaks only the Hugging Face protocol: a processor with a chat template, a model with `forward` and `generate`.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import torch
from transformers import PreTrainedTokenizerBase

from vlchat import prompt
from vlchat.errors import VLChatError
from vlchat.foreign import marks
from vlchat.lora import bare

_AS_IT_IS = "{{ messages[0]['content'][-1]['text'] }}"  # a template that writes what is rendered already


def inputs(processor: Any, conversations: Sequence[list[dict[str, Any]]], model: Any = None) -> dict[str, torch.Tensor]:
    """What `generate` needs to answer the conversations, padded on the left (on the right for an encoder).

    Control tokens in people's text stay the characters they are.

    Args:
        conversations: validated (`vlchat.prompt.validate`), their pictures decoded.
        model: leaves out what its processor gives but the model does not take.

    Raises:
        VLChatError: when there is no chat template, or template or processor refuse a conversation.
    """
    marked = [_marked(processor, conversation, learn=False) for conversation in conversations]
    texts = _render(processor, marked, add_generation_prompt=True)
    plain = _render(processor, [_map_texts(one, marks.clean) for one in conversations], add_generation_prompt=True)
    for text, expected in zip(texts, plain, strict=True):
        if marks.bare(text) != expected:
            raise VLChatError("This model's chat template reads a control token in the text; leave it out.")
    encodes = model is not None and model.config.is_encoder_decoder
    return accepted(_tensors(processor, conversations, texts, "right" if encodes else "left")[0], model)


def lesson(
    processor: Any, conversations: Sequence[list[dict[str, Any]]]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tensors of whole conversations, padded on the right, and what of them is to be learnt.

    An answer begins where the template's generation prompt ends and ends with the special token that the template
    closes the turn with. Where it closes the last answer with none, the tokenizer's end token follows the answer, for
    that is where `generate` stops. White space at an answer's edges is no part of it.

    Args:
        conversations: validated, their pictures decoded.

    Returns:
        What the processor gives, and a mask (rows, tokens) of the assistant's tokens.

    Raises:
        VLChatError: when template or processor refuse a conversation, or change the answers' text.
    """
    marked = [answers(processor, conversation) for conversation in conversations]
    batch, tokenizer = _tensors(processor, conversations, marked, "right")
    if "suffix" in inspect.signature(type(processor).__call__).parameters:
        return _lesson_in_two(processor, conversations, marked)
    ids, masks = torch.tensor(tokenizer.ids), torch.tensor(tokenizer.masks, dtype=torch.bool)
    tails = [[text.rpartition(marks.END)[2] for text in texts] for texts in (marked, tokenizer.texts)]
    width = ids.shape[-1]  # some processors put the picture's tokens before the text
    if tails[0] != tails[1] or not torch.equal(batch["input_ids"][:, -width:], ids):
        raise VLChatError(f"{_kind(processor)} writes text of its own after an answer, so it can't be tuned here.")
    if not apart(batch, conversations):
        raise VLChatError("This model learns from rows with equally many pictures only; set loop.batch=1.")
    before = batch["input_ids"].shape[1] - width
    return batch, torch.nn.functional.pad(masks, (before, 0))


def _lesson_in_two(
    processor: Any, conversations: Sequence[list[dict[str, Any]]], marked: list[str]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """`lesson` for PaliGemma: it reads a question both ways, and the answer is given apart, without its end token."""
    questions, told = [], []
    for one in marked:
        text, spans, cuts = marks.read(one)
        begin, end = spans[0]
        if len(spans) > 1 or end < len(text):
            raise VLChatError(f"{_kind(processor)} learns from rows with one question and one answer only.")
        if cuts:
            raise VLChatError(f"{_kind(processor)} reads control tokens in a row as such; leave them out.")
        questions.append(text[:begin])
        told.append(text[begin:].removesuffix(processor.tokenizer.eos_token))
    batch, _ = _tensors(processor, conversations, questions, "right", suffix=told)
    return batch, batch["token_type_ids"].bool()


def accepted(tensors: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """What of a processor's tensors the model takes; some processors also give what only they need themselves."""
    if model is None:
        return tensors
    known = inspect.signature(bare(model).forward).parameters
    return {name: value for name, value in tensors.items() if name in known}


def apart(tensors: Mapping[str, torch.Tensor], conversations: Sequence[list[dict[str, Any]]]) -> bool:
    """Whether the rows of a batch are answered as each would be alone.

    Mllama's are not where their pictures differ in number: it attends to the blank ones that make them even.
    """
    numbers = {sum(part["type"] == "image" for turn in one for part in turn["content"]) for one in conversations}
    return len(numbers) == 1 or "cross_attention_mask" not in tensors


def require_template(processor: Any) -> None:
    """Raises VLChatError for a processor without a chat template, as BLIP-2, InstructBLIP and PaliGemma publish it."""
    if not processor.chat_template:
        raise VLChatError(
            f"This model's {_kind(processor)} has no chat template, and vlchat guesses none. Put the form that the "
            "model was trained on into a copy of its folder, as chat_template.jinja, and give that folder."
        )


def new_tokens(generated: torch.Tensor, prompt_ids: torch.Tensor) -> torch.Tensor:
    """What `generate` wrote, without the prompt, which a model with an encoder (T5's) does not repeat."""
    length = prompt_ids.shape[1]
    return generated[:, length:] if torch.equal(generated[:, :length], prompt_ids) else generated


def end_token_id(processor: Any) -> int | None:
    """The token with which the template closes an answer, at which generation should stop; None where it has none."""
    turns = prompt.validate([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    try:
        rendered = answers(processor, turns)
    except VLChatError:
        return None
    text, spans, _ = marks.read(rendered)
    closing = text[slice(*spans[-1])].strip().removeprefix("b").strip()
    return processor.tokenizer.convert_tokens_to_ids(closing) if closing else None


def answers(processor: Any, conversation: list[dict[str, Any]]) -> str:
    """The rendered conversation with marks around what the assistant wrote and the tokens that close it.

    Raises:
        VLChatError: when the template refuses the conversation, or changes what the assistant said.
    """
    tokenizer = processor.tokenizer
    turns = [
        index
        for index, message in enumerate(conversation)
        for part in message["content"]
        if message["role"] == "assistant" and part["type"] == "text" and part["text"].strip()
    ]
    conversation = [_stripped(message) for message in conversation]
    marked = _marked(processor, conversation, learn=True)
    rendered = _render(processor, [marked])[0]
    plain = _render(processor, [_map_texts(conversation, marks.clean)])[0]
    try:
        text, spans, cuts = marks.read(rendered)
    except VLChatError:
        text, spans, cuts = "", [], []
    if text != plain or len(spans) != len(turns):
        raise VLChatError("The chat template changes what the assistant said, so it can't be told what to learn.")
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    closing = re.compile(rf"\s*(?:{'|'.join(map(re.escape, sorted(special, key=len, reverse=True))) or '(?!)'})")
    for number, turn in enumerate(turns):
        begin, end = spans[number]
        header = marks.bare(_render(processor, [marked[:turn]], add_generation_prompt=True)[0]) if turn else ""
        if header and text[:begin].startswith(header) and not text[len(header) : begin].strip():
            begin = len(header)
        alone = marks.bare(_render(processor, [marked[: turn + 1]])[0])
        close = closing.match(alone, end) if alone.startswith(text[:end]) else None
        if close and text.startswith(close[0], end):
            end = close.end()
        elif number == len(turns) - 1 and turn == len(conversation) - 1 and tokenizer.eos_token:
            text = text[:end] + tokenizer.eos_token
            end = len(text)
        spans[number] = (begin, end)
    return marks.write(text, spans, cuts)


def _marked(processor: Any, conversation: list[dict[str, Any]], *, learn: bool) -> list[dict[str, Any]]:
    """Cleaned texts with cuts inside control tokens and, to `learn`, marks around what the assistant says."""
    tokenizer = processor.tokenizer
    control = prompt.control_tokens(tokenizer, str(processor.chat_template or ""))
    # A template may read its own tokens in what the assistant said (`</think>`), special ones it never does.
    special = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)

    def protect(text: str) -> str:
        return marks.cut(marks.clean(text), control)

    def answer(text: str) -> str:
        safe = marks.cut(marks.clean(text), special)
        return f"{marks.BEGIN}{safe}{marks.END}" if learn and safe.strip() else safe

    return [_map_texts([message], answer if message["role"] == "assistant" else protect)[0] for message in conversation]


def _map_texts(conversation: list[dict[str, Any]], change: Any) -> list[dict[str, Any]]:
    """The messages for a template: their texts changed, and of the pictures only their places."""
    return [
        {
            **message,
            "content": [
                {"type": "text", "text": change(part["text"])} if part["type"] == "text" else {"type": "image"}
                for part in message["content"]
            ],
        }
        for message in conversation
    ]


def _stripped(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] != "assistant":
        return message
    parts = [{**part, "text": part["text"].strip()} if part["type"] == "text" else part for part in message["content"]]
    return {**message, "content": parts}


def _render(
    processor: Any, conversations: list[list[dict[str, Any]]], *, add_generation_prompt: bool = False
) -> list[str]:
    require_template(processor)
    try:
        with prompt.RENDERING:
            return processor.apply_chat_template(
                conversations, tokenize=False, add_generation_prompt=add_generation_prompt
            )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise VLChatError(f"The model's chat template refuses this conversation: {error}") from error


def _tensors(
    processor: Any, conversations: Sequence[list[dict[str, Any]]], texts: list[str], side: str, **more: Any
) -> tuple[dict[str, torch.Tensor], marks.MarkedTokenizer]:
    """Rendered and marked texts, with the conversations' pictures, through the processor."""
    pictures = [prompt.pictures_of(conversation) for conversation in conversations]
    if hasattr(processor, "num_query_tokens"):  # BLIP-2's and InstructBLIP's put one picture before each text
        wrong = next((len(some) for some in pictures if len(some) != 1), None)
        if wrong is not None:
            raise VLChatError(f"{_kind(processor)} takes exactly one picture a conversation, and this one has {wrong}.")
    processor = copy.copy(processor)
    tokenizer = processor.tokenizer = marks.MarkedTokenizer(processor.tokenizer)
    for name, value in vars(processor).items():
        if isinstance(value, PreTrainedTokenizerBase):
            setattr(processor, name, marks.QuestionReader(value))
    messages = [
        [
            {
                "role": "user",
                "content": [
                    *({"type": "image", "image": picture} for picture in some),
                    {"type": "text", "text": text},
                ],
            }
        ]
        for some, text in zip(pictures, texts, strict=True)
    ]
    try:
        with prompt.RENDERING:
            found = processor.apply_chat_template(
                messages,
                chat_template=_AS_IT_IS,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True, "padding_side": side, **more},
            )
    except VLChatError:
        raise
    except (TypeError, ValueError) as error:
        raise VLChatError(f"The model's {_kind(processor)} refuses this conversation: {error}") from error
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}, tokenizer


def _kind(processor: Any) -> str:
    return type(processor).__name__
