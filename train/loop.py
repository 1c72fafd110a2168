"""One loop for every objective: batch, loss, step, with progress, metrics, samples, checkpoints and resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from train import checkpoint, records, sharding, training_state
from train.batches import Batch, Plan, stream, workers_named
from train.checkpoint import Progress
from train.config import RunConfig
from train.heldout import Heldout
from train.opening import fallbacks
from train.optim import optimizer as optimizer_of
from train.optim import parameter_groups, schedule
from train.quarantine import Quarantine
from train.randomness import random_state
from train.ranks import exchange, join
from train.resuming import changes, refuse_other_optimizer
from train.step import OutOfMemory, Stepper, TrainingStopped
from train.stopping import Interrupted, Stop
from train.terms import Term, add
from train.watch import Watch
from vlchat import runs
from vlchat.errors import CheckpointError, ConfigError, VLChatError
from vlchat.folders import step_folder, step_of

_PRECISIONS = ("no", "bf16", "fp16")
_IDLE = 100  # steps in a row without one usable row: the data is at fault, not a row


class Objective(Protocol):
    """A model and its loss. Any nn.Module with these methods trains in `fit`.

    It may have `prepare(precision, device)`, called once it is known what trains, `begin(rows)`, before the first step
    of a new run that sees so many rows, `restore(folder)`, before a checkpoint's weights are read, and `shards()`, what
    of it may be cut in shards (`train.sharding.shard`).

    Attributes:
        whole_batch: the loss compares the rows of a batch with each other, so that a batch can't come in pieces.
    """

    whole_batch: bool

    def batch(self, positions: Sequence[int]) -> Batch:
        """The tensors of the rows at these positions of the run's endless order, with `ids`, the rows' names."""

    def counts(self, batch: Batch) -> dict[str, float]:
        """How much each term of the loss is averaged over in this batch, from the batch alone."""

    def __call__(self, batch: Batch) -> dict[str, Term]: ...
    def sample(self) -> tuple[dict[str, float], list[str]]: ...
    def save(self, folder: Path, extra: Callable[[Path], None]) -> None: ...


def fit(
    objective: Any,
    config: RunConfig,
    steps: int,
    resume: Path | None = None,
    heldout: Heldout | None = None,
    rows: dict[str, Any] | None = None,
) -> Path:
    """Train `objective` for `steps` optimizer steps and return the folder of the last checkpoint.

    Args:
        heldout: rows to look at, which the objective's mixture no longer has.
        rows: what the order of the rows depends on, by name, as JSON: a checkpoint of other ones is not resumed.

    Without `resume`, what an earlier run left in the folder goes once the new one is ready to begin. Several processes,
    as `torchrun` and `accelerate launch` start them, share the rows of each step; their gradients are added.

    Raises:
        TrainingStopped: the loss or its gradient is not finite; the last checkpoint is from before.
        Interrupted: the run was asked to stop, and has saved.
        ConfigError: an unknown precision, a rule that matches no parameter, a batch that can't be split as asked.
        CheckpointError: `resume` is incomplete or from another configuration, or the run has checkpoints beyond it.
        DataError: a row cannot be used.
    """
    loop, run = config.loop, Path(config.run)
    if config.trainable is None:
        chosen: Any = getattr(objective, "default_trainable", None)
        config = replace(config, trainable=chosen() if chosen else {".*": 1e-3})
    groups, table = parameter_groups(objective, config.trainable or {}, config.optim)
    accelerator = _accelerator(precision_of(loop.precision, objective))
    plugin = sharding.asked(accelerator.mixed_precision, config.optim.name, accelerator.num_processes)
    plan = Plan.of(
        loop.batch,
        loop.micro_batch,
        accelerator.process_index,
        accelerator.num_processes,
        objective.whole_batch,
        loop.micro_tokens,
        loop.by_length,
        getattr(objective, "row_lengths", None) is not None,
    )
    accelerator.print(table)
    for sentence in fallbacks(objective, plan):
        accelerator.print(sentence)
    if plugin is not None:
        names = {id(parameter): name for name, parameter in objective.named_parameters()}
        accelerator.print(sharding.shard(objective, plugin, accelerator))
        groups = sharding.regrouped(groups, names, objective)
    objective.to(accelerator.device)
    if hasattr(objective, "prepare"):
        objective.prepare(accelerator.mixed_precision, accelerator.device)
    optimizer: Any = optimizer_of(groups, config.optim)
    peaks = [group["lr"] for group in optimizer.param_groups]
    progress = Progress()
    if resume:
        refuse_other_optimizer(resume, config)
        progress = checkpoint.read(resume, objective, optimizer, accelerator, rows or {})
        for change in changes(resume, config):
            accelerator.print(f"Not as in {resume.name}: {change}")
        accelerator.print(f"Resuming {resume}: step {progress.step:,} of {steps:,}, {progress.samples:,} samples seen.")
        if reason := _over(progress, steps, loop.minutes):
            accelerator.print(reason)
            return resume
        _refuse_mixing(run, resume, progress)
    else:
        if hasattr(objective, "begin"):
            objective.begin(steps * loop.batch)
        set_seed(config.seed + accelerator.process_index)  # dropout differs between processes
    mixture = getattr(objective, "mixture", ())
    quarantine = Quarantine(run, config.max_bad, len(mixture), accelerator.is_main_process, accelerator.print)
    watching = Watch(config, objective, steps, accelerator, progress, heldout, table)
    problem = _open_run(run, config, resume) if accelerator.is_main_process else None
    if problem := exchange({"problem": problem})[0]["problem"]:
        raise ConfigError(problem)

    stepper = Stepper(objective, optimizer, accelerator, config.optim.clip)
    share = schedule(config.optim)
    started = time.monotonic() - progress.seconds
    written = resume
    stop = Stop()
    idle = 0
    # Twice, for torch may raise it once more while the watch writes down why the run ends.
    with workers_named(), stop.listening(), watching as watch, workers_named():
        objective.train()
        while progress.step < steps:
            for batches in stream(objective, plan, progress.step, steps, loop.workers):
                told = exchange(_told(objective, batches, quarantine, stop.signal, time.monotonic() - started))
                if isinstance(batches, VLChatError):
                    raise batches
                for one in told:  # another process's row: all end together
                    if one["error"]:
                        raise TrainingStopped(one["error"])
                quarantine.add([fault for one in told for fault in one["faults"]])
                usable = _usable(told, objective.whole_batch, loop.batch)
                idle = 0 if usable else idle + 1
                if idle == _IDLE or idle * loop.batch >= max(1, len(mixture)):
                    raise TrainingStopped(
                        f"Not one row of step {progress.step + 1} can be used"
                        f"{f', nor of the {idle - 1:,} before it' if idle > 1 else ''}; {quarantine.file} says why."
                    )
                seconds = told[0]["seconds"]  # one clock for all
                done = progress.step / steps
                if loop.minutes is not None:
                    done = max(done, seconds / 60 / loop.minutes)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * share(done)
                try:
                    counts = add(one["counts"] for one in told)
                    others = sharding.others(objective, plan, progress.step, batches, told) if usable else []
                    outcome = stepper(progress.step, batches, counts, others) if usable else None
                except OutOfMemory:
                    plan = _smaller(plan, all(one["rows"] == one["pieces"] for one in told), accelerator)
                    break  # the rows of this step come anew, in smaller pieces
                progress = Progress(progress.step + 1, progress.samples + loop.batch, seconds)
                asked = next((one["signal"] for one in told if one["signal"]), None)
                over = progress.step == steps or done >= 1.0
                early = watch.stepped(progress, outcome, optimizer.param_groups[0]["lr"], over, asked is not None)
                final = over or early or asked is not None
                if progress.step % loop.save_every == 0 or final or watch.best_step == progress.step:
                    written = _save(run, progress, watch, objective, optimizer, config, accelerator, rows or {})
                    watch.saved(written)
                if asked is not None:
                    name = {2: "SIGINT", 15: "SIGTERM"}.get(asked, f"signal {asked}")
                    watch.stopped(name, progress)
                    raise Interrupted(f"Stopped by {name}; --resume auto goes on from {written}.", 128 + asked)
                if final:
                    watch.stopped("done" if over else "early", progress)
                    assert written is not None
                    return written
    raise AssertionError("a run ends with its last step")


def _told(
    objective: Any, batches: list[Batch] | VLChatError, quarantine: Quarantine, asked: int | None, seconds: float
) -> dict[str, Any]:
    """What a process tells the others before a step, as JSON."""
    told: dict[str, Any] = {"seconds": seconds, "counts": {}, "rows": 0, "faults": [], "error": None, "signal": asked}
    if isinstance(batches, VLChatError):
        return told | {"error": str(batches)}
    told["faults"] = quarantine.take(batches)
    batches[:] = [batch for batch in batches if batch["ids"]]
    rows = sum(len(batch["ids"]) for batch in batches)
    return told | {"counts": add(map(objective.counts, batches)), "rows": rows, "pieces": len(batches)}


def _usable(told: list[dict[str, Any]], whole: bool, batch: int) -> bool:
    """Whether a step has rows to learn from. Those that are compared must be two at least, and some of each process."""
    if whole:
        return all(one["rows"] for one in told) and sum(one["rows"] for one in told) >= min(2, batch)
    return any(one["rows"] for one in told)


def _accelerator(precision: str) -> Accelerator:
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("loop.precision is fp16, which needs a GPU; use bf16.")
    sharding.refuse_contradictions(precision)
    join()
    AcceleratorState._reset_state()  # a process may train several runs, each in its precision
    return Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())


def precision_of(wanted: str, objective: Any) -> str:
    """`wanted`, but where the frozen part of a model is stored in half precision, what trains must meet it there.

    Raises:
        ConfigError: an unknown precision.
    """
    if wanted not in _PRECISIONS:
        raise ConfigError(f'loop.precision is "{wanted}"; use {", ".join(_PRECISIONS)}.')
    stored = {parameter.dtype for parameter in objective.parameters()}
    if wanted != "no" or not stored & {torch.bfloat16, torch.float16}:
        return wanted
    return "fp16" if torch.cuda.is_available() and torch.float16 in stored else "bf16"


def _over(progress: Progress, steps: int, minutes: float | None) -> str | None:
    """Why a checkpoint has nothing left to train, if so."""
    if minutes is not None and progress.seconds >= 60 * minutes:
        return f"It has had its {minutes:g} minutes; raise loop.minutes to go on."
    if progress.step >= steps:
        return "It has made all its steps; raise loop.steps or loop.epochs to go on."
    return None


def _refuse_mixing(run: Path, resume: Path, progress: Progress) -> None:
    beyond = [folder.name for folder in checkpoint.saved(run) if step_of(folder) > progress.step]
    if beyond:
        raise CheckpointError(
            f"{run} has checkpoints after step {progress.step}: {', '.join(beyond)}. Add run=OTHER/FOLDER to go on "
            f"from {resume} beside them."
        )


def _open_run(run: Path, config: RunConfig, resume: Path | None) -> str | None:
    """Makes the run's folder ready to write to. Returns why it can't be."""
    if problem := runs.taken(run):
        return problem
    try:
        run.mkdir(parents=True, exist_ok=True)
        records.write(run / runs.RUNNING, runs.this_process())
        if resume is None:
            checkpoint.clear(run)
        checkpoint.tidy(run)
        records.write(run / runs.CONFIG, config.to_dict())
    except OSError as error:
        return f"The run cannot be written to {run}: {error.strerror}. Make room there, or add run=OTHER/FOLDER."
    return None


def _smaller(plan: Plan, alone: bool, accelerator: Accelerator) -> Plan:
    """The plan of a step for which the memory was too little, with less at once.

    Args:
        alone: each of the step's rows was taken by itself. Of rows with company only `plan.micro` tells.
    """
    if plan.micro == 1 if plan.tokens is None else alone:
        raise TrainingStopped(
            "There is too little memory for a single row. Quantize the model (objective.quantize=nf4), shorten the "
            "rows (objective.max_length), train less of it, or take a larger machine."
        )
    smaller = plan.halved()
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    (many, what, _), (fewer, _, setting) = plan.at_once, smaller.at_once
    accelerator.print(
        f"Out of memory with {many:,} {what} at once: going on with {fewer:,}; the {plan.batch} rows of a step stay. "
        f"{setting}={fewer} begins so."
    )
    return smaller


def _save(
    run: Path,
    progress: Progress,
    watch: Watch,
    objective: Any,
    optimizer: Any,
    config: RunConfig,
    accelerator: Accelerator,
    rows: dict[str, Any],
) -> Path:
    states = exchange(random_state(accelerator.device).to_dict())
    folder = step_folder(run, progress.step)
    problem = None
    trained = training_state.gather(objective, optimizer)
    with sharding.whole(objective):
        if accelerator.is_main_process:
            kept = Progress(progress.step, progress.samples, progress.seconds, watch.state())
            try:
                checkpoint.write(
                    run, kept, objective, trained, config, states, rows, accelerator.scaler, spared=watch.best_step
                )
            except VLChatError as error:
                problem = str(error)
    problem = exchange({"problem": problem})[0]["problem"]  # no process goes on with a run that cannot be saved
    if problem:
        raise CheckpointError(problem)
    return folder
