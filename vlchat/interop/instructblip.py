"""InstructBLIP as transformers keeps it (`InstructBlipForConditionalGeneration`), with a decoder as its language model.

Its Q-Former reads the question, in a vocabulary of its own (BERT's in the published checkpoints).
"""

from __future__ import annotations

from typing import Any

from vlchat.interop.blip2 import join, qformer_options
from vlchat.interop.processors import read_processor
from vlchat.model import VLChatForConditionalGeneration
from vlchat.processor import VLChatProcessor


def read(
    model: Any, processor: Any, template: str | None = None
) -> tuple[VLChatForConditionalGeneration, VLChatProcessor]:
    """A loaded InstructBLIP as our class. The two share their tensors.

    Raises:
        CheckpointError: for a T5 or another encoder-decoder as its language model.
    """
    options = qformer_options(model.config.qformer_config)
    options["text_vocab_size"] = model.config.qformer_config.vocab_size
    result = join(model, options)
    ours = read_processor(processor, result.config, template, usual="instructblip")
    ours.use_qformer_tokenizer(processor.qformer_tokenizer, options["max_instruction_tokens"])
    return result, ours
