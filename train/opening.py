"""What a run is going to do, said when it begins and kept for `vlchat info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.batches import Plan
from train.config import RunConfig
from train.heldout import Heldout
from vlchat import runs
from vlchat.data import fingerprint


def facts(
    config: RunConfig, objective: Any, steps: int, processes: int, device: str, heldout: Heldout | None, table: str
) -> dict[str, Any]:
    """What is trained on what: RUN/about.json."""
    mixture = getattr(objective, "mixture", None)
    base = getattr(objective, "base", {})
    digests = {_name_of(spec): fingerprint(spec["path"]) for spec in config.data if "path" in spec}
    data = [] if mixture is None else zip(mixture.sources, mixture.counts, strict=True)
    return {
        "objective": str(getattr(objective, "name", type(objective).__name__)),
        "base": {name: None if path is None else str(path) for name, path in base.items()},
        "data": [
            {"name": source.name, "rows": len(source), "shown": shown, "sha256": digests.get(source.name)}
            for source, shown in data
        ],
        "heldout": None if heldout is None else {"rows": len(heldout), "origin": heldout.origin},
        "trainable": table.splitlines(),
        "steps": steps,
        "batch": config.loop.batch,
        "epochs": None if mixture is None else steps * config.loop.batch / len(mixture),
        "processes": processes,
        "device": device,
        "started_in": str(Path.cwd()),  # where relative paths of the configuration begin
    }


def fallbacks(objective: Any, plan: Plan) -> list[str]:
    """What could not be done the fast way, and why, in sentences; see docs/speed.md."""
    told = list(getattr(objective, "fallbacks", ()))
    counted = getattr(objective, "row_lengths", None) is not None or not hasattr(objective, "mixture")
    if not counted and plan.gains_by_length(bool(getattr(objective, "packing", False))):
        told.append(
            "Rows are taken as they come, not by length, which is counted beforehand only for rows of files that one "
            "of our own models learns from without objective.company."
        )
    return told


def paragraph(about: dict[str, Any], config: RunConfig, step: int) -> str:
    """The same in a few sentences.

    Args:
        step: where the run begins.
    """
    loop, run = config.loop, Path(config.run)
    base = ", ".join(str(path or "the embedded model") for path in about["base"].values()) or "from nothing"
    data = "; ".join(f"{part['name']} ({part['rows']:,} rows)" for part in about["data"]) or "drawn as it goes"
    sentences = [f"{about['objective']}: {base}. Data: {data}."]
    if about["heldout"]:
        every = config.heldout.every or loop.sample_every
        held = about["heldout"]
        sentences.append(f"Held out: {held['rows']:,} rows ({held['origin']}), looked at every {every:,} steps.")
    epochs = f"{about['epochs']:.3g} epochs = " if about["epochs"] else ""
    minutes = f", at most {loop.minutes:g} minutes" if loop.minutes else ""
    going = f", from step {step:,} on" if step else ""
    sentences.append(f"{epochs}{about['steps']:,} steps of {loop.batch:,} rows{minutes}{going}.")
    sentences.append(f"Everything goes to {run}; the plot is {run / runs.PLOT}.")
    return " ".join(sentences)


def _name_of(spec: dict[str, Any]) -> str:
    return str(spec.get("name") or Path(str(spec["path"])).name)
