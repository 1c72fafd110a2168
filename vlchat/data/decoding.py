"""Decodes many files in worker processes; `python -m vlchat.data.decoding` is one of them.

Each worker is a plain process that reads requests and writes verdicts, one JSON object a line. So a file whose decoder
crashes, or takes all the memory, ends one worker, and it is known which file that was.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import vlchat
from vlchat.data import pictures
from vlchat.data.pictures import Cache, Verdict

MOST_WORKERS = 4  # a picture may take 64 million pixels, a few times over


def default_workers() -> int:
    """As many as this process may use cores, and no more than `MOST_WORKERS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


class Decoders:
    """Verdicts on pictures and videos, found in the background; use as a context manager.

    Args:
        workers: processes; 0 decodes in this one, when `ask` is called.
        cache: of earlier verdicts; None keeps none.
    """

    def __init__(self, workers: int, cache: Cache | None) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._verdicts: dict[Any, Verdict] = {}
        self._waiting: queue.Queue[tuple[Any, Any, str] | None] = queue.Queue(maxsize=4 * max(1, workers))
        self._stopped = False
        self._error: BaseException | None = None
        self._workers = [_Worker() for _ in range(workers)]
        self._threads = [threading.Thread(target=self._serve, args=(one,), daemon=True) for one in self._workers]

    def __enter__(self) -> Decoders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._stopped = kind is not None
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()
        if self._cache is not None:
            self._cache.save()
        if self._error is not None and kind is None:
            raise self._error

    def ask(self, key: Any, source: Path | bytes | Any, field: str) -> None:
        """Asks for the verdict on a file; waits while more are under way than the workers can take."""
        if self._threads and isinstance(source, bytes | Path):
            self._waiting.put((key, source, field))
        else:
            self._verdicts[key] = self._judge(source, field, None)

    def verdicts(self) -> dict[Any, Verdict]:
        """All verdicts by key, once the context has been left."""
        return self._verdicts

    def _serve(self, worker: _Worker) -> None:
        while (asked := self._waiting.get()) is not None:
            if not self._stopped:
                key, source, field = asked
                try:
                    self._verdicts[key] = self._judge(source, field, worker)
                except BaseException as caught:  # raised where the context is left; the queue goes on being emptied
                    self._error, self._stopped = caught, True
        worker.close()

    def _judge(self, source: Any, field: str, worker: _Worker | None) -> Verdict:
        known = isinstance(source, bytes | Path) and self._cache is not None
        digest = pictures.digest(source, field) if known else None
        if digest is not None and self._cache is not None:
            with self._lock:
                found = self._cache.get(digest)
            if found is not None:
                return found
        answer = worker.ask(source, field) if worker is not None else pictures.decoded(source, field)
        verdict = answer or Verdict("damaged_file", f"The {field} ended the process that decoded it.")
        # What is wrong with a video may be that PyAV is missing, and what ended a process that its memory was full.
        if digest is not None and self._cache is not None and answer and (field == "image" or answer.kind is None):
            with self._lock:
                self._cache.put(digest, verdict)
        return verdict


class _Worker:
    """One process that decodes; started when it is first asked, and again when a file has ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, source: Path | bytes, field: str) -> Verdict | None:
        """The verdict, or None where the process ended over this file."""
        request: dict[str, Any] = {"field": field}
        if isinstance(source, bytes):
            request["data"] = base64.b64encode(source).decode()
        else:
            request["path"] = os.fsencode(source).hex()  # a file's name may be no text
        try:
            process = self._process = self._process or _start()
            if process is None:
                return pictures.decoded(source, field)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            kind, reason, size = json.loads(answer)
            return Verdict(kind, reason, None if size is None else (size[0], size[1]))
        except (OSError, ValueError):
            self.close()
            return None

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _start() -> subprocess.Popen[bytes] | None:
    """A worker, or None where this system gives none."""
    root = str(Path(vlchat.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vlchat.data.decoding"],  # -P: a dataset's folder is no place to import from
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    except OSError:
        return None
    if process.stdout is None or process.stdout.readline() != b"ready\n":
        process.kill()
        process.communicate()
        return None
    return process


def main() -> None:
    """Answers requests on stdin until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        source: Path | bytes
        if "data" in request:
            source = base64.b64decode(request["data"])
        else:
            source = Path(os.fsdecode(bytes.fromhex(request["path"])))
        verdict = pictures.decoded(source, request["field"])
        answers.write(json.dumps([verdict.kind, verdict.reason, verdict.size]).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
