"""FSDP2 by two real processes over gloo: the same as one, saved for any number, and no process waits for a picture."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from processes import launched
from test_loop import lines, wait_for
from test_ranks import ended, line
from tiny_runs import base, config_of, squares

from train.__main__ import main
from train.checkpoint import saved
from vlchat import Chat

STEPS = 6
KINDS = ("lora", "full", "connector", "nf4")
HELDOUT = {"rows": 4, "generate": 2, "tokens": 3}


@pytest.fixture(autouse=True)
def as_accelerate_launches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --config_file configs/accelerate/fsdp2.yaml` puts into the environment."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")


def runs(folder: Path, where: str, model: Path, data: Path) -> Path:
    """One file of several runs: adapters; all of the language model; the connector alone; on quantized weights."""
    lora = {"r": 2, "alpha": 4, "dropout": 0.0}
    language = r"language_model|lm_head|connector"
    kinds: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
        "lora": ({"lora": lora}, {"lora_": 1e-2, "connector": 1e-2}),
        "full": ({"lora": None, "checkpointing": True}, {language: 1e-2}),
        "connector": ({"lora": None}, {"connector": 1e-2}),
        "nf4": ({"lora": lora, "quantize": "nf4"}, {"lora_": 1e-2, "connector": 1e-2}),
    }
    loop = {"batch": 3, "micro_batch": 1, "steps": STEPS, "save_every": 3}  # shares of one and two rows
    told = [
        config_of(
            folder / where / kind, model, data, trainable=trainable, loop=loop, heldout=HELDOUT,
            objective={"type": "tune", "model": str(model), "sample_tokens": 2, **objective},
        )
        for kind, (objective, trainable) in kinds.items()
    ]  # fmt: skip
    file = folder / f"{where}.yaml"
    file.write_text("\n---\n".join(map(json.dumps, told)))
    return file


def same(one: Path, other: Path, first: int = 0) -> None:
    here, there = ([found for found in lines(run) if found["step"] > first] for run in (one, other))
    assert len(here) == len(there) > STEPS - first
    more = 1e-4 if one.name == "nf4" else 0.0  # which computes in bfloat16
    for a, b in zip(here, there, strict=True):
        for name, within in {"loss": 1e-6, "heldout_loss": 1e-6, "grad_norm": 5e-6}.items():
            assert (name in a) == (name in b)
            assert name not in a or a[name] == pytest.approx(b[name], rel=within + more), (one, other, a, b)


def test_two_sharded_processes_are_one(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data")
    rows = json.loads(data.read_text())
    for number, row in enumerate(rows):
        if number % 3:  # of words alone, so that a process has often no picture in a step, and sometimes none has one
            del row["image"]
    data.write_text(json.dumps(rows))
    assert main([str(runs(tmp_path, "one", model, data))]) == 0
    codes, told = ended(launched(2, "-m", "train", str(runs(tmp_path, "two", model, data))), 400)
    assert codes == [0, 0], told
    assert "million parameters in 2 shards" in told[0] and told[1] == ""
    for kind in KINDS:
        same(tmp_path / "one" / kind, tmp_path / "two" / kind)

    # What was saved is one folder for everybody, whoever wrote it: one process, two, or three, of which some have an
    # empty shard of an adapter of rank 2.
    for writer, reader in (("two", "alone"), ("two", "again"), ("one", "shared")):
        for kind in KINDS:
            shutil.copytree(tmp_path / writer / kind / "step-3", tmp_path / reader / kind / "step-3")
    assert main([str(runs(tmp_path, "alone", model, data)), "--resume", "auto"]) == 0
    for reader, ranks in (("again", 3), ("shared", 2)):
        file = str(runs(tmp_path, reader, model, data))
        codes, told = ended(launched(ranks, "-m", "train", file, "--resume", "auto"), 400)
        assert codes == [0] * ranks, told
    for kind in KINDS:
        for reader in ("alone", "again", "shared"):
            same(tmp_path / "one" / kind, tmp_path / reader / kind, first=3)
    one, two = (Chat.load(tmp_path / name / "lora" / f"step-{STEPS}") for name in ("one", "two"))
    picture = data.parent / "square-0.png"
    assert one.ask(picture, "What colour is it?") == two.ask(picture, "What colour is it?")


def test_a_number_that_is_none_on_one_process_ends_both_before_a_checkpoint(tmp_path: Path) -> None:
    codes, told = ended(line(tmp_path / "run", "bad=23", "loop.save_every=1", "width=3"), 400)
    assert codes == [2, 2], told
    assert "The loss of step 3 is no finite number on process 1: squares inf" in told[0], told[0]
    assert [folder.name for folder in saved(tmp_path / "run")] == ["step-1", "step-2"]


def test_a_signal_to_one_process_saves_and_ends_both(tmp_path: Path) -> None:
    processes = line(tmp_path / "run", "loop.steps=100000", "loop.save_every=100000")
    wait_for(tmp_path / "run", 5, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    codes, told = ended(processes, 400)
    assert codes == [143, 143], told
    assert "Stopped by SIGTERM; --resume auto goes on from" in told[0] and saved(tmp_path / "run")


@pytest.mark.parametrize("asked", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_gone_ends_the_other_within_a_minute_by_name(tmp_path: Path, asked: signal.Signals) -> None:
    processes = line(tmp_path / "run", "loop.steps=1000000", "loop.save_every=50")
    try:
        wait_for(tmp_path / "run", 60, processes[0])
        processes[1].send_signal(asked)
        since = time.monotonic()
        told = processes[0].communicate(timeout=60)[0]
        assert processes[0].returncode == 1 and time.monotonic() - since < 60
        assert "Process 1 of 2 has died or stands still" in told, told
    finally:
        for process in processes:
            process.kill()
            process.communicate()
