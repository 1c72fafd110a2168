"""The task video: which rows it takes, how many frames, and a real model's answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scripted import Scripted, replied

from vlchat.chat import Chat
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate import evaluate
from vlchat.evaluate.blind import images_of
from vlchat.evaluate.tasks.video import VideoTask


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Two videos of eight grey frames; the second row says how many frames it wants."""
    for name, offset in (("up", 0), ("down", 100)):
        shades = [Image.new("RGB", (24, 24), (offset + 10 * number,) * 3) for number in range(8)]
        shades[0].save(tmp_path / f"{name}.gif", save_all=True, append_images=shades[1:], duration=100)
    found = []
    for name, extra in (("up", {}), ("down", {"frames": 2})):
        content = [{"type": "video", "video": f"{name}.gif", **extra}, {"type": "text", "text": "Which way?"}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": name}]
        found.append({"id": name, "messages": turns})
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in found))
    return str(tmp_path / "rows.jsonl")


def test_frames_are_what_the_option_or_the_row_says(data: str) -> None:
    script = Scripted(lambda request: "up")
    result = evaluate(script, VideoTask(data=data), progress=False)
    assert sorted(len(images_of(request.messages)) for request in script.asked) == [2, 8]
    assert [row["score"] for row in result.rows] == [1, 0] and "the row's number of frames" in result.protocol
    script = Scripted(lambda request: "up")
    result = evaluate(script, VideoTask(data=data, frames=4), progress=False)
    shown = [images_of(request.messages) for request in script.asked]
    assert [len(pictures) for pictures in shown] == [4, 4]
    # The middle of each quarter: frames 1, 3, 5 and 7 of 8.
    assert [picture.getpixel((0, 0))[0] for picture in shown[0]] == [10, 30, 50, 70]
    assert result.protocol.startswith("vlchat-video-1 (4 frames a video; exact match")


def test_scored_as_the_task_vqa(data: str) -> None:
    task = VideoTask(data=data, floor=data)
    assert [replied(task, item, "The up.").score for item in task.items()] == [1, 0]
    assert {task.floor(item) for item in task.items()} <= {"up", "down"}


def test_rows_without_a_video_and_odd_numbers_are_refused(data: str, tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_text('[{"id": "p", "question": "Which?", "answer": "x"}]')
    with pytest.raises(DataError, match=r'1 of 1 rows show no video: .*"p".*task vqa'):
        VideoTask(data=str(tmp_path / "plain.json"))
    for frames in (0, 65):
        with pytest.raises(ConfigError, match=f"frames is {frames}; from 1 to 64"):
            VideoTask(data=data, frames=frames)


def test_a_real_model_answers_and_is_blinded(data: str, tiny_model: Any, tiny_processor: Any) -> None:
    chat = Chat(tiny_model(), tiny_processor, {"name": "tiny"})
    controls = ["shuffled", "none"]
    result = evaluate(chat, VideoTask(data=data, frames=2), controls=controls, max_new_tokens=3, progress=False)
    assert result.counts["unanswered"] == 0 and set(result.rows[0]["controls"]) == set(controls)
