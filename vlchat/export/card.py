"""A model card: what an exported model is made of, was trained on, and scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from vlchat import runs
from vlchat.errors import CheckpointError
from vlchat.folders import EMBEDDED, newest, read_manifest

_LICENCE_HERE = "Licence of this model: as of its parts and its data; say so here before you publish it."


def write_card(folder: Path, name: str, model: Any, source: Path, scores: str | Path | None = None) -> None:
    """Writes `README.md` into a model's folder: use, parts and their licences, data, recipe, scores.

    Args:
        folder: holds config.json already, and run.json where the run is known.
        source: the folder that the model was loaded from; its manifest is read.
        scores: a folder that `vlchat eval --out` wrote.

    Raises:
        CheckpointError: when there is no result in `scores`.
    """
    parts = _parts(source)
    manifest = read_manifest(source) or {} if source.is_dir() else {}
    licences = {licence for _, _, licence in parts}
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["vlchat"]}
    if len(licences) == 1 and None not in licences:
        header["license"] = licences.pop()
    bases = [base for _, base, _ in parts if base.count("/") == 1 and not Path(base).exists()]
    if bases:
        header["base_model"] = bases
    lines = ["---", yaml.safe_dump(header, sort_keys=False).rstrip(), "---", "", f"# {name}", ""]
    lines += [f"A {type(model).__name__} of {model.num_parameters() / 1e6:,.1f} M parameters, made with vlchat.", ""]
    lines += ["## Use", "", "```python", *_use(folder), "```", ""]
    lines += ["## Parts", "", "| part | from | licence |", "| --- | --- | --- |"]
    lines += [f"| {part} | {base} | {licence or 'see there'} |" for part, base, licence in parts] or ["| - | - | - |"]
    lines += ["", _LICENCE_HERE, "", "## Data", "", manifest.get("trained_on") or "Not recorded.", ""]
    lines += ["## Recipe", "", *_recipe(folder), ""]
    lines += ["## Scores", "", *_scores(scores), ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _parts(source: Path) -> list[tuple[str, str, str | None]]:
    """(part, where it came from, licence) for what a checkpoint was trained on top of, down to what has no base."""
    if not source.is_dir():
        return [("model", str(source), None)]
    manifest = read_manifest(source)
    if manifest is None or not manifest.get("base"):
        name = (manifest or {}).get("name")
        return [("model", name or ("the embedded model" if source == EMBEDDED else source.name), _licence(source))]
    found = []
    for part, base in manifest["base"].items():
        place = EMBEDDED if base is None else Path(base)
        deeper = _parts(newest(place)) if place.is_dir() else [(part, str(base), None)]
        found += [(part if below == "model" else below, place_below, licence) for below, place_below, licence in deeper]
    return found


def _licence(folder: Path) -> str | None:
    """The licence that a folder's own card names in its header."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    if header is None:
        return None
    try:
        named = yaml.safe_load(header[1])
    except yaml.YAMLError:
        return None
    return str(named["license"]) if isinstance(named, dict) and named.get("license") else None


def _use(folder: Path) -> list[str]:
    if json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] == "vlchat":
        return ["from vlchat import Chat", "", 'print(Chat.load("FOLDER_OR_ID").ask("photo.jpg", "What is this?"))']
    return [
        "from transformers import pipeline",
        "",
        'ask = pipeline("image-text-to-text", "FOLDER_OR_ID")',
        'content = [{"type": "image", "path": "photo.jpg"}, {"type": "text", "text": "What is this?"}]',
        'print(ask([{"role": "user", "content": content}]))',
    ]


def _recipe(folder: Path) -> list[str]:
    path = folder / runs.CONFIG
    if not path.is_file():
        return ["Not recorded."]
    run = json.loads(path.read_text(encoding="utf-8"))
    settings = {key: run[key] for key in ("objective", "trainable", "optim", "loop", "data", "seed") if key in run}
    return ["```yaml", yaml.safe_dump(settings, sort_keys=False).rstrip(), "```", "", "As `run.json` has it."]


def _scores(folder: str | Path | None) -> list[str]:
    if folder is None:
        return ["Not measured: `vlchat eval` on this folder, `--out SCORES`, then export with `--scores SCORES`."]
    path = Path(folder) / "result.md"
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no result.md: give a folder that vlchat eval --out wrote.")
    text = path.read_text(encoding="utf-8").strip()
    return [re.sub(r"^#+ ", "### ", line) for line in text.splitlines()]
