"""Zero-shot classification: the class whose prompts are most similar to the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlchat.conversation import ask_messages
from vlchat.data import SourceConfig
from vlchat.errors import ConfigError
from vlchat.evaluate.embedders.likelihood import way as way_of
from vlchat.evaluate.embeddings import Embeddings, EmbeddingTask, hashed, softmax
from vlchat.evaluate.items import Item, Reading
from vlchat.evaluate.labelled import class_names, read_labelled
from vlchat.evaluate.measures import mean_of, ratio_of
from vlchat.evaluate.metrics.ranking import places_of
from vlchat.evaluate.tasks.vqa import data_of, source_config
from vlchat.evaluate.templates import prompts, templates_of

_CONFUSIONS = 5  # in the notes


class ZeroShotTask(EmbeddingTask):
    """Classification by prompts, as CLIP does it (arXiv 2103.00020, section 3.1.4).

    A class is the mean of its prompts' embeddings of unit length, again of unit length. The confidence is the softmax
    of the model's own logits. A model without embeddings judges every picture with every prompt.

    Args:
        data: rows with a picture and a label; or a folder with a folder for each class.
        images, format, split, limit: as in SourceConfig.
        label: the field that holds the class; by default `label`, `class` or `category`.
        classes: the names to choose from; by default the labels that occur. See `labelled.class_names`.
        templates: a name of `vlchat.evaluate.templates.TEMPLATES`, or one or several prompts with {} in them.
        likelihood: how a chat model, which has no embeddings, judges a pair: "yes" (P(yes) when asked), "caption" or
            "pmi" (the text's likelihood, or by how much the picture raises it).
        most_pairs: pairs that are judged one by one at most, where the model has no embeddings.

    Raises:
        DataError: a row cannot be used. ConfigError: classes or templates that cannot be.
    """

    measures = [
        mean_of("top 1", "accuracy"),
        mean_of("top 5", "top-5 accuracy"),
        ratio_of("top 1 by class", "class", "mean per-class accuracy"),
    ]

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        images: str | None = None,
        format: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        label: str | None = None,
        classes: str | Sequence[str] | Mapping[str, str] | None = None,
        templates: str | Sequence[str] = "photo",
        likelihood: str = "yes",
        most_pairs: int = 20_000,
    ) -> None:
        config = source_config(data, format=format, images=images, split=split, limit=limit)
        self.rows = read_labelled(config, label)
        self.names, self.right = class_names(classes, [row.label for row in self.rows])
        self.templates = templates_of(templates)
        self.most_pairs, self.likelihood = most_pairs, way_of(likelihood)
        called = templates if isinstance(templates, str) else f"{len(self.templates)} templates"
        self.protocol = f"vlchat-zero-shot-1 (mean of normalised prompts; templates: {called}; ties in expectation)"
        asked = prompts(self.names, self.templates)
        told = {"count": len(asked), "sha256": hashed("\n".join(asked))}
        self.data: dict[str, Any] = data_of(config) | {"prompts": told}
        self.notes: list[str] = []
        twice = len({row.id for row in self.rows}) < len(self.rows)
        self._items = [
            Item(f"{row.id} #{number}" if twice else row.id, ask_messages(row.picture, "What is in this picture?"),
                 self.names[right], (self.names[right],), {"class": self.names[right]}, source=row)
            for number, (row, right) in enumerate(zip(self.rows, self.right, strict=True), 1)
        ]  # fmt: skip

    def items(self) -> list[Item]:
        return self._items

    def readings(self, embeddings: Embeddings) -> list[Reading]:
        """See `EmbeddingTask.readings`."""
        scores, logits = self._scores(embeddings)  # (rows, classes)
        right = np.zeros(scores.shape, dtype=bool)
        right[np.arange(len(right)), self.right] = True
        place = places_of(scores, right)
        top, five, taken = place.hit(1), place.hit(5), scores.argmax(axis=1)
        sure = None if logits is None else softmax(logits)[np.arange(len(scores)), taken]
        self.notes = self._told(taken, Counter(self.right))
        return [
            Reading(self.names[taken[row]], float(top[row]), stats, None if sure is None else float(sure[row]))
            for row, stats in enumerate(self._stats(top, five))
        ]

    def chances(self) -> list[dict[str, float]]:
        shares = [np.full(len(self.rows), min(1.0, k / len(self.names))) for k in (1, 5)]
        return self._stats(*shares)

    def _stats(self, top: np.ndarray, five: np.ndarray) -> list[dict[str, float]]:
        counts = Counter(self.right)
        return [
            {"top 1": float(top[row]), "top 5": float(five[row]), "class": 1.0 / counts[number],
             "top 1 by class": float(top[row]) / counts[number]}
            for row, number in enumerate(self.right)
        ]  # fmt: skip

    def _scores(self, embeddings: Embeddings) -> tuple[np.ndarray, np.ndarray | None]:
        asked, pictures = prompts(self.names, self.templates), [row.picture for row in self.rows]
        called = [f"Row {row.id}" for row in self.rows]
        if not embeddings.embedder.embeds:
            total = len(asked) * len(pictures)
            if total > self.most_pairs:
                raise ConfigError(
                    f"{embeddings.embedder.description.get('name', 'The model')} has no embeddings, so that each of "
                    f"{len(pictures):,} pictures x {len(asked):,} prompts = {total:,} pairs would be asked; at most "
                    f"{self.most_pairs:,} are. Set limit lower, choose fewer templates, or set most_pairs higher."
                )
            judged = np.stack(embeddings.match(pictures, called, asked, [range(len(asked))] * len(pictures)))
            margins = judged[..., 1] - judged[..., 0]
            return margins.reshape(len(pictures), len(self.names), len(self.templates)).mean(axis=2), None
        texts = embeddings.texts(asked).astype(np.float64).reshape(len(self.names), len(self.templates), -1)
        classes = texts.mean(axis=1)
        classes /= np.linalg.norm(classes, axis=1, keepdims=True)
        similar = embeddings.similarities(embeddings.images(pictures, called), classes)
        return similar, embeddings.logits(similar)

    def _told(self, taken: np.ndarray, counts: Counter[int]) -> list[str]:
        number, most = counts.most_common(1)[0]
        classes = len(self.names)
        pairs = Counter(zip(self.right, taken.tolist(), strict=True))
        often = [(count, *pair) for pair, count in pairs.items() if pair[0] != pair[1] and count > 1]
        notes = [
            f"{len(self.rows):,} pictures of {len(counts):,} classes, told from {classes:,}; "
            f"{len(self.templates)} prompt{'' if len(self.templates) == 1 else 's'} a class.",
            f"chance: top-1 {100 / classes:.2f} %, top-5 {100 * min(5, classes) / classes:.2f} %; always the most "
            f'frequent class ("{self.names[number]}"): {100 * most / len(self.rows):.2f} %.',
            "No blind control: without its picture a row has no answer but chance.",
        ]
        if often:
            told = ", ".join(
                f"{self.names[one]} taken for {self.names[other]} ({count})"
                for count, one, other in sorted(often, key=lambda found: (-found[0], found[1:]))[:_CONFUSIONS]
            )
            notes.append(f"Most often confused: {told}.")
        return notes
