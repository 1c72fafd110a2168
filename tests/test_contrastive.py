"""The contrastive losses against float64 formulas written from the papers."""

import numpy as np
import pytest
import torch

from train.contrastive import clip_loss, recall


def _unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis=axis, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(axis=axis, keepdims=True))


def test_itc_equals_the_formula_of_the_clip_paper() -> None:
    image, text, scale = _unit(7, 5, 0), _unit(7, 5, 1), torch.tensor(14.3)
    logits = 14.3 * image.double().numpy() @ text.double().numpy().T
    by_image = -np.mean([_log_softmax(logits, 1)[i, i] for i in range(7)])
    by_text = -np.mean([_log_softmax(logits, 0)[i, i] for i in range(7)])
    assert abs(clip_loss(image, text, scale).item() - (by_image + by_text) / 2) < 1e-5


def test_itc_with_label_smoothing_equals_the_formula() -> None:
    image, text = _unit(6, 4, 2), _unit(6, 4, 3)
    logits = 10.0 * image.double().numpy() @ text.double().numpy().T
    targets = np.eye(6) * 0.9 + 0.1 / 6
    expected = (
        -((targets * _log_softmax(logits, 1)).sum(1).mean() + (targets * _log_softmax(logits, 0)).sum(0).mean()) / 2
    )
    assert abs(clip_loss(image, text, torch.tensor(10.0), smoothing=0.1).item() - expected) < 1e-5


def test_recall_counts_both_directions() -> None:
    image = torch.eye(3)
    text = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0.9, 0.1]])
    assert recall(image, text) == pytest.approx((1.0, 2 / 3))
