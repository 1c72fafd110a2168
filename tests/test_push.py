"""Publishing: what is listed is what is sent, what others could not load is refused, and what arrives answers."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from talkative import save_talkative

from vlchat import checkpoint
from vlchat.chat import Chat
from vlchat.cli import main
from vlchat.errors import CheckpointError, UnsafeCheckpointError, VLChatError
from vlchat.export.push import check_name, pack, push
from vlchat.lora import add_lora

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def whole(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> Path:
    model, processor = checkpoint.load(save_talkative(tmp_path / "base", tiny_clip, tiny_tokenizer))
    checkpoint.save_full(tmp_path / "whole", model, processor, trained_on="")
    card = "---\nlicense: mit\nbase_model: me/base\n---\n\n# Two cats\n\nText.\n"
    (tmp_path / "whole" / "README.md").write_text(card)
    return tmp_path / "whole"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on the embedded model as training leaves it: training state inside, and paths of this machine."""
    model, processor = checkpoint.load(None)
    model = add_lora(model, r=2, alpha=4)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.5)

    def extra(stage: Path) -> None:
        (stage / "training_state").mkdir()
        (stage / "training_state" / "optimizer.safetensors").write_bytes(b"x" * 50)
        settings = {"data": [{"path": str(tmp_path / "secret patients" / "rows.json")}], "run": "runs/x"}
        (stage / "run.json").write_text(json.dumps(settings))

    checkpoint.save(
        tmp_path / "run" / "step-3", model, processor,
        base={"model": None}, trained=[], adapter=True, trained_on="rows", extra=extra,
    )  # fmt: skip
    return tmp_path / "run"


def test_a_dry_run_lists_what_would_be_sent(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(whole), "me/model", "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    listed = {line.split()[2] for line in told if line.split()[1:2] and line.split()[1] in ("B", "kB", "MB")} - {"in"}
    assert listed == {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert "README.md: heading Two cats; licence mit; base me/base" in told
    assert told[-1] == "Nothing was sent."
    (whole / "README.md").unlink()
    assert "There is no README.md: nobody will know" in pack(whole).render()
    (whole / "README.md").write_text("# Only words\n")
    assert "names no licence" in pack(whole).render()


def test_a_run_is_sent_without_its_training_state_and_without_paths(run: Path, tmp_path: Path) -> None:
    parcel = pack(run)
    assert not any("training_state" in name for name in parcel.files) and parcel.left_out == ["training_state"]
    told = parcel.render()
    assert f"run.json: {tmp_path / 'secret patients' / 'rows.json'} is sent as rows.json" in told
    assert "Stays here: training_state" in told
    for name, file in parcel.files.items():
        content = file if isinstance(file, bytes) else file.read_bytes()
        assert b"secret patients" not in content and str(ROOT).encode() not in content, name
        (tmp_path / "arrived" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "arrived" / name).write_bytes(content)
    arrived = Chat.load(tmp_path / "arrived")  # every hash fits
    assert arrived.ask(None, "What can you do?") == Chat.load(run).ask(None, "What can you do?")
    assert Chat.load(run).ask(None, "What can you do?") != Chat.load().ask(None, "What can you do?")


def test_what_others_cannot_load_is_refused(whole: Path, run: Path, tmp_path: Path) -> None:
    model, processor = checkpoint.load(whole)
    tuned = add_lora(model, r=2, alpha=4)
    checkpoint.save(
        tmp_path / "local", tuned, processor, base={"model": whole}, trained=[], adapter=True, trained_on=""
    )
    with pytest.raises(CheckpointError, match=r"vlchat.json names the base .*whole, which nobody else .*vlchat export"):
        pack(tmp_path / "local")
    adapter = tmp_path / "foreign"
    (tmp_path / "local" / "adapter").rename(adapter)
    with pytest.raises(CheckpointError, match=r"adapter_config.json names the base .*Write its Hub id there"):
        pack(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "me/base"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    assert "adapter_model.safetensors" in pack(adapter).files
    (adapter / "training_args.bin").write_bytes(b"x")
    with pytest.raises(UnsafeCheckpointError, match="training_args.bin is a pickle"):
        pack(adapter)
    (whole / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged: config.json has changed"):
        pack(whole)
    with pytest.raises(CheckpointError, match="There is no folder"):
        pack(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="holds no model"):
        pack(tmp_path)
    for name in ("model", "me/my/model", "me/two words"):
        with pytest.raises(VLChatError, match="is no name on the Hub"):
            check_name(name)


def test_without_a_token_or_a_network_it_is_told(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(VLChatError, match="needs your token: hf auth login, or set HF_TOKEN"):
        push(pack(whole), "me/model")
    environment = {**os.environ, "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-m", "vlchat.cli", "push", str(whole), "me/model"],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 2 and "vlchat: me/model can't be sent to the Hub: " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as one commit of small files needs."""

    asked: list[tuple[str, Any]]
    commits: dict[str, dict[str, bytes]]
    token: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        home = f"http://{self.headers['Host']}"
        self.token.append(self.headers["Authorization"])
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            branch = self.path.rpartition("/")[2]
            self.commits[branch] = {file["path"]: base64.b64decode(file["content"]) for file in files}
            reply: dict[str, Any] = {"commitUrl": f"{home}/me/model/commit/1", "commitOid": "1", "success": True}
        else:
            told = json.loads(body) if body else {}
            self.asked.append((self.path, told))
            reply = {"url": f"{home}/me/model"}
            if "/preupload/" in self.path:
                reply = {"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in told["files"]]}
        self.answer(reply)

    def do_GET(self) -> None:
        self.answer({"sha": "1", "id": "me/model", "name": "me", "type": "user"})

    def answer(self, reply: dict[str, Any]) -> None:
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    kind = type("OneHub", (Hub,), {"asked": [], "commits": {}, "token": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    server.server_close()


def test_what_was_listed_arrives_in_one_commit(run: Path, hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    address, kind = hub
    environment = {**os.environ, "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address}
    done = subprocess.run(
        [sys.executable, "-m", "vlchat.cli", "push", str(run), "me/model", "--private", "--revision", "v1"],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Sent: {address}/me/model/tree/v1"
    created = dict(kind.asked)["/api/repos/create"]
    assert (created["name"], created["organization"]) == ("model", "me")
    assert created.get("private") or created["visibility"] == "private"  # its name depends on huggingface_hub's version
    assert any(path == "/api/models/me/model/branch/v1" for path, _ in kind.asked)
    assert set(kind.token) == {"Bearer hf_x"}
    sent = kind.commits["v1"]
    assert sent.keys() == pack(run).files.keys()
    for name, content in sent.items():
        (tmp_path / "arrived" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "arrived" / name).write_bytes(content)
    assert Chat.load(tmp_path / "arrived").ask(None, "What can you do?") == Chat.load(run).ask(None, "What can you do?")
