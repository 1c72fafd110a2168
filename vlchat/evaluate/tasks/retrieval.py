"""Cross-modal retrieval: the texts of a picture among all texts, and the picture of a text among all pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlchat.conversation import ask_messages
from vlchat.data import SourceConfig
from vlchat.errors import ConfigError, VLChatError
from vlchat.evaluate.captioned import Captioned, read_captioned
from vlchat.evaluate.embedders.likelihood import way as way_of
from vlchat.evaluate.embeddings import Embeddings, EmbeddingTask, softmax
from vlchat.evaluate.items import Item, Reading
from vlchat.evaluate.measures import Measure, Sums, divided, ratio_of
from vlchat.evaluate.metrics.ranking import Place, chance_of, places_of
from vlchat.evaluate.tasks.vqa import data_of, source_config

CUTS = (1, 5, 10)
WAYS = {"to text": "image to text", "to picture": "text to image"}
_RECALLS = [(f"{way} @{k}", way) for way in WAYS for k in CUTS]


def _mean_recall(sums: Sums) -> np.ndarray:
    """The mean of the three recalls of each way; of both ways, where there are rows of both."""
    shares = np.stack(
        [np.mean([divided(sums[hit], sums[way]) for hit, own in _RECALLS if own == way], axis=0) for way in WAYS]
    )
    return divided(np.nan_to_num(shares).sum(axis=0), (~np.isnan(shares)).sum(axis=0))


class RetrievalTask(EmbeddingTask):
    """R@1, R@5 and R@10 both ways, as Karpathy and Fei-Fei (arXiv 1412.2306) count: any text of a picture is right.

    Ranked by similarity; a model with a matching head then ranks the first `rerank` anew by the sum of similarity and
    the head's logit, as BLIP-2's code does (LAVIS, `compute_sim_matrix`). A model without embeddings judges every pair.

    Args:
        data: the file, folder or Hub id, or a full SourceConfig; rows that share a picture are joined. Karpathy's and
            COCO's own caption files are read as they are.
        images, format, split: as in SourceConfig; of Karpathy's files the split is "test" by default.
        limit: the first so many pictures.
        captions: at most so many texts of each picture.
        rerank: candidates of each query that the matching head ranks anew; 0 leaves that out. BLIP-2 takes 128.
        likelihood: how a chat model, which has no embeddings, judges a pair: "yes" (P(yes) when asked), "caption" or
            "pmi" (the text's likelihood, or by how much the picture raises it).
        most_pairs: pairs that are judged one by one at most, where the model has no embeddings.

    Raises:
        DataError: a row cannot be used. ConfigError: an option out of range.
    """

    measures = [
        Measure("mean recall", _mean_recall, (*WAYS, *(hit for hit, _ in _RECALLS))),
        *(ratio_of(f"{way} @{k}", way, f"{title} R@{k}") for way, title in WAYS.items() for k in CUTS),
        *(ratio_of(f"{way} rank", way, f"{title} mean rank", percent=False, better="lower")
          for way, title in WAYS.items()),
    ]  # fmt: skip

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        images: str | None = None,
        format: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        captions: int | None = None,
        rerank: int = 128,
        likelihood: str = "yes",
        most_pairs: int = 20_000,
    ) -> None:
        if rerank < 0 or most_pairs < 1:
            raise ConfigError(f"rerank is {rerank} and most_pairs {most_pairs}; they must be at least 0 and 1")
        config = source_config(data, format=format, images=images, split=split, limit=limit)
        self.shown: list[Captioned] = read_captioned(config, captions)
        self.texts = [text for one in self.shown for text in one.texts]
        self.owner = np.repeat(np.arange(len(self.shown)), [len(one.texts) for one in self.shown])  # (texts,)
        self.rerank, self.most_pairs, self.likelihood = rerank, most_pairs, way_of(likelihood)
        ranked = f"first {rerank} reranked by a matching head where there is one" if rerank else "no reranking"
        self.protocol = f"vlchat-retrieval-1 (any text of a picture is right; ties in expectation; {ranked})"
        self.data: dict[str, Any] = data_of(config)
        self.notes: list[str] = []
        self._items = self._made()

    def items(self) -> list[Item]:
        return self._items

    def readings(self, embeddings: Embeddings) -> list[Reading]:
        """See `EmbeddingTask.readings`: first the pictures, then the texts, as queries."""
        own = self._own()
        to_text, to_picture, confidence = self._scores(embeddings)
        self.notes = self._told(own)
        readings: list[Reading] = []
        for way, scores, right in (("to text", to_text, own), ("to picture", to_picture.T, own.T)):
            place = places_of(scores, right)
            names = self.texts if way == "to text" else [one.name for one in self.shown]
            best = scores.argmax(axis=1)
            sure = np.full(len(scores), np.nan)
            if confidence is not None:
                chances = softmax(confidence if way == "to text" else confidence.T)
                sure = chances[np.arange(len(scores)), best]
            readings += [
                Reading(names[best[row]], stats[f"{way} @1"], stats, None if np.isnan(sure[row]) else float(sure[row]))
                for row, stats in enumerate(_stats(way, place))
            ]
            self.notes.append(f"{WAYS[way]}: median rank {np.median(place.rank):g} of {scores.shape[1]:,}.")
        return readings

    def chances(self) -> list[dict[str, float]]:
        own = self._own()
        ways = (("to text", own), ("to picture", own.T))
        return [stats for way, right in ways for stats in _stats(way, chance_of(right))]

    def _own(self) -> np.ndarray:
        """(pictures, texts) bool: which texts are a picture's own."""
        return np.arange(len(self.shown))[:, None] == self.owner

    def _scores(self, embeddings: Embeddings) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Scores to rank texts by, and pictures by, (pictures, texts); and logits of both where there are any."""
        embedder = embeddings.embedder
        pictures, names = [one.picture for one in self.shown], [one.name for one in self.shown]
        total = len(pictures) * len(self.texts)
        if not embedder.embeds:
            if total > self.most_pairs:
                raise ConfigError(
                    f"{embedder.description.get('name', 'The model')} has no embeddings, so that each of "
                    f"{len(pictures):,} pictures x {len(self.texts):,} texts = {total:,} pairs would be asked; at most "
                    f"{self.most_pairs:,} are. Set limit and captions lower, or most_pairs higher."
                )
            asked = [list(range(len(self.texts)))] * len(pictures)
            judged = np.stack(embeddings.match(pictures, names, self.texts, asked))
            scores = judged[..., 1] - judged[..., 0]
            self.reranked = None
            return scores, scores, None
        similar = embeddings.similarities(embeddings.images(pictures, names), embeddings.texts(self.texts))
        logits = embeddings.logits(similar)
        self.reranked = self.rerank if embedder.matches else 0
        if not self.reranked:
            return similar, similar, logits
        of_text, of_picture = first(similar, self.rerank), first(similar.T, self.rerank).T
        both = of_text | of_picture
        found = np.zeros_like(similar)
        asked = [np.flatnonzero(row).tolist() for row in both]
        for row, logit in enumerate(embeddings.match(pictures, names, self.texts, asked)):
            found[row, asked[row]] = logit[:, 1]
        return reranked(similar, found, of_text), reranked(similar, found, of_picture), None

    def _made(self) -> list[Item]:
        queries = [
            Item(f"{one.id} picture", ask_messages(one.picture, "Which of the texts belongs to this picture?"),
                 " | ".join(one.texts), one.texts, {"way": WAYS["to text"]}, f"picture {row}", one)
            for row, one in enumerate(self.shown)
        ]  # fmt: skip
        counted = [number for one in self.shown for number in range(len(one.texts))]
        for text, row, number in zip(self.texts, self.owner, counted, strict=True):
            one = self.shown[row]
            told = ask_messages(one.picture, f'Which of the pictures belongs to "{text}"? (Beside it: the right one.)')
            way = {"way": WAYS["to picture"]}
            queries.append(Item(f"{one.id} text {number + 1}", told, one.name, (one.name,), way, f"picture {row}", one))
        return queries

    def _told(self, own: np.ndarray) -> list[str]:
        notes = [f"{len(self.shown):,} pictures, {len(self.texts):,} texts."]
        repeated = len(self.texts) - len(set(self.texts))
        if repeated:
            notes.append(f"{repeated:,} texts are the same as another; a picture's own alone are right.")
        for way, right in (("to text", own), ("to picture", own.T)):
            chance = chance_of(right)
            shares = ", ".join(f"R@{k} {100 * chance.hit(k).mean():.2f} %" for k in CUTS)
            notes.append(f"chance, {WAYS[way]}: {shares}.")
        notes.append("No blind control: without its picture a query has no answer but chance.")
        if self.reranked:
            notes.append(f"The first {self.reranked} of each query are ranked by similarity + the matching logit.")
        elif self.reranked is None:
            notes.append("Ranked by the model's judgement of every pair; it has no embeddings.")
        return notes


def first(scores: np.ndarray, count: int) -> np.ndarray:
    """(queries, candidates) bool: the `count` best of each query; of ties at the border, some drawn by a fixed seed."""
    if count >= scores.shape[1]:
        return np.ones(scores.shape, dtype=bool)
    random = np.random.default_rng(0)
    result = np.zeros(scores.shape, dtype=bool)
    for row, one in enumerate(scores):
        result[row, np.lexsort((random.permutation(len(one)), -one))[:count]] = True
    return result


def reranked(similar: np.ndarray, logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Similarity + matching logit of the chosen pairs; the others stay behind all of them, in their old order."""
    if not np.isfinite(logits).all():
        raise VLChatError("the matching head gave numbers that are not finite: its weights may be damaged")
    ahead = similar + logits
    behind = similar - similar.max() + ahead[chosen].min() - 1.0
    return np.where(chosen, ahead, behind)


def _stats(way: str, place: Place) -> Sequence[dict[str, float]]:
    hits = {k: place.hit(k) for k in CUTS}
    rows = []
    for row, rank in enumerate(place.rank):
        stats = {hit: 0.0 for hit, _ in _RECALLS} | {name: 0.0 for one in WAYS for name in (one, f"{one} rank")}
        stats |= {way: 1.0, f"{way} rank": float(rank)} | {f"{way} @{k}": float(hits[k][row]) for k in CUTS}
        rows.append(stats)
    return rows
