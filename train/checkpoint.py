"""A run's checkpoints: staged, hashed, flushed, renamed. Safetensors and JSON only; no pickle is written or read."""

from __future__ import annotations

import base64
import json
import random
import shutil
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from train import ranks
from train.config import RunConfig
from train.step import random_state, set_random_state
from vlchat.errors import CheckpointError, IncompleteCheckpointError, UnsafeCheckpointError
from vlchat.folders import MANIFEST, PICKLES, is_step, read_manifest, refuse_pickles, step_of, steps, verify
from vlchat.runs import read_json

STATE = "training_state"
_FILES = ("trained.safetensors", "optimizer.safetensors", "progress.json")
_DAMAGED = "damaged-"
_BOOKKEEPING = ("steps", "epochs", "minutes", "workers", "log_every", "sample_every", "save_every", "keep")
_FREE = ("run", "data", "trackers", "heldout", "max_bad", *(f"loop.{name}" for name in _BOOKKEEPING))


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step, samples: optimizer steps made, and rows seen in them.
        seconds: of training, over all its sittings.
        watch: what the run's watch remembers (`train.watch`), such as the best score.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    watch: dict[str, Any] = field(default_factory=dict)


def generators(device: torch.device) -> dict[str, Any]:
    """The states of this process's random generators, as JSON."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": [base64.b64encode(bytes(state.tolist())).decode() for state in random_state(device)],
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
    }


def set_generators(told: dict[str, Any], device: torch.device) -> None:
    """Puts `generators` back."""
    states = [torch.tensor(list(base64.b64decode(state)), dtype=torch.uint8) for state in told["torch"]]
    set_random_state(states, device)
    version, numbers, gauss = told["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = told["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


def write(
    run: Path,
    progress: Progress,
    objective: Any,
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    random_states: list[dict[str, Any]],
    rows: dict[str, Any],
    scaler: Any = None,
    spared: int | None = None,
) -> Path:
    """Save as RUN/step-N a folder to chat with, tune or evaluate, with the training state inside.

    It is staged, hashed, flushed and renamed (`vlchat.folders.writing`); the oldest goes only when it is whole.

    Args:
        random_states: `generators` of every process.
        rows: what the order of the rows depends on, by name.
        scaler: of fp16's gradients, where there is one.
        spared: a step whose checkpoint is not rotated away.

    Raises:
        CheckpointError: it could not be written, on a full disk for instance; those that were there still are.
    """

    def state(stage: Path) -> None:
        folder = stage / STATE
        folder.mkdir()
        save_file(_trained(objective), folder / "trained.safetensors")
        save_file(_optimizer_tensors(objective, optimizer), folder / "optimizer.safetensors")
        told = {
            **asdict(progress),
            "random": random_states,
            "rows": rows,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        (folder / "progress.json").write_text(json.dumps(told))
        (stage / "run.json").write_text(json.dumps(config.to_dict(), indent=1))
        if (run / "metrics.jsonl").is_file():
            shutil.copyfile(run / "metrics.jsonl", stage / "metrics.jsonl")

    broken = [n for n, p in objective.named_parameters() if p.requires_grad and not p.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"After step {progress.step}, {broken[0]} holds numbers that are not finite, so that nothing was saved. "
            f"Lower the learning rate. {_newest(run)}"
        )
    final = run / f"step-{progress.step}"
    try:
        objective.save(final, state)
    except (OSError, SafetensorError) as error:
        full = "StorageFull" in str(error)  # as safetensors says it
        reason = "no space is left on the device" if full else getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{final} could not be written: {reason}. {_newest(run)}") from error
    spare = {final, run / f"step-{spared}"}
    for old in [folder for folder in saved(run) if folder not in spare][: -(config.loop.keep - 1) or None]:
        remove(old)
    return final


def remove(folder: Path) -> None:
    """Removes a checkpoint. Renamed first: killed half-way, it is no checkpoint any more rather than half of one."""
    trash = folder.with_name(f".{folder.name}.trash")
    shutil.rmtree(trash, ignore_errors=True)
    folder.rename(trash)
    shutil.rmtree(trash)


def tidy(run: Path) -> None:
    """Removes what a killed run left half-written or half-removed."""
    for pattern in (".step-*.partial-*", ".step-*.old-*", ".step-*.trash"):
        for left in run.glob(pattern):
            shutil.rmtree(left)


def clear(run: Path) -> None:
    """Remove what an earlier run left in the folder."""
    for old in steps(run):
        remove(old)
    for name in ("metrics.jsonl", "stopped.json", "best.json"):
        (run / name).unlink(missing_ok=True)


def saved(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first. Their hashes are not looked at."""
    return [folder for folder in steps(run) if (folder / STATE / "progress.json").is_file()]


def newest_whole(run: Path, say: Any = print) -> Path | None:
    """The newest checkpoint whose files all have the hashes that they were written with, or None where none is.

    A damaged one that is newer is named and renamed to `damaged-step-N`.

    Raises:
        UnsafeCheckpointError: a checkpoint holds a pickle.
    """
    # One that has lost its manifest stands where this run is to write.
    found = [path for path in run.glob("step-*") if is_step(path) and ((path / STATE).is_dir() or path in steps(run))]
    for folder in sorted(found, key=step_of, reverse=True):
        try:
            whole(folder)
            return folder
        except IncompleteCheckpointError as error:
            say(f"{error} It is left aside.")
        except CheckpointError as error:
            if type(error) is not CheckpointError:
                raise
            say(f"{error} It is left aside.")
        aside = folder.with_name(f"{_DAMAGED}{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    return None


def whole(folder: Path) -> None:
    """Whether a checkpoint can be resumed from, to the last bit.

    Raises:
        UnsafeCheckpointError: it holds a pickle.
        IncompleteCheckpointError: it has no state of the optimizer or of the random generators.
        CheckpointError: a file is missing or is not as it was written.
    """
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None and is_step(folder) and (folder / STATE).is_dir():
        raise CheckpointError(f"The checkpoint {folder} is damaged: {MANIFEST} is missing.")
    if manifest is None:
        inside = steps(folder)
        hint = f" It holds some: name one, such as {inside[-1]}, or say --resume auto." if inside else ""
        raise CheckpointError(f"{folder} is not a checkpoint of a run.{hint}")
    state = folder / STATE
    for place in (folder, state):
        if place.is_dir():
            refuse_pickles(place)
    for path in state.glob("*"):
        if path.suffix in PICKLES:
            raise UnsafeCheckpointError(f"{folder} holds {path.name}, a pickle, which can run code when it is read.")
    for name in _FILES:
        if not (state / name).is_file():
            raise IncompleteCheckpointError(f"{folder} cannot be resumed: {STATE}/{name} is missing.")
        if f"{STATE}/{name}" not in manifest.get("files", {}):
            raise CheckpointError(f"The checkpoint {folder} is damaged: {MANIFEST} has no hash of {STATE}/{name}.")
    verify(folder, manifest)


def read(
    folder: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    rows: dict[str, Any],
) -> Progress:
    """Put weights, optimizer, scaler and random generators back as they were when `folder` was written.

    Args:
        rows: what the order of the rows depends on, by name.

    Raises:
        CheckpointError: as `whole`; the rows would come in another order; the parameters that train are not those of
            the checkpoint, or not of their shapes; or it was written by another number of processes, and the model
            draws random numbers while it trains.
    """
    whole(folder)
    state = folder / STATE
    told = json.loads((state / "progress.json").read_text())
    if not isinstance(told.get("random"), list):
        raise IncompleteCheckpointError(f"{folder} cannot be resumed: it holds no state of the random generators.")
    processes = len(told["random"])
    if processes != ranks.world_size() and _draws(objective):
        raise CheckpointError(
            f"{folder} was written by {processes} processes, and {ranks.world_size()} would go on from it. "
            "The model has dropout, whose random numbers belong to each process, so that the run would not be the "
            f"same. Start {processes}, or begin a new run."
        )
    before = told.get("rows", {})
    for name in sorted(before.keys() & rows.keys()):
        if before[name] != json.loads(json.dumps(rows[name])):
            what = {"data": "the training data", "bad": "which rows are left out as bad"}.get(name, name)
            raise CheckpointError(
                f"{folder} cannot be resumed: {what} has changed since, so that the run would see some rows twice and "
                f"others never. Bring it back, or begin a new run: {_short(before[name])} -> {_short(rows[name])}."
            )
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
    if accelerator.scaler is not None and told.get("scaler"):
        accelerator.scaler.load_state_dict(told["scaler"])
    if processes == ranks.world_size():
        set_generators(told["random"][ranks.rank()], accelerator.device)
    return Progress(told["step"], told["samples"], told["seconds"], told.get("watch") or {})


def changes(folder: Path, config: RunConfig) -> list[str]:
    """What of the configuration is another than in the checkpoint, such as `optim.clip: 1.0 -> 0.5`.

    How long the run is, and what is shown and saved of it, is left out.
    """
    file = folder / "run.json"
    before = _flat(json.loads(file.read_text())) if file.is_file() else {}
    now = _flat(json.loads(json.dumps(config.to_dict())))
    return [
        f"{key}: {_short(before.get(key))} -> {_short(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(_FREE)
    ]


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {name: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{name}.{key}" if name else key).items()}


def _short(value: Any) -> str:
    return textwrap.shorten(json.dumps(value), 120)


def _draws(objective: nn.Module) -> bool:
    """Whether a forward pass in training draws random numbers."""
    if getattr(objective, "draws", False):
        return True
    for module in objective.modules():
        rates = (getattr(module, name, 0.0) for name in ("p", "dropout", "attention_dropout"))
        if isinstance(module, nn.Dropout) and module.p > 0:
            return True
        if any(isinstance(rate, float) and rate > 0 for rate in rates):
            return True
    return False


def _newest(run: Path) -> str:
    found = saved(run)
    return f"The newest checkpoint is {found[-1]}." if found else f"{run} holds no checkpoint yet."


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


def refuse_other_optimizer(folder: Path, config: RunConfig) -> None:
    """An optimizer's state means nothing to another one.

    Raises:
        CheckpointError: the checkpoint was written with another `optim.name`.
    """
    told = read_json(folder / "run.json")
    optim = told.get("optim") if isinstance(told, dict) else None
    before = optim.get("name") if isinstance(optim, dict) else None
    if before is not None and before != config.optim.name:
        raise CheckpointError(
            f"{folder} was trained with optim.name={before}, whose state {config.optim.name} can't go on from. Give "
            "the run the optimizer that it began with, or begin a new run from its weights."
        )


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
