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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vlchat
from vlchat.data import pictures
from vlchat.data.pictures import Cache, Verdict

MOST_WORKERS = 4  # a picture may take 64 million pixels, a few times over
_AT_ONCE = 16  # files that a worker is sent together
_WORDS = {"image": "picture", "video": "video"}
_Asked = tuple[Any, Any, str]  # key, file, field


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
        self._waiting: queue.Queue[_Asked | None] = queue.Queue(maxsize=2 * _AT_ONCE * max(1, workers))
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
            self._judge([(key, source, field)], None)

    def verdicts(self) -> dict[Any, Verdict]:
        """All verdicts by key, once the context has been left."""
        return self._verdicts

    def _serve(self, worker: _Worker) -> None:
        while asked := self._some():
            if not self._stopped:
                try:
                    self._judge(asked, worker)
                except BaseException as caught:  # raised where the context is left; the queue goes on being emptied
                    self._error, self._stopped = caught, True
        worker.close()

    def _some(self) -> list[_Asked]:
        """What waits, at most `_AT_ONCE` of it; nothing when the end has come."""
        taken = [self._waiting.get()]
        while taken[-1] is not None and len(taken) < _AT_ONCE:
            try:
                taken.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        if taken[-1] is None and len(taken) > 1:
            self._waiting.put(None)  # for when this thread comes again
        return [asked for asked in taken if asked is not None]

    def _judge(self, asked: list[_Asked], worker: _Worker | None) -> None:
        """Puts down the verdicts on some files: kept ones, else what the worker, or this process, finds."""
        digests: dict[int, str] = {}
        waiting = []
        for number, (key, source, field) in enumerate(asked):
            known = self._cache is not None and isinstance(source, bytes | Path)
            digest = pictures.digest(source, field) if known else None
            found = None
            if digest is not None and self._cache is not None:
                digests[number] = digest
                with self._lock:
                    found = self._cache.get(digest)
            if found is not None:
                self._verdicts[key] = found
            else:
                waiting.append(number)
        files = [asked[number][1:] for number in waiting]
        answers = worker.ask(files) if worker is not None else [pictures.decoded(*file) for file in files]
        for number, answer in zip(waiting, answers, strict=True):
            key, _, field = asked[number]
            ended = f"The {_WORDS[field]} ended the process that decoded it."
            self._verdicts[key] = answer or Verdict("damaged_file", ended)
            # What is wrong with a video may be that PyAV is missing, and what ended a process that its memory was full.
            if number in digests and self._cache is not None and answer and (field == "image" or answer.kind is None):
                with self._lock:
                    self._cache.put(digests[number], answer)


class _Worker:
    """One process that decodes; started when it is first asked, and again when a file has ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, files: Sequence[tuple[Any, str]]) -> list[Verdict | None]:
        """The verdict on each (file, field), in order; None for one over which the process ended."""
        found: list[Verdict | None] = []
        if self._process is not None and self._process.poll() is not None:
            self.close()  # over nothing that is asked now
        while len(found) < len(files):
            process = self._process = self._process or _start()
            if process is None:
                return found + [pictures.decoded(*file) for file in files[len(found) :]]
            assert process.stdin is not None and process.stdout is not None
            try:  # all of them at once, so that the process need not wait for the next
                process.stdin.writelines(_request(*file) for file in files[len(found) :])
                process.stdin.flush()
                while len(found) < len(files):
                    kind, reason, size = json.loads(process.stdout.readline())
                    found.append(Verdict(kind, reason, None if size is None else (size[0], size[1])))
            except (OSError, ValueError):  # it works in order: the first without an answer is what ended it
                self.close()
                found.append(None)
        return found

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _request(source: Path | bytes, field: str) -> bytes:
    request = {"field": field}
    if isinstance(source, bytes):
        request["data"] = base64.b64encode(source).decode()
    else:
        request["path"] = os.fsencode(source).hex()  # a file's name may be no text
    return json.dumps(request).encode() + b"\n"


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
