"""Two real processes over gloo: the same as one, and an end within a minute when one of them is gone."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from line import main as run_line
from processes import Launched, launched
from test_loop import ROOT, close, lines, wait_for
from tiny_runs import base, config_of, squares, train

from train.checkpoint import saved


def ended(processes: list[Launched], seconds: float = 120) -> tuple[list[int | None], list[str]]:
    told = [process.communicate(timeout=seconds)[0] for process in processes]
    return [process.returncode for process in processes], told


def line(run: Path, *options: str) -> list[Launched]:
    return launched(2, str(ROOT / "tests" / "line.py"), str(run), *options)


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Uneven shares (4 and 5 rows), taken in pieces."""
    codes, told = ended(line(tmp_path / "two", "loop.batch=9", "loop.micro_batch=2"))
    assert codes == [0, 0], told
    assert run_line(str(tmp_path / "one"), "loop.batch=9") == 0
    close(tmp_path / "two", tmp_path / "one")
    assert "step 12" in told[0] and told[1] == "", "the first one speaks"


def test_a_model_on_two_processes_is_the_model_on_one(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    rows = json.loads(data.read_text())
    for row in rows[::3]:  # of words alone, so that a process may have no picture in a step
        del row["image"]
    data.write_text(json.dumps(rows))
    lora = {"r": 2, "alpha": 4, "dropout": 0.0}
    keys = {"objective": {"type": "tune", "model": str(model), "lora": lora}, "loop": {"batch": 2, "steps": 6}}
    train(tmp_path / "one", model, data, **keys)
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps(config_of(tmp_path / "two", model, data, **keys)))
    codes, told = ended(launched(2, "-m", "train", str(file)))
    assert codes == [0, 0], told
    one, two = (
        [(found["loss"], found["grad_norm"]) for found in lines(tmp_path / name) if "loss" in found]
        for name in ("one", "two")
    )
    assert len(one) == 6
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, rel=1e-5)
    assert one[0] == pytest.approx(two[0], rel=1e-6)


def test_a_number_that_is_none_on_one_process_ends_both_before_a_checkpoint(tmp_path: Path) -> None:
    codes, told = ended(line(tmp_path / "run", "bad=23", "loop.save_every=1"))
    assert codes == [2, 2], told
    assert "The loss of step 3 is no finite number on process 1: squares inf" in told[0], told[0]
    assert "point 23" in told[0]
    assert [folder.name for folder in saved(tmp_path / "run")] == ["step-1", "step-2"]


def test_too_little_memory_for_rows_that_are_compared_is_told_by_the_process_that_has_it(tmp_path: Path) -> None:
    codes, told = ended(line(tmp_path / "run", f"hungry={2**57}", "whole=1"))  # 4 EiB
    assert codes == [2, 2], told
    for rank in range(2):
        assert f"Process {rank} has too little memory for the 4 rows of step 1, which are compared" in told[rank], told
        assert "Traceback" not in told[rank]


def test_a_signal_to_one_process_saves_and_ends_both(tmp_path: Path) -> None:
    processes = line(tmp_path / "run", "loop.steps=100000", "loop.save_every=100000")
    wait_for(tmp_path / "run", 5, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    codes, told = ended(processes)
    assert codes == [143, 143], told
    assert "Stopped by SIGTERM; --resume auto goes on from" in told[0] and saved(tmp_path / "run")


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("asked", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_ends_the_other_within_a_minute_by_name(
    tmp_path: Path, asked: signal.Signals, victim: int
) -> None:
    processes = line(tmp_path / "run", "loop.steps=1000000", "loop.save_every=50")
    try:
        wait_for(tmp_path / "run", 60, processes[0])
        processes[victim].send_signal(asked)
        since = time.monotonic()
        other = processes[1 - victim]
        told = other.communicate(timeout=60)[0]
        assert other.returncode == 1 and time.monotonic() - since < 60
        assert f"Process {victim} of 2 has died or stands still" in told, told
        assert saved(tmp_path / "run"), "what was saved stays"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_another_number_of_processes_is_exact_or_refused(tmp_path: Path) -> None:
    options = ("loop.batch=8", "loop.save_every=6")
    for name in ("same", "drops"):
        more = ("dropout=0.2",) if name == "drops" else ()
        codes, told = ended(line(tmp_path / name, *options, *more))
        assert codes == [0, 0], told
        (tmp_path / name / "step-12").rename(tmp_path / f"{name}-12")
    assert run_line(str(tmp_path / "same"), *options, "resume=auto") == 0
    assert run_line(str(tmp_path / "one"), *options) == 0
    close(tmp_path / "same", tmp_path / "one")
    refused = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "line.py"), str(tmp_path / "drops"), *options, "dropout=0.2",
         "resume=auto"], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "was written by 2 processes, and 1 would go on from it. The model has dropout" in refused.stderr
