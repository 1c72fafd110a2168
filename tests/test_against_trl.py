"""The benchmark against TRL's SFTTrainer: the same first step, or it ends; without TRL it says what to install."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("against_trl")


def test_without_trl_it_says_what_to_install(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)  # what Python itself puts there for a module that is not to be found
    monkeypatch.setattr(sys, "argv", ["against_trl.py"])
    with pytest.raises(SystemExit, match="pip install trl"):
        benchmark.main()


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_the_first_step_is_trls(benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shape = "--layers 2 1 --width 64 --vocabulary 500 --batch 2 --micro 1 --text 40 --workers 0 --steps 2 --rounds 1"
    monkeypatch.setattr(sys, "argv", ["against_trl.py", *shape.split(), "--out", str(tmp_path / "result.json")])
    benchmark.main()
    result = json.loads((tmp_path / "result.json").read_text())
    assert all(
        found[what] <= most
        for found in result["differences_from_trl"].values()
        for what, most in benchmark.TOLERANCE.items()
    )
    assert {len(times["wall"]) for times in result["seconds"].values()} == {1}
