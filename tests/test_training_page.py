"""docs/training.md and docs/stage-1.md: every key of a run stands there with its default, and no other one."""

import inspect
import re
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from train.align import AlignObjective
from train.config import RunConfig, load_runs, typed
from train.contrastive import ContrastConfig
from train.distill import DistillConfig
from train.features import FeatureCacheConfig
from train.tune import TuneObjective
from train.warm_start import WarmStartConfig
from vlchat.data import SourceConfig

DOCS = Path(__file__).resolve().parent.parent / "docs"
GIVEN = {"data", "seed"}  # by the run


def tables(page: str, heading: str, count: int = 1) -> dict[str, str]:
    """Key -> default, of the first so many tables of keys after a heading."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(heading)[2]
    bodies = re.findall(r"^\| key \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)[:count]
    assert len(bodies) == count
    found: dict[str, str] = {}
    for row in "".join(bodies).splitlines():
        keys, defaults = (cell.strip() for cell in row.split("|")[1:3])
        names = re.findall(r"`([^`]+)`", keys)
        values = re.split(r",\s*(?![^\[]*\])", defaults)
        found |= dict(zip(names, values if len(values) == len(names) else values * len(names), strict=True))
    return found


def keys_of(kind: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(kind):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if is_dataclass(default):
            found |= keys_of(type(default), f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = default
    return found


def same(told: str, default: Any) -> bool:
    if told == "-":
        return default in (MISSING, inspect.Parameter.empty) or default == []  # data may be empty: scenes are drawn
    return yaml.safe_load(told) in ((None, []) if default in (None, []) else (default,)) or told == str(default)


def test_every_key_of_a_run_is_told_with_its_default() -> None:
    told, keys = tables("training.md", "## Keys"), keys_of(RunConfig)
    assert told.keys() == keys.keys()
    assert not {key: (told[key], default) for key, default in keys.items() if not same(told[key], default)}


@pytest.mark.parametrize(
    ("page", "heading", "count", "kind"),
    [("training.md", "{type: tune}`:", 1, TuneObjective), ("stage-1.md", "# Stage 1", 2, AlignObjective)],
)
def test_every_key_of_an_objective_is_told_with_its_default(page: str, heading: str, count: int, kind: type) -> None:
    told = tables(page, heading, count)
    parameters = inspect.signature(kind).parameters
    keys = {name: given.default for name, given in parameters.items() if name not in GIVEN}
    assert told.keys() == keys.keys()
    assert not {key: (told[key], default) for key, default in keys.items() if not same(told[key], default)}


@pytest.mark.parametrize("kind", [SourceConfig, DistillConfig, ContrastConfig, WarmStartConfig, FeatureCacheConfig])
def test_every_setting_within_a_key_is_named(kind: type) -> None:
    text = "".join((DOCS / page).read_text(encoding="utf-8") for page in ("training.md", "stage-1.md"))
    assert not [name for name in keys_of(kind) if not re.search(rf"[`{{ ]{name}[`,:}}]", text)]


def test_stage_1s_page_shows_a_run_and_the_defaults_within_keys(tmp_path: Path) -> None:
    page = (DOCS / "stage-1.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.S | re.M)
    (tmp_path / "run.yaml").write_text(block)
    spec = load_runs(tmp_path / "run.yaml")[0].objective
    assert spec.pop("type") == "align"
    kinds = typing.get_type_hints(AlignObjective.__init__)
    for key, value in spec.items():
        typed(kinds[key], value, key)
    typed(ContrastConfig, spec["itc"], "itc")
    assert f"`rows` ({WarmStartConfig().rows})" in page and f"`ridge` ({WarmStartConfig().ridge})" in page
    assert f"`margin` ({ContrastConfig().margin})" in page
    listed = re.search(r"`itc` is a weight, or settings: `\{(.*?)\}`", page)
    assert listed is not None and listed[1].split(", ") == [field.name for field in fields(ContrastConfig)]
