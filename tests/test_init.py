"""`vlchat init`: three answers become a configuration that trains as it stands."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import base, squares

from train.config import RunConfig, load_runs
from train.objectives import OBJECTIVES
from vlchat import Chat, runs
from vlchat.cli import main
from vlchat.data import SourceConfig
from vlchat.errors import VLChatError
from vlchat.starting.choices import choose
from vlchat.starting.machines import GIB, Machine, machine_of
from vlchat.starting.questions import ask
from vlchat.starting.sizes import size_of
from vlchat.starting.survey import Survey, survey
from vlchat.starting.writing import document

ROOT = str(Path(__file__).resolve().parent.parent)
BRIEF = ["loop.workers=0", "loop.sample_every=100", "heldout.generate=2", "heldout.tokens=3"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(file: str | Path) -> RunConfig:
    (config,) = load_runs(file)
    assert config.objective["type"] in OBJECTIVES
    return config


def seen(rows: int, tokens: int = 700, **more: Any) -> Survey:
    facts: dict[str, Any] = {
        "config": SourceConfig("data.json"), "rows": rows, "usable": rows, "advice": "", "images": rows,
        "text_only": 0, "shared_ids": 0, "formats": Counter(vqa=rows), "answers": [1], "alphabets": {"LATIN": 1.0},
        "tokens": [tokens], "counted": False,
    }  # fmt: skip
    return Survey(**facts | more)


def test_from_nothing_to_an_answer_on_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    squares(Path("data"), pictures=24)
    assert main(["init", "--data", "data/data.json", "--gpu", "none"]) == 0
    told = capsys.readouterr().out
    assert "48 rows in the format vqa (48); 48 pictures shown" in told and "(counted)" in told
    assert "Letters: Latin 100%." in told and "vlchat train finetune.yaml" in told
    written = Path("finetune.yaml").read_text()
    assert all("#" in line for line in written.splitlines() if ":" in line and line[-1] not in ":}"), (
        "a value without why"
    )
    config = config_of("finetune.yaml")
    assert (config.run, config.objective["model"], config.objective["lora"]) == ("runs/data", None, None)
    assert config.heldout.share == 0.1 and config.loop.steps == 138  # fifty passes over the rows that are left
    assert main(["train", "finetune.yaml", "loop.steps=2", *BRIEF]) == 0
    assert json.loads(Path("runs/data", runs.ABOUT).read_text())["heldout"]["rows"] > 0
    assert isinstance(Chat.load("runs/data").ask("data/square-0.png", "What colour is it?", max_new_tokens=3), str)
    assert main(["init", "again.yaml", "--data", "data/data.json", "--gpu", "none"]) == 0
    assert config_of("again.yaml").run == "runs/data-2"


def test_a_folders_model_with_rows_that_fail_and_ids_that_name_pictures(
    here: Path, tiny_model: Callable[..., Any], tiny_processor: Any
) -> None:
    data = squares(here / "squares", pictures=24)
    rows = json.loads(data.read_text())
    for row in rows:
        row["id"] = row["image"]  # two questions a picture
    rows.append(rows[0] | {"image": "gone.png"})
    (here / "elsewhere").mkdir()
    (here / "elsewhere/my rows.json").write_text(json.dumps(rows))
    model = base(here, tiny_model, tiny_processor)
    given = ["--model", str(model), "--data", "elsewhere/my rows.json", "--images", "squares", "--gpu", "rtx 3060"]
    assert main(["init", "elsewhere", *given]) == 0
    config = config_of("elsewhere/finetune.yaml")
    assert config.data == [{"path": "elsewhere/my rows.json", "images": "squares", "ids": False}]
    assert (config.max_bad, config.objective["lora"]["r"], config.objective["dtype"]) == (1, 32, "bfloat16")
    assert main(["train", "elsewhere/finetune.yaml", "loop.steps=2", *BRIEF]) == 0
    assert isinstance(Chat.load("runs/my-rows").ask("squares/square-0.png", "Is it red?", max_new_tokens=3), str)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data", "none.json"], "none.json does not exist"),
        (["--data", "empty.json"], "empty.json has no rows"),
        (["--data", "bad.json"], r"Not one of the 1 rows of bad.json can be used. First row 1.*--images FOLDER"),
        (["--gpu", "rtx-4091"], 'no GPU "rtx-4091" in the list. Did you mean "rtx-4090"'),
        (["--gpu", "0"], "say how much memory it has"),
        (["--model", "llava-1.5-7"], 'Did you mean "llava-1.5-7b"'),
        (["--model", "llava-1.5-13b", "--gpu", "8"], "even in nf4.*a smaller model such as"),
        (["--format", "lava"], 'no format "lava"'),
        (["there.yaml"], "there.yaml is there already, and nothing is overwritten"),
        (["run.json"], "give it the ending .yaml"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(
    extra: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squares(here, pictures=2)
    Path("empty.json").write_text("[]")
    Path("bad.json").write_text('[{"image": "no.png", "question": "a", "answer": "b"}]')
    Path("there.yaml").write_text("mine")
    before = sorted(Path().iterdir())
    given = [] if "--data" in extra else ["--data", "data.json"]
    assert main(["init", *given, *extra]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert re.search(message, told), told
    assert sorted(Path().iterdir()) == before and Path("there.yaml").read_text() == "mine"


def test_without_a_terminal_and_without_data_it_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--gpu", "none"]) == 2
    assert "--data FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "gib", "bf16"),
    [("24", 24, True), ("11.5 GB", 11.5, True), ("RTX 4090", 24, True), ("4090", 24, True), ("T4", 15, False),
     ("NVIDIA A100-40", 40, True), ("geforce rtx 3060", 12, True)],
)  # fmt: skip
def test_gpus_by_name_and_by_size(text: str, gib: float, bf16: bool) -> None:
    machine = machine_of(text)
    assert (machine.memory / GIB, machine.bf16, machine.gpu) == (gib, bf16, True)


@pytest.mark.parametrize("rows", [30, 800, 50_000, 700_000])
@pytest.mark.parametrize(
    "model", ["smolvlm-500m", "qwen3-vl-4b", "llava-1.5-7b", "llava-1.5-13b", "me/thing-3b", "me/thing"]
)
def test_more_memory_never_leads_to_a_meaner_method(model: str, rows: int) -> None:
    order = ["qlora", "lora", "full"]
    found: list[tuple[int, int]] = []
    for gib in (8, 12, 16, 24, 40, 80, 141):
        try:
            plan = choose(size_of(model), Machine("a GPU", gib * GIB), seen(rows))
        except VLChatError:
            assert not found, "what fits into less fits into more"
            continue
        found.append((order.index(plan.method), plan.micro_batch.value))
        assert plan.micro_batch.value <= plan.batch.value
    assert found and [method for method, _ in found] == sorted(method for method, _ in found)


def test_seven_billion_are_qlora_in_12_gib_and_lora_in_40() -> None:
    size = size_of("llava-1.5-7b")
    small, large = (choose(size, machine_of(gib), seen(10_000)) for gib in ("12", "40"))
    assert (small.method, small.checkpointing.value, small.rank) == ("qlora", True, 32)
    assert (large.method, large.checkpointing.value) == ("lora", None)  # room enough to keep what is computed
    assert size_of("somebody/vision-7b").parameters == 7e9  # by its name, out of reach of the Hub


@pytest.mark.parametrize(
    ("rows", "told"),
    [(700_000, {"batch": 128, "epochs": 1}), (5_000, {"batch": 32, "epochs": 3}), (300, {"batch": 16, "steps": 150})],
)
def test_long_enough_for_few_rows_and_short_for_many(rows: int, told: dict[str, int]) -> None:
    size, machine = size_of("qwen3-vl-2b"), machine_of("24")
    text = document("runs/x", size, machine, seen(rows), choose(size, machine, seen(rows)))
    Path("x.yaml").write_text(text)
    loop = config_of("x.yaml").loop
    assert {name: getattr(loop, name) for name in told} == told and max(map(len, text.splitlines())) < 200


def test_longer_rows_than_any_model_takes_lose_their_ends() -> None:
    size, machine = size_of("qwen3-vl-2b"), machine_of("t4")
    plan = choose(size, machine, seen(5_000, tokens=9_000, shared_ids=3, config=SourceConfig("a: b#.json", ids=False)))
    assert (plan.max_length.value, plan.too_long.value, plan.precision.value) == (2048, "shorten", "fp16")
    facts = seen(5_000, tokens=9_000, shared_ids=3, config=SourceConfig("a: b#.json", ids=False))
    Path("x.yaml").write_text(document("runs/nein: #1", size, machine, facts, plan))
    config = config_of("x.yaml")
    assert config.data == [{"path": "a: b#.json", "ids": False}] and config.run == "runs/nein: #1"


def test_alphabets_are_told(here: Path) -> None:
    rows = [
        {"question": "Что это?", "answer": "кот"}, {"question": "これは何ですか", "answer": "猫です"},
        {"question": "What is it, and where is it?", "answer": "a cat"},
    ]  # fmt: skip
    (here / "data.json").write_text(json.dumps(rows))
    found = survey(SourceConfig("data.json"))
    assert {"LATIN", "CYRILLIC", "HIRAGANA"} <= set(found.alphabets) and not found.counted
    assert sum(found.alphabets.values()) <= 1 and found.text_only == 3


def test_in_a_terminal_it_asks_three_questions(here: Path) -> None:
    squares(here, pictures=24)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vlchat.cli", "init"]
    running = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"PYTHONPATH": ROOT}
    )
    os.close(theirs)
    os.write(ours, b"embedded\nnone.json\n\nnone\n")  # a mistake, and Enter for the file that lies here
    told = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side has gone
        while piece := os.read(ours, 4096):
            told += piece
    os.close(ours)
    assert running.wait() == 0, told.decode()
    text = told.decode()
    assert [text.count(f"{number} of 3.") for number in (1, 2, 3)] == [1, 1, 1]
    assert "none.json does not exist" in text and "Written: finetune.yaml" in text
    assert config_of("finetune.yaml").data == [{"path": "data.json"}]


def answers(*lines: str) -> Callable[[str], str]:
    given: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    return read


def test_a_question_takes_numbers_words_and_enter_and_asks_again() -> None:
    said: list[str] = []
    choices = [("none", "this machine"), ("rtx-4090", "24 GiB")]

    def answer(*lines: str) -> Machine:
        return ask("Which GPU?", choices, machine_of, answers(*lines), said.append)

    assert answer("2").name == "rtx-4090" and not answer("").gpu and answer("h100").memory == 80 * GIB
    assert answer("rtx-9999", "24").memory == 24 * GIB and "There is no GPU" in said[-1]
    assert "  2  rtx-4090  24 GiB" in said
    with pytest.raises(VLChatError, match="Stopped: nothing was written"):
        answer("rtx-9999")
