"""What trains and its optimizer as safetensors in a checkpoint's training state, and back."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlchat.errors import CheckpointError

TRAINED, OPTIMIZER = "trained.safetensors", "optimizer.safetensors"


def write(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes both files into the training state of a checkpoint."""
    save_file(_trained(objective), folder / TRAINED)
    names = _names(objective, optimizer)
    tensors = {
        f"{names[index]}/{key}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    save_file(tensors, folder / OPTIMIZER)


def read(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts both back.

    Raises:
        CheckpointError: the parameters that train are not those of the checkpoint, or not of their shapes.
    """
    _read_trained(folder, objective)
    names = _names(objective, optimizer)
    index_of = {name: index for index, name in enumerate(names)}
    states: dict[int, dict[str, torch.Tensor]] = {}
    for label, tensor in load_file(folder / OPTIMIZER).items():
        name, _, key = label.rpartition("/")
        if name not in index_of:
            raise CheckpointError(
                f'{folder.parent} cannot be resumed: its optimizer state names "{label}", which this run does not '
                "train. It may be of an earlier vlchat; begin a new run from its weights."
            )
        states.setdefault(index_of[name], {})[key] = tensor
    tree = optimizer.state_dict()
    tree["state"] = states
    optimizer.load_state_dict(tree)


def _read_trained(folder: Path, objective: nn.Module) -> None:
    weights, trained = load_file(folder / TRAINED), _trained(objective)
    if weights.keys() != trained.keys():
        odd = sorted(weights.keys() ^ trained.keys())
        raise CheckpointError(
            f"{folder.parent} was trained with other parameters than this run trains: {', '.join(odd[:4])}"
            f"{' ...' if len(odd) > 4 else ''}. Give the run the configuration that it began with."
        )
    for name, tensor in trained.items():
        if tensor.shape != weights[name].shape:
            raise CheckpointError(
                f"{folder.parent}: {name} has the shape {tuple(weights[name].shape)}; this run's is "
                f"{tuple(tensor.shape)}. Give the run the configuration that it began with."
            )
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(weights[name])


def _trained(objective: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in objective.named_parameters() if parameter.requires_grad}


def _names(objective: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters in the optimizer's own order, which changes with the grouping."""
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
