"""One loop for every objective: batch, loss, step, with progress, metrics, samples, checkpoints and resume."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm.auto import tqdm

from train import checkpoint
from train.batches import stream
from train.checkpoint import Progress
from train.config import RunConfig
from train.optim import optimizer as optimizer_of
from train.optim import parameter_groups, schedule
from vlchat.errors import CheckpointError, ConfigError, VLChatError
from vlchat.folders import step_of

_PRECISIONS = ("no", "bf16", "fp16")


class Objective(Protocol):
    """A model and its loss. Any nn.Module with these methods trains in `fit`."""

    def batch(self, step: int, rows: int) -> dict[str, torch.Tensor]: ...
    def __call__(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]: ...
    def sample(self) -> tuple[dict[str, float], list[str]]: ...
    def save(self, folder: Path, extra: Callable[[Path], None]) -> None: ...


class TrainingStopped(VLChatError):
    """A run that cannot go on, such as one whose loss is no number any more."""


class _Rows:
    """The batches of an objective, `rows` rows a step."""

    def __init__(self, objective: Any, rows: int) -> None:
        self.objective, self.rows = objective, rows

    def batch(self, step: int) -> dict[str, Any]:
        return self.objective.batch(step, self.rows)


def fit(objective: Any, config: RunConfig, steps: int, resume: Path | None = None) -> Path:
    """Train `objective` for `steps` optimizer steps and return the folder of the last checkpoint.

    Without `resume`, what an earlier run left in the folder goes once the new one is ready to begin.

    Raises:
        TrainingStopped: the loss is not finite; the last checkpoint is from before.
        ConfigError: an unknown precision, or a rule that matches no parameter.
        CheckpointError: `resume` is incomplete or from another configuration, or the run has checkpoints beyond it.
    """
    loop, run = config.loop, Path(config.run)
    if loop.precision not in _PRECISIONS:
        raise ConfigError(f'loop.precision is "{loop.precision}"; use {", ".join(_PRECISIONS)}.')
    groups, table = parameter_groups(objective, config.trainable, config.optim)
    precision = _precision(loop.precision, objective)
    AcceleratorState._reset_state()  # a process may train several runs, each in its precision
    accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    accelerator.print(table)
    optimizer: Any = optimizer_of(groups, config.optim)
    peaks = [group["lr"] for group in optimizer.param_groups]
    progress = checkpoint.read(resume, objective, optimizer) if resume else Progress()
    if resume:
        accelerator.print(f"Resuming {resume}: step {progress.step:,} of {steps:,}, {progress.samples:,} samples seen.")
        if loop.minutes is not None and progress.seconds >= 60 * loop.minutes:
            accelerator.print(f"It has had its {loop.minutes:g} minutes; raise loop.minutes to go on.")
            return resume
        if progress.step >= steps:
            accelerator.print("It has made all its steps; raise loop.steps or loop.epochs to go on.")
            return resume
        beyond = [folder.name for folder in checkpoint.saved(run) if step_of(folder) > progress.step]
        if beyond:
            raise CheckpointError(
                f"{run} has checkpoints after step {progress.step}: {', '.join(beyond)}. Add run=OTHER/FOLDER to go on "
                f"from {resume} beside them."
            )
    else:
        checkpoint.clear(run)
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps(config.to_dict(), indent=1))
    objective, optimizer = accelerator.prepare(objective, optimizer)
    bare = accelerator.unwrap_model(objective)
    share = schedule(config.optim)
    started = time.monotonic() - progress.seconds
    last, counted = time.monotonic(), progress.step  # since when, and since which step, the rate is taken
    with tqdm(
        total=steps, initial=progress.step, dynamic_ncols=True, mininterval=2, disable=not accelerator.is_main_process
    ) as bar:
        objective.train()
        for step, batch in enumerate(
            stream(_Rows(bare, loop.batch), progress.step, steps, loop.workers), start=progress.step
        ):
            done = step / steps
            if loop.minutes is not None:
                done = max(done, (time.monotonic() - started) / 60 / loop.minutes)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share(done)
            batch = {
                key: value.to(accelerator.device) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }
            with accelerator.autocast():
                loss, metrics = objective(batch)
            if not math.isfinite(loss.item()):
                raise TrainingStopped(
                    f"The loss of step {step + 1} is {loss.item()}. Nothing of it was saved; lower the learning "
                    f"rate or look at the rows of this batch. Checkpoints in {run}: {len(checkpoint.saved(run))}."
                )
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(objective.parameters(), config.optim.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress = Progress(
                step + 1, progress.samples + loop.batch * accelerator.num_processes, time.monotonic() - started
            )
            final = progress.step == steps or done >= 1.0
            bar.update()
            if loop.minutes is not None:
                bar.total = min(steps, round(progress.step / min(1.0, progress.seconds / 60 / loop.minutes)))
            if progress.step % loop.log_every == 0 or final:
                now = time.monotonic()
                rate = loop.batch * (progress.step - counted) / (now - last)
                last, counted = now, progress.step
                line = {
                    "step": progress.step,
                    "loss": loss.item(),
                    **metrics,
                    "grad_norm": float(norm),
                    "lr": optimizer.param_groups[0]["lr"],
                    "rows_per_second": rate,
                    "seconds": progress.seconds,
                }
                bar.set_postfix_str(f"loss {loss.item():.3f} lr {line['lr']:.1e} {rate:.0f} rows/s")
                if accelerator.is_main_process:
                    _log(run, line)
            if progress.step % loop.sample_every == 0 or final:
                bare.eval()
                with accelerator.autocast():
                    scores, shown = bare.sample()
                objective.train()
                last, counted = time.monotonic(), progress.step
                if accelerator.is_main_process:
                    _log(run, {"step": progress.step, **scores})
                    bar.write(
                        "\n".join(
                            [
                                f"step {progress.step}  " + "  ".join(f"{k} {v:.3f}" for k, v in scores.items()),
                                *(f"    {text}" for text in shown),
                            ]
                        )
                    )
            if (progress.step % loop.save_every == 0 or final) and accelerator.is_main_process:
                written = checkpoint.write(run, progress, bare, optimizer, config, loop.keep)
            if final:
                break
    return written


def _precision(wanted: str, objective: Any) -> str:
    """`wanted`, but where the frozen part of a model is stored in half precision, what trains must meet it there."""
    stored = {parameter.dtype for parameter in objective.parameters()}
    if wanted != "no" or not stored & {torch.bfloat16, torch.float16}:
        return wanted
    return "fp16" if torch.cuda.is_available() and torch.float16 in stored else "bf16"


def _log(run: Path, line: dict[str, Any]) -> None:
    rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
    with (run / "metrics.jsonl").open("a") as handle:
        handle.write(json.dumps(rounded) + "\n")
