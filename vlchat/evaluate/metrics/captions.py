"""Scores for captions: BLEU, CIDEr-D and ROUGE-L, row by row by pycocoevalcap, summed by us.

pycocoevalcap 1.2 is the code of the COCO caption challenge (github.com/tylin/coco-caption) in Python 3. It gives one
figure for a whole set; here each row keeps the numbers that the figure is made of, so that any part of the rows can be
resampled. `python -m vlchat.evaluate.metrics.captions references.json captions.json` prints a set's figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vlchat.errors import DataError, VLChatError
from vlchat.evaluate.measures import Measure, Sums, mean_of
from vlchat.evaluate.metrics.packages import scorer
from vlchat.evaluate.metrics.tokens import TOKENIZERS

LONGEST = 4  # BLEU-4
_TINY, _SMALL = 1e-15, 1e-9  # pycocoevalcap/bleu/bleu_scorer.py adds them above and below a fraction's bar
_PACKAGE = "pycocoevalcap"


def bleu_statistics(references: Sequence[str], prediction: str) -> dict[str, float]:
    """One caption's part in BLEU (Papineni et al. 2002), as pycocoevalcap counts it.

    Args:
        references: tokenised captions, words with spaces between them; at least one.
        prediction: one tokenised caption.

    Returns:
        `1-gram matches` to `4-gram matches` (each n-gram at most as often as in the reference that has it most often),
        `1-grams` to `4-grams` of the caption, its `words`, and `reference words`: the length of the reference closest
        to it, the shorter of two.

    Raises:
        ConfigError: pycocoevalcap is missing.
    """
    counter = scorer("pycocoevalcap.bleu.bleu_scorer", _PACKAGE, "Caption scores").BleuScorer(n=LONGEST)
    counter.cook_append(prediction, list(references))
    found = counter.ctest[0]
    length = found["testlen"]
    closest = min((abs(other - length), other) for other in found["reflen"])[1]
    statistics = {"words": float(length), "reference words": float(closest)}
    for size in range(1, LONGEST + 1):
        statistics[f"{size}-gram matches"] = float(found["correct"][size - 1])
        statistics[f"{size}-grams"] = float(found["guess"][size - 1])
    return statistics


def bleu(longest: int) -> Measure:
    """BLEU over n-grams of up to `longest` words, of the sums of `bleu_statistics`, with the brevity penalty."""

    def value(sums: Sums) -> np.ndarray:
        product = np.ones_like(sums["words"], dtype=float)
        for size in range(1, longest + 1):
            product = product * (sums[f"{size}-gram matches"] + _TINY) / (sums[f"{size}-grams"] + _SMALL)
        ratio = (sums["words"] + _TINY) / (sums["reference words"] + _SMALL)
        penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
        return np.where(sums["rows"] > 0, product ** (1 / longest) * penalty, np.nan)

    sizes = range(1, longest + 1)
    needs = [name for size in sizes for name in (f"{size}-gram matches", f"{size}-grams")]
    return Measure(f"BLEU-{longest}", value, (*needs, "words", "reference words"))


def rouge_l(references: Sequence[str], prediction: str) -> float:
    """ROUGE-L (Lin 2004) of one tokenised caption: the F-measure, beta 1.2, of the longest common subsequence's best
    precision and best recall over the references.

    Raises:
        ConfigError: pycocoevalcap is missing.
    """
    rouge = scorer("pycocoevalcap.rouge.rouge", _PACKAGE, "Caption scores").Rouge()
    return float(rouge.calc_score([prediction], list(references)))


def cider(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> list[float]:
    """CIDEr-D (Vedantam et al. 2015) of each tokenised caption; the set's figure is their mean.

    An n-gram weighs by the share of pictures whose references lack it, so each value depends on the whole set: on one
    picture every weight, and so the value, is 0.

    Raises:
        DataError: no reference has a word. ConfigError: pycocoevalcap is missing.
    """
    if not any(text.split() for group in references for text in group):
        raise DataError("no reference caption has a word, so CIDEr has nothing to weigh")
    compute = scorer("pycocoevalcap.cider.cider", _PACKAGE, "Caption scores").Cider().compute_score
    _, values = compute(
        {number: list(group) for number, group in enumerate(references)},
        {number: [prediction] for number, prediction in enumerate(predictions)},
    )
    return [float(value) for value in values]


MEASURES: tuple[Measure, ...] = (
    mean_of("CIDEr", "CIDEr"),
    *(bleu(longest) for longest in range(1, LONGEST + 1)),
    mean_of("ROUGE-L", "ROUGE-L"),
)


def caption_statistics(
    references: Sequence[Sequence[str]], predictions: Sequence[str | None]
) -> list[dict[str, float] | None]:
    """What `MEASURES` are made of, for each row.

    Args:
        references: the tokenised references of every row of the set, also of rows that have no caption here.
        predictions: one tokenised caption a row; None where the row is not asked for, and gets None.

    Raises:
        ValueError: not one prediction a row. DataError, ConfigError: as `cider`.
    """
    values = cider(references, [prediction or "" for prediction in predictions])
    return [
        None
        if prediction is None
        else {"CIDEr": value, "ROUGE-L": rouge_l(group, prediction), **bleu_statistics(group, prediction)}
        for group, prediction, value in zip(references, predictions, values, strict=True)
    ]


def caption_scores(
    references: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    tokenizer: Callable[[Sequence[str]], list[str]] | None = None,
) -> dict[str, float]:
    """The figures of a set of captions: CIDEr, BLEU-1 to BLEU-4 and ROUGE-L, of 1 (CIDEr: of 10).

    Args:
        references: the right captions of each picture.
        predictions: one caption a picture, for exactly these pictures.
        tokenizer: one of `tokens.TOKENIZERS`; None where the captions are tokenised already.

    Raises:
        DataError: the pictures are not the same, or one has no reference. ConfigError: pycocoevalcap is missing.
    """
    for these, those, what in ((references, predictions, "caption"), (predictions, references, "reference")):
        if lacking := sorted(set(these) - set(those), key=str):
            raise DataError(f'{len(lacking):,} of {len(these):,} pictures have no {what}; the first is "{lacking[0]}"')
    if without := [name for name, group in references.items() if not group]:
        raise DataError(f'picture "{without[0]}" has an empty list of references; give it one or leave it out')
    groups = [list(group) for group in references.values()]
    captions = [predictions[name] for name in references]
    if tokenizer is not None:
        groups, captions = tokenised(groups, captions, tokenizer)
    rows = [row for row in caption_statistics(groups, captions) if row is not None]
    sums = {name: np.asarray(sum(row[name] for row in rows)) for name in rows[0]} | {"rows": np.asarray(len(rows))}
    return {measure.name: float(measure.value(sums)) for measure in MEASURES}


def tokenised(
    groups: Sequence[Sequence[str]], captions: Sequence[str], tokenizer: Callable[[Sequence[str]], list[str]]
) -> tuple[list[list[str]], list[str]]:
    """Groups of references and captions as the tokenizer writes them, all in one call of it."""
    words = tokenizer([text for group in groups for text in group] + list(captions))
    every = iter(words)
    return [[next(every) for _ in group] for group in groups], list(every)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the scores of captions in files; 2 where something is wrong with them."""
    parser = argparse.ArgumentParser(
        prog="python -m vlchat.evaluate.metrics.captions",
        description="CIDEr, BLEU and ROUGE-L of captions, as pycocoevalcap computes them.",
    )
    parser.add_argument("references", type=Path, help="JSON: {picture: [caption, ...]}")
    parser.add_argument("captions", type=Path, help="JSON: {picture: caption}, or {picture: [caption]}")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help=f"for captions as people write them: {' or '.join(TOKENIZERS)}; without it they must be tokenised already",
    )
    said = parser.parse_args(arguments)
    try:
        if said.tokenizer is not None and said.tokenizer not in TOKENIZERS:
            raise DataError(f'Unknown tokenizer "{said.tokenizer}"; known: {", ".join(TOKENIZERS)}')
        references = _captions_of(said.references)
        predictions = {}
        for name, group in _captions_of(said.captions).items():
            if len(group) != 1:
                raise DataError(f'{said.captions}: picture "{name}" has {len(group)} captions; one is scored')
            predictions[name] = group[0]
        scores = caption_scores(references, predictions, TOKENIZERS.get(said.tokenizer))
    except VLChatError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(predictions):,} pictures")
    for measure, score in scores.items():
        print(f"{measure:<8} {score:.4f}")
    return 0


def _captions_of(file: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(found, dict) or not found:
        raise DataError(f"{file} must hold an object {{picture: [caption, ...]}} with at least one picture")
    groups = {name: [group] if isinstance(group, str) else group for name, group in found.items()}
    for name, group in groups.items():
        if not isinstance(group, list) or not all(isinstance(text, str) for text in group):
            raise DataError(f'{file}: the captions of "{name}" must be texts')
    return groups


if __name__ == "__main__":
    sys.exit(main())
