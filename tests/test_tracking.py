"""Scores in trackers: every figure under its name, and no score is lost over one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlchat.chat import Chat
from vlchat.errors import ConfigError
from vlchat.evaluate import VqaTask, evaluate, save
from vlchat.evaluate.tracking import log_result, numbers
from vlchat.trackers import check

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tiny_model: Any, tiny_processor: Any, picture: Any, tmp_path: Path) -> Path:
    """The result of a tiny model on eight questions, with two controls and the floor."""
    rows = []
    for number in range(8):
        picture(number // 2).save(tmp_path / f"{number // 2}.png")
        kind = "open" if number % 2 else "closed"
        answer = "red" if number % 2 else "no"
        row = {"image": f"{number // 2}.png", "question": f"What {number}?", "answer": answer, "answer_type": kind}
        rows.append(row)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = str(tmp_path / "rows.json")
    task = VqaTask(data=data, floor=data)
    chat = Chat(tiny_model(), tiny_processor, {"name": "tiny"})
    result = evaluate(chat, task, controls=["none", "shuffled"], max_new_tokens=4, progress=False)
    result.task = "vqa, mine"
    return save(result, tmp_path / "scores")


def test_tensorboard_gets_every_figure_and_the_table(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = json.loads((folder / "result.json").read_text())
    log_result(result, ["tensorboard"], folder, step=400)
    found = EventAccumulator(str(folder / "trackers" / "tensorboard" / "scores"))
    found.Reload()
    sent = {}
    for tag in found.Tags()["scalars"]:
        (event,) = found.Scalars(tag)
        assert event.step == 400
        sent[tag] = event.value
    headline = result["measures"][0]["name"]
    figures = {
        f"eval/vqa_mine/{headline}": result["overall"][headline],
        f"eval/vqa_mine/{headline}_shuffled": result["controls"]["shuffled"]["blind"],
        "eval/vqa_mine/worth_none": result["controls"]["none"]["verdict"]["difference"],
        f"eval/vqa_mine/{headline}_floor": result["floor"]["overall"][headline],
        f"eval/vqa_mine/answer_type_open/{headline}": result["slices"]["answer_type"]["open"][headline],
    }
    for name, figure in figures.items():
        for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            if figure[key] is not None:
                assert sent[name + suffix] == pytest.approx(figure[key], rel=1e-6), name
    assert sent["eval/vqa_mine/questions"] == 8 and sent["eval/vqa_mine/unanswered"] == 0
    assert sent[f"eval/vqa_mine/{headline}_floor"] == 1.0
    assert set(sent) == set(numbers(result)), "what is named is what is sent"
    (text,) = found.Tensors("eval/vqa_mine/result/text_summary")
    assert text.tensor_proto.string_val[0].decode() == (folder / "result.md").read_text()


def test_names_are_those_that_every_tracker_takes(folder: Path) -> None:
    result = json.loads((folder / "result.json").read_text())
    result["overall"]["yes/no, by first word"] = {"value": 0.5, "low": None, "high": 0.75}
    result["calibration"] = {"ECE": {"value": 0.1, "low": 0.05, "high": 0.2}, "Brier": 0.3, "bins": [1, 2]}
    found = numbers(result)
    assert found["eval/vqa_mine/yes_no_by_first_word"] == 0.5 and "eval/vqa_mine/yes_no_by_first_word_low" not in found
    assert found["eval/vqa_mine/calibration/ECE_high"] == 0.2 and found["eval/vqa_mine/calibration/Brier"] == 0.3
    names = sorted(found)
    assert all(part and set(part) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
               for name in names for part in name.split("/"))  # fmt: skip
    assert not any(other.startswith(name + "/") for name in names for other in names), "a name is no folder of others"


def test_a_tracker_that_fails_is_told_and_one_that_is_not_there_refused(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    (folder / "trackers").write_text("a file where a folder should be")
    told: list[str] = []
    log_result(json.loads((folder / "result.json").read_text()), ["tensorboard"], folder, say=told.append)
    assert len(told) == 1 and told[0].startswith("The tracker tensorboard failed and is left out from here: ")
    with pytest.raises(ConfigError, match='--track: there is no "tensorbord"; .*Did you mean "tensorboard"'):
        check(["tensorbord"], "--track")


def test_trackers_work_outside_of_a_training(tmp_path: Path) -> None:
    code = (  # those of wandb and trackio fail at their first line of log without it
        "from pathlib import Path\nfrom accelerate import PartialState\nfrom vlchat.trackers import Trackers\n"
        f"Trackers([], Path({str(tmp_path)!r}), {{}}, print)\nprint(bool(PartialState._shared_state))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
