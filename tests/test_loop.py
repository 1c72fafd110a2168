"""The loop: the same step however it is split, nothing that is no number, less memory, signals, resume."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from line import Line
from line import main as run_line
from processes import Launched
from safetensors.torch import load_file
from tiny_runs import base, config_of, squares, train

from train.__main__ import main
from train.batches import Plan
from train.checkpoint import saved
from train.config import LoopConfig, RunConfig
from train.loop import fit
from train.step import TrainingStopped
from vlchat.errors import ConfigError

ROOT = Path(__file__).parent.parent


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def state(checkpoint: Path) -> dict[str, torch.Tensor]:
    parts = (load_file(checkpoint / "training_state" / f"{name}.safetensors") for name in ("trained", "optimizer"))
    return {name: tensor for part in parts for name, tensor in part.items()}


def close(one: Path, two: Path, tolerance: float = 1e-6) -> None:
    """Losses and norms of all steps, and the last weights and optimizer states."""
    for first, second in zip(lines(one), lines(two), strict=True):
        for key in ("loss", "grad_norm"):
            assert first[key] == pytest.approx(second[key], rel=tolerance, abs=tolerance)
    expected = state(saved(two)[-1])
    for name, tensor in state(saved(one)[-1]).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_a_batch_in_pieces_is_the_batch(tmp_path: Path, micro: int) -> None:
    assert run_line(str(tmp_path / "whole")) == 0
    assert run_line(str(tmp_path / "pieces"), f"loop.micro_batch={micro}") == 0
    close(tmp_path / "pieces", tmp_path / "whole")
    assert lines(tmp_path / "pieces")[0]["near"] == lines(tmp_path / "whole")[0]["near"]


def test_a_models_batch_in_pieces_is_the_batch(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    """Answers of one to three tokens: a mean of the pieces' means would be another loss."""
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    lora = {"r": 2, "alpha": 4, "dropout": 0.0}
    objective = {"type": "tune", "model": str(model), "lora": lora, "sample_tokens": 2}
    losses = []
    for micro in (8, 1):
        run = tmp_path / f"by-{micro}"
        train(run, model, data, objective=objective, loop={"batch": 8, "micro_batch": micro, "steps": 3})
        losses.append([(line["loss"], line["grad_norm"]) for line in lines(run) if "loss" in line])
    for one, two in zip(*losses, strict=True):
        assert one == pytest.approx(two, rel=1e-6)


def test_the_loss_is_weighed_by_what_it_counts() -> None:
    """The first step by hand, in float64."""
    objective = Line()
    batch = objective.batch(range(8))
    plane = objective.plane.weight.double(), objective.plane.bias.double()
    error = torch.nn.functional.linear(batch["points"].double(), *plane)[:, 0] - batch["points"].double().sum(1).sin()
    expected = (error.square() * batch["weight"]).sum() / batch["weight"].sum()
    terms = objective(batch)
    assert terms["squares"].total.item() / terms["squares"].count == pytest.approx(expected.item(), rel=1e-6)


def test_a_batch_that_is_compared_within_itself_is_not_split() -> None:
    with pytest.raises(ConfigError, match="loop.micro_batch is 4, and the objective compares all 16 rows.*lower loop"):
        Plan.of(16, 4, 0, 2, whole=True)
    assert Plan.of(16, 8, 0, 2, whole=True).micro == 8
    with pytest.raises(ConfigError, match="loop.batch is 1, for 2 processes"):
        Plan.of(1, None, 0, 2, whole=False)


@pytest.mark.parametrize(("batch", "micro", "processes"), [(8, None, 1), (8, 3, 1), (7, 2, 2), (9, None, 4), (5, 1, 5)])
def test_every_row_is_seen_once(batch: int, micro: int | None, processes: int) -> None:
    plans = [Plan.of(batch, micro, rank, processes, whole=False) for rank in range(processes)]
    for step in (0, 3):
        seen = [row for plan in plans for rows in plan.micro_batches(step) for row in rows]
        assert seen == list(range(step * batch, (step + 1) * batch))
        assert all(len(rows) <= (micro or batch) for plan in plans for rows in plan.micro_batches(step))


def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_saved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    loop = LoopConfig(steps=12, batch=8, workers=0, save_every=1, log_every=1)
    config = RunConfig(str(run), {}, trainable={".*": 0.05}, loop=loop)
    with pytest.raises(TrainingStopped, match=r"The loss of step 3 .* process 0: squares inf.*point 16, point 17,.*"):
        fit(Line(bad=20), config, 12)
    assert [folder.name for folder in saved(run)] == ["step-1", "step-2"]
    assert all(tensor.isfinite().all() for tensor in state(saved(run)[-1]).values())
    assert all(line["loss"] == line["loss"] for line in lines(run)), "and none is logged"
    assert "squares inf" in json.loads((run / "stopped.json").read_text())["reason"]


class Steep(Line):
    """A finite loss whose gradient is not: the root of zero."""

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        terms = super().forward(batch)
        terms["squares"].total = terms["squares"].total + (self.plane.bias * 0).sqrt().sum()
        return terms


def test_a_gradient_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    config = RunConfig(str(tmp_path / "run"), {}, trainable={".*": 0.05}, loop=LoopConfig(batch=4, workers=0))
    with pytest.raises(TrainingStopped, match="The gradient of step 1 .* first in plane.bias. Rows: point 0, point 1"):
        fit(Steep(), config, 4)
    assert not saved(tmp_path / "run")


def started(run: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tests" / "line.py"), str(run), *options]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(run: Path, count: int, process: subprocess.Popen[str] | Launched) -> None:
    while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def test_out_of_memory_takes_fewer_rows_at_once_and_the_batch_stays(tmp_path: Path) -> None:
    """The system refuses the memory: 64 rows of 8 MiB where 450 MiB are left."""
    options = ("loop.batch=64", "hungry=2000000", "loop.steps=3")
    told = started(tmp_path / "little", *options, "memory=450").communicate(timeout=200)[0]
    assert "Out of memory with 64 rows at once: going on with 32" in told, told
    assert run_line(str(tmp_path / "much"), *options, "loop.micro_batch=8") == 0
    close(tmp_path / "little", tmp_path / "much")


def test_out_of_memory_is_told_where_a_batch_cannot_come_in_pieces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_line(str(tmp_path / "run"), f"hungry={2**57}", "whole=1") == 2  # 4 EiB
    told = capsys.readouterr().err
    assert "too little memory for the 8 rows of step 1, which are compared with each other" in told
    assert "Lower loop.batch" in told and not list((tmp_path / "run").glob("step-*"))


@pytest.mark.parametrize(("asked", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on_from_there(tmp_path: Path, asked: signal.Signals, code: int) -> None:
    options = ("loop.steps=4000", "loop.save_every=100000", "dropout=0.2")
    process = started(tmp_path / "run", *options)
    wait_for(tmp_path / "run", 5, process)
    process.send_signal(asked)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == code, told
    stopped = saved(tmp_path / "run")[-1]
    assert f"Stopped by {asked.name}; --resume auto goes on from {stopped}." in told
    steps = int(stopped.name.removeprefix("step-"))
    assert run_line(str(tmp_path / "run"), *options, f"loop.steps={steps + 5}", "resume=auto") == 0
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, steps + 6))


def test_a_resumed_run_with_dropout_is_the_unbroken_one(tmp_path: Path) -> None:
    assert run_line(str(tmp_path / "whole"), "dropout=0.3") == 0
    assert run_line(str(tmp_path / "run"), "dropout=0.3") == 0
    (tmp_path / "run" / "step-12").rename(tmp_path / "aside")
    (tmp_path / "run" / "step-9").rename(tmp_path / "aside-9")
    assert run_line(str(tmp_path / "run"), "dropout=0.3", "resume=auto") == 0
    expected = state(tmp_path / "whole" / "step-12")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state(tmp_path / "run" / "step-12").items())
    assert lines(tmp_path / "run")[-1]["loss"] == lines(tmp_path / "whole")[-1]["loss"]


def test_a_second_signal_ends_a_run_at_once_and_says_so(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both come during the look before the first step, which writes 600 tokens."""
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")

    def ask() -> None:
        while not (tmp_path / "run" / "about.json").exists():
            time.sleep(0.01)
        for _ in range(2):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask)
    asking.start()
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config_of(tmp_path / "run", model, data, heldout={"rows": 4, "tokens": 600})))
    assert main([str(file)]) == 130
    asking.join()
    told = capsys.readouterr().err
    assert "Stopped at once; --resume auto goes on from the newest checkpoint." in told
    assert "nothing was changed" not in told
    assert "second Ctrl-C" in json.loads((tmp_path / "run" / "stopped.json").read_text())["reason"]


def test_a_loaders_process_that_is_killed_is_a_sentence(tmp_path: Path) -> None:
    process = started(tmp_path / "run", "loop.steps=100000", "loop.workers=2", "loop.save_every=100000")
    wait_for(tmp_path / "run", 5, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    told = process.communicate(timeout=60)[0]
    assert process.returncode == 2, told
    assert "A process that prepares rows has died" in told and "Traceback" not in told
    assert "prepares rows" in json.loads((tmp_path / "run" / "stopped.json").read_text())["reason"]


def test_a_folder_that_a_run_writes_to_takes_no_other(tmp_path: Path) -> None:
    process = started(tmp_path / "run", "loop.steps=100000")
    try:
        wait_for(tmp_path / "run", 5, process)
        before = (tmp_path / "run" / "run.json").read_text()
        words = f"Process {process.pid} trains in {tmp_path / 'run'} now. Wait for it, stop it"
        assert words in started(tmp_path / "run").communicate(timeout=60)[0]
        (tmp_path / "run.yaml").write_text(json.dumps({"run": str(tmp_path / "run"), "objective": {"type": "tune"}}))
        for options in ((), ("--resume", "auto"), ("--overwrite",)):
            with pytest.raises(ConfigError, match=words):
                main([str(tmp_path / "run.yaml"), *options])
        assert (tmp_path / "run" / "run.json").read_text() == before
        process.kill()
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)  # dead, and not yet asked for its exit code: it holds nothing
        assert run_line(str(tmp_path / "run"), f"loop.steps={wrote(tmp_path / 'run') + 3}", "resume=auto") == 0
    finally:
        process.kill()
        process.communicate()


def wrote(run: Path) -> int:
    return int(saved(run)[-1].name.removeprefix("step-"))
