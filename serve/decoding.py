"""Strangers' pictures, opened in processes of their own: a decoder that hangs, crashes or takes all memory ends alone.

What comes back is what `vlchat.images.decode` gives and tells in this process, to the pixel and to the word.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from PIL import Image

from serve.decode_worker import MEMORY, bands
from serve.documents import Document, Part
from serve.tickets import Busy, Closed
from vlchat import images
from vlchat.errors import ImageError

OK, REFUSED, CRASH, TIMEOUT = "ok", "refused", "crash", "timeout"  # and MEMORY: how it went
# The dearest pictures that the caps of vlchat.images admit, 64 million flat pixels in 264 kB of PNG or 0.2 kB of WebP,
# take 2.7 s of a processor and 1.0 GB: what takes more is no picture. The clock is looked at only for a decoder that
# hangs without computing, since on a busy machine a good picture waits as well.
_SECONDS = 5
_BY_THE_CLOCK = 30.0
_MEMORY = 1280 * 2**20
_PATIENCE = 30.0  # seconds until a worker is free
_WAITING = 64  # requests that may wait for one at once
MOST_PICTURES = 16  # of a conversation
MOST_PIXELS = 128_000_000  # of all its pictures; three bytes each
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Opened:
    """How opening a picture went.

    Attributes:
        outcome: `OK`, `REFUSED`, `CRASH`, `TIMEOUT` or `MEMORY`.
        picture: if it is ok; RGB.
        document: its pictures, of one of those.
        error: what a person is told, if it is not ok.
        seconds: of the worker's processor; on the clock, if the worker was ended.
        peak: the most memory that the worker had, in bytes; None where that is not known.
    """

    outcome: str
    picture: Image.Image | None = None
    error: ImageError | None = None
    seconds: float = 0.0
    peak: int | None = None
    document: Document | None = None


class Decoder:
    """Workers that open pictures; they start when they are needed, and one that ended is replaced.

    Args:
        workers: pictures that are opened at once. A slow one holds up no more than one worker.
        seconds: of a processor that a picture may take.
        clock: seconds after which a worker that may only be waiting is ended.
        memory: bytes that a picture may take beyond what a worker has at its start.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        seconds: int = _SECONDS,
        clock: float = _BY_THE_CLOCK,
        memory: int = _MEMORY,
    ) -> None:
        self._limits = (seconds, clock, memory)
        self._places = threading.Semaphore(workers or max(2, min(4, os.cpu_count() or 2)))
        self._lock = threading.Lock()
        self._all: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._closed = False
        self._asking = 0
        self._threads = ThreadPoolExecutor(_WAITING, "vlchat-pictures")

    def decode(self, source: bytes | Path, *, name: str | None = None, mime: str | None = None) -> Image.Image:
        """As `vlchat.images.decode`.

        Raises:
            ImageError: as there; 413 as well where it takes too long or too much memory, 400 where it ends its worker.
            Busy: no worker becomes free.
            Closed: the server is stopping.
        """
        opened = self.open(source, name=name, mime=mime)
        if opened.picture is None:
            assert opened.error is not None
            raise opened.error
        return opened.picture

    def document(self, source: bytes | Path, most: int, *, name: str | None = None) -> Document:
        """As `serve.documents.rendered`.

        Raises:
            ImageError: as there, and as `decode`.
            Busy, Closed: as `decode`.
        """
        opened = self._open(source, {"name": name, "most": most}, images.label_of(name, "file"))
        if opened.document is None:
            assert opened.error is not None
            raise opened.error
        return opened.document

    async def apart(
        self, work: Callable[_Arguments, _Result], *arguments: _Arguments.args, **more: _Arguments.kwargs
    ) -> _Result:
        """Some work that opens pictures, in a thread of the decoder's: those who wait here hold up nobody else."""
        if self._closed:
            raise Closed
        if self._asking >= _WAITING:
            raise Busy("Too many pictures are being opened. Ask again in a minute.")
        self._asking += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*arguments, **more))
        finally:
            self._asking -= 1

    def open(self, source: bytes | Path, *, name: str | None = None, mime: str | None = None) -> Opened:
        """How it went, whatever it was; arguments as of `decode`."""
        return self._open(source, {"name": name, "mime": mime}, images.label_of(name))

    def _open(self, source: bytes | Path, about: dict[str, Any], called: str) -> Opened:
        try:
            data = source if isinstance(source, bytes) else images.read_file(source, called, images.DEFAULT_LIMITS)
        except ImageError as error:
            return Opened(REFUSED, error=error)
        if not self._places.acquire(timeout=_PATIENCE):
            raise Busy("Too many pictures are being opened. Ask again in a minute.")
        try:
            for _ in range(2):
                with self._worker() as worker:
                    opened = worker.open(data, about, called)
                if opened is not None:
                    return opened
                if self._closed:
                    raise Closed
            return _refused(MEMORY, called, 0.0)  # killed twice from outside: by the kernel, to have its memory back
        finally:
            self._places.release()

    def warm_up(self) -> None:
        """Starts a worker, which gets ready by itself, and the threads."""
        with self._worker():
            pass
        together = threading.Barrier(_WAITING)
        list(self._threads.map(lambda _: together.wait(10), range(_WAITING)))

    def close(self) -> None:
        """Ends every worker, whatever it does."""
        with self._lock:
            self._closed = True
            workers = list(self._all)
        for worker in workers:
            worker.end()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _worker(self) -> Iterator[_Worker]:
        with self._lock:
            if self._closed:
                raise Closed
            worker = next((one for one in iter(self._take, None) if one.alive), None)
            if worker is None:
                worker = _Worker(*self._limits)
                self._all.add(worker)
        try:
            yield worker
        finally:
            with self._lock:
                if worker.alive and not self._closed:
                    self._idle.append(worker)
                else:
                    self._all.discard(worker)
            if not worker.alive:
                worker.end()

    def _take(self) -> _Worker | None:
        """One that was idle; it may have ended meanwhile."""
        if not self._idle:
            return None
        worker = self._idle.pop()
        if not worker.alive:
            self._all.discard(worker)
            worker.end()
        return worker


class Album:
    """The pictures of one conversation, opened one after another: so many, and so large together."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._count = self._pixels = 0

    def add(self, source: bytes | Path, *, name: str | None = None, mime: str | None = None) -> Image.Image:
        """As `Decoder.decode`.

        Raises:
            ImageError: as there; 400 for one picture too many, 413 for too many pixels together.
        """
        self._count += 1
        if self._count > MOST_PICTURES:
            raise ImageError(f"A conversation has at most {MOST_PICTURES} pictures. Start a new one.", kind="pictures")
        picture = self._decoder.decode(source, name=name, mime=mime)
        self._pixels += picture.width * picture.height
        if self._pixels > MOST_PIXELS:
            raise ImageError(
                f"The pictures of this conversation have more than {MOST_PIXELS // 10**6} million pixels together. "
                "Make them smaller, or start a new one.",
                code="image_too_large",
                status=413,
                kind="too_many_pixels",
            )
        return picture


class _Worker:
    """A process of `serve.decode_worker`, and the server's end of its pipes."""

    def __init__(self, seconds: int, clock: float, memory: int) -> None:
        self.clock = clock
        self.late = False
        self._lock = threading.Lock()
        # Started afresh: a fork of a process with threads may hang. It finds the modules where this process does.
        program = "from serve.decode_worker import main; main"
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}({seconds}, {memory})"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            # No secret of ours; and numpy's threads would only take memory.
            env={"PATH": os.environ.get("PATH", ""), "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout

    @property
    def alive(self) -> bool:
        return not self.late and self.process.poll() is None

    def open(self, data: bytes, about: dict[str, Any], called: str) -> Opened | None:
        """How it went; None where somebody else killed the process."""
        started, working = time.perf_counter(), True

        def end_it() -> None:
            with self._lock:
                if working:
                    self.late = True
                    self.process.kill()

        watch = threading.Timer(self.clock, end_it)
        watch.daemon = True
        watch.start()
        try:
            text = json.dumps(about).encode()
            self._to.write(struct.pack(">II", len(text), len(data)) + text)
            self._to.write(data)
            self._to.flush()
            reply = json.loads(self._read(*struct.unpack(">I", self._read(4))))
            picture = self._picture(*reply["size"]) if "size" in reply else None
            document = self._document(reply) if "parts" in reply else None
        except (EOFError, OSError, ValueError):  # ValueError: the server closes, and the pipe with it
            self._to_its_end()
            reply = picture = document = None
        finally:
            with self._lock:
                working = False
            watch.cancel()
        if reply is None:
            taken, ended_by = time.perf_counter() - started, -self.process.returncode
            if self.late or ended_by == signal.SIGXCPU:
                return _refused(TIMEOUT, called, taken)
            return None if ended_by == signal.SIGKILL else _refused(CRASH, called, taken)
        if "error" not in reply:
            return Opened(OK, picture, None, reply["seconds"], reply["peak"], document)
        if reply["error"] == MEMORY:
            return _refused(MEMORY, called, reply["seconds"], reply["peak"])
        error = ImageError(reply["error"], code=reply["code"], status=reply["status"], kind=reply["kind"])
        return Opened(REFUSED, None, error, reply["seconds"], reply["peak"])

    def _picture(self, width: int, height: int) -> Image.Image:
        picture = Image.new("RGB", (width, height))
        for box in bands(width, height):
            rows = box[3] - box[1]
            pixels = self._read(rows * width * 3)
            picture.paste(Image.frombuffer("RGB", (width, rows), pixels, "raw", "RGB", 0, 1), box)
        return picture

    def _document(self, reply: dict[str, Any]) -> Document:
        parts = tuple(Part(place, self._read(size)) for place, size in reply["parts"])
        return Document(reply["kind"], parts, reply["total"])

    def _read(self, size: int) -> bytes:
        found = self._from.read(size)
        if len(found) < size:
            raise EOFError
        return found

    def _to_its_end(self) -> None:
        """Waits for a process that ends, as its closed pipe says."""
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.end()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):  # what was not sent
                pipe.close()


def _refused(outcome: str, called: str, seconds: float, peak: int | None = None) -> Opened:
    """What a person is told of a picture that went beyond a limit."""
    words = {
        CRASH: f"{called} can't be opened: it breaks its decoder. Save it again as PNG or JPEG.",
        TIMEOUT: f"{called} takes too long to open. Make it smaller, or save it again as PNG or JPEG.",
        MEMORY: f"{called} takes too much memory to open. Make it smaller, or save it again as PNG or JPEG.",
    }[outcome]
    if outcome == CRASH:
        error = ImageError(words)
    else:
        error = ImageError(words, code="image_too_large", status=413, kind="too_many_pixels")
    return Opened(outcome, None, error, seconds, peak)
