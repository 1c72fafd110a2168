"""What `vlchat info` says of runs: those that train, those that ended, and those of which pieces are missing."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import base, squares, train

from vlchat import runs
from vlchat.cli import main
from vlchat.run_info import describe, sparkline

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, made: dict[str, Path],
    tiny_model: Callable[..., Any], tiny_processor: Any,
) -> Path:  # fmt: skip
    """A copy of a run of four steps that held rows out."""
    if not made:
        folder = tmp_path_factory.mktemp("made")
        model = base(folder, tiny_model, tiny_processor)
        heldout = {"rows": 4, "every": 2, "generate": 2, "tokens": 2}
        made["run"] = train(folder / "run", model, squares(folder / "data"), heldout=heldout)
    shutil.copytree(made["run"], tmp_path / "run")
    return tmp_path / "run"


def told(folder: Path) -> str:
    return "\n".join(f"{name}: {text}" for name, text in describe(folder))


def test_a_run_that_is_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(run)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    words = " ".join(shown.out.split())
    for part in (
        "name run", "parameters", "objective tune", "data data.json: 12 rows, sha256 ", "held out 4 rows, taken from",
        "trains lora_", "(frozen)", "progress step 4 of 4 (100 %), 16 rows seen, 1.33 of 1.33 epochs, 0:",
        "state finished at step 4", "first, lowest", "scores heldout loss", "best step-", "before training)",
        f"plot {run}/loss.png", "saves step-2: whole, ", "step-4: whole, ", ", newest",
        f"go further vlchat train {run}/run.json --resume auto loop.steps=8", f"chat vlchat chat --model {run} ",
    ):  # fmt: skip
        assert part in words, part
    assert any(bar in words for bar in "▁▂▃▄▅▆▇█")


def test_the_command_to_go_on_is_one(run: Path) -> None:
    command = next(text for name, text in describe(run) if name == "go further").split()
    assert main([*command[1:], f"run={run}", "loop.steps=6"]) == 0
    assert (run / "step-6").is_dir()


def test_one_save_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(run / "step-2")]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "progress step 2 of 4 (50 %), 8 rows seen" in words and "save whole, " in words
    assert f"--resume {run}/step-2" in words and "data data.json: 12 rows" in words


def test_a_model_is_told_as_before(run: Path, made: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(made["run"].parent / "base")]) == 0
    labels = [line[:12].strip() for line in capsys.readouterr().out.splitlines()]
    assert labels == ["name", "path", "parameters", "trained on", "base", "adapter", "vision", "language", "connector",
                      "image tokens"]  # fmt: skip


def test_a_run_that_trains_now_says_how_long_it_takes(run: Path) -> None:
    (run / runs.STOPPED).unlink()
    about = json.loads((run / runs.ABOUT).read_text())
    (run / runs.ABOUT).write_text(json.dumps(about | {"steps": 1000}))
    lines = [{"step": step, "loss": 1.0, "seconds": step * 2.0} for step in (10, 20, 100)]
    (run / runs.METRICS).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    code = "import json, time\nfrom vlchat import runs\n"
    code += f"open({str(run / runs.RUNNING)!r}, 'w').write(json.dumps(runs.this_process()))\n"
    code += "print(flush=True)\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert f"state: training now (process {process.pid}), 30:00 left" in told(run)
    finally:
        process.kill()
        process.wait()
    assert "state: killed at about step 100: its process is gone and said no word" in told(run)


def test_another_process_of_the_same_number_is_not_taken_for_the_run(run: Path) -> None:
    mine = runs.this_process()
    (run / runs.RUNNING).write_text(json.dumps(mine))
    assert f"training now (process {os.getpid()})" in told(run)
    if mine["start"] is not None:
        (run / runs.RUNNING).write_text(json.dumps(mine | {"start": "1"}))
        assert "killed at about step 4" in told(run)
    (run / runs.RUNNING).write_text(json.dumps(mine | {"host": "elsewhere"}))
    os.utime(run / runs.METRICS, (time.time() - 3600, time.time() - 3600))
    assert "a process on elsewhere has trained; the last figures are 1:00:0" in told(run)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("SIGTERM", "stopped at step 3: SIGTERM"),
        ("The loss is nan.", "stopped at step 3: The loss is nan."),
        ("done", "finished at step 3"),
    ],
)
def test_why_a_run_stopped(run: Path, reason: str, words: str) -> None:
    (run / runs.STOPPED).write_text(json.dumps({"reason": reason, "step": 3}))
    assert f"state: {words}" in told(run)


def test_saves_that_are_not_whole(run: Path) -> None:
    weights = next((run / "step-2").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-10])
    (run / "step-4" / "config.json").unlink()
    shutil.copytree(run / "step-4", run / "damaged-step-3")
    words = told(run)
    assert f"saves: step-2: not whole: {weights.name} is cut short" in words
    assert ": step-4: not whole: config.json is missing" in words
    assert ": damaged-step-3: set aside, for it was damaged" in words


def _half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _odd(file: Path) -> None:
    file.write_text('[{"step": "x", "loss": null}, 3]')


def _odder(file: Path) -> None:
    nested = dict.fromkeys(("step", "value", "best", "steps", "batch", "epochs", "before", "reason", "pid"), [1])
    file.write_text(json.dumps(nested | {"loop": [], "data": ["x", {}], "base": [], "heldout": {}, "trainable": [{}]}))


def _noise(file: Path) -> None:
    file.write_bytes(os.urandom(300))


@pytest.mark.parametrize("damage", [Path.unlink, _half, _odd, _odder, _noise])
@pytest.mark.parametrize("name", [runs.METRICS, runs.CONFIG, runs.ABOUT, runs.BEST, runs.STOPPED])
def test_a_broken_file_gives_sentences(run: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(run / name)
    words = told(run)
    assert "progress: step" in words and "saves: step-2: whole" in words
    if name == runs.CONFIG:
        assert "resume: " not in words or damage is _odder


@pytest.mark.parametrize("name", ["vlchat.json", "config.json", "training_state/progress.json", "run.json"])
def test_a_broken_save_gives_sentences_on_the_command_line(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "step-4" / name).write_text("{")
    for folder in (run, run / "step-4"):
        assert main(["info", str(folder)]) == 0
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err and "progress" in shown.out


def test_a_run_that_has_only_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / runs.CONFIG).write_text("{}")
    assert main(["info", str(tmp_path / "new")]) == 0
    words = capsys.readouterr().out
    assert "step 0" in words and "none yet" in words and "metrics.jsonl holds nothing yet" in words
    (tmp_path / "empty").mkdir()
    assert main(["info", str(tmp_path / "empty")]) == 2
    assert "holds no model" in capsys.readouterr().err


def test_a_curve_in_a_line() -> None:
    assert sparkline([]) == "" and sparkline([1.0]) == "▁" and sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([float(n) for n in range(8)]) == "▁▂▃▄▅▆▇█"
    falling = sparkline([100 / n for n in range(1, 500)], width=40)
    assert len(falling) == 40 and falling[0] == "█" and falling[-1] == "▁"
    assert falling == "".join(sorted(falling, reverse=True)) and len(set(falling)) > 4


def test_the_command_to_go_on_begins_where_the_run_did(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (run / "stopped.json").write_text(json.dumps({"reason": "SIGTERM", "step": 4}))
    here = Path.cwd()
    assert any(text.startswith("vlchat train ") for name, text in describe(run) if name == "resume")
    monkeypatch.chdir(tmp_path)
    assert any(text.startswith(f"cd {here} && vlchat train ") for name, text in describe(run) if name == "resume")
