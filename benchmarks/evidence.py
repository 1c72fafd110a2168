"""Whether evidence maps tell the truth, on freshly drawn scenes: `python benchmarks/evidence.py --questions 200`.

Covering the eighth of the places that a map points at must cost the answer more of its log-likelihood than covering
random places, and than covering the same shape elsewhere. Where a question is about one thing, more heat must lie on it
than its share of the picture. The answers are the model's own, right or wrong.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlchat import Chat, scenes
from vlchat.evidence import METHODS, Evidence, deletion_check, evidence, mass_inside
from vlchat.scenes.rows import SceneQuestion
from vlchat.scenes.world import Thing

RESULTS = Path(__file__).parent / "results" / "evidence.json"
ONE_THING = ("colour", "where", "read", "what")  # kinds of question that may be about one thing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--model", default=None, help="a folder or Hub id; by default the embedded model")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--share", type=float, default=0.125, help="of the places that are covered")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    chat = Chat.load(options.model)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in options.methods}
    asked = [one for one in scenes.questions(2 * options.questions, options.seed) if one.scenes][: options.questions]
    for number, question in enumerate(asked, start=1):
        answer = chat.batch([question.messages], max_new_tokens=80)[0]
        for name in options.methods:
            for figure, value in measured(chat, question, answer, name, options.share, number).items():
                found[name].setdefault(figure, []).append(value)
        if sys.stderr.isatty() or number % 20 == 0:
            print(f"{number} of {len(asked)}", file=sys.stderr)
    report = {
        "questions": len(asked), "seed": options.seed, "share": options.share,
        "model": options.model or "embedded", "torch": torch.__version__, "machine": platform.machine(),
        "methods": {name: {figure: summary(values) for figure, values in rows.items()} for name, rows in found.items()},
    }  # fmt: skip
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)


def measured(
    chat: Chat, question: SceneQuestion, answer: str, method: str, share: float, seed: int
) -> dict[str, float]:
    """The figures of one map; costs in nats of the answer's log-likelihood."""
    started = time.perf_counter()
    found = evidence(chat, question.messages, answer, method=method)
    seconds = time.perf_counter() - started
    cost = deletion_check(chat, question.messages, found, share=share, draws=4, seed=seed)
    figures = {
        "shown": cost.shown, "random": float(np.mean(cost.random)), "elsewhere": float(np.mean(cost.elsewhere)),
        "over_random": cost.over_random, "over_elsewhere": cost.over_elsewhere,
        "beats_random": float(cost.over_random > 0), "beats_elsewhere": float(cost.over_elsewhere > 0),
        "seconds": seconds,
    }  # fmt: skip
    thing = asked_about(question)
    if thing is not None:
        inside, area = on_thing(found, thing)
        figures |= {"mass_inside": inside, "area": area, "times_area": inside / area}
    return figures


def asked_about(question: SceneQuestion) -> Thing | None:
    """The one thing that a question names, or asks to be named; None for any other question."""
    if question.kind not in ONE_THING or len(question.scenes) != 1:
        return None
    text = f" {question.turn.question} {question.turn.answer} ".lower()
    things = question.scenes[0].things
    named = [thing for thing in things if thing.name in text or (thing.is_text and f" {thing.kind}" in text)]
    return named[0] if len(named) == 1 and sum(thing.name == named[0].name for thing in things) == 1 else None


def on_thing(found: Evidence, thing: Thing) -> tuple[float, float]:
    """Of a scene with one picture: the share of heat on a thing's box, and the box's share of the picture."""
    left, top = thing.x - thing.width / 2, thing.y - thing.height / 2
    return mass_inside(found.maps[0], (left, top, left + thing.width, top + thing.height))


def summary(values: list[float], resamples: int = 2_000) -> dict[str, float]:
    """The mean with its 95 % bootstrap interval over questions, and the median."""
    row = np.array(values)
    draws = np.random.default_rng(0).choice(row, (resamples, len(row))).mean(axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return {"rows": len(row), "mean": round(float(row.mean()), 4), "low": round(float(low), 4),
            "high": round(float(high), 4), "median": round(float(np.median(row)), 4)}  # fmt: skip


def show(report: dict[str, Any]) -> None:
    columns = ("shown", "random", "elsewhere", "over_random", "over_elsewhere", "beats_random", "beats_elsewhere",
               "mass_inside", "area", "times_area", "seconds")  # fmt: skip
    print(f"{report['questions']} questions, {100 * report['share']:g} % of the places covered")
    for name, figures in report["methods"].items():
        print(f"\n{name}")
        for column in columns:
            if column in figures:
                one = figures[column]
                print(f"  {column:16s} {one['mean']:8.3f}   {one['low']:.3f} to {one['high']:.3f}   n {one['rows']}")


if __name__ == "__main__":
    main()
