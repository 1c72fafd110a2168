"""What trains and its optimizer as safetensors in a checkpoint's training state, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from train.sharding import complete, like, local
from vlchat.errors import CheckpointError

TRAINED, OPTIMIZER = "trained.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """What trains, by its name, and the optimizer's state, by `name/key`, as whole tensors."""

    trained: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]


def gather(objective: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Both, put together in the first process where they are in shards. All processes must call it."""
    names = _names(objective, optimizer)
    parts = {
        f"{names[index]}/{key}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }
    return TrainingState(_complete(_trained(objective)), _complete(parts))


def write(folder: Path, state: TrainingState) -> None:
    """Writes both files into the training state of a checkpoint."""
    save_file(state.trained, folder / TRAINED)
    save_file(state.optimizer, folder / OPTIMIZER)


def read(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts both back.

    Raises:
        CheckpointError: the parameters that train are not those of the checkpoint, or not of their shapes.
    """
    _read_trained(folder, objective)
    names = _names(objective, optimizer)
    index_of = {name: index for index, name in enumerate(names)}
    states: dict[int, dict[str, torch.Tensor]] = {}
    trained = _trained(objective)
    with safe_open(folder / OPTIMIZER, "pt") as stored:  # a tensor at a time: of shards the rest is not kept
        for label in stored.keys():
            name, _, key = label.rpartition("/")
            if name not in index_of:
                raise CheckpointError(
                    f'{folder.parent} cannot be resumed: its optimizer state names "{label}", which this run does not '
                    "train. It may be of an earlier vlchat; begin a new run from its weights."
                )
            states.setdefault(index_of[name], {})[key] = like(stored.get_tensor(label), trained[name])
    tree = optimizer.state_dict()
    tree["state"] = states
    optimizer.load_state_dict(tree)


def _read_trained(folder: Path, objective: nn.Module) -> None:
    trained = _trained(objective)
    with safe_open(folder / TRAINED, "pt") as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}
    if shapes.keys() != trained.keys():
        odd = sorted(shapes.keys() ^ trained.keys())
        raise CheckpointError(
            f"{folder.parent} was trained with other parameters than this run trains: {', '.join(odd[:4])}"
            f"{' ...' if len(odd) > 4 else ''}. Give the run the configuration that it began with."
        )
    for name, tensor in trained.items():
        if tensor.shape != shapes[name]:
            raise CheckpointError(
                f"{folder.parent}: {name} has the shape {shapes[name]}; this run's is "
                f"{tuple(tensor.shape)}. Give the run the configuration that it began with."
            )
    with torch.no_grad(), safe_open(folder / TRAINED, "pt") as stored:
        for name, tensor in trained.items():
            local(tensor).copy_(local(like(stored.get_tensor(name), tensor)))


def _complete(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In the first process: whole. Elsewhere those that are not sharded."""
    found = {name: complete(tensor) for name, tensor in tensors.items()}  # in the same order on all processes
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _trained(objective: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in objective.named_parameters() if parameter.requires_grad}


def _names(objective: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters in the optimizer's own order, which changes with the grouping."""
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
