"""A run's checkpoints: staged, hashed, flushed, renamed. Safetensors and JSON only; no pickle is written or read."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from train import ranks, resuming, training_state
from train.config import RunConfig
from train.randomness import RandomState, set_random_state
from vlchat import runs
from vlchat.errors import CheckpointError, IncompleteCheckpointError, UnsafeCheckpointError, VLChatError
from vlchat.folders import (
    MANIFEST,
    PICKLES,
    TRAINING_STATE,
    is_step,
    read_manifest,
    refuse_pickles,
    step_folder,
    step_of,
    steps,
    verify,
)

_NEEDED = (*(f"{TRAINING_STATE}/{name}" for name in (training_state.TRAINED, training_state.OPTIMIZER)), runs.PROGRESS)


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


def write(
    run: Path,
    progress: Progress,
    objective: Any,
    trained: training_state.TrainingState,
    config: RunConfig,
    random_states: list[dict[str, Any]],
    rows: dict[str, Any],
    scaler: Any = None,
    spared: int | None = None,
) -> Path:
    """Save as RUN/step-N a folder to chat with, tune or evaluate, with the training state inside.

    It is staged, hashed, flushed and renamed (`vlchat.folders.writing`); the oldest goes only when it is whole.

    Args:
        trained: `training_state.gather` of the objective, whose own parameters are whole too (`sharding.whole`).
        random_states: `RandomState.to_dict` of every process.
        rows: what the order of the rows depends on, by name.
        scaler: of fp16's gradients, where there is one.
        spared: a step whose checkpoint is not rotated away.

    Raises:
        CheckpointError: it could not be written, on a full disk for instance; those that were there still are.
    """

    def state(stage: Path) -> None:
        (stage / TRAINING_STATE).mkdir()
        training_state.write(stage / TRAINING_STATE, trained)
        told = {
            **asdict(progress),
            "random": random_states,
            "rows": rows,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        (stage / runs.PROGRESS).write_text(json.dumps(told))
        (stage / runs.CONFIG).write_text(json.dumps(config.to_dict(), indent=1))
        if (run / runs.METRICS).is_file():
            shutil.copyfile(run / runs.METRICS, stage / runs.METRICS)

    broken = [name for name, tensor in trained.trained.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"After step {progress.step}, {broken[0]} holds numbers that are not finite, so that nothing was saved. "
            f"Lower the learning rate. {_newest(run)}"
        )
    final = step_folder(run, progress.step)
    try:
        objective.save(final, state)
    except (OSError, SafetensorError) as error:
        full = "StorageFull" in str(error)  # as safetensors says it
        reason = "no space is left on the device" if full else getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{final} could not be written: {reason}. {_newest(run)}") from error
    kept = {final} if spared is None else {final, step_folder(run, spared)}
    for old in [folder for folder in saved(run) if folder not in kept][: -(config.loop.keep - 1) or None]:
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
    for name in (runs.METRICS, runs.SAMPLES, runs.ABOUT, runs.BEST, runs.STOPPED, runs.PLOT):
        (run / name).unlink(missing_ok=True)


def saved(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first. Their hashes are not looked at."""
    return [folder for folder in steps(run) if (folder / runs.PROGRESS).is_file()]


def newest_whole(run: Path, say: Any = print) -> Path | None:
    """The newest checkpoint whose files all have the hashes that they were written with, or None where none is.

    A damaged one that is newer is named and renamed to `damaged-step-N`.

    Raises:
        UnsafeCheckpointError: a checkpoint holds a pickle.
    """
    # One that has lost its manifest stands where this run is to write.
    without = [path for path in run.glob("step-*") if is_step(path) and (path / TRAINING_STATE).is_dir()]
    for folder in sorted({*steps(run), *without}, key=step_of, reverse=True):
        try:
            whole(folder)
            return folder
        except UnsafeCheckpointError:
            raise
        except CheckpointError as error:
            say(f"{error} It is left aside.")
        aside = folder.with_name(f"{runs.DAMAGED}{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    return None


def begin_from(run: Path, wanted: str | None) -> Path | None:
    """The checkpoint that a run goes on from, the same on all processes; None begins at step 0.

    Args:
        wanted: "auto", the newest whole checkpoint of the run's folder if there is one; the folder of a checkpoint;
            or None.

    Raises:
        CheckpointError: a checkpoint holds a pickle.
    """
    if wanted is None:
        return None
    if wanted != "auto":
        return Path(wanted)
    problem, found = None, None
    if ranks.rank() == 0:
        try:
            found = newest_whole(run)
        except VLChatError as error:
            problem = str(error)
        if found is None and problem is None:
            print(f"There is no whole checkpoint in {run} yet: the run begins at step 0.")
    told = ranks.exchange({"found": str(found) if found else None, "problem": problem})[0]
    if told["problem"]:
        raise CheckpointError(told["problem"])
    return Path(told["found"]) if told["found"] else None


def whole(folder: Path) -> None:
    """Whether a checkpoint can be resumed from, to the last bit.

    Raises:
        UnsafeCheckpointError: it holds a pickle.
        IncompleteCheckpointError: it has no state of the optimizer or of the random generators.
        CheckpointError: a file is missing or is not as it was written.
    """
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None and is_step(folder) and (folder / TRAINING_STATE).is_dir():
        raise CheckpointError(f"The checkpoint {folder} is damaged: {MANIFEST} is missing.")
    if manifest is None:
        inside = steps(folder)
        hint = f" It holds some: name one, such as {inside[-1]}, or say --resume auto." if inside else ""
        raise CheckpointError(f"{folder} is not a checkpoint of a run.{hint}")
    state = folder / TRAINING_STATE
    for place in (folder, state):
        if place.is_dir():
            refuse_pickles(place)
    for path in state.glob("*"):
        if path.suffix in PICKLES:
            raise UnsafeCheckpointError(f"{folder} holds {path.name}, a pickle, which can run code when it is read.")
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise IncompleteCheckpointError(f"{folder} cannot be resumed: {name} is missing.")
        if name not in manifest.get("files", {}):
            raise CheckpointError(f"The checkpoint {folder} is damaged: {MANIFEST} has no hash of {name}.")
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
    told = json.loads((folder / runs.PROGRESS).read_text())
    if not isinstance(told.get("random"), list):
        raise IncompleteCheckpointError(f"{folder} cannot be resumed: it holds no state of the random generators.")
    processes = len(told["random"])
    resuming.refuse_other_draws(folder, processes, objective)
    resuming.refuse_another_order(folder, told.get("rows", {}), rows)
    restore: Any = getattr(objective, "restore", None)
    if restore is not None:
        restore(folder)
    training_state.read(folder / TRAINING_STATE, objective, optimizer)
    if accelerator.scaler is not None and told.get("scaler"):
        accelerator.scaler.load_state_dict(told["scaler"])
    if processes == ranks.world_size():
        set_random_state(RandomState.of(told["random"][ranks.rank()]), accelerator.device)
    return Progress(told["step"], told["samples"], told["seconds"], told.get("watch") or {})


def _newest(run: Path) -> str:
    found = saved(run)
    return f"The newest checkpoint is {found[-1]}." if found else f"{run} holds no checkpoint yet."
