"""The domain study: the embedded model and its variants, tuned on radiology (SLAKE) and on drawn boxes (NLVR).

    python benchmarks/domain_study.py --data ../shared/data            # everything that is not there yet
    python benchmarks/domain_study.py --sets slake --arms recipe made --seeds 0
    python benchmarks/domain_study.py --table                          # the tables of docs/domain-study.md

Each arm trains once a seed and answers the test part, then the same questions with other rows' pictures and with none.
Results are appended to benchmarks/results/domain_study.jsonl, the score of every row included; what is there is not run
again, and a training that was stopped goes on where it was. `--part choose` trains on less and answers the part that
settings are chosen on (`domain_data`); the tables show none of that. `--share 0.05` makes a twentieth of the steps, to
try the command. Stage 1 of the variants begins with the parts that `stage_zero` tells.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import domain_data
import torch
from domain_arms import ARMS, BEFORE, Arm, Before
from domain_tables import RESULTS, results, tables
from stage_zero import stage_zero

from train.__main__ import train
from train.config import LoopConfig, OptimConfig, RunConfig
from vlchat.evaluate import run as evaluate
from vlchat.folders import newest

CONTROLS = ("shuffled", "none")
_SAVE_EVERY = 200  # steps, so that a training that is stopped loses few minutes
_LONGEST_ANSWER = 48  # tokens; the longest of SLAKE has 40


def prepare(data: Path, files: Path) -> None:
    """Writes the rows of both sets, once."""
    if not (files / "slake" / "test.json").is_file():
        domain_data.write_slake(data / "slake", files / "slake")
    if not (files / "nlvr" / "test.jsonl").is_file():
        domain_data.write_nlvr(data / "nlvr", files / "nlvr")
    if not (files / "nlvr" / "drawn-boxes.jsonl").is_file():
        kept = [(files / "nlvr" / f"{part}.jsonl").read_text().splitlines() for part in ("test", "choose")]
        domain_data.write_synthetic(
            files / "nlvr", {str(json.loads(line)["sentence"]) for lines in kept for line in lines}
        )


def rows_of(files: Path, dataset: str, name: str, form: str) -> str:
    """The file of some rows: `name` is train-100, fit, test, ..., `form` empty or boxes."""
    ending = {"slake": "json", "nlvr": "jsonl"}[dataset]
    return str(files / dataset / f"{name}{f'-{form}' if form else ''}.{ending}")


def before(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    """What an arm begins with, trained once a seed for all arms that do."""
    made: Before = BEFORE[name]
    folder = arguments.runs / "before" / f"{name}-{seed}-{arguments.share:g}"
    steps = max(1, round(made.steps * arguments.share))
    last = newest(folder)
    if last.name == f"step-{steps}":
        return folder
    objective, data = dict(made.objective), [dict(source) for source in made.data]
    if objective["type"] == "align":
        objective["vision"], objective["language"] = map(str, stage_zero(arguments.models))
    for source in data:
        if "path" in source:
            source["path"] = str(arguments.runs / "data" / source["path"])
        else:
            source["seed"] = seed
    train(_config(folder, objective, data, made, steps, seed), "auto")
    return folder


def run(dataset: str, name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One arm with one seed: the score of every row of the part, with its pictures and without."""
    arm: Arm = ARMS[dataset][name]
    files, folder = arguments.runs / "data", arguments.runs / f"{dataset}-{_slug(name)}-{seed}-{arguments.part}"
    rows = f"train-{arm.rows}" if arguments.part == "test" else "fit"
    started = time.monotonic()
    steps = max(1, round(arm.steps * arguments.share))
    objective = {"type": "tune", "model": None, "lora": None, **arm.objective}
    if arm.before:
        objective["model"] = str(before(arm.before, seed, arguments))
    trained_in = time.monotonic()
    source = {"path": rows_of(files, dataset, rows, arm.form)}
    train(_config(folder, objective, [source], arm, steps, seed), "auto")
    seconds = time.monotonic() - trained_in
    result = evaluate(
        folder, "vqa", data=rows_of(files, dataset, arguments.part, arm.form), controls=CONTROLS, control_rows=0,
        batch_size=128, max_new_tokens=_LONGEST_ANSWER, floor=rows_of(files, dataset, rows, arm.form), remember=False,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    found = {
        "set": dataset, "arm": name, "seed": seed, "part": arguments.part, "share": arguments.share, "steps": steps,
        "rows_a_step": arm.batch, "train_seconds": round(seconds), "seconds": round(time.monotonic() - started),
        "protocol": result.protocol, "weights": result.model.get("weights"), "sha256": result.data.get("sha256"),
        "right": _digits([row["score"] for row in result.rows]),
        # A row that a control left as it was, such as by shuffling it to a copy of its own pictures, scores as it did.
        **{
            control: _digits([row["controls"].get(control, row)["score"] for row in result.rows])
            for control in CONTROLS
        },
        "floor": _digits([row["floor"]["score"] for row in result.rows]),
    }  # fmt: skip
    if not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _config(
    folder: Path, objective: dict[str, Any], data: list[dict[str, Any]], made: Arm | Before, steps: int, seed: int
) -> RunConfig:
    endless = 10**9
    return RunConfig(
        str(folder),
        objective,
        data=data,
        trainable=made.trainable,
        optim=OptimConfig(**made.optim),
        loop=LoopConfig(
            steps=steps, batch=made.batch, workers=1, precision="bf16", log_every=20, sample_every=endless,
            save_every=_SAVE_EVERY, keep=1,
        ),
        seed=seed,
    )  # fmt: skip


def _digits(scores: list[float]) -> str:
    """One digit a row, 1 for right: both sets are scored by exact match."""
    assert set(scores) <= {0.0, 1.0}
    return "".join(str(int(score)) for score in scores)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where slake and nlvr are")
    parser.add_argument("--models", type=Path, default=Path("runs/mini"), help="of the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/domain"), help="for rows and trainings")
    parser.add_argument("--sets", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="names of domain_arms.ARMS; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", choices=["test", "choose"], default="test")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps")
    parser.add_argument("--keep", action="store_true", help="keep the tuned models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(arguments.threads)
        prepare(arguments.data, arguments.runs / "data")
        unknown = set(arguments.arms or ()) - {name for dataset in arguments.sets for name in ARMS[dataset]}
        if unknown:
            parser.error(f"no such arm: {', '.join(sorted(unknown))}")
        wanted = [  # seed by seed, so that a study that is stopped early has all arms
            (dataset, name, seed)
            for seed in arguments.seeds
            for dataset in arguments.sets
            for name in ARMS[dataset]
            if arguments.arms is None or name in arguments.arms
        ]
        for dataset, name, seed in wanted:
            there = {(one["set"], one["arm"], one["seed"]) for one in results(arguments.part, arguments.share)}
            if (dataset, name, seed) in there:
                continue
            found = run(dataset, name, seed, arguments)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(found) + "\n")
            share = {key: 100 * found[key].count("1") / len(found[key]) for key in ("right", *CONTROLS)}
            told = ", ".join(f"{key} {value:.1f} %" for key, value in share.items())
            print(f"{dataset}, {name}, seed {seed}: {told}; {found['seconds'] / 60:.1f} minutes", flush=True)
    print(tables(arguments.runs / "data", arguments.part, arguments.share))


if __name__ == "__main__":
    main()
