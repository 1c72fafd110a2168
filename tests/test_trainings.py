"""Uploads within limits, and runs of `vlchat`'s own commands: begun, watched, stopped, found again, gone on with."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import stat
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import base, config_of, squares

from serve import processes
from serve.policy import Policy
from serve.run_view import COMMAND, view
from serve.trainings import Settings, Trainings
from serve.uploads import Limits, settle, take_in
from train.config import load_runs
from vlchat import runs
from vlchat.chat import Chat
from vlchat.errors import VLChatError
from vlchat.folders import steps

PATIENCE = 240.0  # seconds: a busy machine is slow, and only what is broken takes so long


def zipped(file: Path, members: dict[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return file


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.1)


@pytest.fixture
def trainings(tmp_path: Path, tiny_model: Callable[..., Any], tiny_processor: Any) -> Iterator[Trainings]:
    """Of a tiny model, whose runs are slow enough to be stopped only by their many steps."""
    model = base(tmp_path, tiny_model, tiny_processor)
    config = config_of(Path("nowhere"), model, Path("none.json"), heldout={"tokens": 2})
    del config["run"]
    (tmp_path / "tiny.yaml").write_text(json.dumps({"run": "runs/tiny", **config}))
    made = Trainings(tmp_path / "runs", str(model), choices={"tiny": tmp_path / "tiny.yaml"}, patience=PATIENCE)
    yield made
    made.close()


# -- uploads


def test_loose_files_and_zips_come_to_lie_where_rows_look_for_them(tmp_path: Path) -> None:
    data = squares(tmp_path / "data", pictures=4)
    pictures = sorted(data.parent.glob("*.png"))
    loose = take_in([data, *pictures], tmp_path / "uploads")
    assert loose.data.read_bytes() == data.read_bytes() and loose.pictures == 4
    assert {path.name for path in (loose.folder / "images").iterdir()} == {path.name for path in pictures}

    members = {"set/data.json": data.read_bytes(), "set/a.txt": b"x", "__MACOSX/set/._b.png": b"", ".DS_Store": b""}
    packed = zipped(tmp_path / "all.zip", {**members, "set\\deep\\c.png": pictures[0].read_bytes()})
    again = take_in([packed], tmp_path / "uploads")
    assert again.data == again.folder / "set" / "data.json" and again.left_out == ["a.txt"]
    assert (again.folder / "set" / "deep" / "c.png").is_file() and not (again.folder / "__MACOSX").exists()
    assert again.folder != loose.folder, "nothing is overwritten"
    same = take_in([data, *pictures], tmp_path / "uploads")
    assert same.folder.name == "data-2"

    # A folder that a browser has uploaded without its folders.
    wanted = ["photos/2026/square-1.png", "a/square-2.png", "b/square-2.png", "../square-3.png", "/square-3.png"]
    assert settle(same, wanted) == 1, "only what can be meant by one name alone, and nowhere else than inside"
    assert (same.folder / "photos" / "2026" / "square-1.png").read_bytes() == pictures[1].read_bytes()
    assert not (same.folder.parent / "square-3.png").exists()


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"../../evil.png": b"x"}, "../../evil.png leads out of the zip"),
        ({"/etc/evil.png": b"x"}, "/etc/evil.png leads out"),
        ({"C:\\evil.png": b"x"}, "leads out"),
        ({"a\\..\\..\\evil.png": b"x"}, "leads out"),
        ({link("link.png"): b"/etc/passwd"}, "link.png is a link"),
        ({"a/b.png": b"x", "a\\b.png": b"y"}, "b.png twice"),
        ({"train.json": b"[]", "test.json": b"[]"}, "2 data files, train.json, test.json"),
        ({"notes.txt": b"x"}, "There is no data file"),
        ({"bomb.png": bytes(3 * 2**20)}, "more than 2 MiB, unpacked"),
        ({f"{number}.png": b"" for number in range(11)}, "more than 10 files"),
        ({"x" * 100 + f"{number}.png": b"" for number in range(60)}, "more than 10 files"),
    ],
)
def test_a_zip_that_may_not_be_unpacked_is_refused_and_named(
    tmp_path: Path, members: dict[Any, bytes], told: str
) -> None:
    data = [] if any(str(name).endswith(".json") for name in members) or "notes.txt" in members else [{"a": 1}]
    file = zipped(tmp_path / "bad.zip", members)
    files = [file]
    if data:
        (tmp_path / "data.json").write_text(json.dumps(data))
        files.append(tmp_path / "data.json")
    with pytest.raises(VLChatError) as caught:
        take_in(files, tmp_path / "uploads", Limits(2 * 2**20, 10))
    assert told in str(caught.value)
    assert not list((tmp_path / "uploads").iterdir()), "nothing of it is kept"
    assert not list(tmp_path.rglob("evil.png"))


def test_sizes_are_counted_and_not_believed_and_torn_zips_are_named(tmp_path: Path) -> None:
    file = zipped(tmp_path / "small.zip", {"a.json": b"[1]" * 2**20})
    raw = bytearray(file.read_bytes())
    place = raw.rfind(b"PK\1\2")
    raw[place + 24 : place + 28] = struct.pack("<I", 10)  # what it says of its size
    file.write_bytes(raw)
    with pytest.raises(VLChatError, match="damaged|more than"):
        take_in([file], tmp_path / "uploads", Limits(2**20))
    file.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(VLChatError, match="small.zip is damaged"):
        take_in([file], tmp_path / "uploads")
    with pytest.raises(VLChatError, match="Nothing was uploaded"):
        take_in([], tmp_path / "uploads")


# -- runs


def test_data_is_checked_planned_trained_stopped_and_gone_on_with(trainings: Trainings, tmp_path: Path) -> None:
    data = squares(tmp_path / "mine", pictures=8)
    rows = json.loads(data.read_text())
    for row in rows:
        row["image"] = f"photos/{row['image']}"
    rows.append({"id": "broken", "image": "absent.png", "question": "What?", "answer": "red"})
    data.write_text(json.dumps(rows))
    checked = trainings.check([data, *sorted(data.parent.glob("*.png"))])
    assert [(one["row"], one["id"], one["kind"]) for one in checked.report["bad"]] == [(17, "broken", "missing_file")]
    assert checked.settled == 8 and checked.usable == 16
    assert checked.command.startswith(f"vlchat check {checked.upload.data} --model ")
    assert trainings.suggested(checked, "tiny") == (4, 1), "steps of the configuration"

    refused = Settings(checked.upload.data, "tiny", 6, 2)
    planned = trainings.plan("first", Settings(checked.upload.data, "tiny", 6, 2, max_bad=1))
    assert planned.code == 0 and "fits in" in planned.output and planned.command.startswith("vlchat plan ")

    # What the data lacks is told by the command's own sentence.
    trainings.start("first", refused)
    with pytest.raises(VLChatError, match='"first" is under way, and one run trains at a time'):
        trainings.start("second", refused)
    wait(lambda: not trainings.run("first").ours)
    first = trainings.run("first")
    assert first.kind == "failed" and "1 bad row of 17" in view(first).output

    # Its name may be used again, for it left nothing.
    trainings.start("first", Settings(checked.upload.data, "tiny", 4000, 2, max_bad=1))
    assert os.getpriority(os.PRIO_PROCESS, json.loads((first.folder / COMMAND).read_text())["process"]["pid"]) == 10
    wait(lambda: bool(view(trainings.run("first")).samples and view(trainings.run("first")).losses))
    assert trainings.run("first").kind == "training"
    trainings.stop("first")
    wait(lambda: not trainings.run("first").ours)
    stopped = trainings.run("first")
    assert stopped.kind == "stopped" and stopped.standing.reason == "SIGTERM" and stopped.saved
    seen = view(stopped)
    assert seen.losses and seen.kept_aside and seen.output.startswith("$ vlchat train ")
    assert {one.reference for one in seen.samples} <= {"red", "green", "blue", "yellow", "yes", "no"}
    assert Chat.load(stopped.folder).description["name"] == "first"
    with pytest.raises(VLChatError, match='There is a run "first" already'):
        trainings.start("first", refused)
    with pytest.raises(VLChatError, match="not under way"):
        trainings.stop("first")

    # Another server on the same folder finds it, and goes on.
    again = Trainings(trainings.folder, trainings.model, choices=trainings.choices, patience=PATIENCE)
    assert [(run.name, run.kind) for run in again.listed()] == [("first", "stopped")]
    assert again.line("first").endswith("--resume auto")
    again.resume("first")
    wait(lambda: again.run("first").standing.step > stopped.standing.step and again.run("first").kind == "training")
    process = json.loads((first.folder / COMMAND).read_text())["process"]
    again.close()
    assert not runs.runs_here(process), "nothing is left running"
    ended = again.run("first")
    assert ended.kind == "stopped" and ended.standing.step >= stopped.standing.step
    with pytest.raises(VLChatError, match="stopping"):
        again.resume("first")

    # A run that was killed with its server is said to be, and can be gone on with.
    told = json.loads((first.folder / COMMAND).read_text())
    (first.folder / runs.STOPPED).unlink()
    (first.folder / runs.RUNNING).write_text(json.dumps({**told["process"], "pid": 2**22 + 1}))
    assert trainings.run("first").kind == "killed" and trainings.run("first").resumable
    assert len(steps(first.folder)) >= 1


def test_a_process_that_does_not_end_is_killed_after_the_patience(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(processes, "_line", lambda words: ["sh", "-c", "trap '' TERM; echo here; sleep 600"])
    process = processes.begin(["train"], tmp_path / "told.txt", tmp_path)
    wait(lambda: "here" in (tmp_path / "told.txt").read_text())
    told = runs.process(process.pid)
    processes.terminate(told)
    processes.patiently(told, 0.5)
    assert process.wait(PATIENCE) == -signal.SIGKILL


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "uploads", "step-3", "a b", "ü", "x" * 61, "a\n"])
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(VLChatError, match="A run's name"):
        Trainings(tmp_path / "runs").start(name, Settings(tmp_path / "data.json", "finetune-mini", 1, 1))
    assert not (tmp_path / "runs").exists()


def test_runs_of_a_terminal_are_listed_and_not_stopped_here(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "by-hand"
    folder.mkdir(parents=True)
    (folder / runs.CONFIG).write_text(json.dumps({"loop": {"steps": 9}}))
    (folder / runs.RUNNING).write_text(json.dumps(runs.this_process()))
    trainings = Trainings(tmp_path / "runs")
    (run,) = trainings.listed()
    assert run.kind == "training" and not run.ours and run.standing.planned == 9
    with pytest.raises(VLChatError, match="begun in a terminal"):
        trainings.stop("by-hand")
    trainings.close()
    shutil.rmtree(folder)
    with pytest.raises(VLChatError, match='There is no run "by-hand"'):
        trainings.run("by-hand")


def test_the_models_options_are_those_of_training(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "rows.json", "finetune", 100, 5)
    line = Trainings(tmp_path / "runs", "you/model", "v2", "nf4").command("mine", settings)
    for key in ("objective.model=you/model", "objective.revision=v2", "objective.quantize=nf4", "heldout.rows=5"):
        assert key in line
    assert set(Trainings(tmp_path).choices) == {"finetune-mini", "finetune-mini-questions", "finetune"}
    assert set(Trainings(tmp_path, "you/model").choices) == {"finetune"}, "the others train what a large model has not"
    odd = Trainings(tmp_path / "runs").command("mine", Settings(Path("runs/a: b #c.json"), "finetune", 100, 5))
    (config,) = load_runs(shlex.split(odd)[2], shlex.split(odd)[3:])
    assert config.data[0]["path"] == "runs/a: b #c.json" and config.run == str(tmp_path / "runs" / "mine")
    with pytest.raises(VLChatError, match="whole numbers from 1"):
        Trainings(tmp_path).command("mine", Settings(tmp_path / "rows.json", "finetune", 0, 1))


def test_who_may_train() -> None:
    from serve.keys import Keys

    keys = Keys(["anna: a-key-that-is-long-enough"])
    assert Policy().has_training_room("127.0.0.1") and Policy().has_training_room("localhost")
    assert not Policy().has_training_room("0.0.0.0") and not Policy(keys=keys).has_training_room("127.0.0.1")
    assert not Policy(proxies=["10.0.0.1"]).has_training_room("127.0.0.1")
    assert Policy(keys=keys, training_room=True).has_training_room("0.0.0.0")
    assert not Policy().has_training_room("127.0.0.1", "openai")
    with pytest.raises(VLChatError, match="--backend openai out"):
        Policy(training_room=True).has_training_room("127.0.0.1", "openai")
