"""Kills a training run with SIGKILL at random moments and resumes it, again and again.

    python benchmarks/crash.py [--kills 50] [--seed 0]

An unbroken run of the embedded model (LoRA and connector, drawn and augmented pictures, dropout) saves every step.
Then the same run is killed: some time after its first step, while a checkpoint is being written, or while an old one is
being removed. After each kill `--resume auto` must go on, and every checkpoint that is there, and the last one, must
hold the same bits as the unbroken run's: weights, optimizer and random generators. Exit code 1 where one does not.

Children are forked from a process that has loaded the libraries, so that fifty starts take minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

from train.__main__ import main as train
from train.checkpoint import saved
from vlchat.folders import read_manifest, step_of
from vlchat.runs import PROGRESS

MOMENTS = ("training", "saving", "rotating")
OBJECTIVE = {
    "type": "tune",
    "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
    "sample_tokens": 2,
    "augment": {"crop": [0.8, 1.0], "color": 0.2, "rotate": 10},
}


def configuration(folder: Path, name: str, steps: int) -> Path:
    """A YAML file for a run in FOLDER/NAME."""
    tree = {
        "run": str(folder / name),
        "objective": OBJECTIVE,
        "data": [{"type": "scenes", "ask": "chat", "rows": 64, "turns": 2}],
        "trainable": {"lora_": 1e-3, "connector": 1e-3},
        "loop": {"steps": steps, "batch": 2, "workers": 1, "save_every": 1, "sample_every": 25, "log_every": 1},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def start(arguments: list[str], log: Path) -> int:
    """Trains in a forked child; returns its process id."""
    child = os.fork()
    if child == 0:
        with log.open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        code = 70
        try:
            code = train(arguments)
        except BaseException as error:  # the child ends here, whatever it was
            print(f"raised {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(code)
    return child


def bits(checkpoint: Path) -> dict[str, object]:
    """What must be the same: hashes of weights and optimizer, and the random generators."""
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    told = json.loads((checkpoint / PROGRESS).read_text())
    files = {name: digest for name, digest in manifest["files"].items() if name.endswith(".safetensors")}
    return {**files, "random": told["random"], "samples": told["samples"]}


def kill(child: int, run: Path, moment: str, chance: random.Random) -> bool:
    """Kills the run at such a moment after it has made a step. False where it ended before."""
    begun = len(saved(run))
    wait: Callable[[], bool] = {
        "training": lambda: len(saved(run)) != begun or newest(run) > first,
        "saving": lambda: any(run.glob(".step-*.partial-*")),
        "rotating": lambda: any(run.glob(".step-*.trash")),
    }[moment]
    first = newest(run)
    until = time.monotonic() + 120
    while not wait():
        done, _ = os.waitpid(child, os.WNOHANG)
        if done or time.monotonic() > until:
            return False
        time.sleep(0.0002)
    time.sleep(chance.uniform(0, 1.5) if moment == "training" else chance.uniform(0, 0.02))
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def newest(run: Path) -> int:
    found = saved(run)
    return step_of(found[-1]) if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400, help="of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="vlchat-crash-"))
    log = folder / "log.txt"
    print(f"The unbroken run of {arguments.steps} steps ...", flush=True)
    child = start([str(configuration(folder, "unbroken", arguments.steps)), "loop.keep=100000"], log)
    if os.waitpid(child, 0)[1]:
        print(f"It failed; see {log}.")
        return 1
    expected = {step_of(one): bits(one) for one in saved(folder / "unbroken")}
    shutil.rmtree(folder / "unbroken")

    run, config = folder / "killed", configuration(folder, "killed", arguments.steps)
    kills: Counter[str] = Counter()
    failed = wrong = compared = ended = 0
    while sum(kills.values()) < arguments.kills:
        moment = MOMENTS[sum(kills.values()) % len(MOMENTS)]
        child = start([str(config), "--resume", "auto"], log)
        before = newest(run)
        if not kill(child, run, moment, chance):
            if newest(run) != arguments.steps:
                failed += 1
                print(f"  the run did not go on from step {before}; see {log}")
                break
            shutil.rmtree(run)  # it came to its end: once more from the beginning
            ended += 1
            continue
        kills[moment] += 1
        half = [path.name for path in run.glob(".step-*")]
        for checkpoint in saved(run):
            compared += 1
            wrong += bits(checkpoint) != expected[step_of(checkpoint)]
        print(
            f"  kill {sum(kills.values()):2} while {moment:8}: begun at step {before:3}, newest {newest(run):3}"
            f"{', left half: ' + ', '.join(half) if half else ''}",
            flush=True,
        )
    child = start([str(config), "--resume", "auto"], log)
    failed += os.waitpid(child, 0)[1] != 0
    last = saved(run)
    compared += 1
    wrong += not last or step_of(last[-1]) != arguments.steps or bits(last[-1]) != expected[arguments.steps]
    told = ", ".join(f"{count} while {moment}" for moment, count in kills.items())
    print(f"{sum(kills.values())} kills ({told}); {failed} resumes failed; {compared} checkpoints compared with the")
    print(f"unbroken run's, {wrong} of other bits; the run came to its end {ended + 1} times.")
    if failed or wrong:
        print(f"See {folder}.")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
