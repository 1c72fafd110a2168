"""Writes the embedded model's card from what its recipe logged.

    python benchmarks/card.py runs/mini vlchat/assets/mini

Each stage's metrics are copied to docs/curves/ and a few points of them stand in the card, beside the scores of
benchmarks/results/scenes-seen and scenes-held.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CONTROLS = {"shuffled": "other rows' pictures", "none": "no picture", "blurred": "blurred pictures"}
STAGES = {
    "tower": "a CLIP from nothing; its ViT is the tower",
    "tower-read": "the same, on scenes of which half are mostly text",
    "lm": "a Llama from nothing, on described pictures",
    "align": "the connector: scene maps, captions, ITC",
    "tune": "LoRA on the language model, and the connector",
}


def main(runs: Path, model: Path) -> None:
    about = json.loads((model / "vlchat.json").read_text())
    lines = [
        "# vlchat-mini",
        "",
        "A small chat model that sees, trained from nothing on drawn pictures by `configs/mini/` of vlchat: a ViT of 6",
        "layers (96 px, patches of 12), an MLP connector of 2 layers, a Llama of 6 that is 256 wide; "
        f"{about['parameters'] / 1e6:.1f} M parameters in",
        "bfloat16. Its world is 173 pictograms, 10 shapes, 12 colors, short words and numbers: what is there, how",
        "many, where, and what differs. It knows nothing else and speaks only English. It is there for fine-tuning,",
        "tests and demonstrations.",
        "",
        "## Recipe",
        "",
        "| stage | what trains | rows a step | steps | minutes |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    curves: list[str] = []
    minutes = 0.0
    (ROOT / "docs" / "curves").mkdir(exist_ok=True)
    for stage, what in STAGES.items():
        shutil.copyfile(runs / stage / "metrics.jsonl", ROOT / "docs" / "curves" / f"{stage}.jsonl")
        logged = [json.loads(line) for line in (runs / stage / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in logged if "loss" in line]
        batch = json.loads((runs / stage / "run.json").read_text())["loop"]["batch"]
        spent = steps[-1]["seconds"] / 60
        minutes += spent
        lines.append(f"| {stage} | {what} | {batch} | {steps[-1]['step']:,} | {spent:.0f} |")
        curves += _curve(stage, steps, [line for line in logged if "loss" not in line and len(line) > 1])
    lines += ["", f"{minutes:.0f} minutes on two CPU cores in all. Whole logs: `docs/curves/`.", *curves, ""]
    lines += ["## Scores", "", *_scores(), ""]
    lines += ["## Limits", "", _weak(), "Photographs are beyond it: fine-tune it, or choose another model.", ""]
    (model / "README.md").write_text("\n".join(lines))


def _curve(stage: str, steps: list[dict[str, Any]], samples: list[dict[str, Any]]) -> list[str]:
    points = [steps[round(share * (len(steps) - 1))] for share in (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)]
    near = [steps[max(0, steps.index(p) - 2) : steps.index(p) + 3] for p in points]
    rows = ["", f"### {stage}", "", "| minutes | step | loss |", "| ---: | ---: | ---: |"]
    for point, around in zip(points, near, strict=True):
        loss = sum(line["loss"] for line in around) / len(around)
        rows.append(f"| {point['seconds'] / 60:.0f} | {point['step']:,} | {loss:.3f} |")
    if samples:
        rows += ["", "| step | " + " | ".join(key for key in samples[0] if key != "step") + " |"]
        rows.append("| ---: |" + " ---: |" * (len(samples[0]) - 1))
        for line in samples:
            shares = " | ".join(f"{value:.2f}" for key, value in line.items() if key != "step")
            rows.append(f"| {line['step']:,} | {shares} |")
    return rows


def _scores() -> list[str]:
    found = {}
    for name in ("seen", "held"):
        found[name] = json.loads((ROOT / "benchmarks" / "results" / f"scenes-{name}" / "result.json").read_text())
    rows = ["| kind | seen phrasings % | held-back phrasings % |", "| --- | ---: | ---: |"]
    for kind in found["seen"]["slices"]["kind"]:
        rows.append(f"| {kind} | " + " | ".join(_percent(found[name]["slices"]["kind"][kind]) for name in found) + " |")
    rows.append("| **overall** | " + " | ".join(f"**{_percent(found[name]['overall'])}**" for name in found) + " |")
    for control, shown in CONTROLS.items():
        blind = [found[name]["controls"][control]["blind"]["value"] for name in found]
        rows.append(f"| {shown} | " + " | ".join(f"{100 * value:.1f}" for value in blind) + " |")
    count = found["seen"]["counts"]["questions"]
    asked = f"{count:,} questions each about scenes that it was not trained on (`vlchat eval --task scenes`)."
    return [asked, "", *rows]


def _percent(measured: dict[str, Any]) -> str:
    return f"{100 * measured['right']['value']:.1f}"


def _weak() -> str:
    kinds = json.loads((ROOT / "benchmarks/results/scenes-seen/result.json").read_text())["slices"]["kind"]
    weak = [f"{kind} ({_percent(found)} %)" for kind, found in kinds.items() if found["right"]["value"] < 0.75]
    return f"Kinds of question below 75 % in phrasings it was trained on: {', '.join(weak) or 'none'}."


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
