"""Contrastive losses. Tested against float64 formulas written from the papers."""

import torch
from torch.nn import functional


def clip_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020, figure 3): row i of both sides belongs together.

    Args:
        image, text: (batch, dim), of unit length.
        scale: the inverse temperature.
        smoothing: label smoothing (BLIP-2 uses 0.1).
    """
    logits = scale * image.float() @ text.float().T  # (batch, batch)
    targets = torch.arange(len(logits), device=logits.device)
    rows = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    return (rows + functional.cross_entropy(logits.T, targets, label_smoothing=smoothing)) / 2


def recall(image: torch.Tensor, text: torch.Tensor) -> tuple[float, float]:
    """Retrieval accuracy inside the batch: image -> text and text -> image, as shares."""
    logits = image.float() @ text.float().T
    targets = torch.arange(len(logits), device=logits.device)
    return ((logits.argmax(1) == targets).float().mean().item(), (logits.argmax(0) == targets).float().mean().item())
