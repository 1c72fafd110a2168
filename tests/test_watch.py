"""Early stop and the best checkpoint, and what a run says and leaves to read."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_runs import logged, train

from train.bar import Bar
from train.checkpoint import Progress
from train.config import HeldoutConfig, RunConfig
from train.heldout import hold_out
from train.records import append, truncate
from train.step import Outcome
from train.tune import TuneObjective
from train.watch import Watch
from vlchat import runs
from vlchat.errors import ConfigError, VLChatError

ROOT = Path(__file__).resolve().parent.parent


# -- the best checkpoint and early stop


def test_a_run_that_gets_no_better_stops_and_keeps_its_best(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys: dict[str, Any] = {
        "heldout": {"rows": 4, "every": 2, "generate": 0, "patience": 3, "least": 1000.0},
        "loop": {"steps": 40, "save_every": 5, "keep": 1},
        "trainable": {"lora_": 30.0},  # so high that nothing becomes better
    }  # fmt: skip
    run = train(tmp_path / "run", model, data, **keys)
    told = capsys.readouterr().out
    # The first look sets the mark; three more are not better by a thousand.
    looks = logged(run, "heldout_loss")
    best_step = min((step for step in looks if step), key=lambda step: looks[step])
    assert best_step < 8
    assert "Stopped early: heldout_loss has not become better for 3 looks" in told
    assert sorted(folder.name for folder in run.glob("step-*")) == [f"step-{best_step}", "step-8"]
    best = json.loads((run / runs.BEST).read_text())
    assert (best["step"], best["metric"]) == (best_step, "heldout_loss")
    assert best["value"] == pytest.approx(looks[best_step])
    assert best["before"] == pytest.approx(logged(run, "heldout_loss")[0])
    stopped = json.loads((run / runs.STOPPED).read_text())
    assert stopped["step"] == 8 and stopped["reason"].startswith("heldout_loss has not become better for 3 looks")

    # The same run, killed after step 5 with half of a line written, decides the same when it goes on.
    keys["loop"]["keep"] = 3
    five = train(tmp_path / "five", model, data, **keys)
    (five / "step-8").rename(tmp_path / "unbroken")
    with (five / runs.METRICS).open("a") as handle:
        handle.write('{"step": 9, "lo')
    train(five, model, data, "--resume", "auto", **keys)
    assert json.loads((five / runs.STOPPED).read_text())["step"] == 8
    saves = (tmp_path / "unbroken", five / "step-8")
    one, two = (load_file(save / "training_state" / "trained.safetensors") for save in saves)
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name in ("loss", "heldout_loss"):
        assert logged(five, name) == logged(run, name)
    steps = [line["step"] for line in runs.lines(five / runs.METRICS) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]


def test_other_held_out_rows_are_refused_when_a_run_goes_on(model: Path, data: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"heldout": {"rows": 4, "every": 2, "generate": 0}}
    train(tmp_path / "run", model, data, **keys)
    with pytest.raises(ConfigError, match="heldout: the checkpoint held out other rows than this configuration does"):
        train(tmp_path / "run", model, data, "--resume", "auto", "heldout.rows=6", "loop.steps=6", **keys)
    assert (tmp_path / "run" / "step-4").is_dir()


def test_a_metric_that_the_run_has_not_is_told_before_the_first_step(model: Path, data: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"heldout": {"rows": 4, "generate": 0, "metric": "exact"}}
    with pytest.raises(ConfigError, match='heldout.metric is "exact"; this run has loss'):
        train(tmp_path / "run", model, data, **keys)
    assert not list((tmp_path / "run").glob("step-*")) and not logged(tmp_path / "run", "loss")
    assert not (tmp_path / "run" / runs.RUNNING).exists()


# -- what a run leaves to read


def test_metrics_are_whole_lines_of_finite_numbers(tmp_path: Path) -> None:
    file = tmp_path / runs.METRICS
    append(file, {"step": 1, "loss": math.nan, "lr": 1.23456789e-9, "big": math.inf})
    append(file, {"step": 2})
    with file.open("ab") as handle:
        handle.write(b'{"step": 3, "loss": 1.')  # a kill in the middle of a line
    append(file, {"step": 4, "loss": 2.5, "text": "caf\u00e9 \ud83d"})
    lines = file.read_bytes().split(b"\n")
    assert json.loads(lines[0]) == {"step": 1, "loss": None, "lr": 1.234568e-9, "big": None}
    assert [line["step"] for line in runs.lines(file)] == [1, 4] and lines[-1] == b""
    append(file, {"step": 6, "loss": 3.0})
    append(file, {"step": 5, "loss": 4.0})
    truncate(file, 5)
    assert [line["step"] for line in runs.lines(file)] == [1, 4, 5] and len(file.read_bytes().split(b"\n")) == 4
    truncate(file, 0)
    assert not file.exists()
    truncate(file, 7)


def test_no_line_of_a_run_is_empty(model: Path, data: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", model, data, loop={"sample_every": 2})
    text = (run / runs.METRICS).read_text().splitlines()
    assert len(text) == 4 and all(len(json.loads(line)) > 3 for line in text)


def test_a_log_file_gets_plain_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar(1000, 0)
    for step in range(1, 1001):
        bar.advance(step, 1000)
        bar.note(f"loss {step}")
    bar.say("answers")
    bar.close()
    told = capsys.readouterr()
    assert told.err == "" and "\r" not in told.out
    lines = told.out.splitlines()
    assert lines[0].startswith("step 1 of 1,000  loss 1  ") and lines[0].endswith(" left")
    assert lines[-2:] == ["step 1,000 of 1,000  loss 1000", "answers"] and len(lines) == 3


def test_a_terminal_gets_a_bar() -> None:
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    code = "from train.bar import Bar\nbar = Bar(9, 2)\nbar.advance(5, 9)\nbar.note('loss 3')\nbar.say('answers')\n"
    code += "bar.close()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=inner, text=True)
    os.close(inner)
    shown = os.read(outer, 1 << 16).decode()
    os.close(outer)
    assert done.stdout == "answers\n" and "\r" in shown and "5/9" in shown and "loss 3" in shown


# -- what a run says when it begins


def test_a_run_begins_with_what_it_is_going_to_do(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", model, data, heldout={"rows": 4, "every": 2, "generate": 2, "tokens": 2})
    told = " ".join(capsys.readouterr().out.split())
    assert f"tune: {model}. Data: data.json (12 rows)." in told
    assert "Held out: 4 rows (taken from the training data, by picture), looked at every 2 steps." in told
    assert f"1.33 epochs = 4 steps of 4 rows. Everything goes to {run}; the plot is {run}/loss.png." in told
    assert told.index("tune: ") < told.index("step 0 heldout_loss") < told.index("step 1 of 4")
    about = json.loads((run / runs.ABOUT).read_text())
    assert about["data"][0]["rows"] == 12 and len(about["data"][0]["sha256"]) == 64
    assert json.loads((run / runs.STOPPED).read_text())["reason"] == "done"
    assert not (run / runs.RUNNING).exists()


def test_a_run_that_is_asked_to_stop_looks_when_it_goes_on(model: Path, data: Path, tmp_path: Path) -> None:
    objective = TuneObjective([{"path": str(data)}], str(model))
    config = RunConfig(str(tmp_path / "run"), {}, heldout=HeldoutConfig(rows=4, every=2, generate=0))
    heldout = hold_out(objective, config)
    accelerator, outcome = Accelerator(cpu=True), Outcome(1.0, {"answers": 1.0}, 1.0)
    with Watch(config, objective, 9, accelerator, Progress(), heldout) as watch:
        assert not watch.stepped(Progress(1), outcome, 1e-3, False)
        assert not watch.stepped(Progress(2), outcome, 1e-3, False, hurry=True)
    assert list(logged(tmp_path / "run", "heldout_loss")) == [0] and watch.best_step is None
    with Watch(config, objective, 9, accelerator, Progress(2, watch=watch.state()), heldout) as later:
        assert list(logged(tmp_path / "run", "heldout_loss")) == [0, 2] and later.best_step == 2
    with Watch(config, objective, 9, accelerator, Progress(2, watch=later.state()), heldout):
        pass
    assert [line["step"] for line in runs.lines(tmp_path / "run" / runs.METRICS)] == [0, 2], "looked at once"


def test_why_a_run_broke_off_is_written_down(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(VLChatError) as told:
        train(tmp_path / "run", model, data, "loop.steps=50", trainable={"lora_": 1e30, "connector": 1e30})
    stopped = json.loads((tmp_path / "run" / runs.STOPPED).read_text())
    assert stopped["reason"] == str(told.value) and 1 <= stopped["step"] < 50
    assert not (tmp_path / "run" / runs.RUNNING).exists() and (tmp_path / "run" / runs.METRICS).is_file()


def test_figures_that_cannot_be_written_end_no_run(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective = TuneObjective([{"path": str(data)}], str(model))
    with Watch(RunConfig(str(tmp_path), {}), objective, 9, Accelerator(cpu=True), Progress()) as watch:
        (tmp_path / runs.METRICS).mkdir()
        for step in range(10, 40, 10):
            watch.stepped(Progress(step), Outcome(1.0, {}, 1.0), 1e-3, False)
    assert capsys.readouterr().out.count(f"Figures could not be written to {tmp_path}: Is a directory.") == 1
