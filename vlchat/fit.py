"""Whether weights fit a model: nothing missing, nothing left over, nothing that is no number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlchat.errors import CheckpointError
from vlchat.weightless import active

# Tables that follow from the configuration; older releases of transformers wrote them into the files.
_TABLES = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq)$")


def check_names(source: str | Path, info: dict[str, Any], elsewhere: Iterable[str] = ()) -> None:
    """Refuses what transformers would start anew, or drop, with a warning.

    Args:
        info: of `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`.
        elsewhere: starts of names that somebody else reads.

    Raises:
        CheckpointError: with the names.
    """
    missing, unexpected = info["missing_keys"], info["unexpected_keys"]
    shapes = [_shapes(name, found, wanted) for name, found, wanted in info["mismatched_keys"]]
    extra = [name for name in unexpected if not name.startswith(tuple(elsewhere))]
    _refuse(f"The weights in {source} do not fit its configuration.", missing, extra, shapes)


def fill(module: nn.Module, tensors: dict[str, torch.Tensor], what: str) -> None:
    """Copies tensors into a module's parameters.

    Raises:
        CheckpointError: when one is missing, left over, of another shape, or not finite; with the names.
    """
    wanted = dict(module.named_parameters())
    shapes = [
        _shapes(name, tensors[name].shape, wanted[name].shape)
        for name in wanted.keys() & tensors.keys()
        if tensors[name].shape != wanted[name].shape
    ]
    missing, extra = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    _refuse(f"The {what} does not fit the model.", missing, extra, shapes)
    refuse_broken(what, tensors.items())
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])


def check_numbers(source: str | Path, model: nn.Module) -> None:
    """Refuses weights that are not finite, such as float16 that overflowed in training.

    Raises:
        CheckpointError: with the names.
    """
    refuse_broken(source, _scales(model))


def some(names: Iterable[str], shown: int = 8) -> str:
    """The first few of many names, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return (", ".join(listed[:shown]) + more) or "none"


def _refuse(said: str, missing: Iterable[str], unexpected: Iterable[str], shapes: Iterable[str]) -> None:
    missing, shapes = list(missing), list(shapes)
    extra = [name for name in unexpected if not _TABLES.search(name)]
    if not (missing or extra or shapes):
        return
    parts = [said]
    parts += [f"Missing: {some(missing)}."] if missing else []
    parts += [f"Unexpected: {some(extra)}."] if extra else []
    parts += [f"Of another shape: {some(shapes)}."] if shapes else []
    first = {name.split(".")[0] for name in extra}
    if missing and len(first) == 1 and not any(name.startswith((*first,)) for name in missing):
        parts.append(f'All of the unexpected names begin with "{first.pop()}.": a wrapper was saved with the model.')
    raise CheckpointError(" ".join(parts))


def refuse_broken(source: str | Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raises CheckpointError with the names of tensors that hold something that is no number."""
    names = {name for name, tensor in tensors if not is_finite(tensor)}
    if names:
        raise CheckpointError(
            f"Weights in {source} are not finite numbers: {some(names)}. The file is damaged, or comes from a run that "
            "overflowed, as float16 often does: take another version of it."
        )


def _shapes(name: str, found: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{name} {tuple(found)} for {tuple(wanted)}"


def _scales(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Floating-point tensors, and of quantized weights the scales, in which a number that is none survives."""
    for name, parameter in model.named_parameters():
        state: Any = getattr(parameter, "quant_state", None)
        scales = (getattr(state, "offset", None), getattr(state, "absmax", None), getattr(parameter, "SCB", None))
        for tensor in (parameter.data, *scales):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                yield name, tensor
    yield from ((name, tensor) for name, tensor in model.named_buffers() if tensor.is_floating_point())


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all of its numbers are such."""
    if tensor.numel() == 0 or tensor.is_meta or active():
        return True
    low, high = tensor.aminmax()  # one pass and no memory of its own; not-a-number is passed on
    return bool(torch.isfinite(low) & torch.isfinite(high))
