"""From messages to token ids in which people's text can't write control tokens.

A chat template joins its own control tokens and people's words into one string, where the two look alike. So control
tokens found in people's words are marked before rendering, and the marked ones are then tokenized in pieces, as the
plain characters they are. Text without any goes through the tokenizer in one call, with the ids it always had.
(transformers has `sanitize_control_tokens` for this from 5.23 on, but not together with the assistant mask.)
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from vlchat.errors import VLChatError
from vlchat.texts import joined

ROLES = ("system", "developer", "user", "assistant", "tool")
# Two code points that Unicode reserves for such internal use; text that has them all the same gets U+FFFD instead.
_START, _END = "\ufdd0", "\ufdd1"
# transformers compiles a template once for all threads; rendering in two at a time, it fails or mixes up their spans.
RENDERING = threading.RLock()


def validate(conversation: Any) -> list[dict]:
    """The conversation with every content a list of parts, `{"type": "text"|"image", ...}`.

    Raises:
        VLChatError: for anything else, naming the message.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise VLChatError("A conversation is a list of at least one message.")
    messages = []
    for index, message in enumerate(conversation):
        where = f"Message {index + 1}"
        if not isinstance(message, Mapping):
            raise VLChatError(f'{where} is not {{"role": ..., "content": ...}}.')
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise VLChatError(f"{where} has a role that is not one of {', '.join(ROLES)}.")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, (list, tuple)):
            raise VLChatError(f"{where} has no content: it must be a text or a list of parts.")
        parts: list[dict[str, Any]] = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "text" and isinstance(part.get("text"), str):
                # Templates write neighbours side by side: a control token in two halves must be seen as one text.
                before = parts.pop()["text"] if parts and parts[-1]["type"] == "text" else ""
                parts.append({"type": "text", "text": before + part["text"]})
            elif kind == "image":
                parts.append(dict(part))
            else:
                raise VLChatError(
                    f'{where} has a part that is neither {{"type": "text", "text": ...}} nor '
                    '{"type": "image", "image": ...}.'
                )
        messages.append({**message, "content": parts})
    return messages


def clean(text: str) -> str:
    """Text every tokenizer takes: surrogate pairs joined, lone ones and our own markers replaced by U+FFFD."""
    return joined(text).replace(_START, "\ufffd").replace(_END, "\ufffd")


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, ...]:
    """The special tokens, and those added tokens that the template writes (`<tool_call>` and such)."""
    return tuple(
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and not token.content.isspace())
    )


def protect(text: str, tokens: tuple[str, ...]) -> str:
    """Cleaned text with each of `tokens` in it marked, for `encode`."""
    return pattern(tokens).sub(lambda match: f"{_START}{match[0]}{_END}", clean(text))


def tells_answers(template: str) -> bool:
    """Whether a chat template marks what the assistant says with `{% generation %}`."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def render(
    conversations: Sequence[list[dict]],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    mark: bool,
    mask: bool = False,
    **options: Any,
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """Renders validated conversations, and gives the character spans the assistant wrote where the template tells them.

    Args:
        mark: mark control tokens in people's text, for `encode`.
        mask: insist on those spans.
        options: for the template, `add_generation_prompt` and `continue_final_message` among them.

    Raises:
        VLChatError: when the template refuses a conversation, or can't tell the assistant's words apart.
    """
    tells = tells_answers(template)
    if mask and not tells:
        raise VLChatError(
            "This chat template does not mark the assistant's words with {% generation %}, so there is nothing to "
            "learn from: use one of vlchat's own templates, or add the marks to a copy of this one."
        )
    control = control_tokens(tokenizer, template) if mark else ()
    protected = [
        [
            {
                **message,
                "content": [
                    {**part, "text": protect(part["text"], control) if mark else joined(part["text"])}
                    if part["type"] == "text"
                    else {"type": "image"}
                    for part in message["content"]
                ],
            }
            for message in conversation
        ]
        for conversation in conversations
    ]
    # Templates write the tokenizer's tokens by name; one that is missing (Qwen has no BOS) is simply not written.
    names = {"bos_token": tokenizer.bos_token or "", "eos_token": tokenizer.eos_token or ""}
    try:
        with RENDERING:
            result: Any = render_jinja_template(  # annotated as a string, it is a pair
                conversations=protected,
                chat_template=template,
                return_assistant_tokens_mask=tells and not options.get("continue_final_message"),
                **{**tokenizer.special_tokens_map, **names, **options},
            )
    except jinja2.TemplateError as error:
        raise VLChatError(f"The chat template refuses this conversation: {error}") from error
    rendered, spans = result
    return rendered, spans or [[] for _ in rendered]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    add_special_tokens: bool = False,
    answers: Sequence[tuple[int, int]] = (),
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a rendered text and the span of characters of each; marked control tokens become plain characters.

    `answers` are the spans the assistant wrote. No token reaches across their edges: where the tokenizer would join the
    end of a header with the start of an answer (a line break and a space, say), the model was never given that token
    when it began to answer.

    Raises:
        VLChatError: when the tokenizer has no way of writing a control token as plain text.
    """
    writer = _Writer(tokenizer, sorted({edge for span in answers for edge in span}))
    position = 0
    for match in re.finditer(f"{_START}([^{_END}]*){_END}|[{_START}{_END}]|$", text):
        writer.write(text[position : match.start()], position, add_special_tokens and position == 0)
        if match[1]:
            before = len(writer.ids)
            for start, piece in _broken(match[1], pattern(tuple(tokenizer.added_tokens_encoder))):
                writer.write(piece, match.start(1) + start, False)
            if tokenizer.convert_tokens_to_ids(match[1]) in writer.ids[before:]:
                raise VLChatError(f"The tokenizer can't write {match[1]!r} as plain text; leave it out.")
        position = match.end()
    return writer.ids, writer.spans


class _Writer:
    """Tokenizes a text piece after piece."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, edges: list[int]) -> None:
        self.tokenizer = tokenizer
        self.edges = edges
        self.ids: list[int] = []
        self.spans: list[tuple[int, int]] = []

    def write(self, piece: str, start: int, add_special_tokens: bool) -> None:
        if not piece:
            return
        ids, spans = self._encode(piece, start, add_special_tokens)
        for edge in self.edges:
            if any(first < edge < last for first, last in spans):
                self.write(piece[: edge - start], start, add_special_tokens)
                self.write(piece[edge - start :], edge, False)
                return
        self.ids.extend(ids)
        self.spans.extend(spans)

    def _encode(self, piece: str, start: int, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        if self.ids:
            # SentencePiece puts a space before the start of a text; after a line break it does not.
            ids, spans = _encode_plain(self.tokenizer, "\n" + piece, False)
            kept = [index for index, (_, last) in enumerate(spans) if last > 1]
            if kept and spans[kept[0]][0] >= 1:
                shift = start - 1
                return [ids[i] for i in kept], [(spans[i][0] + shift, spans[i][1] + shift) for i in kept]
        ids, spans = _encode_plain(self.tokenizer, piece, add_special_tokens)
        return ids, [(first + start, last + start) for first, last in spans]


def padded(values: list[int], length: int, filler: int, side: str) -> list[int]:
    """`values` filled up to `length` on the left or the right."""
    padding = [filler] * (length - len(values))
    return padding + values if side == "left" else values + padding


def pictures_of(conversation: list[dict]) -> list[Any]:
    """The decoded pictures of a validated conversation, in reading order."""
    parts = [part for message in conversation for part in message["content"] if part["type"] == "image"]
    pictures = [part["image"] for part in parts if part.get("image") is not None]
    if len(pictures) != len(parts):
        raise mismatch(len(parts), len(pictures), "The conversation")
    for picture in pictures:
        _check_picture(picture)
    return pictures


def flat_pictures(images: Any) -> list[Any]:
    """One flat list from a picture, a list of pictures or lists of lists of them."""
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [picture for some in images for picture in flat_pictures(some)]
    _check_picture(images)
    return [images]


def _check_picture(picture: Any) -> None:
    # Paths and addresses would be opened by transformers' helpers; what is opened is decided elsewhere.
    if not isinstance(picture, (Image.Image, np.ndarray, torch.Tensor)):
        raise VLChatError(
            f"A picture here is a {type(picture).__name__}, not a decoded image: open it with vlchat.images.decode."
        )


def mismatch(places: int, pictures: int, where: str) -> VLChatError:
    """The error for a prompt whose image places and pictures differ in number."""
    has = "have" if where.endswith("prompts") else "has"
    images = "image" if places == 1 else "images"
    given = "image was" if pictures == 1 else "images were"
    return VLChatError(f"{where} {has} places for {places} {images} but {pictures} {given} given.")


def _encode_plain(
    tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    if not tokenizer.is_fast:
        ids = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return ids, [(0, 0)] * len(ids)
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False)
    return list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]


def _broken(text: str, added: re.Pattern[str]) -> list[tuple[int, str]]:
    """`text` cut after the first character of every added token in it, so that no piece holds a whole one."""
    pieces, start = [], 0
    while match := added.search(text, start):
        pieces.append((start, text[start : match.start() + 1]))
        start = match.start() + 1
    pieces.append((start, text[start:]))
    return pieces


@lru_cache
def pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted((token for token in tokens if token), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
