"""Rows that are never trained on: which ones they are, as a function of the seed and the data alone."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image
from tqdm import tqdm

from train.config import HeldoutConfig, RunConfig
from train.sources import open_data
from vlchat.data import Example, Mixture, Source, inspect
from vlchat.data.dataset import Kept, resolve_image
from vlchat.data.formats import text_of
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.blind import images_of

_MANY = 20_000  # rows from which on reading them all is worth a progress bar


@dataclass(frozen=True)
class Heldout:
    """The rows that are looked at and never trained on.

    Attributes:
        examples: the rows; their pictures are not decoded yet.
        origin: where they come from, in words.
    """

    examples: list[Example]
    origin: str

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def digest(self) -> str:
        """A hash of the rows' names and texts: a resumed run holds out the same rows or is refused."""
        digest = hashlib.sha256()
        for example in self.examples:
            texts = [text_of(message) for message in example.messages]
            digest.update("\0".join([example.id, *texts, "\n"]).encode(errors="surrogatepass"))
        return digest.hexdigest()


def hold_out(objective: Any, config: RunConfig) -> Heldout | None:
    """Takes the held-out rows out of `objective.mixture`, before the steps of an epoch are counted.

    Returns None where the configuration holds nothing out.

    Raises:
        ConfigError: more rows are wanted than there are, or every row shows the same picture, or the objective draws
            its rows as it goes.
        DataError: a held-out row cannot be read.
    """
    wanted = config.heldout
    if not wanted.on:
        return None
    mixture: Mixture | None = getattr(objective, "mixture", None)
    if mixture is None:
        raise ConfigError(
            f"heldout: {objective.name} draws its rows as it goes, so there is no part to hold out; its own test is "
            "shown every loop.sample_every steps. Leave heldout out."
        )
    if wanted.data:
        own = open_data(wanted.data, config.seed)
        found = inspect(own, max_bad=config.max_bad)
        if told := found.summary():
            print(f"Held-out rows: {told}")
        own = found.keep(own)
        examples = [source[row] for source in own.sources for row in range(len(source))]
        names = ", ".join(source.name for source in own.sources)
        shared = _shown_by(mixture) & {key for source in own.sources for key in _shown_by(Mixture([source]))}
        if shared:
            names += f"; {len(shared):,} of their pictures are trained on as well, so the scores flatter"
        return Heldout(examples, names)
    objective.mixture, examples = split(mixture, wanted, config.seed)
    return Heldout(examples, "taken from the training data, by picture")


def split(mixture: Mixture, wanted: HeldoutConfig, seed: int) -> tuple[Mixture, list[Example]]:
    """The training part and the held-out rows.

    Rows that show a common picture, in any of the sources, are held out together or not at all. Groups are taken in
    the order of a hash of (seed, source, first row), so that a row's side depends on nothing else; a source of twice
    the weight gives twice as many of its rows (Efraimidis and Spirakis 2006).

    Raises:
        ConfigError: as `hold_out`.
    """
    total = sum(len(source) for source in mixture.sources)
    count = count_of(wanted, total)
    key = _key(wanted)

    def rank(group: list[tuple[int, int]]) -> float:
        number, row = group[0]
        _, row = origin(mixture.sources[number], row)
        drawn = hashlib.blake2b(f"heldout {seed} {number} {row}".encode(), digest_size=8).digest()
        return -math.log((int.from_bytes(drawn) + 1) / 2**64) / mixture.weights[number]

    taken: set[tuple[int, int]] = set()
    for group in sorted(_groups(mixture), key=rank):
        if len(taken) + len(group) <= count:
            taken.update(group)
        if len(taken) == count:
            break
    if not taken:
        raise ConfigError(
            f"heldout.{key}: no {count:,} rows can be held out, for the rows that share pictures are more in each "
            "case. Ask for more rows, or name rows of their own as heldout.data."
        )
    kept = [
        Kept(source, [row for row in range(len(source)) if (number, row) not in taken])
        for number, source in enumerate(mixture.sources)
    ]
    left = [(part, weight) for part, weight in zip(kept, mixture.weights, strict=True) if len(part)]
    training = Mixture([part for part, _ in left], [weight for _, weight in left], mixture.seed)
    return training, [mixture.sources[source][row] for source, row in sorted(taken)]


def count_of(wanted: HeldoutConfig, total: int) -> int:
    """How many of so many rows are to be held out; `split` may take a few less, for those that share a picture.

    Raises:
        ConfigError: all of them, or more.
    """
    count = wanted.rows or (max(1, round(wanted.share * total)) if wanted.share else 0)
    if count and count >= total:
        raise ConfigError(
            f"heldout.{_key(wanted)} asks for {count:,} rows, and the training data has {total:,}. Ask for fewer."
        )
    return count


def _key(wanted: HeldoutConfig) -> str:
    return "rows" if wanted.rows else "share"


def _groups(mixture: Mixture) -> list[list[tuple[int, int]]]:
    """(source, row) of all rows, those that show a common picture together. Rows that cannot be read are left out."""
    parents: dict[tuple[int, int], tuple[int, int]] = {}

    def root(row: tuple[int, int]) -> tuple[int, int]:
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    first_with: dict[str, tuple[int, int]] = {}
    for row, pictures in shown_by_rows(mixture):
        parents[row] = row
        for picture in pictures:
            one, other = root(row), root(first_with.setdefault(picture, row))
            parents[max(one, other)] = min(one, other)
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row in parents:
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())


def _shown_by(mixture: Mixture) -> set[str]:
    return {picture for _, pictures in shown_by_rows(mixture) for picture in pictures}


def origin(source: Any, row: int) -> tuple[Any, int]:
    """The source itself, and the row's number in it, of a source that some rows were left out of."""
    while isinstance(source, Kept):
        source, row = source.source, int(source.rows[row])
    return source, row


def shown_by_rows(mixture: Mixture) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """(source, row), and what names each picture of it. A drawn row is made afresh and shares nothing."""
    for number, part in enumerate(mixture.sources):
        quiet = len(part) < _MANY or not sys.stderr.isatty()
        names: dict[str, str] = {}
        for row in tqdm(range(len(part)), desc=f"pictures of {part.name}", unit="row", disable=quiet, leave=False):
            source, own = origin(part, row)
            if not isinstance(source, Source):
                yield (number, row), []
                continue
            try:
                shown = images_of(source.example(own).messages)
            except DataError:  # the training part keeps it, and says what is wrong with it
                continue
            yield (number, row), [_name(picture, source, names) for picture in shown]


def _name(picture: Any, source: Source, names: dict[str, str]) -> str:
    """What makes two pictures, or two videos, the same one: their file, or their bytes."""
    if isinstance(picture, dict):
        picture = picture["video"]
    if isinstance(picture, Image.Image):
        picture = f"{picture.size}".encode() + picture.tobytes()
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    spelled = str(picture)
    if spelled not in names:
        try:
            found = resolve_image(spelled, source.roots)
        except DataError:
            found = None
        names[spelled] = str(found.resolve()) if found else spelled
    return names[spelled]
