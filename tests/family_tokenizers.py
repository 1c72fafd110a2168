"""Tokenizers of published families' kinds, learnt on the spot from three lines."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = [
    "What is in the picture? A red circle is left of the blue square.",
    "How many cats are there? There are two cats and one dog.",
    "USER: is it green? ASSISTANT: no, it is yellow. system user assistant",
]


def byte_tokenizer(
    specials: tuple[str, ...], *, eos: str, pad: str, bos: str | None = None, adds_bos: bool = False, **named: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as of GPT-2, Llama 3 and Qwen; `named` are special tokens known by an attribute."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=360 + len(specials), special_tokens=list(specials), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    return _finished(tokenizer, bos, adds_bos, eos_token=eos, pad_token=pad, named=named)


def word_tokenizer(specials: tuple[str, ...], *, eos: str, pad: str, bos: str, **named: str) -> PreTrainedTokenizerFast:
    """A BPE whose tokens begin with the space before a word, as of Llama 2 and Gemma; it writes `bos` itself."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=pad, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = [chr(code) for code in range(32, 127)] + ["\n", "▁"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=440 + len(specials), special_tokens=[*specials, *bytes_],
                                  show_progress=False, initial_alphabet=letters)  # fmt: skip
    tokenizer.train_from_iterator([word for line in WORDS * 4 for word in line.split()], trainer)
    return _finished(tokenizer, bos, True, eos_token=eos, pad_token=pad, named=named)


def _finished(
    tokenizer: Tokenizer, bos: str | None, adds_bos: bool, *, named: dict[str, str], **tokens: str
) -> PreTrainedTokenizerFast:
    if bos is not None and adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, extra_special_tokens=named or None, model_max_length=4096, **tokens
    )


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """Word pieces in lower case, as the Q-Former reads."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, initial_alphabet=letters)
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
        mask_token="[MASK]", model_max_length=512,
    )  # fmt: skip
