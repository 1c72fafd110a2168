"""What docs/towers-and-connectors.md says holds: its YAML, its figures, its snippet."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import CONFIG_MAPPING, AutoModel

from train.align import AlignObjective
from train.config import load_runs, typed
from vlchat.connectors import CONNECTORS, build_connector
from vlchat.folders import EMBEDDED
from vlchat.named import named
from vlchat.towers.composing import TOWERS
from vlchat.towers.features import measure_features
from vlchat.towers.tiles import grid_pinpoints, image_lengths

PAGE = (Path(__file__).parent.parent / "docs" / "towers-and-connectors.md").read_text(encoding="utf-8")
YAML = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.S | re.M)


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose head begins with `first`."""
    table = next(part for part in PAGE.split("\n\n") if part.startswith(f"| {first}"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]


def spec(cell: str) -> dict[str, Any]:
    return yaml.safe_load(cell.strip("`"))


@pytest.mark.parametrize("block", YAML)
def test_every_yaml_example_is_a_run_of_stage_1(tmp_path: Path, block: str) -> None:
    (tmp_path / "run.yaml").write_text(block)
    objective = load_runs(tmp_path / "run.yaml")[0].objective
    assert objective.pop("type") == "align"
    named({"align": AlignObjective}, {"type": "align", **objective}, "objective", given=0)
    kinds = typing.get_type_hints(AlignObjective.__init__)
    for key, value in objective.items():
        typed(kinds[key], value, key)
    width = 1024
    if isinstance(objective["vision"], dict):
        named(TOWERS, objective["vision"], "tower", given=2)
    if objective["connector"]["type"] == "gated":
        width = sum(objective["connector"]["widths"])
    with torch.device("meta"):
        build_connector(objective["connector"], width, 896, tiles="tiles" in objective)


# As narrow as can be: how many tokens there are does not depend on it.
NARROW = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
MAPS = {"hidden_sizes": [4, 4, 4, 4], "depths": [1, 1, 1, 1]}
SHAPES: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 4, **MAPS},
    "convnext": MAPS,
    "convnextv2": MAPS,
    "dinov3_convnext": MAPS,
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "swin": {"embed_dim": 4, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 7},
    "dinov2": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2},
}


@pytest.mark.parametrize("row", rows("family"), ids=lambda row: row[0])
def test_tokens_of_each_family(row: list[str]) -> None:
    family, examples, pixels, tokens, layers = row
    options = dict(SHAPES.get(family, NARROW))
    patch = re.search(r"patch(\d+)", examples) or re.search(r"vit[bl](\d+)", examples)
    if family in ("dinov2", "vit_mae"):
        options["patch_size"] = {"dinov2": 14, "vit_mae": 16}[family]
    elif patch and family != "swin":
        options["patch_size"] = int(patch[1])
    if family != "resnet":
        options["image_size"] = int(pixels)
    config = CONFIG_MAPPING[family](**options)
    if family == "vit_mae":
        config.mask_ratio = 0.0
    tower = AutoModel.from_config(config).eval()
    for layer in re.findall(r"-\d|null", layers.partition(";")[0]):
        size = (int(pixels), int(pixels))
        assert measure_features(tower, None if layer == "null" else int(layer), "patch", size)[0] == int(tokens)
    other = re.search(r"; (-\d) gives (\d+)", layers)
    if other:
        assert measure_features(tower, int(other[1]), "patch", (int(pixels), int(pixels)))[0] == int(other[2])


@pytest.mark.parametrize("row", rows("`connector`"), ids=lambda row: row[0])
def test_tokens_and_parameters_of_each_connector(row: list[str]) -> None:
    with torch.device("meta"):
        connector = build_connector(spec(row[0]), 1024, 896)
    assert connector.num_tokens(576) == int(row[1])
    assert f"{sum(p.numel() for p in connector.parameters()) / 1e6:.1f}" == row[2]


def test_every_connector_is_in_the_table() -> None:
    assert {spec(row[0])["type"] for row in rows("`connector`")} == set(CONNECTORS)


def test_tokens_of_tiles() -> None:
    class Processor:
        image_grid_pinpoints = grid_pinpoints(4, (336, 336))

    for picture, *lengths in rows("picture"):
        width, height = (int(number) for number in picture.split(" x "))
        for length, tokens in zip(lengths, (576, 144, 64), strict=True):
            prepared = {"image_sizes": [(height, width)], "pixel_values": [np.zeros((1, 3, 336, 336))]}
            assert image_lengths(prepared, 1, Processor, tokens) == [int(length)]


@pytest.mark.skipif(not (EMBEDDED / "config.json").is_file(), reason="the embedded model is not there")
def test_the_snippet_runs(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    stills = [Image.new("RGB", (24, 24), (40 * n, 0, 0)) for n in range(6)]
    stills[0].save(tmp_path / "clip.gif", save_all=True, append_images=stills[1:])
    monkeypatch.chdir(tmp_path)
    snippet = re.search(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
    assert snippet is not None
    exec(snippet[1], {})
    assert capsys.readouterr().out.strip()
