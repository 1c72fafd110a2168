"""The tables of the domain study, from the scores of every row."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from domain_arms import ARMS, BASE

from vlchat.evaluate.measures import mean_of
from vlchat.evaluate.seeds import spread
from vlchat.evaluate.statistics import difference, figure

RESULTS = Path(__file__).parent / "results" / "domain_study.jsonl"
PUBLISHED = {
    "slake": [
        ("VGG+SAN (Liu et al. 2021, ImageNet weights; on SLAKE's test part)", "about 73 %"),
    ],
    "nlvr": [
        ("the more frequent label (all of dev)", "55.3 %"),
        ("CNN+RNN (Suhr et al. 2017)", "56-58 %"),
        ("neural module networks (Suhr et al. 2017)", "62-66 %"),
    ],
}
_RIGHT = mean_of("score", "accuracy")
TITLES = {"slake": "SLAKE, validation part", "nlvr": "NLVR, the fifth of the sentences that is kept for testing"}


def results(part: str, share: float) -> list[dict[str, Any]]:
    """What is there of a part, made with this share of the steps."""
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    found = [json.loads(line) for line in lines]
    return [one for one in found if one["part"] == part and one["share"] == share]


def tables(files: Path, part: str = "test", share: float = 1.0) -> str:
    """Markdown, a table for each set: arms by the mean over their seeds, then the floor and what was published."""
    shown = []
    for dataset in ARMS:
        found = [one for one in results(part, share) if one["set"] == dataset]
        if found:
            shown.append(_table(dataset, found, clusters(files, dataset, part)))
    return "\n\n".join(shown)


def clusters(files: Path, dataset: str, part: str) -> list[str]:
    """What each row shares with others: SLAKE its picture, NLVR its sentence."""
    if dataset == "slake":
        return [row["image"] for row in json.loads((files / "slake" / f"{part}.json").read_text())]
    return [json.loads(line)["sentence"] for line in (files / "nlvr" / f"{part}.jsonl").read_text().splitlines()]


def _table(dataset: str, found: list[dict[str, Any]], groups: list[str]) -> str:
    base = BASE[dataset]
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in found:
        by_arm[one["arm"]].append(one)
    lines = [
        f"### {TITLES[dataset]}: {len(groups):,} rows, {len(set(groups)):,} {'pictures' * (dataset == 'slake')}"
        f"{'sentences' * (dataset == 'nlvr')}",
        "",
        f"| arm | right | over seeds | over rows | shuffled | no picture | beside {base} | seeds | steps x rows | "
        "minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    reference = _mean_rows(by_arm.get(base, []), "right")
    for arm in sorted(by_arm, key=lambda arm: -mean(_percent(one["right"]) for one in by_arm[arm])):
        made = by_arm[arm]
        shares = [_percent(one["right"]) for one in made]
        rows = _mean_rows(made, "right")
        over = figure(_RIGHT, rows, groups)
        beside = "" if arm == base or not reference else _beside(reference, rows, groups)
        minutes = mean(one["train_seconds"] for one in made) / 60
        lines.append(
            f"| {arm} | {mean(shares):.1f} % | {_over_seeds(shares)} | {100 * over.low:.1f}-{100 * over.high:.1f} | "
            f"{mean(_percent(one['shuffled']) for one in made):.1f} % | "
            f"{mean(_percent(one['none']) for one in made):.1f} % | {beside} | {len(made)} | "
            f"{made[0]['steps']} x {made[0]['rows_a_step']} | {minutes:.0f} |"
        )
    whole = [one for one in found if one["arm"] == base] or found
    lines += ["", f"| beside it | right |\n|---|---|\n| question-only floor | {_percent(whole[0]['floor']):.1f} % |"]
    lines += [f"| {name} | {value} |" for name, value in PUBLISHED[dataset]]
    return "\n".join(lines)


def _percent(digits: str) -> float:
    return 100 * digits.count("1") / len(digits)


def _mean_rows(made: list[dict[str, Any]], key: str) -> list[dict[str, float]]:
    """Each row's mean score over the seeds."""
    return [{"score": mean(int(one) for one in row)} for row in zip(*(one[key] for one in made), strict=True)]


def _over_seeds(shares: list[float]) -> str:
    """Student's 95 % interval of the mean."""
    if len(shares) < 2:
        return "-"
    found = spread(shares)
    return f"± {found.high - found.mean:.1f}"


def _beside(reference: list[dict[str, float]], rows: list[dict[str, float]], groups: list[str]) -> str:
    found = difference(_RIGHT, reference, rows, groups)
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
