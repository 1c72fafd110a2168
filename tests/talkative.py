"""A tiny real model that answers with endless plain words, for tests that watch an answer come or stop it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def save_talkative(folder: Path, tower: CLIPVisionModel, tokenizer: PreTrainedTokenizerFast, width: int = 64) -> Path:
    """Writes it to `folder`, as `save_pretrained` does.

    Its weights are random, so what it says follows from pictures and words without meaning anything. Every token but
    whole words is suppressed by its generation config, the end of the answer too.
    """
    from vlchat import VLChatForConditionalGeneration, VLChatProcessor
    from vlchat.towers import clip_image_processor

    torch.manual_seed(5)
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=8192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for parameter in language.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else None
    processor = VLChatProcessor.from_backbones(clip_image_processor(24), tokenizer, 4, "chatml")
    model = VLChatForConditionalGeneration.from_backbones(
        tower, language, {"type": "mlp", "depth": 2}, tokenizer=tokenizer
    )
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    silent = [token for token, text in enumerate(texts) if not re.fullmatch(r" [a-zA-Z]{2,}", text)]
    assert len(texts) - len(silent) > 10
    model.generation_config.suppress_tokens = silent
    model.generation_config.eos_token_id = language.config.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@contextmanager
def serving(chat: Any, policy: Any = None, **options: Any) -> Iterator[str]:
    """The address of the real page, served by this process; arguments as of `serve.app.launch`."""
    from serve.app import launch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = launch(chat, port=port, policy=policy, **options)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        app.close(verbose=False)


class Steps:
    """Counts the forward passes of a chat's language model."""

    def __init__(self, chat: Any) -> None:
        self.count = 0
        chat.model.model.language_model.register_forward_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1
