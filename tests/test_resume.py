"""Checkpoints that were tampered with, cut short or never finished: named, left aside, and the one before used."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from line import main as run_line
from test_loop import ROOT, lines, state
from tiny_runs import base, squares, train

from train.__main__ import main
from train.checkpoint import newest_whole, saved
from train.step import TrainingStopped
from vlchat.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EmptySupervisionError,
    IncompleteCheckpointError,
    PathEscapeError,
    TooLongError,
    UnsafeCheckpointError,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Twelve steps, a checkpoint every third."""
    assert run_line(str(tmp_path / "run")) == 0
    return tmp_path / "run"


def unbroken(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state(run / "step-12").items()}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("harm", [flip, cut])
def test_a_harmed_checkpoint_is_named_and_the_one_before_goes_on_to_the_same_bits(
    run: Path, harm: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = unbroken(run)
    harm(run / "step-12" / "training_state" / name)
    with pytest.raises(CheckpointError, match=rf"step-12 is damaged: training_state/{name} has changed"):
        run_line_strict(run, f"resume={run / 'step-12'}")
    capsys.readouterr()
    assert run_line(str(run), "resume=auto") == 0
    told = capsys.readouterr().out
    assert f"step-12 is damaged: training_state/{name} has changed. It is left aside." in told
    assert f"Resuming {run / 'step-9'}: step 9 of 12, 72 samples seen." in told
    assert (run / "damaged-step-12").is_dir(), "nothing is thrown away"
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state(run / "step-12").items())
    assert [line["step"] for line in lines(run)] == list(range(1, 13))


def run_line_strict(run: Path, option: str) -> None:
    """As the script, but with the error raised."""
    from line import Line

    from train.config import LoopConfig, OptimConfig, RunConfig
    from train.loop import fit

    loop = LoopConfig(steps=12, batch=8, workers=0, save_every=3, log_every=1, keep=100)
    config = RunConfig(str(run), {"type": "line"}, trainable={".*": 0.05}, optim=OptimConfig(weight_decay=0.01),
                       loop=loop)  # fmt: skip
    fit(Line(), config, 12, Path(option.removeprefix("resume=")))


@pytest.mark.parametrize("name", ["optimizer.safetensors", "progress.json"])
def test_a_checkpoint_without_optimizer_or_random_state_is_incomplete(run: Path, name: str) -> None:
    (run / "step-12" / "training_state" / name).unlink()
    with pytest.raises(IncompleteCheckpointError, match=rf"step-12 cannot be resumed: training_state/{name} is"):
        run_line_strict(run, f"resume={run / 'step-12'}")
    assert newest_whole(run, say=lambda text: None) == run / "step-9"


@pytest.mark.parametrize("place", ["step-12", "step-12/training_state"])
def test_a_checkpoint_with_a_pickle_is_unsafe(run: Path, place: str) -> None:
    torch.save({"a": 1}, run / place / "optimizer.pt")
    with pytest.raises(UnsafeCheckpointError, match="optimizer.pt, a pickle, which can run code"):
        newest_whole(run)
    assert (run / "step-12").is_dir()


def test_a_pickle_that_calls_itself_safetensors_is_unsafe(run: Path) -> None:
    torch.save({"a": 1}, run / "step-12" / "training_state" / "optimizer.safetensors")
    with pytest.raises(UnsafeCheckpointError, match="is a pickle that calls itself safetensors"):
        newest_whole(run)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a checkpoint of a run"):
        run_line_strict(tmp_path / "run", f"resume={tmp_path / 'nowhere'}")


def test_what_a_killed_run_left_half_written_is_removed(run: Path) -> None:
    for name in (".step-15.partial-77", ".step-3.trash"):
        shutil.copytree(run / "step-3", run / name)
    shutil.rmtree(run / "step-12")
    assert run_line(str(run), "resume=auto") == 0
    assert not list(run.glob(".step-*"))


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of so many MiB."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """Each checkpoint takes about 1.4 MiB with its optimizer; the third does not fit."""
    options = ("width=12000", "loop.save_every=3")
    with small_disk(tmp_path / "disk", 4) as disk:
        command = [sys.executable, str(ROOT / "tests" / "line.py"), str(disk / "run"), *options]
        full = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert full.returncode == 2, full.stderr
        assert "could not be written: " in full.stderr and "No space left" in full.stderr, full.stderr
        last = saved(disk / "run")[-1]
        assert f"The newest checkpoint is {last}" in full.stderr
        assert "Traceback" not in full.stderr
        assert newest_whole(disk / "run") == last, "whole"
        assert not list((disk / "run").glob(".step-*"))
        shutil.copytree(disk / "run", tmp_path / "run")
    assert run_line(str(tmp_path / "run"), *options, "resume=auto") == 0
    assert run_line(str(tmp_path / "whole"), *options) == 0
    expected = unbroken(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in unbroken(tmp_path / "run").items())


def test_other_rows_are_not_resumed_and_other_settings_are_told(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    train(tmp_path / "run", model, data)
    again = [str(tmp_path / "run.yaml"), "--resume", "auto", "loop.steps=5"]
    for option, what in (("seed=1", "seed has changed since.*0 -> 1"), ("loop.batch=2", "loop.batch has .* 4 -> 2")):
        with pytest.raises(CheckpointError, match=what):
            main([*again, option])
    content = data.read_text()
    data.write_text(json.dumps(json.loads(content)[1:]))
    with pytest.raises(CheckpointError, match="the training data has changed since, so that the run would see"):
        main(again)
    data.write_text(content)
    capsys.readouterr()
    assert main([*again, "optim.clip=0.5"]) == 0
    assert "Not as in step-4: optim.clip: 1.0 -> 0.5" in capsys.readouterr().out


def test_bad_rows_stop_a_run_before_it_begins_or_are_left_out_and_written_down(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    rows = json.loads(data.read_text())
    rows[2]["image"] = "../outside.png"
    rows[5]["image"] = "gone.png"
    rows[6]["image"] = "also-gone.png"
    rows[7]["answer"] = ""
    rows[9]["id"] = rows[8]["id"]
    data.write_text(json.dumps(rows))
    with pytest.raises(DataError) as refused:
        train(tmp_path / "run", model, data)
    told = str(refused.value)
    assert "5 bad rows of 16, and max_bad allows 0" in told
    for row, why in ((3, "leads out"), (6, "gone.png"), (7, "also-gone.png"), (8, "answer"), (10, "same id")):
        assert any(f"row {row} " in line and why in line for line in told.splitlines()), (row, told)
    assert not saved(tmp_path / "run")
    train(tmp_path / "run", model, data, max_bad=5)
    assert "Of 16 rows 5 left out" in capsys.readouterr().out
    listed = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert [(row["row"], row["kind"]) for row in listed] == [
        (3, "path_leads_up"), (6, "missing_file"), (7, "missing_file"), (8, "empty_answer"), (10, "duplicate_id"),
    ]  # fmt: skip
    assert all(row["id"] and row["reason"] and row["field"] for row in listed)


def test_what_only_pixels_and_tokens_tell_is_left_out_on_the_way(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    rows = json.loads(data.read_text())
    rows[3]["question"] = "Is it " + "very " * 90 + "red?"
    data.write_text(json.dumps(rows))
    picture = tmp_path / "data" / "square-4.png"
    picture.write_bytes(picture.read_bytes()[:-30])  # a header, and pixels cut short: both rows of it
    objective = {"type": "tune", "model": str(model), "lora": {"r": 2}, "max_length": 80}
    with pytest.raises(DataError, match=r"1 bad row of 16, and max_bad allows 0:\n.*row (9|10) .*"):
        train(tmp_path / "strict", model, data, objective=objective)
    assert train(tmp_path / "run", model, data, objective=objective, max_bad=2)
    assert train(tmp_path / "again", model, data, objective=objective | {"too_long": "refuse"}, max_bad=3)
    for name, kind in (("run", "left_out"), ("again", "too_long")):
        listed = [json.loads(line) for line in (tmp_path / name / "quarantine.jsonl").read_text().splitlines()]
        assert {row["row"]: row["kind"] for row in listed} == {4: kind, 9: "damaged_file", 10: "damaged_file"}
    with pytest.raises(DataError, match="3 bad rows of 16, and max_bad allows 2"):
        train(tmp_path / "refused", model, data, objective=objective | {"too_long": "refuse"}, max_bad=2)


@pytest.mark.parametrize("content", [None, "", "{}", '{"format": 1}', '{"format": 1, "files": []}'])
def test_a_checkpoint_without_a_good_manifest_is_set_aside(
    run: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = unbroken(run)
    manifest = run / "step-12" / "vlchat.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    assert run_line(str(run), "resume=auto") == 0
    assert "It is left aside." in capsys.readouterr().out
    assert (run / "damaged-step-12").is_dir()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state(run / "step-12").items())


def test_the_folder_of_a_run_is_no_checkpoint(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run is not a checkpoint .*name one, such as .*step-12, or say --res"):
        run_line_strict(run, f"resume={run}")


def test_another_optimizer_does_not_go_on(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    for one, other in (("muon", "adamw"), ("adamw", "muon")):
        train(tmp_path / one, model, data, optim={"name": one})
        again = [str(tmp_path / f"{one}.yaml"), "--resume", "auto", "loop.steps=5", f"optim.name={other}"]
        with pytest.raises(CheckpointError, match=f"step-4 was trained with optim.name={one}.*begin a new run"):
            main(again)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_disappears_while_the_run_trains_is_left_out(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, workers: int
) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")

    def remove() -> None:
        while not (tmp_path / "run" / "about.json").exists():
            time.sleep(0.001)
        (tmp_path / "data" / "square-3.png").unlink()

    for allowed in (1, 2):
        removing = threading.Thread(target=remove)
        removing.start()
        loop = {"steps": 30, "save_every": 30, "workers": workers}  # seven epochs
        if allowed == 1:
            with pytest.raises(DataError, match='2 bad rows of 16, and max_bad allows 1:\n.*"square-3.png" was not'):
                train(tmp_path / "run", model, data, max_bad=allowed, loop=loop)
        else:
            train(tmp_path / "run", model, data, max_bad=allowed, loop=loop)
        removing.join()
        listed = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
        # A row may be told twice: it was found, and gone when it was opened; and later not found.
        assert {(one["row"], one["id"], one["kind"]) for one in listed} == {
            (7, "colour-3", "missing_file"), (8, "red-3", "missing_file"),
        }  # fmt: skip
        shutil.rmtree(tmp_path / "run")
        squares(tmp_path / "data")


def test_a_step_of_rows_that_are_left_out_by_choice_changes_nothing_and_ends_nothing(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any
) -> None:
    """One row a step, two of them too long; then all of them."""
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    rows = json.loads(data.read_text())
    for row in rows[3:5]:
        row["question"] = "Is it " + "very " * 90 + "red?"
    data.write_text(json.dumps(rows))
    keys: dict[str, Any] = {"loop": {"batch": 1, "steps": 16, "save_every": 16}}
    objective = {"type": "tune", "model": str(model), "lora": {"r": 2}, "max_length": 80}
    train(tmp_path / "run", model, data, objective=objective, **keys)
    steps = [line["step"] for line in lines(tmp_path / "run") if "loss" in line]
    assert len(steps) == 14 and saved(tmp_path / "run")[-1].name == "step-16"
    with pytest.raises(TrainingStopped, match="Not one row of step 16 can be used, nor of the 15 before it; "):
        train(tmp_path / "none", model, data, objective=objective | {"max_length": 2}, **keys)


def test_a_run_on_a_disk_that_is_closed_to_writing_is_a_sentence(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any
) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    with small_disk(tmp_path / "disk", 8) as disk:
        train(disk / "run", model, data)
        (disk / "run" / "quarantine.jsonl").write_text("")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for options in (["--overwrite"], ["--resume", "auto", "loop.steps=6"], [f"run={disk / 'other'}"]):
            with pytest.raises(ConfigError, match="The run cannot be written to .*disk.*Read-only file system"):
                main([str(disk / "run.yaml"), *options])
        assert len(saved(disk / "run")) == 2


def test_a_run_that_begins_on_a_full_disk_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any
) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    with small_disk(tmp_path / "disk", 8) as disk:
        train(disk / "run", model, data)
        before = sorted(path.name for path in (disk / "run").iterdir())
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        for options in (["--overwrite"], ["--resume", "auto", "loop.steps=6"]):
            with pytest.raises(ConfigError, match="The run cannot be written to .*disk.*No space left on device"):
                main([str(disk / "run.yaml"), *options])
        assert sorted(path.name for path in (disk / "run").iterdir()) == before


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"image": "../square-1.png"}, PathEscapeError),
        ({"image": "/etc/hostname"}, PathEscapeError),
        ({"answer": ""}, EmptySupervisionError),
        ({"question": "very " * 90}, TooLongError),
    ],
)
def test_a_run_that_is_refused_says_by_its_error_what_its_rows_have(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, change: dict[str, str], error: type[DataError]
) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    rows = json.loads(data.read_text())
    rows[3] |= change
    data.write_text(json.dumps(rows))
    objective = {"type": "tune", "model": str(model), "lora": {"r": 2}, "max_length": 80, "too_long": "refuse"}
    with pytest.raises(error, match=r"1 bad row of 16.*\n.*row 4 \(id "):
        train(tmp_path / "run", model, data, objective=objective)
