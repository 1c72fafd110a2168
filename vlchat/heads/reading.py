"""The heads of a stage-1 run, read back from its training state, where alone they are kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vlchat.connectors import QFormerConnector
from vlchat.errors import CheckpointError
from vlchat.folders import TRAINING_STATE
from vlchat.heads.qformer_text import QFormerText
from vlchat.heads.text_sides import LanguageText, TextSide, TowerText
from vlchat.runs import CONFIG

_TENSORS = f"{TRAINING_STATE}/trained.safetensors"
_NO_TEMPERATURE = 1 / 0.07  # what the matching's draws take for the triplet loss, which has none of its own


@dataclass
class Heads:
    """What a run of `objective: align` compares pictures and texts with.

    Attributes:
        image_projection, text_projection: into the contrastive space.
        text: what makes one vector of a caption.
        scale, bias: of the contrast's logits; the bias is the sigmoid loss's.
        matching: the queries' states -> logits of no match and of a match, (..., 2), with its text half; None where the
            run learnt no matching.
    """

    image_projection: nn.Linear
    text_projection: nn.Linear
    text: TextSide
    scale: float
    bias: float | None
    matching: tuple[QFormerText, nn.Linear] | None

    def modules(self) -> list[nn.Module]:
        """Every part that is a module."""
        parts = [self.image_projection, self.text_projection, self.text, *(self.matching or ())]
        return [part for part in parts if isinstance(part, nn.Module)]


def is_stage_one(folder: Path) -> bool:
    """Whether a folder is a save of a run of `objective: align`."""
    return _objective(folder).get("type") == "align"


def read_heads(folder: Path, model: Any, processor: Any) -> Heads:
    """The heads of a run, around the model that its folder was loaded as.

    Args:
        folder: a save of the run, RUN/step-N.
        model, processor: of `vlchat.checkpoint.load`.

    Raises:
        CheckpointError: the folder has no training state, or it is damaged; the run learnt no contrast, or its text
            tower is not there any more.
    """
    tensors = _tensors(folder)
    if "image_projection.weight" not in tensors:
        raise CheckpointError(
            f"{folder} learnt no contrast of pictures and texts: its objective.itc is 0. Train with a weight, such as "
            "objective.itc=1, to compare them."
        )
    connector = model.model.connector
    qformer = isinstance(connector, QFormerConnector)
    half = None
    if any(name.startswith("qformer_text.") for name in tensors):
        half = _filled(QFormerText(connector, processor.tokenizer), "qformer_text.", tensors, folder, connector)
    source = _objective(folder).get("text")
    text: TextSide
    if source not in (None, "language"):
        text = TowerText(source)
        _replace(text, "text_side.", tensors, folder)
    elif source is None and qformer and half is not None:
        text = half
    else:
        text = LanguageText(model, processor.tokenizer)
    matching = None
    if half is not None and "matching.head.weight" in tensors:
        matching = half, _linear("matching.head", tensors, folder)
    scale, bias = tensors.get("contrast.logit_scale"), tensors.get("contrast.logit_bias")
    return Heads(
        _linear("image_projection", tensors, folder),
        _linear("text_projection", tensors, folder),
        text,
        _NO_TEMPERATURE if scale is None else float(scale.exp().clamp(max=100.0)),
        None if bias is None else float(bias),
        matching,
    )


def _objective(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("objective") if path.is_file() else None
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    return found if isinstance(found, dict) else {}


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What a run trained outside of its model, by the names that it has in `heads`."""
    path = folder / _TENSORS
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {_TENSORS}: what compares pictures and texts is kept there alone, and is left out of "
            "exported and published models. Name the folder of the run itself."
        )
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    kept = {name.removeprefix("heads."): tensor for name, tensor in found.items() if not name.startswith("model.")}
    if "logit_scale" in kept:  # runs before 0.4 had it outside of the contrast
        kept["contrast.logit_scale"] = kept.pop("logit_scale")
    return kept


def _linear(name: str, tensors: dict[str, torch.Tensor], folder: Path) -> nn.Linear:
    weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    if weight is None or bias is None:
        raise CheckpointError(f"{folder / _TENSORS} lacks {name}: it may be of an earlier vlchat.")
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return made.eval()


def _filled(
    half: QFormerText, prefix: str, tensors: dict[str, torch.Tensor], folder: Path, connector: nn.Module
) -> QFormerText:
    """The text half with its own tensors; what it shares with the connector is the model's already."""
    shared = {id(parameter) for parameter in connector.parameters()}
    own = {prefix + name for name, parameter in half.named_parameters() if id(parameter) not in shared}
    if missing := sorted(own - tensors.keys()):
        raise CheckpointError(f"{folder / _TENSORS} lacks {', '.join(missing[:4])}: it may be of an earlier vlchat.")
    _replace(half, prefix, tensors, folder)
    return half.eval()


def _replace(module: Any, prefix: str, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    wanted = dict(module.named_parameters())
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            continue
        parameter = wanted.get(name.removeprefix(prefix))
        if parameter is None or parameter.shape != tensor.shape:
            raise CheckpointError(f"{folder / _TENSORS}: {name} does not fit what {CONFIG} beside it describes.")
        with torch.no_grad():
            parameter.copy_(tensor)
