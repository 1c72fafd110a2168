"""Captions of pictures, scored as the COCO caption challenge does: CIDEr, BLEU and ROUGE-L."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlchat.data import Example, Source, SourceConfig
from vlchat.data.formats import CAPTION_INSTRUCTION, Message, text_of
from vlchat.errors import ConfigError, DataError, nearest
from vlchat.evaluate.blind import identity_of, images_of
from vlchat.evaluate.items import Item, Reading, Reply, Request
from vlchat.evaluate.metrics.captions import MEASURES, caption_statistics
from vlchat.evaluate.metrics.packages import scorer
from vlchat.evaluate.metrics.tokens import TOKENIZERS, java_runs
from vlchat.evaluate.tasks.base import Task
from vlchat.evaluate.tasks.coco import coco_captions, is_coco
from vlchat.evaluate.tasks.vqa import data_of, source_config, usable, vqa_item

_AFTER = {"stanford": "Stanford's PTB tokenizer", "python": "vlchat's own tokenizer, PTB rules 1"}
_REFERENCE_LISTS = ("captions", "caption", "answers")  # fields that may hold several references


class CaptionTask(Task):
    """One caption for each picture. Rows that show the same pictures are joined, and their captions are all references.

    A row is ranked by its ROUGE-L: CIDEr goes from 0 to 10 and depends on the other rows.

    Args:
        data: a file, folder or Hub id in any format, or an annotation file of COCO (`images` and `annotations`). The
            references of a row are its list of `captions` or `answers`, otherwise its last answer.
        format, images, split: as in SourceConfig. Beside an annotation file `images` is its folder of pictures.
        limit: the first so many rows, or pictures of an annotation file.
        prompt: what every picture is shown with; questions in the data are not asked.
        beams: beam search over so many beams; 1 is greedy.
        slices: fields of a row by which tables split; of rows that are joined the first one's.
        tokenizer: "stanford" (needs Java) or "python"; None takes Stanford's where Java runs.

    Raises:
        DataError: a row cannot be used, or no reference has a word. ConfigError: pycocoevalcap is missing, or a setting
            makes no sense.
    """

    measures = MEASURES

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        format: str | None = None,
        images: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        prompt: str = CAPTION_INSTRUCTION,
        beams: int = 1,
        slices: Sequence[str] = (),
        tokenizer: str | None = None,
    ) -> None:
        if beams < 1:
            raise ConfigError(f"beams is {beams}; it must be at least 1")
        if not prompt.strip():
            raise ConfigError("prompt is empty; say what the model is to do, such as prompt='Describe this image.'")
        if tokenizer is not None and tokenizer not in TOKENIZERS:
            hint = nearest(tokenizer, TOKENIZERS)
            raise ConfigError(f'Unknown tokenizer "{tokenizer}"; known: {", ".join(TOKENIZERS)}{hint}')
        scorer("pycocoevalcap.cider.cider", "pycocoevalcap", "Caption scores")  # hours of captions wait on it
        self.tokenizer = tokenizer or ("stanford" if java_runs() else "python")
        self.beams = beams
        self.notes: list[str] = []
        config = source_config(data, format=format, images=images, split=split, limit=limit)
        source: Source | SourceConfig = config
        if is_coco(config.path):
            source, without, every = coco_captions(config)
            if without:
                what = "has no caption and is left out" if without == 1 else "have no caption and are left out"
                self.notes.append(f"{without:,} of {every:,} pictures of {Path(config.path).name} {what}.")
        self._items = _joined(usable(source), prompt, slices)
        self._references = self._tokenised([text for item in self._items for text in item.answers])
        if not any(text for group in self._references.values() for text in group):
            raise DataError(f"{config.path}: no reference caption has a word, so there is nothing to compare with")
        version = importlib.metadata.version("pycocoevalcap")
        self.protocol = (
            f"vlchat-caption-1 (CIDEr-D, BLEU and ROUGE-L by pycocoevalcap {version} after {_AFTER[self.tokenizer]})"
        )
        self.data = data_of(config)
        self.notes += self._facts()

    def items(self) -> list[Item]:
        return self._items

    def requests(self, item: Item, replies: Sequence[Reply]) -> list[Request]:
        return [] if replies else [Request(item.messages, beams=self.beams)]

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        """The caption as it is; `finish` scores it, since CIDEr needs all rows."""
        return Reading(replies[0].text, 0.0)

    def finish(self, items: Sequence[Item], readings: Sequence[Reading]) -> list[Reading]:
        """The readings with tokenised captions, ROUGE-L as score and the statistics of `MEASURES`.

        CIDEr's weights always come from the references of all of the task's rows, also where `items` are a part of
        them.
        """
        captions = TOKENIZERS[self.tokenizer]([reading.answer for reading in readings])
        said = {item.id: caption for item, caption in zip(items, captions, strict=True)}
        rows = caption_statistics(list(self._references.values()), [said.get(name) for name in self._references])
        found = dict(zip(self._references, rows, strict=True))
        scored = []
        for item, reading in zip(items, readings, strict=True):
            stats = found[item.id]
            assert stats is not None  # every item is one of the task's
            scored.append(replace(reading, answer=said[item.id], score=stats["ROUGE-L"], stats=stats))
        return scored

    def _tokenised(self, texts: list[str]) -> dict[str, list[str]]:
        words = iter(TOKENIZERS[self.tokenizer](texts))
        return {item.id: [next(words) for _ in item.answers] for item in self._items}

    def _facts(self) -> list[str]:
        counts = [len(item.answers) for item in self._items]
        each = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
        pictures = "1 picture" if len(counts) == 1 else f"{len(counts):,} pictures"
        facts = [
            f"{pictures} with {each} reference caption{'' if each == '1' else 's'} each; rows are ranked by ROUGE-L.",
            "CIDEr's word weights come from these references: compare it only on the same pictures.",
        ]
        if len(counts) == 1:
            facts.append("CIDEr of a single picture is 0 by its definition: no word is rarer than another.")
        return facts


def _joined(examples: Sequence[Example], prompt: str, slices: Sequence[str]) -> list[Item]:
    """One item for each different set of pictures, in the order in which they first appear."""
    groups: dict[tuple[str, ...], list[Example]] = {}
    for example in examples:
        shown = images_of(example.messages)
        if not shown:
            raise DataError(f"{example.called} shows no picture, so there is nothing to caption; leave it out")
        groups.setdefault(tuple(map(identity_of, shown)), []).append(example)
    items: dict[str, Item] = {}
    for group in groups.values():
        item = vqa_item(group[0], slices)
        references = tuple(text for example in group for text in _references(example))
        name = item.id if item.id not in items else f"{item.id} ({group[0].row})"  # an id that two pictures have
        items[name] = replace(
            item, id=name, messages=_asked(group[0], prompt), reference=references[0], answers=references
        )
    return list(items.values())


def _references(example: Example) -> list[str]:
    for name in _REFERENCE_LISTS:
        if isinstance(listed := example.meta.get(name), list):
            texts = [text.get("answer") if isinstance(text, dict) else text for text in listed]
            if found := [text for text in texts if isinstance(text, str) and text.strip()]:
                return found
    return [text_of(next(message for message in reversed(example.messages) if message["role"] == "assistant"))]


def _asked(example: Example, prompt: str) -> list[Message]:
    """The row's pictures with the prompt, after its system turn if it has one."""
    system = [message for message in example.messages[:1] if message["role"] == "system"]
    shown = [part for message in example.messages for part in message["content"] if part["type"] != "text"]
    return [*system, {"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}]
