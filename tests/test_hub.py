"""Models on the Hub: short names, revisions, adapters and runs, from a real cache of the Hub and without a network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from talkative import save_talkative

from vlchat import checkpoint, hub
from vlchat.chat import Chat
from vlchat.cli import main
from vlchat.errors import CheckpointError
from vlchat.lora import add_lora

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A factory: `cache(folder, "me/model", "main")` puts a folder into a Hub cache as a download would."""
    from huggingface_hub import constants

    root = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(root))

    def put(folder: Path, repository: str, *names: str) -> Path:
        place = root / f"models--{repository.replace('/', '--')}"
        commit = hashlib.sha1(f"{repository}{names}".encode()).hexdigest()
        for path in (path for path in folder.rglob("*") if path.is_file()):
            blob = place / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, blob)
            link = place / "snapshots" / commit / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        for name in names or ("main",):
            (place / "refs").mkdir(exist_ok=True)
            (place / "refs" / name).write_text(commit)
        return root

    return put


@pytest.fixture
def two(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> tuple[Path, Path]:
    """Two models that answer differently."""
    first = save_talkative(tmp_path / "first", tiny_clip, tiny_tokenizer)
    chat = Chat.load(first)
    with torch.no_grad():
        chat.model.lm_head.weight.copy_(chat.model.lm_head.weight.roll(7, 0))
    chat.model.save_pretrained(tmp_path / "second")
    chat.processor.chat_template += "{# the second #}"
    chat.processor.save_pretrained(tmp_path / "second")
    return first, tmp_path / "second"


def said(model: Any, **options: Any) -> str:
    return Chat.load(model, **options).ask(None, "two cats", max_new_tokens=6)


def test_a_revision_reaches_model_and_processor(two: tuple[Path, Path], cache: Callable) -> None:
    cache(two[0], "me/model", "main")
    cache(two[1], "me/model", "v2")
    first, second = said(two[0]), said(two[1])
    assert first != second
    assert said("me/model") == first
    assert said("me/model", revision="v2") == said("me/model@v2") == second
    assert "the second" in Chat.load("me/model@v2").processor.chat_template
    assert checkpoint.describe("me/model", "v2")["language"] == "llama"
    with pytest.raises(CheckpointError, match="me/model can't be loaded"):
        Chat.load("me/model", revision="v3")
    with pytest.raises(CheckpointError, match="names one revision and --revision v3 another"):
        Chat.load("me/model@v2", revision="v3")


def test_a_short_name_is_the_id_on_the_hub(
    two: tuple[Path, Path], cache: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(two[0], "HuggingFaceTB/SmolVLM-256M-Instruct")
    assert said("smolvlm-256m") == said("SmolVLM-256M") == said(two[0])
    assert Chat.load("smolvlm-256m").description["path"] == "HuggingFaceTB/SmolVLM-256M-Instruct"
    monkeypatch.chdir(tmp_path)
    two[1].rename(tmp_path / "smolvlm-256m")  # a folder of that name is meant sooner
    assert said("smolvlm-256m") == said(tmp_path / "smolvlm-256m") != said(two[0])


def test_what_push_sends_up_comes_back(two: tuple[Path, Path], cache: Callable, tmp_path: Path) -> None:
    """A run on a base from the Hub, itself on the Hub, and its adapter alone as other programs keep it."""
    cache(two[0], "me/base")
    model, processor = checkpoint.load("me/base")
    tuned = add_lora(model, r=2, alpha=4)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    base: dict[str, Any] = {"model": "me/base"}
    checkpoint.save(tmp_path / "run", tuned, processor, base=base, trained=[], adapter=True, trained_on="x")
    expected = said(tmp_path / "run")
    assert expected != said("me/base")
    cache(tmp_path / "run", "me/run", "v1")
    assert said("me/run", revision="v1") == expected
    assert checkpoint.describe("me/run", "v1")["trained_on"] == "x"
    alone = shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "alone")
    settings = json.loads((alone / "adapter_config.json").read_text())
    (alone / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "me/base"}))
    cache(alone, "me/adapter")
    assert said("me/adapter") == said(alone) == expected
    assert hub.snapshot("me/base") is None


def test_a_run_remembers_the_revision_of_its_base(
    two: tuple[Path, Path], cache: Callable, tmp_path: Path, picture: Callable
) -> None:
    cache(two[0], "Qwen/Qwen3-VL-2B-Instruct", "main")
    cache(two[1], "Qwen/Qwen3-VL-2B-Instruct", "v2")
    picture(1).save(tmp_path / "one.png")
    (tmp_path / "rows.json").write_text(json.dumps([{"image": "one.png", "question": "two cats", "answer": "yes"}] * 4))
    settings = {
        "run": str(tmp_path / "run"),
        "objective": {"type": "tune", "model": "qwen3-vl-2b", "revision": "v2"},
        "data": [{"path": str(tmp_path / "rows.json")}],
        "trainable": {"connector": 1e-9},
        "loop": {"steps": 1, "batch": 2, "workers": 0},
    }
    (tmp_path / "tune.yaml").write_text(json.dumps(settings))
    assert main(["train", str(tmp_path / "tune.yaml")]) == 0
    assert checkpoint.describe(tmp_path / "run")["base"] == {"model": "Qwen/Qwen3-VL-2B-Instruct@v2"}
    assert said(tmp_path / "run") == said(two[1]) != said(two[0])
    settings["objective"]["model"] = str(two[0])
    (tmp_path / "tune.yaml").write_text(json.dumps(settings))
    assert main(["train", str(tmp_path / "tune.yaml"), "--overwrite"]) == 2


def test_an_absent_model_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlchat.cli", "info", "nobody/nothing"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vlchat: The checkpoint nobody/nothing can't be loaded: there is no such folder here")
    assert len(done.stderr.splitlines()) == 1
