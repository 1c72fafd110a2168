"""Nothing is asked twice: the answer cache, going on after an interruption, and several processes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scored import questions, saved

from vlchat.errors import VLChatError
from vlchat.evaluate import Reply, Request, VqaTask, evaluate, run
from vlchat.evaluate.cache import FILE, AnswerCache
from vlchat.evaluate.identity import model_identity, picture_key, request_key


class Counting:
    """Answers with the question's own words, and keeps count; told to stop, it does so in the middle."""

    description = {"name": "counting"}

    def __init__(self, identity: str = "one", stop_after: int | None = None) -> None:
        self.identity, self.stop_after = identity, stop_after
        self.asked: list[str] = []

    def answer(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Reply]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += [str(request_key(request)) for request in requests]
        return [Reply("yes", logprob=-0.5, tokens=2) for _ in requests]


def test_an_interrupted_evaluation_asks_no_row_twice(tmp_path: Path) -> None:
    data = questions(tmp_path, 12)
    options: dict[str, Any] = {"controls": ["none"], "batch_size": 3, "progress": False}
    first = Counting(stop_after=6)
    with pytest.raises(KeyboardInterrupt):
        evaluate(first, VqaTask(data=str(data)), cache=AnswerCache(tmp_path / "cache"), **options)
    second = Counting()
    result = evaluate(second, VqaTask(data=str(data)), cache=AnswerCache(tmp_path / "cache"), **options)
    assert len(first.asked) == 6 and not set(first.asked) & set(second.asked)
    assert (result.counts["known"], result.counts["asked"]) == (6, 18) and len(second.asked) == 18
    whole = evaluate(Counting(), VqaTask(data=str(data)), **options)
    assert [row["reply"] for row in result.rows] == [row["reply"] for row in whole.rows]
    assert [row["confidence"] for row in result.rows] == [row["confidence"] for row in whole.rows]
    third = Counting()
    evaluate(third, VqaTask(data=str(data)), cache=AnswerCache(tmp_path / "cache"), **options)
    assert third.asked == []
    other = Counting(identity="another")
    evaluate(other, VqaTask(data=str(data)), cache=AnswerCache(tmp_path / "cache"), **options)
    assert len(other.asked) == 24


@pytest.mark.parametrize("change", ["words", "picture", "choices", "beams", "tokens", "order"])
def test_whatever_is_asked_otherwise_has_another_key(change: str, picture: Any) -> None:
    def request(one: Any, two: Any, text: str = "What?", **options: Any) -> Request:
        parts = [{"type": "image", "image": one}, {"type": "image", "image": two}, {"type": "text", "text": text}]
        return Request([{"role": "user", "content": parts}], **options)

    changed = {
        "words": request(picture(1), picture(2), "What? "),
        "picture": request(picture(1), picture(3)),
        "choices": request(picture(1), picture(2), choices=("a",)),
        "beams": request(picture(1), picture(2), beams=2),
        "tokens": request(picture(1), picture(2), max_new_tokens=3),
        "order": request(picture(2), picture(1)),
    }
    assert request_key(request(picture(1), picture(2))) == request_key(request(picture(1), picture(2)))
    assert request_key(changed[change]) != request_key(request(picture(1), picture(2)))


def test_a_picture_file_that_changes_is_another_picture(tmp_path: Path, picture: Any) -> None:
    path = tmp_path / "a.png"
    picture(1).save(path)
    gone = [picture_key(path.with_name(name))[:16] for name in ("gone 1.png", "gone 2.png")]
    assert len(set(gone)) == 2, "rows whose pictures are gone do not share one"
    before = picture_key(path)
    time.sleep(0.01)
    picture(2).save(path)
    assert picture_key(str(path)) != before


def test_refusals_are_asked_again_and_half_an_emoji_is_no_hindrance(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.keep({"a": Reply(error="too long"), "b": Reply("red \ud83d", -1.0, 3, (-1.0, -2.0), (1, 2))})
    assert AnswerCache(tmp_path).find(["a", "b", "c"]) == {"b": Reply("red \ud83d", -1.0, 3, (-1.0, -2.0), (1, 2))}


def test_a_cache_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(VLChatError, match=r"(?s)answers\.sqlite.*--no-cache"):
        AnswerCache(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(VLChatError, match="--cache"):
        AnswerCache(tmp_path / "file" / "below")


def test_it_holds_neither_words_nor_pictures(tmp_path: Path) -> None:
    data = questions(tmp_path, 2)
    evaluate(Counting(), VqaTask(data=str(data)), cache=AnswerCache(tmp_path), progress=False)
    rows = sqlite3.connect(tmp_path / FILE).execute("SELECT * FROM answers").fetchall()
    assert len(rows) == 2 and "What" not in str(rows)


def test_a_models_identity_is_what_decides_its_answers(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any
) -> None:
    folder = saved(tmp_path / "model", tiny_model(), tiny_processor)
    before = model_identity(folder)
    (folder / "README.md").write_text("a note")
    assert model_identity(folder) == before
    template = folder / "chat_template.jinja"
    text = template.read_text()
    template.write_text(text + " ")
    assert model_identity(folder) != before
    template.write_text(text)
    assert model_identity(folder) == before
    changed = tiny_model()
    changed.model.connector.layers[0].weight.data.add_(1e-3) if hasattr(changed.model.connector, "layers") else [
        parameter.data.add_(1e-3) for parameter in changed.model.connector.parameters()
    ]
    assert model_identity(saved(tmp_path / "changed", changed, tiny_processor)) != before


def test_a_known_evaluation_loads_no_model(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlchat.chat import Chat

    folder = saved(tmp_path / "model", tiny_model(), tiny_processor)
    options: dict[str, Any] = {"data": str(questions(tmp_path)), "cache": tmp_path / "cache", "progress": False}
    first = run(folder, "vqa", max_new_tokens=3, **options)
    monkeypatch.setattr(Chat, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert run(folder, "vqa", max_new_tokens=3, **options).rows == first.rows


def _command(folder: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["-m", "vlchat.cli", "eval", str(folder), "--data", str(data), "--out", str(out), "--max-new-tokens", "3",
            "--controls", "shuffled,none", "--batch", "2", "--cache", str(out / "cache"), *more]  # fmt: skip


def test_two_processes_give_what_one_gives(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    folder = saved(tmp_path / "model", tiny_model(), tiny_processor)
    data = questions(tmp_path / "data", 11)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    one = subprocess.run([sys.executable, *_command(folder, data, tmp_path / "one")], env=environment,
                         capture_output=True, text=True)  # fmt: skip
    assert one.returncode == 0, one.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    two = subprocess.run([*launcher, *_command(folder, data, tmp_path / "two")], env=environment,
                         capture_output=True, text=True)  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("Written:") == 1, "one process prints"
    rows = [[json.loads(line) for line in (tmp_path / name / "replies.jsonl").read_text().splitlines()]
            for name in ("one", "two")]  # fmt: skip
    for first, second in zip(*rows, strict=True):
        assert first.pop("confidence") == pytest.approx(second.pop("confidence"), rel=1e-3)
        assert first == second


def test_a_killed_evaluation_goes_on(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    folder = saved(tmp_path / "model", tiny_model(), tiny_processor)
    data = questions(tmp_path / "data", 60)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, *_command(folder, data, out)], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    database = out / "cache" / FILE

    def known() -> int:
        try:
            return sqlite3.connect(database).execute("SELECT COUNT(*) FROM answers").fetchone()[0]
        except sqlite3.Error:
            return 0

    while process.poll() is None and known() < 10:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = known()
    assert 10 <= kept
    done = subprocess.run([sys.executable, *_command(folder, data, out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads((out / "result.json").read_text())["counts"]
    assert counts["known"] >= kept and counts["known"] + counts["asked"] == 180
