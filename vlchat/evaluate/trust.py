"""How far a model's own likelihood of an answer can be trusted: a small file in its folder, for whoever shows answers.

`vlchat eval --calibrate` writes it; it holds for answers to questions like those that were asked.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vlchat.errors import ConfigError, VLChatError
from vlchat.evaluate.result import Result
from vlchat.folders import replacing, weights_digest

FILE = "calibration.json"
FORMAT = 1
FEWEST = 100  # rows that say something
_BINS = 20  # of equally many rows, from which the steps are made


@dataclass(frozen=True)
class Trust:
    """What an evaluation says of answers by their likelihood, the product of their tokens' probabilities.

    Attributes:
        task, rows: what was asked, and how many rows had a likelihood.
        weights: of `vlchat.folders.weights_digest`; the file says nothing of other weights.
        risk, certainty: of answers at or above `threshold` at most this share is wrong, and how sure that is.
        threshold: None where no likelihood is high enough for that.
        steps: (likelihood from which on, share of right answers), both rising (isotonic regression).
    """

    task: str
    rows: int
    weights: str | None
    risk: float
    certainty: float
    threshold: float | None
    steps: tuple[tuple[float, float], ...]

    def confidence(self, likelihood: float) -> float:
        """The share of answers of about this likelihood that were right."""
        starts = [start for start, _ in self.steps]
        return self.steps[max(0, bisect_right(starts, likelihood) - 1)][1]

    def unsure(self, likelihood: float) -> bool:
        """Whether too many answers of so low a likelihood were wrong."""
        return self.threshold is None or likelihood < self.threshold


def trust_of(result: Result, risk: float, weights: str | None) -> Trust:
    """What a result says of its model's answers.

    Args:
        risk: how many of the answers that are not called unsure may be wrong, between 0 and 1.
        weights: of the model that was asked.

    Raises:
        ConfigError: too few rows have a likelihood.
    """
    pairs = [(row["confidence"], row["score"]) for row in result.rows if row.get("confidence") is not None]
    if len(pairs) < FEWEST:
        raise ConfigError(
            f"Only {len(pairs)} rows tell how likely their answers were; --calibrate needs {FEWEST} or more."
        )
    found = result.abstention(risk)
    return Trust(
        result.task, len(pairs), weights, risk, found.certainty, found.threshold,
        isotonic([sure for sure, _ in pairs], [score for _, score in pairs]),
    )  # fmt: skip


def isotonic(confidences: Sequence[float], scores: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Rising steps through bins of equally many rows: pool adjacent violators (Ayer et al. 1955).

    Returns:
        The confidence from which on a step holds, and its mean score.
    """
    order = np.argsort(np.asarray(confidences), kind="stable")
    sure, right = np.asarray(confidences)[order], np.asarray(scores, dtype=float)[order]
    edges = np.unique(np.searchsorted(sure, sure[np.arange(_BINS) * len(sure) // _BINS]))  # equal ones stay together
    steps: list[tuple[int, int]] = []  # first row, and the one after the last
    for first, end in zip(edges, [*edges[1:], len(sure)], strict=True):
        steps.append((int(first), int(end)))
        while len(steps) > 1 and right[slice(*steps[-2])].mean() >= right[slice(*steps[-1])].mean():
            (begin, _), (_, last) = steps[-2:]
            steps[-2:] = [(begin, last)]
    return tuple((float(sure[begin]), float(right[begin:end].mean())) for begin, end in steps)


def read(folder: str | Path) -> Trust | None:
    """What is known of the model in a folder; None where nothing is, or it is of other weights.

    Raises:
        VLChatError: the file is damaged.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            return None
        steps = tuple((float(start), float(share)) for start, share in content.pop("steps"))
        found = Trust(**content, steps=steps)
        numbers = [found.risk, *(value for step in steps for value in step), found.threshold or 0.0]
        if not steps or not all(math.isfinite(value) for value in numbers):
            raise ValueError("a number that is none")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise VLChatError(
            f"{FILE} beside the model is damaged: {error}. `vlchat eval --calibrate` writes it anew."
        ) from error
    return found if found.weights == weights_digest(Path(folder)) else None


def write(trust: Trust, folder: str | Path) -> Path:
    """Puts it beside a model's weights.

    Raises:
        VLChatError: nothing can be written there.
    """
    file = Path(folder) / FILE
    try:
        with replacing(file) as stage:
            stage.write_text(json.dumps({"format": FORMAT, **asdict(trust)}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise VLChatError(f"{file} cannot be written: {error.strerror}. Copy the model to a place of yours.") from error
    return file
