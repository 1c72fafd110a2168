"""`vlchat plan CONFIG.yaml [key=value ...]`, and what `vlchat train` says and refuses before it loads anything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import transformers

from train import sharding
from train.config import RunConfig, load_runs
from train.planning import report
from train.planning.changes import cheapest
from train.planning.plan import RunPlan, plan
from train.planning.target import Target, target
from vlchat.arguments import Parser
from vlchat.errors import ConfigError, VLChatError
from vlchat.folders import EMBEDDED, newest
from vlchat.models import resolve
from vlchat.starting.machines import GPUS

_WORTH_IT = 2**28  # bytes of weights from which a run is planned before it loads them


def main(argv: list[str] | None = None) -> int:
    """Plans the runs of a file. Returns 0 where all fit, 1 where one does not.

    Raises:
        VLChatError: a person's mistake.
    """
    parser = Parser(
        prog="vlchat plan",
        description="What a run will take, before it starts: memory, time, money. No weights are read. Exit code 1 "
        "when it does not fit, with changes that make it fit.",
    )
    add = parser.add_argument
    add("config", nargs="?", help="a YAML file, as of vlchat train")
    add("overrides", nargs="*", metavar="key=value", help="changes to it, such as loop.micro_batch=4")
    add("--gpu", metavar="NAME", help=f"plan for another machine: {', '.join(GPUS)}")
    add("--memory", type=float, metavar="GIB", help="memory of the machine (default: what there is, or the GPU's)")
    add(
        "--rate", type=float, metavar="TFLOPS", help="what your runs reach (default: half of a measured matrix product)"
    )
    add("--price", type=float, metavar="PER_HOUR", help="of the machine, to say what the run will cost")
    add("--ranks", type=int, default=1, metavar="N", help="processes that share each step (default: 1)")
    add("--sharded", action="store_true", help="with --ranks: weights, gradients and optimizer state split over them")
    add("--json", type=Path, metavar="FILE", help="write the plan as JSON as well")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.config is None:
        raise ConfigError("Name a configuration, such as configs/finetune.yaml. See vlchat plan --help.")
    if arguments.ranks < 1:
        raise ConfigError(f"--ranks is {arguments.ranks}; it must be at least 1.")
    if arguments.price is not None and not 0 <= arguments.price < math.inf:
        raise ConfigError(f"--price is {arguments.price:g}; it must be a number from 0, what an hour costs.")
    transformers.logging.set_verbosity_error()
    told: list[dict[str, Any]] = []
    for config in load_runs(arguments.config, arguments.overrides):
        machine = target(arguments.gpu, arguments.memory, arguments.rate, config.loop.precision != "no")
        found = _plan(config, machine, arguments.ranks, arguments.sharded)
        print(f"{config.run}\n\n{report.table(found, arguments.price)}\n", flush=True)
        told.append({"run": config.run, **found.to_dict(arguments.price), "changes": []})
        if not found.fits:
            ways = cheapest(found)
            print(report.changes(ways))
            told[-1]["changes"] = [
                {"keys": list(way.keys), "peak": way.plan.peak, "slower": way.slower} for way in ways
            ]
    if arguments.json is not None:
        try:
            arguments.json.write_text(json.dumps(told if len(told) > 1 else told[0], indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"--json {arguments.json} can't be written: {error.strerror}.") from error
    return 0 if all(one["fits"] for one in told) else 1


def _plan(config: RunConfig, machine: Target, ranks: int, sharded: bool) -> RunPlan:
    try:
        return plan(config, machine, ranks, sharded)
    except VLChatError:
        raise
    except Exception as error:  # code of another maker's model that needs numbers where there are none
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(
            f"{config.run} can't be planned, for its model does not run without weights: {reason}"
        ) from error


def worth_planning(config: RunConfig) -> bool:
    """Whether a run loads so much that it should be planned before; or what it loads is on the Hub and not known."""
    stored = weights_on_disk(config.objective)
    return stored is None or stored >= _WORTH_IT


def foresee(config: RunConfig, ranks: int, machine: Target | None = None) -> tuple[str | None, str | None]:
    """What to say before a run loads anything, and why it should not begin; None where there is nothing to say.

    A run that can't be planned goes on: whatever is wrong with it is told where it comes up.

    Args:
        machine: None is this one.
    """
    machine = machine or target(half=config.loop.precision != "no")
    try:
        found = _plan(config, machine, ranks, sharding.requested())
    except VLChatError:
        return None, None
    if not found.clearly_too_large:
        return report.short(found), None
    problem = (
        f"{report.short(found)}\nIt does not fit, so nothing was loaded.\n{report.changes(cheapest(found))}\n"
        "Add such a change, or --anyway to begin as it is."
    )
    return None, problem


def weights_on_disk(objective: dict[str, Any]) -> int | None:
    """Bytes of the weights that an objective begins with; None where that can't be told without asking the Hub."""
    named = [objective[key] for key in ("vision", "language", "text", "model") if objective.get(key) is not None]
    if objective.get("type") == "tune" and objective.get("model") is None:
        named.append(str(EMBEDDED))
    named += [(objective.get("distill") or {}).get("teacher")] if objective.get("distill") else []
    total = 0
    for name in named:
        if isinstance(name, dict):  # settings of a model from nothing, or a tower composed of others
            if objective.get("type") != "align":
                continue
            return None
        folder = Path(str(resolve(name))).expanduser()
        if not folder.is_dir():
            return None
        total += sum(file.stat().st_size for file in newest(folder).rglob("*.safetensors"))
    return total
