"""Image-text matching: does this text belong to this picture?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlchat.conversation import ask_messages
from vlchat.data import SourceConfig, load_source
from vlchat.errors import ConfigError, nearest
from vlchat.evaluate.blind import identity_of
from vlchat.evaluate.captioned import read_captioned
from vlchat.evaluate.coco import holds_object
from vlchat.evaluate.embedders.likelihood import QUESTION
from vlchat.evaluate.embedders.likelihood import way as way_of
from vlchat.evaluate.embeddings import Embeddings, EmbeddingTask
from vlchat.evaluate.items import Item, Reading
from vlchat.evaluate.measures import Measure, Sums, divided, mean_of
from vlchat.evaluate.metrics.ranking import best_threshold, placements, precisions
from vlchat.evaluate.pairs import Pair, Quadruple, drawn_pairs, is_quadruple, read_pairs, read_quadruples
from vlchat.evaluate.tasks.vqa import data_of, source_config

WAYS = ("auto", "match", "similarity")


def _area(sums: Sums) -> np.ndarray:
    """The area under the ROC curve as a mean over matches plus a mean over the others minus itself.

    Of all rows it is the area exactly; of resampled rows its first-order change, whose variance is DeLong's.
    """
    over_yes, over_no = divided(sums["area of yes"], sums["yes"]), divided(sums["area of no"], sums["no"])
    return over_yes + over_no - divided(sums["area"], sums["rows"])


class MatchingTask(EmbeddingTask):
    """Accuracy, area under the ROC curve and average precision of telling matches from mismatches.

    Rows with a label, or a yes-or-no question, are taken as they are; for captioned pictures as many mismatches are
    drawn as there are texts. Of Winoground's rows (two pictures, two captions) the text, image and group scores are
    given, as arXiv 2204.03162 defines them.

    A model without a matching head says no probability, unless its loss is a sigmoid: the threshold of its accuracy is
    the best one on the other half of the pictures.

    Args:
        data: the file, folder or Hub id, or a full SourceConfig.
        images, format, split, limit: as in SourceConfig; the limit counts rows, or pictures where mismatches are drawn.
        label: the field that says whether they belong together; by default `match` or `label`.
        captions: at most so many texts of each picture, where mismatches are drawn.
        by: "match" asks the matching head, "similarity" compares embeddings; "auto" takes the head where there is one.
        likelihood: how a chat model, which has no embeddings, judges a pair: "yes" (P(yes) when asked), "caption" or
            "pmi" (the text's likelihood, or by how much the picture raises it).
        mismatch_seed: of the mismatches' draw.

    Raises:
        DataError: a row cannot be used. ConfigError: an option out of range.
    """

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        images: str | None = None,
        format: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        label: str | None = None,
        captions: int | None = None,
        by: str = "auto",
        likelihood: str = "yes",
        mismatch_seed: int = 0,
    ) -> None:
        if by not in WAYS:
            raise ConfigError(f'by is "{by}"; use {", ".join(WAYS)}{nearest(by, WAYS)}')
        config = source_config(data, format=format, images=images, split=split, limit=limit)
        self.by, self.likelihood = by, way_of(likelihood)
        self.data: dict[str, Any] = data_of(config)
        self.notes: list[str] = []
        self.pairs: list[Pair] = []
        self.quadruples: list[Quadruple] = []
        self._read(config, label, captions, mismatch_seed)
        self._told_first = list(self.notes)
        self._items = [_item_of_four(four) for four in self.quadruples] or [_item(pair) for pair in self.pairs]
        if self.quadruples:
            self.measures: Sequence[Measure] = [
                mean_of("group", "group score"), mean_of("text", "text score"), mean_of("image", "image score"),
            ]  # fmt: skip
            self.protocol = "winoground (text, image and group score; a tie is wrong)"
        else:
            self.measures = [
                mean_of("right", "accuracy"),
                Measure("AUROC", _area, ("area of yes", "area of no", "yes", "no", "area")),
                mean_of("precision", "average precision"),
                mean_of("preferred", "own text preferred"),
            ]
            self.protocol = "vlchat-matching-1 (P >= 1/2, else the threshold of the other half; AUROC with ties half)"

    def items(self) -> list[Item]:
        return self._items

    def readings(self, embeddings: Embeddings) -> list[Reading]:
        """See `EmbeddingTask.readings`."""
        self.notes = list(self._told_first)
        return self._fours(embeddings) if self.quadruples else self._twos(embeddings)

    def chances(self) -> list[dict[str, float]]:
        """Of pairs the more frequent answer, and scores that tell nothing apart."""
        if self.quadruples:
            return [{"text": 0.25, "image": 0.25, "group": 1 / 6}] * len(self.quadruples)
        share = sum(pair.match for pair in self.pairs) / len(self.pairs)
        rows = []
        for pair in self.pairs:
            stats = {"right": float(pair.match == (share >= 0.5))}
            if 0 < share < 1:
                side, other = ("yes", "no") if pair.match else ("no", "yes")
                stats |= {side: 1.0, other: 0.0, f"area of {side}": 0.5, f"area of {other}": 0.0, "area": 0.5}
            rows.append(stats | ({"precision": share, "preferred": 0.5} if pair.match else {}))
        return rows

    def _read(self, config: SourceConfig, label: str | None, captions: int | None, seed: int) -> None:
        found = None
        if label is not None or not holds_object(config.path):
            source = load_source(config)
            if is_quadruple(source.rows[0]):
                self.quadruples = read_quadruples(source)
                self.notes.append("chance: text and image score 25 %, group score 16.67 %.")
                return
            found = read_pairs(config, label)
        if found is None:
            rows = read_captioned(config, captions)
            found = drawn_pairs(rows, seed)
            self.notes.append(f"Mismatches are drawn from the texts of the {len(rows):,} pictures, seed {seed}.")
        self.pairs = found
        matches = sum(pair.match for pair in found)
        always = max(matches, len(found) - matches) / len(found)
        self.notes.append(
            f"{len(found):,} pairs, {matches:,} matches. Always the same answer: accuracy {100 * always:.2f} %. "
            f"Chance: AUROC 50 %, average precision {100 * matches / len(found):.2f} %."
        )

    def _twos(self, embeddings: Embeddings) -> list[Reading]:
        margins, probable = self._margins(embeddings, [(pair.picture, pair.text, pair.id) for pair in self.pairs])
        matches = np.array([pair.match for pair in self.pairs])
        thresholds = np.zeros(len(margins)) if probable else self._thresholds(margins, matches)
        taken = margins >= thresholds
        chances = 1 / (1 + np.exp(-np.clip(margins, -500, 500)))
        places, sharp = placements(margins, matches), precisions(margins, matches)
        preferred = self._preferred(margins)
        readings = []
        for row, match in enumerate(matches.tolist()):
            right = float(taken[row] == match)
            stats = {} if np.isnan(thresholds[row]) else {"right": right}
            if not np.isnan(places[row]):
                side, other = ("yes", "no") if match else ("no", "yes")
                stats |= {side: 1.0, other: 0.0, f"area of {side}": float(places[row]), f"area of {other}": 0.0}
                stats["area"] = float(places[matches].mean())
            if match:
                stats["precision"] = float(sharp[row])
            if row in preferred:
                stats["preferred"] = preferred[row]
            sure = float(max(chances[row], 1 - chances[row])) if probable else None
            readings.append(Reading("yes" if taken[row] else "no", right, stats, sure))
        return readings

    def _margins(
        self, embeddings: Embeddings, asked: Sequence[tuple[Any, str, str]]
    ) -> tuple[np.ndarray, bool]:
        """For each (picture, text, name) how well they match, and whether its sigmoid is a probability."""
        embedder = embeddings.embedder
        called = embedder.description.get("name", "the model")
        if self.by == "match" and not embedder.matches:
            raise ConfigError(f"by is match, and {called} has no matching head. Take similarity.")
        if self.by == "similarity" and not embedder.embeds:
            raise ConfigError(f"by is similarity, and {called} has no embeddings. Take match.")
        once: dict[str, int] = {}
        numbers = [once.setdefault(identity_of(picture), len(once)) for picture, _, _ in asked]
        firsts = dict(zip(reversed(numbers), reversed(asked), strict=True))
        pictures, names = [firsts[n][0] for n in range(len(once))], [firsts[n][2] for n in range(len(once))]
        if embedder.matches and self.by != "similarity":
            self.notes.append("Judged by the matching head." if embedder.embeds else "Judged pair by pair.")
            rows: list[list[int]] = [[] for _ in pictures]
            for row, number in enumerate(numbers):
                rows[number].append(row)
            margins = np.empty(len(asked))
            judged = embeddings.match(pictures, names, [text for _, text, _ in asked], rows)
            for some, logits in zip(rows, judged, strict=True):
                margins[some] = logits[:, 1] - logits[:, 0]
            return margins, embedder.probable
        self.notes.append("Judged by similarity.")
        texts = list(dict.fromkeys(text for _, text, _ in asked))
        place = {text: number for number, text in enumerate(texts)}
        similar = embeddings.similarities(embeddings.images(pictures, names), embeddings.texts(texts))
        margins = similar[numbers, [place[text] for _, text, _ in asked]]
        if embedder.bias is None or embedder.scale is None:
            return margins, False
        return embedder.scale * margins + embedder.bias, True

    def _thresholds(self, margins: np.ndarray, matches: np.ndarray) -> np.ndarray:
        """(pairs,): the best threshold on the other half of the pictures; NaN where there is no other half."""
        clusters = list(dict.fromkeys(pair.cluster for pair in self.pairs))
        half_of = {cluster: number % 2 for number, cluster in enumerate(clusters)}
        halves = np.array([half_of[pair.cluster] for pair in self.pairs])
        if len(clusters) < 2:
            return np.full(len(margins), np.nan)
        best = [best_threshold(margins[halves != half], matches[halves != half]) for half in (0, 1)]
        self.notes.append("No probabilities: each half of the pictures takes the threshold that is best on the other.")
        return np.array(best)[halves]

    def _preferred(self, margins: np.ndarray) -> dict[int, float]:
        """Of each match, the share of the same picture's mismatches with a lower score; ties count half."""
        wrong: dict[str, list[float]] = {}
        for row, pair in enumerate(self.pairs):
            if not pair.match:
                wrong.setdefault(pair.cluster, []).append(margins[row])
        result = {}
        for row, pair in enumerate(self.pairs):
            others = np.array(wrong.get(pair.cluster, [])) if pair.match else np.array([])
            if len(others):
                result[row] = float(((margins[row] > others) + 0.5 * (margins[row] == others)).mean())
        return result

    def _fours(self, embeddings: Embeddings) -> list[Reading]:
        asked = [
            (four.pictures[image], four.texts[text], f"{four.id}, image_{image}")
            for four in self.quadruples for text in (0, 1) for image in (0, 1)
        ]  # fmt: skip
        scores, _ = self._margins(embeddings, asked)
        readings = []
        for four in scores.reshape(-1, 2, 2):  # (rows, captions, pictures)
            text = bool(four[0, 0] > four[1, 0] and four[1, 1] > four[0, 1])
            image = bool(four[0, 0] > four[0, 1] and four[1, 1] > four[1, 0])
            stats = {"text": float(text), "image": float(image), "group": float(text and image)}
            told = f"text {'right' if text else 'wrong'}, image {'right' if image else 'wrong'}"
            readings.append(Reading(told, stats["group"], stats))
        return readings


def _item(pair: Pair) -> Item:
    return Item(
        pair.id, ask_messages(pair.picture, QUESTION.format(pair.text)), "yes" if pair.match else "no",
        slices={"match": "yes" if pair.match else "no"}, cluster=pair.cluster, source=pair,
    )  # fmt: skip


def _item_of_four(four: Quadruple) -> Item:
    parts = [part for n in (0, 1) for part in ask_messages(four.pictures[n], four.texts[n])[0]["content"]]
    slices = {} if four.tag is None else {"tag": four.tag}
    return Item(four.id, [{"role": "user", "content": parts}], "text right, image right", slices=slices, source=four)
