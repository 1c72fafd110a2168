"""What each image token says for an answer: by gradients, by attention, and by covering places."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageStat
from torch import nn

from vlchat.chat import Chat
from vlchat.evidence.likelihood import Asked, NoMap, bare, logprobs, shown

STEPS = 8  # of integrated gradients
CELLS = 8  # along the longer side of a picture that is covered place by place


@dataclass(frozen=True)
class Signals:
    """One picture's numbers each, signed: what adds to the likelihood is positive.

    Attributes:
        values: of each picture (tokens,) in the order of its tokens, or a map (rows, columns).
        strength: what of a number is evidence: its size, or its positive part.
        logprobs: of each row, where the method knows them.
        batch: the tensors that tell where the tokens lie, where they are not those of the question.
    """

    values: list[torch.Tensor]
    strength: Callable[[np.ndarray], np.ndarray]
    logprobs: list[float] | None = None
    batch: dict[str, torch.Tensor] | None = None


def positive(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0.0)


def gradient(chat: Chat, lesson: Asked, seen: list[Image.Image]) -> Signals:
    """The length of gradient x input of each image token, or of the patches where tokens have no places.

    Summed over channels instead, large numbers of both signs cancel, and maps of the embedded model are no better than
    chance in `deletion_check` (docs/LOG.md).
    """
    values, scores = _gradients(chat, lesson, [1.0], lambda leaf, slope: (slope * leaf).norm(dim=-1))
    return Signals(values, positive, scores)


def integrated(chat: Chat, lesson: Asked, seen: list[Image.Image]) -> Signals:
    """Integrated gradients over `STEPS` points on the way from a picture without places, whose tokens are all alike.

    The numbers of a picture add up to what its places are worth to the log-likelihood, as far as the points are enough.
    """
    points = [(step + 0.5) / STEPS for step in range(STEPS)]
    values, _ = _gradients(chat, lesson, points, lambda leaf, slope: ((leaf - leaf.mean(0)) * slope).sum(-1))
    return Signals(values, positive)


def _gradients(
    chat: Chat,
    lesson: Asked,
    points: Sequence[float],
    told: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[list[torch.Tensor], list[float]]:
    """`told(features, mean gradient at the points)` of each picture, and the log-likelihoods at the last point."""
    leaves = _Leaves()
    total: list[torch.Tensor] = []
    for leaves.along in points:
        with chat.turn, torch.enable_grad(), _gradients_pass(chat), _leaves(bare(chat), leaves):
            scores, _ = logprobs(chat, lesson)
            _check_count(chat, leaves.points, lesson)
            slopes = torch.autograd.grad(scores.sum(), leaves.points)
            total = [before + slope for before, slope in zip(total, slopes, strict=True)] if total else list(slopes)
    values = [
        told(features.float(), slope.float() / len(points))
        for features, slope in zip(leaves.features, total, strict=True)
    ]
    return values, scores.detach().tolist()


def attention(chat: Chat, lesson: Asked, seen: list[Image.Image]) -> Signals:
    """The mean attention from the positions that say the answer to the image tokens, over heads and later layers."""
    model = bare(chat)
    if not _keeps_grid(model):
        raise NoMap(_no_places(model) + ' Use method="gradient".')
    ids = lesson.batch["input_ids"]
    token = getattr(model.config, "image_token_id", None)
    leaves = _Leaves()
    with chat.turn, torch.no_grad(), _eager(model), _leaves(model, leaves):
        scores, out = logprobs(chat, lesson, output_attentions=True)
        lengths = [len(features) for features in leaves.features]
        _check_count(chat, lengths, lesson)
    if not out.attentions or token is None or int((ids == token).sum()) != sum(lengths):
        raise NoMap(f'{type(model).__name__} does not tell its attention to pictures. Use method="gradient".')
    later = out.attentions[len(out.attentions) // 2 :]
    mean = torch.stack([layer.float().mean(1) for layer in later]).mean(0)  # (rows, from, to)
    values: list[torch.Tensor] = []
    for row, pictures in enumerate(lesson.pictures):
        says = lesson.explained[row, 1:].nonzero().flatten().to(mean.device)
        own = mean[row, says].mean(0)[ids[row].to(mean.device) == token]
        values += own.split(lengths[len(values) : len(values) + len(pictures)])
    return Signals(values, positive, scores.tolist())


def occlusion(chat: Chat, lesson: Asked, seen: list[Image.Image]) -> Signals:
    """How much the log-likelihood falls when one place after another is covered with the picture's mean colour.

    The longer side of a picture has `CELLS` places. Each picture is compared with itself as the model saw it, prepared
    anew.
    """
    own, place = [], 0
    for pictures in lesson.pictures:
        own.append(seen[place : place + len(pictures)])
        place += len(pictures)
    grids = [cells(picture) for picture in seen]
    variants: list[tuple[int, list[Any]]] = [(row, list(pictures)) for row, pictures in enumerate(own)]
    for row, pictures in enumerate(own):
        for number, picture in enumerate(pictures):
            rows, columns = cells(picture)
            for cell in range(rows * columns):
                hidden = np.zeros((rows, columns), dtype=bool)
                hidden.flat[cell] = True
                variants.append((row, [*pictures[:number], covered(picture, hidden), *pictures[number + 1 :]]))
    scores = shown(chat, lesson, variants)
    whole, rest = scores[: len(own)], iter(scores[len(own) :])
    values = []
    picture_rows = [row for row, pictures in enumerate(own) for _ in pictures]
    for row, (rows, columns) in zip(picture_rows, grids, strict=True):
        falls = [whole[row] - next(rest) for _ in range(rows * columns)]
        values.append(torch.tensor(falls).view(rows, columns))
    return Signals(values, positive, whole)


def cells(picture: Image.Image) -> tuple[int, int]:
    """Rows and columns of about square places, `CELLS` along the longer side."""
    longer = max(picture.size)
    return max(1, round(CELLS * picture.height / longer)), max(1, round(CELLS * picture.width / longer))


def covered(picture: Image.Image, hidden: np.ndarray, blur: bool = False) -> Image.Image:
    """The picture with some places of a grid covered by its mean colour, or blurred beyond recognition.

    Args:
        hidden: (rows, columns) of bool.
    """
    mask = Image.fromarray(hidden.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
    if blur:
        veil = picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 8))
    else:
        veil = Image.new("RGB", picture.size, tuple(round(value) for value in ImageStat.Stat(picture).mean[:3]))
    return Image.composite(veil, picture, mask)


class _Leaves:
    """A picture's features each, (tokens, width), and the points at which a gradient is taken.

    Attributes:
        along: 1 takes it at the features themselves, 0 where all tokens are their mean.
        made: what the tower made of the pictures, which are the same at every point.
    """

    def __init__(self) -> None:
        self.along = 1.0
        self.made: Any = None
        self.features: list[torch.Tensor] = []
        self.points: list[torch.Tensor] = []

    def take(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.features = [one.detach() for one in features]
        self.points = [
            torch.lerp(one.mean(0, keepdim=True).expand_as(one), one, self.along).requires_grad_()
            for one in self.features
        ]
        return list(self.points)


@contextmanager
def _leaves(model: Any, leaves: _Leaves) -> Iterator[None]:
    """Makes the features of every picture leaves of the graph of each forward pass.

    They are the image tokens, or for our connectors whose tokens have no places in the picture the patches that go into
    them.
    """
    if not _keeps_grid(model):
        connector = getattr(getattr(model, "model", None), "connector", None)
        if connector is None:
            raise NoMap(_no_places(model) + ' Use method="occlusion", which works with any model.')

        def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return (torch.stack(leaves.take(arguments[0])), *arguments[1:])

        handle = connector.register_forward_pre_hook(before)
        try:
            yield
        finally:
            handle.remove()
        return
    owner = next((part for part in (getattr(model, "model", None), model) if hasattr(part, "get_image_features")), None)
    if owner is None:
        raise NoMap(
            f"{type(model).__name__} gives no evidence map by its tokens because it does not give its pictures' "
            'features apart. Use method="occlusion", which works with any model.'
        )
    original = owner.get_image_features

    def features(*arguments: Any, **options: Any) -> Any:
        if leaves.made is None:
            with torch.no_grad():
                leaves.made = original(*arguments, **options)
        out = copy.copy(leaves.made)
        out.pooler_output = leaves.take(leaves.features or out.pooler_output)
        return out

    owner.get_image_features = features  # on this one model; its class keeps its own
    try:
        yield
    finally:
        del owner.get_image_features


@contextmanager
def _gradients_pass(chat: Chat) -> Iterator[None]:
    """Unpacks 4-bit layers that bitsandbytes packed for answering on a CPU: packed ones pass no gradient back."""
    packing = [
        module
        for module in chat.model.modules()
        if type(module).__name__ == "Linear4bit" and getattr(module, "support_avx512bf16_for_cpu", False)
    ]
    for module in packing:
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        weight: Any = module.weight
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(weight.data, weight.quant_state)
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in packing:
            module.support_avx512bf16_for_cpu = True  # type: ignore[assignment]


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Attention that is computed in the open, as only eager kernels do."""
    before = model.get_decoder().config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)


def _keeps_grid(model: Any) -> bool:
    connector = getattr(getattr(model, "model", None), "connector", None)
    return getattr(connector, "keeps_grid", getattr(model.config, "qformer_config", None) is None)


def _no_places(model: Any) -> str:
    return f"{type(model).__name__} gives no evidence map by its image tokens: they have no places in the picture."


def _check_count(chat: Chat, features: Sequence[Any], lesson: Asked) -> None:
    pictures = sum(map(len, lesson.pictures))
    if len(features) != pictures:
        raise NoMap(
            f"{type(bare(chat)).__name__} gives no evidence map by its tokens because it makes {len(features)} pieces "
            f'of {pictures} pictures. Use method="occlusion", which works with any model.'
        )
