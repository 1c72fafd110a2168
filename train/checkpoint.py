"""A run's checkpoints: staged, flushed, renamed. Safetensors and JSON only; no pickle is written or read."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from train.config import RunConfig
from vlchat.errors import CheckpointError
from vlchat.folders import steps

STATE = "training_state"


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0


def write(
    run: Path, progress: Progress, objective: Any, optimizer: torch.optim.Optimizer, config: RunConfig, keep: int
) -> Path:
    """Save as RUN/step-N a folder to chat with, tune or evaluate, with the training state inside.

    It is staged, hashed, flushed and renamed (`vlchat.folders.writing`); the oldest goes only when it is whole.
    """

    def state(stage: Path) -> None:
        folder = stage / STATE
        folder.mkdir()
        save_file(_trained(objective), folder / "trained.safetensors")
        save_file(_optimizer_tensors(objective, optimizer), folder / "optimizer.safetensors")
        save_file({"torch": torch.get_rng_state()}, folder / "rng.safetensors")
        version, numbers, gauss = random.getstate()
        numbers_and_rng = {
            **progress.__dict__,
            "python_rng": [version, list(numbers), gauss],
            "numpy_rng": _numpy_state(),
        }
        (folder / "progress.json").write_text(json.dumps(numbers_and_rng))
        (stage / "run.json").write_text(json.dumps(config.to_dict(), indent=1))
        if (run / "metrics.jsonl").is_file():
            shutil.copyfile(run / "metrics.jsonl", stage / "metrics.jsonl")

    final = run / f"step-{progress.step}"
    objective.save(final, state)
    for old in saved(run)[:-keep]:
        shutil.rmtree(old)
    return final


def clear(run: Path) -> None:
    """Remove what an earlier run left in the folder."""
    for old in steps(run):
        shutil.rmtree(old)
    (run / "metrics.jsonl").unlink(missing_ok=True)


def saved(run: Path) -> list[Path]:
    """The run's whole checkpoints, oldest first."""
    return [folder for folder in steps(run) if (folder / STATE / "progress.json").is_file()]


def read(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put weights, optimizer and random generators back as they were when `folder` was written.

    Raises:
        CheckpointError: a file is missing, or the parameters that train are not those of the checkpoint, or not of
            their shapes.
    """
    state = folder / STATE
    for name in ("trained.safetensors", "optimizer.safetensors", "rng.safetensors", "progress.json"):
        if not (state / name).is_file():
            raise CheckpointError(f"{folder} cannot be resumed: {STATE}/{name} is missing.")
    restore: Any = getattr(objective, "restore", None)
    if restore is not None:
        restore(folder)
    weights = load_file(state / "trained.safetensors")
    trained = _trained(objective)
    if weights.keys() != trained.keys():
        odd = sorted(weights.keys() ^ trained.keys())
        raise CheckpointError(
            f"{folder} was trained with other parameters than this run trains: {', '.join(odd[:4])}"
            f"{' ...' if len(odd) > 4 else ''}. Give the run the configuration that it began with."
        )
    for name, tensor in trained.items():
        if tensor.shape != weights[name].shape:
            raise CheckpointError(
                f"{folder}: {name} has the shape {tuple(weights[name].shape)}; this run's is {tuple(tensor.shape)}. "
                "Give the run the configuration that it began with."
            )
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(weights[name])
    _restore_optimizer(folder, objective, optimizer)
    torch.set_rng_state(load_file(state / "rng.safetensors")["torch"])
    progress = json.loads((state / "progress.json").read_text())
    version, numbers, gauss = progress["python_rng"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = progress["numpy_rng"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    return Progress(progress["step"], progress["samples"], progress["seconds"])


def _numpy_state() -> list[Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return [kind, np.asarray(keys).tolist(), *rest]


def _trained(objective: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in objective.named_parameters() if parameter.requires_grad}


def _optimizer_names(objective: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters in the optimizer's own order, which changes with the grouping."""
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = _optimizer_names(objective, optimizer)
    return {
        f"{names[index]}/{key}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def _restore_optimizer(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    names = _optimizer_names(objective, optimizer)
    index_of = {name: index for index, name in enumerate(names)}
    states: dict[int, dict[str, torch.Tensor]] = {}
    for label, tensor in load_file(folder / STATE / "optimizer.safetensors").items():
        name, _, key = label.rpartition("/")
        if name not in index_of:
            raise CheckpointError(
                f'{folder} cannot be resumed: its optimizer state names "{label}", which this run does not train. It '
                "may be of an earlier vlchat; begin a new run from its weights."
            )
        states.setdefault(index_of[name], {})[key] = tensor
    tree = optimizer.state_dict()
    tree["state"] = states
    optimizer.load_state_dict(tree)
