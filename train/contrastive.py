"""Contrastive losses between pictures and texts over the rows of all processes.

Each gives the sum over this process's rows and their number: the sum over processes is the sum over the whole batch.
Compared with float64 formulas written from the papers in tests/test_contrastive.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from train.gather import gather, gather_with_gradients, own_places, sizes_of
from vlchat.errors import ConfigError, nearest

LOSSES = ("infonce", "sigmoid", "triplet")
FORMS = ("local", "full")
NEGATIVES = ("hardest", "all")
_PIECE = 2**24  # similarities at once in the local form, at most: 64 MiB
_PIECES = 4  # pieces of the local form, at least
_SCALE = 1 / 0.07  # where CLIP's inverse temperature begins

# (similarities of some rows with everything (rows, batch), the column of each row's own pair (rows,)) -> their sum
_RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class ContrastConfig:
    """`objective.itc`: a plain number is its weight.

    Attributes:
        weight: beside the other terms; 0 leaves it out.
        loss: "infonce" (CLIP, BLIP-2), "sigmoid" (SigLIP) or "triplet" (VSE++).
        form: "local", each process's own rows against everybody's, computed twice to keep no similarities; or "full",
            everybody's against everybody's in every process, as CLIP's pseudo-code has it.
        smoothing: label smoothing of infonce; BLIP-2 uses 0.1.
        margin: of triplet.
        negatives: of triplet: "hardest" of the batch, or "all".
    """

    weight: float = 0.2
    loss: str = "infonce"
    form: str = "local"
    smoothing: float = 0.0
    margin: float = 0.2
    negatives: str = "hardest"

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("form", FORMS), ("negatives", NEGATIVES)):
            value = getattr(self, name)
            if value not in known:
                hint = nearest(str(value), known) or "."
                raise ConfigError(f'objective.itc.{name} is "{value}"; use {" or ".join(known)}{hint}')
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"objective.itc.smoothing is {self.smoothing}; it must be from 0 to below 1.")
        if not 0 <= self.margin < math.inf:
            raise ConfigError(f"objective.itc.margin is {self.margin}; it must be at least 0.")


def similarity(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """(pictures, texts): dot products, of several queries the largest (BLIP-2, arXiv 2301.12597, section 3.2).

    Args:
        image: (pictures, dim) or (pictures, queries, dim).
        text: (texts, dim).
    """
    if image.ndim == 2:
        return image @ text.T
    return (image @ text.T).max(1).values


def info_nce(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, smoothing: float = 0.0, form: str = "local"
) -> tuple[torch.Tensor, int]:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020, figure 3): row i of both sides belongs together.

    Args:
        image: (rows, dim) or (rows, queries, dim), of unit length. All processes' rows are each other's negatives.
        text: (rows, dim), of unit length.
        scale: the inverse temperature.
        smoothing: label smoothing over the whole batch (BLIP-2 uses 0.1).
        form: see `ContrastConfig`.

    Returns:
        The sum over this process's rows of the mean of both directions' cross-entropies, and the number of rows.

    Raises:
        ConfigError: no process has more than one row: there is too little to tell it from.
    """

    def loss(similarities: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(scale * similarities, own, reduction="sum", label_smoothing=smoothing) / 2

    return _over_all(loss, image, text, form, both_ways=True)


def triplet(
    image: torch.Tensor, text: torch.Tensor, margin: float = 0.2, negatives: str = "hardest", form: str = "local"
) -> tuple[torch.Tensor, int]:
    """Hinge loss with the hardest negative of the batch, or the sum over all (VSE++, arXiv 1707.05612, eq. 5 and 6).

    As `info_nce`, but both directions are added up, as in the paper.

    Args:
        margin: by how much a pair is to be more similar than a negative.
        negatives: "hardest" or "all".
    """

    def loss(similarities: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        right = similarities.gather(1, own[:, None])
        cost = (margin + similarities - right).clamp(min=0).scatter(1, own[:, None], 0.0)
        return cost.sum() if negatives == "all" else cost.max(1).values.sum()

    return _over_all(loss, image, text, form, both_ways=True)


def sigmoid(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, form: str = "local"
) -> tuple[torch.Tensor, int]:
    """Each pair of a picture and a text by itself: do they belong together? (SigLIP, arXiv 2303.15343, eq. 1).

    As `info_nce`; `bias` is added to the scaled similarities.
    """

    def loss(similarities: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        logits = scale * similarities + bias
        signs = torch.full_like(logits, -1.0).scatter(1, own[:, None], 1.0)
        return -functional.logsigmoid(signs * logits).sum()

    return _over_all(loss, image, text, form, both_ways=False)


@torch.no_grad()
def hits(image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """How many of this process's pictures find their own text among all texts, how many texts their picture, of how
    many. Shapes as in `info_nce`."""
    image, text, sizes = _precise(image), _precise(text), sizes_of(text)
    own = own_places(text, sizes)
    images, texts = gather(image, sizes), gather(text, sizes)
    forward = similarity(image, texts).argmax(1).eq(own).sum()
    return forward.float(), similarity(images, text).argmax(0).eq(own).sum().float(), len(text)


class Contrast(nn.Module):
    """A contrastive loss with what it learns: `logit_scale`, the logarithm of the inverse temperature, and `logit_bias`
    of the sigmoid loss. They begin as in CLIP and SigLIP.
    """

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__()
        self.config = config
        start = 10.0 if config.loss == "sigmoid" else _SCALE
        self.logit_scale = nn.Parameter(torch.tensor(start).log()) if config.loss != "triplet" else None
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if config.loss == "sigmoid" else None

    @property
    def scale(self) -> torch.Tensor:
        """The inverse temperature, at most 100 as in CLIP; the triplet loss has none of its own."""
        return torch.tensor(_SCALE) if self.logit_scale is None else self.logit_scale.exp().clamp(max=100.0)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, int]:
        """See `info_nce`."""
        config = self.config
        if config.loss == "triplet":
            return triplet(image, text, config.margin, config.negatives, config.form)
        if self.logit_bias is not None:
            return sigmoid(image, text, self.scale, self.logit_bias, config.form)
        return info_nce(image, text, self.scale, config.smoothing, config.form)


def _precise(features: torch.Tensor) -> torch.Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _everybody(image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both sides of all processes, and the columns of this process's rows among them."""
    sizes = sizes_of(text)
    if max(sizes) < 2:  # on all processes alike
        alone = "one row" if len(sizes) == 1 else "one row a process"
        raise ConfigError(
            f"A contrastive batch of {alone} has too little to tell it from. Set loop.batch to {2 * len(sizes)} or "
            "more, or objective.itc=0."
        )
    own = own_places(text, sizes)
    if len(sizes) == 1:
        return image, text, own
    sides = image if image.ndim == 3 else image[:, None]
    both = gather_with_gradients(torch.cat([sides, text[:, None]], dim=1), sizes)  # one message for both
    images, texts = both[:, :-1], both[:, -1]
    return images if image.ndim == 3 else images[:, 0], texts, own


def _over_all(
    loss: _RowLoss, image: torch.Tensor, text: torch.Tensor, form: str, both_ways: bool
) -> tuple[torch.Tensor, int]:
    """The loss of this process's pictures against all texts; with `both_ways` of its texts against all pictures too."""
    with torch.autocast(image.device.type, enabled=False):
        image, text = _precise(image), _precise(text)
        images, texts, own = _everybody(image, text)
        if form == "full":
            everything = similarity(images, texts)  # (batch, batch)
            directions = (everything, everything.T) if both_ways else (everything,)
            return torch.stack([loss(one[own], own) for one in directions]).sum(), len(own)
        sides = (True, False) if both_ways else (True,)
        return torch.stack([_in_pieces(loss, images, texts, own, side) for side in sides]).sum(), len(own)


def _in_pieces(
    loss: _RowLoss, images: torch.Tensor, texts: torch.Tensor, own: torch.Tensor, of_images: bool
) -> torch.Tensor:
    """The loss of the rows `own` against everything, a piece of them at a time.

    No piece's similarities are kept for the backward pass, which computes them again: at most one piece of one
    direction is in memory.
    """

    anchors, others = (images, texts) if of_images else (texts, images)

    def piece(some: torch.Tensor, others: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return loss(similarity(some, others) if of_images else similarity(others, some).T, rows)

    queries = images.shape[1] if images.ndim == 3 else 1
    at_once = max(1, min(-(-len(own) // _PIECES), _PIECE // (len(texts) * queries)))
    return torch.stack(
        [
            checkpoint(piece, some, others, rows, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
            for some, rows in zip(anchors[own].split(at_once), own.split(at_once), strict=True)
        ]
    ).sum()
