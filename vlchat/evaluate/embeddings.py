"""Asks an embedder everything that a task of similarity needs, in batches, and keeps what it said on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vlchat import images
from vlchat.errors import ConfigError, DataError, ImageError, VLChatError
from vlchat.evaluate.embedders.base import Embedder, similarity
from vlchat.evaluate.identity import picture_key
from vlchat.evaluate.items import Item, Reading
from vlchat.evaluate.metrics.ranking import rounded
from vlchat.evaluate.tasks.base import Task
from vlchat.folders import replacing

Picture = Path | bytes | Image.Image
_PIECE = 256  # pictures or texts in one file of the cache: what an interrupted run loses at most
_LOGITS = 5  # decimals of matching logits, whose float32 noise is larger than that of cosines


class EmbeddingTask(Task):
    """A task that needs no replies but embeddings: `evaluate_with` runs it.

    Attributes:
        likelihood: how a chat model, which has none, judges pairs: one of `vlchat.evaluate.embedders.likelihood.WAYS`.
    """

    likelihood: str = "yes"

    def readings(self, embeddings: Embeddings) -> list[Reading]:
        """One for each of `items()`, in their order."""
        raise NotImplementedError

    def chances(self) -> list[dict[str, float]]:
        """What each item's statistics are for a model that cannot tell anything apart, in expectation."""
        raise NotImplementedError


def evaluate_with(
    embedder: Embedder,
    task: EmbeddingTask,
    *,
    batch_size: int = 32,
    cache: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[tuple[Item, Reading]]:
    """Every item of a task with its reading.

    Args:
        batch_size: pictures, or texts, embedded together.
        cache: a folder that keeps embeddings by embedder, picture and text; None keeps nothing.
        progress: is told how many are done, of how many, and what they are.

    Raises:
        VLChatError: a picture cannot be decoded, or the task needs what the embedder does not have.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    embeddings = Embeddings(embedder, batch_size, cache, progress)
    readings = task.readings(embeddings)
    if embedder.cut:
        task.notes.append(f"{embedder.cut:,} texts were longer than the model reads, and were cut off.")
    return list(zip(task.items(), readings, strict=True))


class Embeddings:
    """What an embedder says of many pictures and texts. Arguments as of `evaluate_with`."""

    def __init__(
        self,
        embedder: Embedder,
        batch_size: int = 32,
        cache: Path | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self.embedder, self.batch_size, self.cache, self.progress = embedder, batch_size, cache, progress

    def images(self, pictures: Sequence[Picture], names: Sequence[str]) -> np.ndarray:
        """(pictures, queries, dim). Raises DataError, with the name of the row, for one that cannot be decoded."""
        keys = [picture_key(picture) for picture in pictures] if self.cache is not None else []

        def embed(rows: range) -> np.ndarray:
            return self.embedder.images([decoded(pictures[row], names[row]) for row in rows])

        return self._kept("images", keys, len(pictures), embed)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, dim)."""
        return self._kept("texts", list(texts), len(texts), lambda rows: self.embedder.texts([texts[i] for i in rows]))

    def similarities(self, pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """(pictures, texts) float64, rounded so that what differs by noise alone is a tie."""
        return rounded(similarity(pictures, texts))

    def match(
        self, pictures: Sequence[Picture], names: Sequence[str], texts: Sequence[str], asked: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """For each picture the logits (texts asked, 2) of the texts with the numbers `asked`, rounded."""
        found, total = [], sum(map(len, asked))
        done = 0
        for picture, name, numbers in zip(pictures, names, asked, strict=True):
            some = [texts[number] for number in numbers]
            logits = self.embedder.match(decoded(picture, name), some) if some else np.zeros((0, 2))
            found.append(rounded(logits, _LOGITS))
            done += len(some)
            self._tell(done, total, "pairs")
        return found

    def logits(self, similarities: np.ndarray) -> np.ndarray | None:
        """What the model's softmax is taken of; None where it does not say its temperature."""
        if self.embedder.scale is None:
            return None
        return self.embedder.scale * similarities + (self.embedder.bias or 0.0)

    def _kept(
        self, kind: str, keys: Sequence[str], count: int, embed: Callable[[range], np.ndarray]
    ) -> np.ndarray:
        if count == 0:
            raise ConfigError(f"there are no {kind} to embed")
        found = []
        for start in range(0, count, _PIECE):
            rows = range(start, min(start + _PIECE, count))
            file = None
            if self.cache is not None:
                told = "\n".join([self.embedder.identity, kind, *(hashed(keys[row]) for row in rows)])
                file = self.cache / f"{hashed(told)}.safetensors"
            piece = None if file is None else _read(file, len(rows))
            if piece is None:
                made = []
                for first in range(rows.start, rows.stop, self.batch_size):
                    some = range(first, min(first + self.batch_size, rows.stop))
                    made.append(embed(some))
                    self._tell(some.stop, count, kind)
                piece = np.concatenate(made)
                if not np.isfinite(piece).all():
                    raise VLChatError(
                        f"The model gave numbers that are not finite for {kind} {rows.start + 1} to {rows.stop}: its "
                        "weights may be damaged. In half precision they may overflow: try --dtype float32."
                    )
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(file, flush=False) as stage:
                        save_file({"embeddings": np.ascontiguousarray(piece)}, stage)
            found.append(piece)
        return np.concatenate(found)

    def _tell(self, done: int, total: int, what: str) -> None:
        if self.progress is not None:
            self.progress(done, total, what)


def decoded(picture: Picture, name: str) -> Image.Image:
    """The picture of a row in RGB. Raises DataError with the row's name."""
    try:
        return images.decode(picture)
    except ImageError as error:
        raise DataError(f"{name}: {error}", kind=error.kind, field="image") from error


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _read(file: Path, rows: int) -> np.ndarray | None:
    """A piece of the cache; None where it is not there, or damaged, so that it is made again."""
    try:
        found = load_file(file)["embeddings"] if file.is_file() else None
    except (OSError, SafetensorError, KeyError):
        return None
    return found if found is not None and len(found) == rows else None
