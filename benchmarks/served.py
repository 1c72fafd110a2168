"""The real server in a process of its own, watched from outside: for the benchmarks of serving.

python benchmarks/served.py MODEL PORT     # what `Server` starts: the page and the API, with small budgets
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import CLIPVisionConfig, CLIPVisionModel, GenerationConfig
from transformers.utils import logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the tiny model is that of the tests

MIB = 2**20
_PATIENCE = 600.0  # seconds for a start, on a busy machine


class Server:
    """A server on a free port of this machine, which it keeps when it is started again.

    Args:
        command: what starts it; `{port}` in it becomes the port's number.
        log: a file for whatever it says.
        ready: the path that is answered with 200 once questions are taken.
    """

    def __init__(self, command: list[str], log: Path, ready: str = "/ready") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.command = [part.replace("{port}", str(self.port)) for part in command]
        self.log, self.ready = log, ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it takes questions.

        Raises:
            SystemExit: it ended, or it takes none after ten minutes; with the end of its log.
        """
        paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        with self.log.open("ab") as said:
            self._process = subprocess.Popen(self.command, stdout=said, stderr=said, env=environment)
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.address + self.ready, timeout=5).is_success:
                    return
            time.sleep(0.1)
        self.kill()
        raise SystemExit(f"The server did not start. The end of what it said:\n{self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """kill -9, and nothing else."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """Inside, it runs."""
        self.start()
        try:
            yield self
        finally:
            self.kill()

    def state(self) -> dict[str, int]:
        """Bytes of memory (the kernel's RSS), threads and open files of the process and of those that it started."""
        found = {"resident": 0, "threads": 0, "files": 0}
        for one in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found["resident"] += one.memory_info().rss
                found["threads"] += one.num_threads()
                found["files"] += one.num_fds()
        return found

    def processor(self) -> float:
        """Seconds of CPU time that they have taken."""
        found = 0.0
        for one in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                found += times.user + times.system
        return found

    def _processes(self) -> list[psutil.Process]:
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        return [process, *process.children(recursive=True)]


def vlchat(model: Path, log: Path, kept: int = 512 * MIB, pictures: int = 64 * MIB) -> Server:
    """A vlchat server, not started yet.

    Args:
        kept, pictures: bytes for what is kept of conversations and of pictures.
    """
    options = ["--kept", str(kept), "--pictures", str(pictures)]
    return Server([sys.executable, str(Path(__file__).resolve()), str(model), "{port}", *options], log, "/metrics")


def gauges(text: str) -> dict[str, float]:
    """The numbers without labels in Prometheus' text, by name."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {sample.name: sample.value for sample in samples if not sample.labels}


def save_tiny(folder: Path) -> Path:
    """The tests' tiny model that answers with endless words which mean nothing, but follow from all that it is told."""
    from talkative import save_talkative
    from tiny_tokenizers import byte_level

    logging.disable_progress_bar()
    torch.manual_seed(1)
    tower = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=12
    )
    save_talkative(folder, CLIPVisionModel(tower).eval(), byte_level())
    config = GenerationConfig.from_pretrained(folder)
    config.repetition_penalty = 2.0  # by itself it falls into "picture picture picture", whatever it was asked
    config.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--kept", type=int, default=512 * MIB, help="bytes for what is kept of conversations")
    parser.add_argument("--pictures", type=int, default=64 * MIB, help="bytes for what is kept of pictures")
    arguments = parser.parse_args()
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from serve.app import launch
    from vlchat.chat import Chat

    chat = Chat.load(arguments.model)
    chat.description["name"] = "model"
    page = launch(chat, port=arguments.port)
    engine = page.engine
    engine.first.prefixes.budget, engine.first.pictures.budget = arguments.kept, arguments.pictures

    async def metrics(request: Request) -> Response:
        return Response(engine.metrics.text())

    if not any(getattr(route, "path", None) == "/metrics" for route in page.app.router.routes):
        page.app.router.routes[:0] = [Route("/metrics", metrics)]  # before Gradio's, which take every name at the root
    threading.Event().wait()


if __name__ == "__main__":
    main()
