"""Processors of published checkpoints as ours, and what their tokenizers add unasked."""

from __future__ import annotations

import copy
import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from vlchat.chat_templates import template_names, template_source
from vlchat.config import VLChatConfig
from vlchat.errors import CheckpointError
from vlchat.processor import VLChatProcessor

# BLIP-2's processors take no chat template and write the pictures' tokens before all text; a template stored beside
# them, the tokenizer's, has no place for pictures.
_PICTURES_FIRST = (
    "{%- for message in messages -%}{%- if message['content'] is not string -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>' }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}"
)


def read_processor(
    processor: Any,
    config: VLChatConfig,
    template: str | None,
    usual: str | None = None,
) -> VLChatProcessor:
    """Our processor with the parts of a published one.

    Args:
        config: of the model; names the image token and the number of its places.
        template: chat template by name, or None for the processor's own.
        usual: of a BLIP, whose processor writes the pictures' tokens itself before all text: the name of the prompt of
            its paper, for checkpoints that store no chat template.

    Raises:
        CheckpointError: when there is no template, or the tokenizer and the model disagree about the image token.
    """
    source = processor.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if usual is not None:
        source = source or processor.tokenizer.chat_template
        source = _PICTURES_FIRST + source if isinstance(source, str) else None
    chosen = template or (None if source else usual)
    if chosen is not None:
        source = template_source(chosen, processor.tokenizer)
    if not isinstance(source, str) or not source:
        raise CheckpointError(
            "This checkpoint has no chat template, and none is guessed. Say which one it was trained with: "
            f"vlchat import --template NAME ({', '.join(template_names())}, or a .jinja file)."
        )
    token = getattr(processor, "image_token", "<image>")
    token = getattr(token, "content", token)
    ours = VLChatProcessor(
        processor.image_processor,
        processor.tokenizer,
        image_seq_length=config.image_seq_length,
        image_token=token,
        chat_template=_unmarked(source).replace("<image>", token),
    )
    let_tokenizer_start(ours, "first" if usual is None else "after_images")
    if ours.image_token_id != config.image_token_id:
        raise CheckpointError(
            f"The tokenizer writes {token} as token {ours.image_token_id}; the model expects pictures at token "
            f"{config.image_token_id}."
        )
    if ours.tokenizer.pad_token is None:
        ours.tokenizer.pad_token = ours.tokenizer.eos_token
    return ours


def _unmarked(template: str) -> str:
    """The template without `{% generation %}`. In LLaVA's the marks take in the space behind an answer, where a token
    of the next turn begins; what to learn is found without them (`vlchat.foreign`), by the ids that the model knows."""
    without = re.sub(r"(\{%-?\s*)generation(\s*-?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%-?\s*)endgeneration(\s*-?%\})", r"\1endif\2", without)


def let_tokenizer_start(processor: VLChatProcessor, where: str) -> None:
    """Has the tokenizer write the start token, in place of the template, where it does so for any text.

    transformers' processors tokenize a rendered template as they do any text. A start token in the template would give
    other ids: behind it SentencePiece puts no space before the first word.

    Args:
        where: `VLChatProcessor.start_token`.

    Raises:
        CheckpointError: when the tokenizer adds anything else.
    """
    tokenizer = processor.tokenizer
    bare, usual = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    if usual == bare:
        return
    if usual != [tokenizer.bos_token_id, *bare]:
        raise CheckpointError("The tokenizer adds more than a start token to each text; such a model has no import.")
    processor.start_token = where
    processor.chat_template = without_start(str(processor.chat_template))


def without_start(template: str) -> str:
    """The template without the start token that it begins with, for tokenizers that write it themselves."""
    return re.sub(r"\{\{-?\s*bos_token\s*-?\}\}", "", template, count=1)


def their_tokenizer(processor: VLChatProcessor) -> PreTrainedTokenizerBase:
    """The tokenizer for a processor of transformers, which has it add its start token to a rendered conversation that
    does not begin with it: a copy that adds none, where ours does not either.

    Raises:
        CheckpointError: when the tokenizer cannot be kept from it.
    """
    tokenizer = processor.tokenizer
    if processor.start_token is not None or "bos_token" in str(processor.chat_template) or not _adds(tokenizer):
        return tokenizer
    quiet: Any = copy.deepcopy(tokenizer)
    for name in ("add_bos_token", "add_eos_token"):
        if hasattr(quiet, name):
            setattr(quiet, name, False)
    if _adds(quiet):
        raise CheckpointError(
            "The tokenizer adds special tokens to every text and cannot be kept from it, so another program would "
            "read a longer prompt than this model was trained on. Use a chat template that begins with bos_token."
        )
    return quiet


def _adds(tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"])
