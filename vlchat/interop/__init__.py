"""Published checkpoints in and out, one file a family.

Reading exchanges modules: transformers loads the checkpoint, whatever its names on disk, and its parts are put into our
class. Writing renames tensors to the names that published files carry.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlchat.chat_templates import IMAGE_TOKEN, template_source
from vlchat.errors import CheckpointError, nearest
from vlchat.interop import blip2, instructblip, llava
from vlchat.interop.layouts import Layout
from vlchat.interop.processors import without_start
from vlchat.model import VLChatForConditionalGeneration
from vlchat.processor import VLChatProcessor
from vlchat.saving import align_generation

Read = Callable[[Any, Any, str | None], tuple[VLChatForConditionalGeneration, VLChatProcessor]]

# transformers' model_type -> how such a model becomes ours.
FAMILIES: dict[str, Read] = {
    "llava": llava.read,
    "llava_next": llava.read,
    "blip-2": blip2.read,
    "instructblip": instructblip.read,
}
# What `vlchat export --layout` writes besides our own folder.
LAYOUTS: dict[str, Layout] = {"llava": llava.LAYOUT, "llava_next": llava.NEXT_LAYOUT, "blip2": blip2.LAYOUT}
# Families that are published without a chat template, and the prompt of their papers, which is theirs and no guess.
# PaliGemma (arXiv:2407.07726) is given the words as they are: "answer en What is this?", "caption en".
_BLIPS = {"blip-2": "blip2", "instructblip": "instructblip"}
_WORDS = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def convert(
    model: Any, processor: Any, template: str | None = None
) -> tuple[VLChatForConditionalGeneration, VLChatProcessor]:
    """A loaded model of transformers and its processor as ours, with the same tensors and the same logits.

    Args:
        template: chat template by name, in place of the checkpoint's own.

    Raises:
        CheckpointError: for a family that has no import, or a model of it that ours cannot hold; the reason is named.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{type(model).__name__} has no import; these have: {', '.join(FAMILIES)}. It can be used as it is."
        )
    ours, its_processor = FAMILIES[kind](model, processor, template)
    align_generation(ours, its_processor)
    return ours, its_processor


def settle(model: Any, processor: Any, convertible: bool = True) -> tuple[Any, Any]:
    """A loaded model of transformers and its processor, ready to be talked with.

    BLIP-2 and InstructBLIP come back as ours, those with a T5 as they are; where no chat template is stored, these and
    PaliGemma get the prompt of their papers.

    Args:
        convertible: False leaves the model what it is, for an adapter that knows its layers by those names.
    """
    kind = model.config.model_type
    if convertible and kind in _BLIPS and model.config.use_decoder_only_language_model:
        return convert(model, processor)
    if kind in _BLIPS and not processor.chat_template:  # this processor writes the pictures' tokens itself
        own = processor.tokenizer.chat_template
        source = own if isinstance(own, str) else template_source(_BLIPS[kind], processor.tokenizer)
        processor.chat_template = without_start(source.replace(IMAGE_TOKEN, ""))
    elif kind == "paligemma" and not processor.chat_template:
        processor.chat_template = _WORDS
    return model, processor


def layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        CheckpointError: for an unknown one.
    """
    if name not in LAYOUTS:
        known = ["vlchat", *LAYOUTS]
        hint = nearest(name, known) or "."
        raise CheckpointError(f"There is no layout {name!r}; known ones are {', '.join(known)}{hint}")
    return LAYOUTS[name]


def must_hold(name: str, model: VLChatForConditionalGeneration, processor: VLChatProcessor) -> None:
    """Raises CheckpointError when a layout cannot hold the model; says why, and which layout can."""
    chosen = layout(name)
    reason = chosen.cannot_hold(model, processor)
    if reason is not None:
        others = [other for other, one in LAYOUTS.items() if one.cannot_hold(model, processor) is None]
        able = " and ".join(["vlchat", *others])
        raise CheckpointError(f"The layout {name} cannot hold this model: {reason} The layout {able} can.")


def write(name: str, model: VLChatForConditionalGeneration, processor: VLChatProcessor, folder: Path) -> None:
    """Writes `model` into `folder` in a published layout that holds it."""
    layout(name).write(model, processor, folder)
