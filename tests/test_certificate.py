"""A certificate is reproduced exactly on a CPU, and what has changed since is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scored import questions, saved

from vlchat.cli import main
from vlchat.errors import VLChatError
from vlchat.evaluate import run, save
from vlchat.evaluate.certificate import FILE, read, verify


@pytest.fixture
def certified(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> Path:
    folder = saved(tmp_path / "model", tiny_model(), tiny_processor)
    options: dict[str, Any] = {"data": str(questions(tmp_path / "data")), "cache": tmp_path / "cache"}
    controls = ["shuffled", "none", "blurred"]
    return save(run(folder, "vqa", controls=controls, max_new_tokens=4, progress=False, **options), tmp_path / "out")


def test_it_reproduces_itself(certified: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verify(certified, progress=False)
    assert found.holds and not found.notes and verify(certified / FILE, progress=False).holds
    assert main(["eval", "--verify", str(certified)]) == 0
    assert "every reply and figure is the same" in capsys.readouterr().out


def test_a_changed_data_file_prompt_picture_or_model_is_named(certified: Path, tmp_path: Path) -> None:
    data = tmp_path / "data" / "rows.json"
    rows = json.loads(data.read_text())

    def found(change: Any) -> str:
        altered = json.loads(json.dumps(rows))
        change(altered)
        data.write_text(json.dumps(altered))
        result = verify(certified, progress=False)
        data.write_text(json.dumps(rows))
        assert not result.holds and not result.differs
        return " ".join(result.changed)

    told = found(lambda altered: altered[0].update(answer="else"))
    assert "data has changed" in told and "rows.json" in told and "sha256" in told and "prompts" not in told
    told = found(lambda altered: altered[0].update(question="Why?"))
    assert "prompts have changed" in told and "'user: <image>\\nWhy?'" in told
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "data" / "0.png")
    assert ["The pictures have changed: their bytes are not what they were."] == verify(certified).changed
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "0.png")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    assert "The model has changed" in verify(certified, progress=False).changed[0]


def test_a_changed_parser_is_named(certified: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vlchat.evaluate import certificate

    source = Path(certificate.inspect.getfile(certificate.TASKS["vqa"]))
    changed = tmp_path / "vqa.py"
    changed.write_text(source.read_text() + "# another rule\n")
    real = certificate.inspect.getfile
    monkeypatch.setattr(
        certificate.inspect, "getfile", lambda one: str(changed) if real(one) == str(source) else real(one)
    )
    assert any("parser has changed" in sentence for sentence in verify(certified).changed)


def test_another_protocol_is_named(certified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlchat.evaluate.tasks.vqa import ExamplesTask

    written = ExamplesTask.__init__

    def newer(self: Any, *arguments: Any, **options: Any) -> None:
        written(self, *arguments, **options)
        self.protocol = self.protocol.replace("vqa-1", "vqa-2")

    monkeypatch.setattr(ExamplesTask, "__init__", newer)
    assert "vlchat-vqa-2" in " ".join(verify(certified).changed)


def test_a_model_that_answers_otherwise_does_not_hold(certified: Path, tmp_path: Path) -> None:
    content = json.loads((certified / FILE).read_text())
    del content["sha256"]
    content["scores"]["accuracy"]["value"] = 0.99
    content["replies"] = "0" * 64
    from vlchat.evaluate.certificate import _digest

    (certified / FILE).write_text(json.dumps(content | {"sha256": _digest(content)}))
    found = verify(certified, progress=False)
    assert not found.holds and not found.changed
    assert "accuracy was 0.99 and is" in found.differs[0] and "Not every reply" in found.differs[-1]


def test_a_certificate_that_was_edited_or_is_none_is_refused(certified: Path, tmp_path: Path) -> None:
    content = json.loads((certified / FILE).read_text())
    content["scores"]["accuracy"]["value"] = 1.0
    (certified / FILE).write_text(json.dumps(content))
    with pytest.raises(VLChatError, match="changed after it was written"):
        read(certified)
    for text in ("{", "[]", '{"certificate": 9}'):
        (certified / FILE).write_text(text)
        with pytest.raises(VLChatError, match="certificate"):
            read(certified)
    with pytest.raises(VLChatError, match="--out FOLDER"):
        verify(tmp_path / "nowhere")


def test_data_that_has_moved_is_no_change(certified: Path, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(VLChatError, match="rows.json"):
        verify(certified)
    assert verify(certified, data=str(tmp_path / "moved" / "rows.json"), progress=False).holds
