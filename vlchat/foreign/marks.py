"""Marks that travel inside a rendered conversation, through another library's processor, to its tokenizer.

A processor widens each picture's place to as many tokens as the picture takes, so positions in the rendered text say
nothing of positions in the text that is tokenized. Marks stand in the text itself and move with it: where an answer
begins and ends, and where a control token that a person typed is cut in two so that it stays plain characters. They are
code points that Unicode reserves for such internal use, and people's text is cleaned of them.
"""

from __future__ import annotations

import bisect
import re
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from vlchat import prompt
from vlchat.errors import VLChatError

BEGIN, END, CUT = "\ufdd0", "\ufdd1", "\ufdd2"
_MARK = re.compile(f"[{BEGIN}{END}{CUT}]")


def clean(text: str) -> str:
    """Text that tokenizers take, without marks of its own."""
    return prompt.clean(text).replace(CUT, "\ufffd")


def cut(text: str, tokens: tuple[str, ...]) -> str:
    """`text` with a cut inside each of `tokens` in it, also where two overlap."""
    pattern, pieces, start = prompt.pattern(tokens), [], 0
    while match := pattern.search(text, start):
        pieces.append(text[start : match.start() + 1])
        start = match.start() + 1
    return CUT.join([*pieces, text[start:]])


def bare(text: str) -> str:
    """The text without its marks."""
    return _MARK.sub("", text)


def read(text: str) -> tuple[str, list[tuple[int, int]], list[int]]:
    """The text without marks, and where in it answers stand (begin, end) and control tokens are cut.

    Raises:
        VLChatError: an answer that begins twice, or does not end.
    """
    answers, cuts, begun = [], [], None
    for before, match in enumerate(_MARK.finditer(text)):
        position = match.start() - before
        if match[0] == CUT:
            cuts.append(position)
        elif (match[0] == BEGIN) == (begun is None):
            if begun is not None:
                answers.append((begun, position))
            begun = position if begun is None else None
        else:
            raise VLChatError("answers stand inside one another")
    if begun is not None:
        raise VLChatError("an answer has no end")
    return bare(text), answers, cuts


def write(text: str, answers: list[tuple[int, int]], cuts: list[int]) -> str:
    """The inverse of `read`."""
    marks = [(end, 0, END) for _, end in answers] + [(begin, 1, BEGIN) for begin, _ in answers]
    marks += [(position, 2, CUT) for position in cuts]
    pieces, start = [], 0
    for position, _, mark in sorted(marks):
        pieces += [text[start:position], mark]
        start = position
    return "".join([*pieces, text[start:]])


class MarkedTokenizer:
    """Stands in for a processor's tokenizer while a batch is made. Texts without marks go to it as they are.

    Attributes:
        masks: of the last marked texts, a row each: 1 for tokens of an answer; padded as the ids are.
        ids: their token ids, padded.
        texts: the marked texts, as the processor gave them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.masks: list[list[int]] = []
        self.ids: list[list[int]] = []
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: Any = None, *others: Any, **options: Any) -> Any:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list) or not any(isinstance(one, str) and _MARK.search(one) for one in texts):
            return self.tokenizer(text, *others, **{"verbose": False, **options})
        if not self.tokenizer.is_fast:
            raise VLChatError("This model's tokenizer has no tokenizer.json, so the text can't be kept apart in it.")
        rows = [encode(self.tokenizer, one, options.get("add_special_tokens", True)) for one in texts]
        side = options.get("padding_side") or self.tokenizer.padding_side
        length = max(len(ids) for ids, _, _ in rows) if options.get("padding") else 0
        self.texts = texts
        self.ids = [prompt.padded(ids, length, self.tokenizer.pad_token_id, side) for ids, _, _ in rows]
        self.masks = [prompt.padded(mask, length, 0, side) for _, mask, _ in rows]
        data = {
            "input_ids": self.ids,
            "attention_mask": [prompt.padded([1] * len(ids), length, 0, side) for ids, _, _ in rows],
        }
        if options.get("return_token_type_ids"):
            data["token_type_ids"] = [[0] * len(ids) for ids in self.ids]
        shifts = [length - len(ids) if side == "left" and length else 0 for ids, _, _ in rows]
        return _Encoded(data, options.get("return_tensors"), texts, [spans for _, _, spans in rows], shifts)


class QuestionReader:
    """Stands in for a second tokenizer, a Q-Former's: it reads what was asked, and never the answers.

    It reads no further than its model has positions for (BERT has 512), and pads on the right always, for they are
    counted from the left.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: Any = None, *others: Any, **options: Any) -> Any:
        several = [text] if isinstance(text, str) else text
        asked = [bare(one.partition(BEGIN)[0]) if isinstance(one, str) else one for one in several]
        options |= {"padding_side": "right", "truncation": True, "verbose": False}
        return self.tokenizer(asked[0] if isinstance(text, str) else asked, *others, **options)


class _Encoded(BatchEncoding):
    """Answers where a character of the marked text went, as the encodings of fast tokenizers do."""

    def __init__(
        self, data: Any, tensors: Any, texts: list[str], spans: list[list[tuple[int, int]]], shifts: list[int]
    ) -> None:
        super().__init__(data, tensor_type=tensors)
        self._marks = [[match.start() for match in _MARK.finditer(text)] for text in texts]
        self._spans, self._shifts = spans, shifts

    def char_to_token(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> Any:
        row, character = (0, batch_or_char_index) if char_index is None else (batch_or_char_index, char_index)
        character -= bisect.bisect_left(self._marks[row], character)
        inside = (index for index, (first, last) in enumerate(self._spans[row]) if first <= character < last)
        found = next(inside, None)
        return None if found is None else found + self._shifts[row]


def encode(
    tokenizer: PreTrainedTokenizerBase, marked: str, special: bool
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Token ids of a marked text, the mask of answers, and each token's characters; none reaches across a mark."""
    text, answers, cuts = read(marked)
    edges = [*answers, *((position, position) for position in cuts)]
    ids, spans = prompt.encode(tokenizer, text, add_special_tokens=special, answers=edges)
    begins = [begin for begin, _ in answers]
    mask = []
    for first, last in spans:
        before = bisect.bisect_right(begins, first) - 1
        mask.append(int(last > first and before >= 0 and last <= answers[before][1]))
    return ids, mask, spans
