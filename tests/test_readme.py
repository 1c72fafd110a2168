"""What the README says holds: its tree, its commands, its snippet, its figures."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from train.config import HeldoutConfig, LoopConfig, OptimConfig, RunConfig, load_runs
from train.tune import TuneObjective
from vlchat.cli import _parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```\w*\n.*?^```$", re.S | re.M)
MINI = ROOT / "vlchat" / "assets" / "mini"
RESULTS = ROOT / "benchmarks" / "results"
needs_model = pytest.mark.skipif(not (MINI / "config.json").is_file(), reason="the embedded model is not there")


def _blocks(language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [text for name, text in found if name == language]


def _tree() -> list[str]:
    block = README.split("## Tree", 1)[1].split("```")[1]
    return [line.split()[0] for line in block.strip().splitlines()]


def _figures(text: str) -> list[str]:
    """Numbers in their order; English sets a space before %, Chinese does not."""
    return re.findall(r"\d(?:[\d.,]*\d)?%?", text.replace(" %", "%"))


def _code(readme: str) -> list[str | tuple[str, list[str]]]:
    """The blocks, letter for letter; of the tree, the last, whose descriptions are translated, names and figures."""
    *blocks, tree = FENCED.findall(readme)
    described = [line.split(maxsplit=1) for line in tree.splitlines()[1:-1]]
    return [*blocks, *((name, _figures(said)) for name, said in described)]


def _sections(readme: str) -> list[dict[str, object]]:
    """What no language changes of each section's prose."""
    prose = re.sub(r"^\[\S+\]\(README\S*\)$", "", FENCED.sub("", readme), flags=re.M)  # the other language is named
    return [
        {
            "level": len(section) - len(section.lstrip("#")),
            "links": re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", section),  # and pictures
            "names": sorted(" ".join(name.split()) for name in re.findall(r"`([^`]+)`", section)),
            "figures": _figures(re.sub(r"`[^`]+`", "", section)),
            "rows": re.findall(r"^(?:\||\d\.)", section, re.M),
        }
        for section in re.split(r"^(?=#+ )", prose, flags=re.M)
    ]


def test_both_languages_say_the_same() -> None:
    assert _code(CHINESE) == _code(README)
    assert _sections(CHINESE) == _sections(README)
    assert "[中文](README.zh.md)" in README and "[English](README.md)" in CHINESE


def test_everything_in_the_tree_exists() -> None:
    missing = [name for name in _tree() if not (ROOT / name).exists() and name != "tests/"]
    assert not missing


def test_every_module_is_in_the_tree() -> None:
    named = _tree()
    modules = [
        path.relative_to(ROOT).as_posix()
        for part in ("vlchat", "train", "serve")
        for path in (ROOT / part).glob("*.py")
    ]
    unnamed = [name for name in modules if name not in named and not name.endswith("__init__.py")]
    assert not unnamed


def test_every_command_parses() -> None:
    lines = [
        line.split("#")[0].strip() for block in _blocks() for line in block.splitlines() if line.startswith("vlchat ")
    ]
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] in ("train", "plan"):
            assert (ROOT / words[1]).is_file(), line
            load_runs(ROOT / words[1])
        else:
            _parser().parse_args(words)


@needs_model
def test_the_snippet_answers_as_shown() -> None:
    from vlchat import Chat

    snippet = _blocks("python")[0]
    assert "Chat.load()" in snippet and 'chat.ask("vlchat/assets/examples/owl.png", "What is this?")' in snippet
    assert "owl" in Chat.load().ask(ROOT / "vlchat/assets/examples/owl.png", "What is this?")


@needs_model
def test_the_figures_are_those_of_the_kept_results() -> None:
    told = " ".join(README.split())
    for name, beside in {
        "scenes-seen": ("shuffled",),
        "scenes-held": ("shuffled",),
        "slake-before": (),
        "slake-after": ("shuffled", "floor"),
    }.items():
        result = json.loads((RESULTS / name / "result.json").read_text(encoding="utf-8"))
        figures = [next(iter(result["overall"].values()))]
        if "floor" in beside:
            figures.append(next(iter(result["floor"]["overall"].values())))
        figures += [result["controls"][control]["blind"] for control in beside if control != "floor"]
        for figure in figures:
            assert f"{100 * figure['value']:.1f} %" in told, (name, figure)


@needs_model
@pytest.mark.parametrize("name", ["scenes-seen", "scenes-held"])
def test_the_kept_certificates_are_of_the_embedded_model_and_of_todays_parser(name: str) -> None:
    from vlchat.evaluate.certificate import parser_of, read
    from vlchat.evaluate.identity import model_identity
    from vlchat.evaluate.tasks import ScenesTask

    kept = read(RESULTS / name)
    assert kept["model"]["weights"] == model_identity()
    assert kept["parser"] == parser_of(ScenesTask)


@needs_model
def test_the_embedded_model_is_at_most_30_mb() -> None:
    assert sum(path.stat().st_size for path in MINI.rglob("*") if path.is_file()) <= 30e6


def test_the_page_of_a_run_names_every_key() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    kinds: dict[str, type] = {"": RunConfig, "loop.": LoopConfig, "optim.": OptimConfig, "heldout.": HeldoutConfig}
    keys = [prefix + field.name for prefix, kind in kinds.items() for field in fields(kind)]
    keys = [key for key in keys if key not in ("loop", "optim", "heldout")]
    keys += [name for name in inspect.signature(TuneObjective).parameters if name not in ("data", "seed")]
    assert len(keys) > 40
    assert [key for key in keys if f"`{key}`" not in page] == []
