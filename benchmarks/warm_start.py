"""How many steps of stage 1 a connector in closed form saves.

    python benchmarks/warm_start.py

Trains the embedded model's connector anew on the drawn world, once from random numbers and once from
`objective.warm_start`, on the same rows in the same order, and compares the loss on held-out rows: after how many steps
does the first run reach what the second one began with, and each loss that the second one reached?
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from train.align import AlignObjective
from train.config import OptimConfig
from train.optim import optimizer, parameter_groups
from train.terms import add, loss_of
from vlchat import checkpoint


def backbones(folder: Path) -> dict[str, str]:
    """The embedded model's tower and language model, taken apart."""
    model, processor = checkpoint.load(None)
    model.model.vision_tower.save_pretrained(folder / "vision")
    processor.image_processor.save_pretrained(folder / "vision")
    language = AutoModelForCausalLM.from_config(model.config.text_config)
    language.base_model.load_state_dict(model.model.language_model.state_dict())
    language.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    language.save_pretrained(folder / "language")
    processor.tokenizer.save_pretrained(folder / "language")
    return {"vision": str(folder / "vision"), "language": str(folder / "language")}


def held_out(objective: AlignObjective, rows: int, batch: int) -> dict[str, float]:
    """Each term over rows that the run does not reach, and the loss."""
    objective.eval()
    sums: dict[str, list[float]] = {}
    first = len(objective.mixture) - rows
    with torch.no_grad():
        for start in range(first, first + rows, batch):
            terms = objective(objective.batch(range(start, start + batch)))
            for name, term in terms.items():
                one = sums.setdefault(name, [0.0, 0.0, term.weight])
                one[0] += float(term.total)
                one[1] += term.count
    objective.train()
    means = {name: total / count for name, (total, count, _) in sums.items()}
    return {"loss": sum(sums[name][2] * mean for name, mean in means.items()), **means}


def train(folder: Path, parts: dict[str, str], warm: dict[str, Any] | None, arguments: Any) -> list[dict[str, float]]:
    """The held-out figures of a run, from before its first step on."""
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        objective = AlignObjective(
            **parts, connector=json.loads(arguments.connector), vision_feature_layer=-1, attention="eager",
            itc=arguments.itc, itg_share=arguments.itg_share, warm_start=warm,
            data=[{"type": "scenes", "ask": "captions", "texts": 0.4}],
        )  # fmt: skip
    groups, _ = parameter_groups(objective, {"connector|heads": arguments.rate}, OptimConfig())
    stepper = optimizer(groups, OptimConfig(name="muon"))
    began = time.monotonic()
    objective.begin(len(objective.mixture))
    found = [{"step": 0, "seconds": time.monotonic() - began, **held_out(objective, arguments.held, arguments.batch)}]
    objective.train()
    for step in range(1, arguments.steps + 1):
        for group in stepper.param_groups:
            group["lr"] = arguments.rate * min(1.0, step / arguments.warmup)
        batch = objective.batch(range((step - 1) * arguments.batch, step * arguments.batch))
        loss_of(objective(batch), add([objective.counts(batch)])).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
        if step % arguments.every == 0:
            found.append({"step": step, **held_out(objective, arguments.held, arguments.batch)})
            print(json.dumps({key: round(value, 4) for key, value in found[-1].items()}), flush=True)
    return found


def reached(figures: list[dict[str, float]], name: str, level: float) -> int | None:
    """The first step at which a figure is at `level` or below."""
    return next((int(one["step"]) for one in figures if one[name] <= level), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--held", type=int, default=64, help="held-out rows")
    parser.add_argument("--every", type=int, default=5, help="steps between looks at them")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=5, help="steps of rising rate")
    parser.add_argument("--rows", type=int, default=500, help="rows that the closed form looks at")
    parser.add_argument("--ridge", type=float, default=1.0)
    parser.add_argument("--itc", type=float, default=0.2)
    parser.add_argument("--itg-share", type=float, default=1.0)
    parser.add_argument("--connector", default='{"type": "mlp", "depth": 2, "hidden_size": 1024, "norm": true}')
    parser.add_argument("--output", type=Path, help="write the figures there as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        parts = backbones(Path(name))
        print("from random numbers")
        cold = train(Path(name), parts, None, arguments)
        print("from the closed form")
        warm = train(Path(name), parts, {"rows": arguments.rows, "ridge": arguments.ridge}, arguments)
    print(f"The closed form took {warm[0]['seconds']:.0f} s for {arguments.rows} rows.")
    for term in ("loss", "itg"):
        print(f"{term}: begins at {cold[0][term]:.3f} from random numbers, {warm[0][term]:.3f} from the closed form")
        print(f"{'held-out ' + term:>14} {'random':>8} {'closed':>8} {'saved':>8}")
        lowest = float("inf")
        for one in warm:
            if one[term] < lowest:
                lowest = one[term]
                late = reached(cold, term, lowest)
                saved = f"{late - one['step']:8.0f}" if late is not None else "       -"
                print(f"{lowest:14.3f} {late if late is not None else '-':>8} {one['step']:8.0f} {saved}")
    if arguments.output:
        arguments.output.write_text(json.dumps({"random": cold, "closed": warm}, indent=1) + "\n")


if __name__ == "__main__":
    main()
