"""What stage 1 should learn from: the drawn world, equal compute, three seeds.

    python benchmarks/ablation.py [--runs runs/mini] [--seeds 0 1 2] [--budget 30] [--questions 650]
    python benchmarks/ablation.py --table

Every arm begins with the embedded model's frozen tower, its language model (untuned, as `make mini` left it in --runs,
or else out of the embedded model itself: `stage_zero`) and a new connector, and may spend the same number of
floating-point operations on training, counted by torch's FlopCounterMode on real batches, a closed-form beginning
included: half of them on stage 1, the rest on stage 2. The arm without stage 1 spends all of them on stage 2. Then the
same questions are asked about unseen scenes. Results are appended to benchmarks/results/ablation.jsonl; what is there
already is not run again, so the command may be stopped and started. A star in the table marks older results, whose rows
of stage 2 were padded, at the cost of steps.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from stage_zero import EMBEDDED, stage_zero
from torch.utils.flop_counter import FlopCounterMode

from train.__main__ import train
from train.config import LoopConfig, OptimConfig, RunConfig, construct
from train.objectives import OBJECTIVES
from train.terms import loss_of
from vlchat import Chat
from vlchat.evaluate import ScenesTask, evaluate

RESULTS = Path(__file__).parent / "results" / "ablation.jsonl"
MLP = {"type": "mlp", "depth": 2, "hidden_size": 1024, "norm": True}
QFORMER = {
    "type": "qformer", "num_query_tokens": 64, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "dropout": 0.0,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "mlp, no stage 1": {},
    "mlp, no stage 1, warm start": {"itc": 0.0, "warm_start": {}},
    "mlp, ITC": {"itc": 1.0, "itg": 0.0},
    "mlp, ITG": {"itc": 0.0, "itg": 1.0},
    "mlp, ITC+ITG": {"itc": 0.2, "itg": 1.0},
    "mlp, ITC+ITG, warm start": {"itc": 0.2, "itg": 1.0, "warm_start": {}},
    "mlp, ITC+ITG+maps": {"itc": 0.2, "itg": 1.0, "itg_share": 0.25, "cells": 1.0},
    "mlp, ITC+ITG+maps, warm start": {"itc": 0.2, "itg": 1.0, "itg_share": 0.25, "cells": 1.0, "warm_start": {}},
    "mlp, ITG+maps": {"itc": 0.0, "itg": 1.0, "itg_share": 0.25, "cells": 1.0},
    "qformer, ITC": {"itc": {"weight": 1.0, "smoothing": 0.1}, "itg": 0.0},
    "qformer, ITC+ITM+ITG": {"itc": {"weight": 1.0, "smoothing": 0.1}, "itm": 1.0, "itg_qformer": 1.0, "itg": 0.0},
}
BATCH = 32
PACKED = "packed"  # how stage 2 takes its rows; older results are of padded ones, whose padding costs compute
T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two-sided 95 %, by number of seeds


def stage_1(arm: str, runs: Path, folder: Path, seed: int) -> RunConfig:
    options = ARMS[arm]
    vision, language = stage_zero(runs)
    objective = {
        "type": "align", "vision": str(vision), "language": str(language),
        "connector": QFORMER if arm.startswith("qformer") else MLP, "vision_feature_layer": -1, "attention": "sdpa",
        "warm_start": False, **options,
    }  # fmt: skip
    return RunConfig(
        str(folder / "align"),
        objective,
        data=[{"type": "scenes", "ask": "captions", "texts": 0.4, "seed": seed}],
        trainable={r"\.connector\.|^heads\.": 2e-3},
        optim=OptimConfig(name="muon", warmup=0.05, floor=0.05),
        loop=_loop(),
        seed=seed,
    )


def stage_2(arm: str, folder: Path, seed: int) -> RunConfig:
    objective = {
        "type": "tune", "model": str(folder / "align"), "lora": {"r": 64, "alpha": 128, "dropout": 0.0},
        "attention": "sdpa", "cells": ARMS[arm].get("cells", 0.0), "packing": True,
    }  # fmt: skip
    return RunConfig(
        str(folder / "tune"),
        objective,
        data=[{"type": "scenes", "ask": "chat", "turns": 6, "texts": 0.4, "seed": seed}],
        trainable={"lora_": 1e-3, "connector": 1e-3},
        optim=OptimConfig(name="muon", warmup=0.04, floor=0.02),
        loop=_loop(),
        seed=seed,
    )


def _loop() -> LoopConfig:
    endless = 10**9
    return LoopConfig(
        batch=BATCH, workers=1, precision="bf16", log_every=20, sample_every=endless, save_every=endless, keep=1
    )


def operations(config: RunConfig, steps: int = 3) -> tuple[float, float]:
    """Floating-point operations of a step, a mean of a few, and of what comes before the first one."""
    objective: Any = construct(OBJECTIVES, config.objective, "objective", seed=config.seed, data=config.data)
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(any(part in name for part in ("lora_", ".connector.", "heads.")))
    objective.train()
    with FlopCounterMode(display=False) as before:
        if hasattr(objective, "begin"):
            objective.begin(len(objective.mixture))
    with FlopCounterMode(display=False) as counter:
        for step in range(steps):
            batch = objective.batch(range(step * BATCH, (step + 1) * BATCH))
            counts = objective.counts(batch)
            shown = {key: value for key, value in batch.items() if key not in ("ids", "faults")}
            loss_of(objective(shown), counts).backward()
    return counter.get_total_flops() / steps, float(before.get_total_flops())


def run(arm: str, seed: int, budget: float, runs: Path, questions: int) -> dict[str, Any]:
    """One arm with one seed: its steps and how many answers are right."""
    folder = Path(tempfile.mkdtemp(prefix="vlchat-ablation-"))
    try:
        first = stage_1(arm, runs, folder, seed)
        each, before = operations(first)
        first.loop.steps = max(1, round((budget / 2 - before) / each)) if ARMS[arm] and _learns(arm) else 1
        if not _learns(arm):  # the connector as it begins: one step at a rate of nothing
            first.trainable = {r"\.connector\.|^heads\.": 1e-30}
        train(first)
        second = stage_2(arm, folder, seed)
        spent = each * first.loop.steps + before if _learns(arm) else before
        each_2, _ = operations(second)
        second.loop.steps = max(1, round((budget - spent) / each_2))
        train(second)
        result = evaluate(Chat.load(folder / "tune"), ScenesTask(questions=questions, seed=seed), progress=False)
        return {
            "arm": arm, "seed": seed, "language": _language(runs), "rows": PACKED, "budget": budget,
            "questions": questions,
            "right": result.headline.value,
            "steps": [first.loop.steps if _learns(arm) else 0, second.loop.steps],
            "gflops_a_step": [round(each / 1e9, 1), round(each_2 / 1e9, 1)],
        }  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _language(runs: Path) -> str:
    """Which language model: untuned, of the recipe, or out of the embedded model."""
    return EMBEDDED if stage_zero(runs)[1].parent.name == EMBEDDED else "untuned"


def _learns(arm: str) -> bool:
    return "no stage 1" not in arm


def table(budget: float, language: str) -> str:
    """Mean accuracy by arm with the 95 % interval over seeds, as Markdown."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in RESULTS.read_text().splitlines():
        one = json.loads(line)
        if (one["budget"], one["language"]) == (budget, language):
            found[one["arm"] if one.get("rows") == PACKED else f"{one['arm']} *"].append(one)
    rows = ["| stage 1 | steps 1 + 2 | right | 95 % interval | seeds |", "|---|---|---|---|---|"]
    for arm in sorted(found, key=lambda arm: -mean(one["right"] for one in found[arm])):
        scores = [100 * one["right"] for one in found[arm]]
        several = len(scores) > 1
        half = f"± {T95[len(scores)] * stdev(scores) / math.sqrt(len(scores)):.1f}" if several else "-"
        stages = zip(*(one["steps"] for one in found[arm]), strict=True)
        steps = " + ".join("-".join(map(str, sorted({min(seeds), max(seeds)}))) for seeds in stages)
        rows.append(f"| {arm} | {steps} | {mean(scores):.1f} % | {half} | {len(scores)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/mini"), help="of the recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--budget", type=float, default=30.0, help="teraflops of training")
    parser.add_argument("--questions", type=int, default=650)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    if not arguments.table:
        known = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []
        wanted = (arguments.budget, _language(arguments.runs))
        done = {
            (one["arm"], one["seed"])
            for one in known
            if (one["budget"], one["language"]) == wanted and one.get("rows") == PACKED
        }
        for seed in arguments.seeds:
            for arm in arguments.arms:
                if (arm, seed) in done:
                    continue
                result = run(arm, seed, arguments.budget * 1e12, arguments.runs, arguments.questions)
                result["budget"] = arguments.budget
                with RESULTS.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(f"{arm}, seed {seed}: {100 * result['right']:.1f} % after {result['steps']} steps", flush=True)
    for language in ("untuned", EMBEDDED):
        print(f"\nlanguage model: {language}\n\n{table(arguments.budget, language)}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
