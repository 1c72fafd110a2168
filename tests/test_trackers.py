"""Trackers: they get the run's figures, and no run ends for one of them."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import logged, train

from vlchat.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


def test_tensorboard_gets_every_figure(model: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tmp_path / "run", model, data, trackers=["tensorboard"], heldout={"rows": 4, "every": 2, "generate": 0})
    found = EventAccumulator(str(run / "trackers" / "tensorboard" / "run"))
    found.Reload()
    for tag, name in (("train/loss", "loss"), ("train/lr", "lr"), ("heldout/loss", "heldout_loss")):
        sent = {event.step: event.value for event in found.Scalars(tag)}
        assert sent == pytest.approx(logged(run, name), rel=1e-5) and len(sent) >= 3


def test_a_tracker_that_is_not_there_is_refused_by_name_before_anything_is_touched(
    model: Path, data: Path, tmp_path: Path
) -> None:
    train(tmp_path / "run", model, data)
    with pytest.raises(ConfigError, match='trackers: there is no "tensorbord"; .*Did you mean "tensorboard"?'):
        train(tmp_path / "run", model, data, "--overwrite", trackers=["tensorbord"])
    code = (
        "import sys; sys.modules['mlflow'] = None\nfrom train import trackers\n"
        "try: trackers.check(['mlflow'])\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "trackers: mlflow is not installed: pip install mlflow. Or leave it out of trackers.\n"
    assert (tmp_path / "run" / "step-4").is_dir()


def test_a_tracker_that_fails_ends_no_run(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trackers").write_text("a file where a folder should be")
    run = train(tmp_path / "run", model, data, trackers=["tensorboard"])
    told = capsys.readouterr().out
    assert told.count("The tracker tensorboard failed and is left out from here") == 1
    assert (run / "step-4").is_dir() and len(logged(run, "loss")) == 4
