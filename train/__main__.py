"""`vlchat train CONFIG.yaml [key=value ...]`: a run, told as a story."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import set_seed

from train import checkpoint, heap, ranks, trackers
from train.batches import WorkerLost
from train.config import RunConfig, construct, load_runs
from train.heldout import hold_out
from train.loop import fit
from train.memory import LeftOthers
from train.objectives import OBJECTIVES
from train.planning.command import foresee, worth_planning
from train.stopping import Interrupted, StoppedAtOnce
from vlchat import runs
from vlchat.arguments import Parser
from vlchat.data import fingerprint, inspect
from vlchat.errors import ConfigError, VLChatError

_FEW = 50  # steps


def main(argv: list[str] | None = None) -> int:
    """Run a training from the command line. Returns 0, or raises VLChatError for a person's mistake."""
    parser = Parser(prog="vlchat train", description="Train from a YAML file.")
    parser.add_argument("config", nargs="?", help="a YAML file, such as configs/mini/tune.yaml; its runs train in turn")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, such as loop.steps=100")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="auto|FOLDER", help="go on from the newest checkpoint, or this one"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="start anew where the run folder already holds checkpoints"
    )
    parser.add_argument(
        "--anyway", action="store_true", help="begin even where the plan says that the memory is too little"
    )
    arguments = parser.parse_intermixed_args(argv)  # key=value may follow --resume auto
    if arguments.config is None:
        raise ConfigError("Name a configuration, such as configs/finetune.yaml. See vlchat train --help.")

    transformers.logging.disable_progress_bar()  # of loading; the run has its own
    ranks.refuse_deepspeed()
    ranks.join()
    if ranks.rank() > 0:
        sys.stdout = open(os.devnull, "w")  # the first process speaks for all

    try:
        configs = load_runs(arguments.config, arguments.overrides)
        if len(configs) > 1 and arguments.resume not in (None, "auto"):
            raise ConfigError(f"{arguments.config} has {len(configs)} runs: say --resume auto, which goes on in each.")
        for config in configs:  # before the first of them takes its hours
            _refuse_overwriting(Path(config.run), arguments.resume, arguments.overwrite)
        with ranks.Heartbeat().beating():
            for config in configs:
                train(config, arguments.resume, arguments.anyway)
    except Interrupted as error:
        _complain(str(error))
        return error.code
    except StoppedAtOnce:
        _complain("Stopped at once; --resume auto goes on from the newest checkpoint.")
        return 130
    except KeyboardInterrupt:
        _complain("Stopped before the first step; nothing was changed.")
        return 130
    except VLChatError as error:
        if ranks.rank() == 0:
            raise
        if isinstance(error, WorkerLost | LeftOthers):  # else the first process says why
            print(f"Process {ranks.rank()}: {error}", file=sys.stderr)
        return 2
    return 0


def train(config: RunConfig, resume_from: str | None = None, anyway: bool = False) -> Path:
    """One run, from its configuration to its last checkpoint, whose folder is returned.

    Args:
        resume_from: "auto", the newest whole checkpoint of the run's folder if there is one, or the folder of a
            checkpoint; None starts anew, and what is in the folder goes.
        anyway: begin even where the plan says that the memory is too little.

    Raises:
        VLChatError: what in the configuration, the data or the checkpoints is wrong, in a sentence.
    """
    # 1. What to do.
    trackers.check(config.trackers)
    run = Path(config.run)
    resume = checkpoint.begin_from(run, resume_from)
    _foresee(config, anyway)
    if not torch.cuda.is_available():  # else a step's tensors are not malloc's
        heap.settle(large=worth_planning(config))

    # 2. The model and its loss.
    set_seed(config.seed)
    given = {"data": config.data} if config.data else {}
    objective = construct(OBJECTIVES, config.objective, "objective", seed=config.seed, **given)

    for part, path in getattr(objective, "base", {}).items():
        if path is not None and Path(path).resolve().is_relative_to(run.resolve()):
            raise ConfigError(f"objective.{part} lies in {run}, where this run is to write. Add run=OTHER/FOLDER.")

    # 3. The rows: those that can't be used are left out, some may be held out.
    rows = _inspect(objective, config, resume)
    heldout = hold_out(objective, config)

    # 4. How long.
    if config.loop.steps is None and not hasattr(objective, "steps"):
        raise ConfigError(f"loop.steps is missing: {objective.name} draws its rows as it goes and has no epochs.")
    steps = config.loop.steps or objective.steps(config.loop.epochs, config.loop.batch)
    if config.loop.steps is None:
        epochs = f"{config.loop.epochs:g} epochs of {len(objective.mixture):,} rows"
        print(f"{epochs}, {config.loop.batch} rows a step: {steps:,} steps.")
        if steps < _FEW:
            print(f"So few steps teach little: try loop.steps={_FEW * 3}.")

    # 5. Train.
    last = fit(objective, config, steps, resume, heldout, rows)
    print(f"Done: {last}. vlchat info {run} says how it went.")
    return last


def _foresee(config: RunConfig, anyway: bool) -> None:
    """Says what the run will take, and refuses one that its machine is too small for."""
    planned = ranks.rank() == 0 and not anyway and worth_planning(config)
    told, problem = foresee(config, ranks.world_size()) if planned else (None, None)
    if told:
        print(told)
    if problem := ranks.exchange({"problem": problem})[0]["problem"]:
        raise ConfigError(problem)


def _inspect(objective: Any, config: RunConfig, resume: Path | None) -> dict[str, Any]:
    """Leaves out the rows that can't be used. Returns what the order of the rows depends on, for the checkpoints.

    Raises:
        DataError: more than `max_bad` rows can't be used.
    """
    mixture = getattr(objective, "mixture", None)
    order: dict[str, Any] = {"seed": config.seed, "loop.batch": config.loop.batch}
    if mixture is None:
        return order
    first = ranks.rank() == 0
    file = Path(config.run) / runs.QUARANTINE
    if first and resume is None:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The run cannot be written to {config.run}: {error.strerror}. Add run=OTHER/FOLDER."
            ) from error
    found = inspect(mixture, max_bad=config.max_bad, quarantine=file if first else None, progress=first)
    if told := found.summary():
        print(told)
    objective.mixture = found.keep(mixture)
    where = ("path", "images", "name")  # the same rows may lie elsewhere today
    specs = [{key: value for key, value in spec.items() if key not in where} for spec in config.data]
    hashes = [fingerprint(spec["path"]) if "path" in spec else None for spec in config.data]
    return order | {"data": [[spec, sha256] for spec, sha256 in zip(specs, hashes, strict=True)], "bad": found.digest}


def _refuse_overwriting(run: Path, wanted: str | None, overwrite: bool) -> None:
    problem = runs.taken(run) if ranks.rank() == 0 else None
    if problem := ranks.exchange({"problem": problem})[0]["problem"]:
        raise ConfigError(problem)
    found = checkpoint.saved(run)
    if wanted is None and found and not overwrite:
        raise ConfigError(
            f"{run} already holds checkpoints, the newest {found[-1].name}. "
            "Add --resume auto to go on, --overwrite to start anew, or run=OTHER/FOLDER."
        )


def _complain(text: str) -> None:
    if ranks.rank() == 0:
        print(f"\n{text}", file=sys.stderr)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VLChatError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
