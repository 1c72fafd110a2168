"""A byte-level BPE tokenizer from nothing, trained on the texts of a run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import vlchat
from vlchat.errors import CheckpointError

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")


def train_tokenizer(texts: Iterable[str], vocabulary: int, *, append_end: bool = False) -> PreTrainedTokenizerFast:
    """Learn at most `vocabulary` tokens. Any text can be written in them: what was not seen falls back to bytes.

    Args:
        append_end: put the end token behind every text, where CLIP's text tower reads the whole.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(t, special=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if append_end:
        tokenizer.post_processor = processors.TemplateProcessing(
            "$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>" if append_end else "<|im_end|>",
        padding_side="right",
    )
    if not append_end:
        fast.chat_template = (Path(vlchat.__file__).parent / "templates" / "chatml.jinja").read_text()
    return fast


def saved_tokenizer(folder: Path, tokens: int | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer that a run began with: its texts may be other ones by now.

    Raises CheckpointError where there is none, or it does not have as many `tokens` as the model that is to go on.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json. Train it first, or name a run that is there.")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if tokens is not None and len(tokenizer) != tokens:
        raise CheckpointError(
            f"{folder} cannot be resumed: its tokenizer has {len(tokenizer):,} tokens, and objective.vocabulary makes "
            f"{tokens:,} now. Give the run the configuration that it began with."
        )
    return tokenizer
