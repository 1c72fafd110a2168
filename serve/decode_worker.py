"""The process that opens strangers' files for `serve.decoding`, one after another: a picture's bytes in, its pixels
out; or a document's bytes in, and pictures of it out.

It imports what `vlchat.images` needs and nothing of the model: 30 MB, and ready in a third of a second.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from serve import documents
from vlchat import images
from vlchat.errors import ImageError

BAND = 2**18  # pixels that are sent at once
MEMORY = "memory"  # the reply where there was too little of it


def main(seconds: int, memory: int) -> None:
    """Answers until the server closes the pipe, or is gone.

    Args:
        seconds: of the processor that a file may take; whole ones, as the kernel counts them.
        memory: bytes that opening files may take beyond what the process takes at its start.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    coming, going = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints is no reply
    Image.init()  # or the first picture waits for the formats' modules
    _restrict(memory)
    while len(lengths := coming.read(8)) == 8:
        told, size = struct.unpack(">II", lengths)
        about = json.loads(coming.read(told))
        data = coming.read(size)
        started = _begin(seconds)
        found, reply = _opened(data, about)
        _send(going, found, {**reply, "seconds": time.process_time() - started, "peak": _peak()})
        del found, data  # before the next one is begun


def _opened(data: bytes, about: dict[str, Any]) -> tuple[Iterable[bytes], dict[str, Any]]:
    """What is sent, and what is told of it before."""
    try:
        if "most" in about:
            document = documents.rendered(data, **about)
            parts = [(part.place, len(part.content)) for part in document.parts]
            told = {"kind": document.kind, "parts": parts, "total": document.total}
            return [part.content for part in document.parts], told
        picture = images.decode(data, **about)
        return (picture.crop(box).tobytes() for box in bands(*picture.size)), {"size": picture.size}
    except ImageError as error:
        # Decoders written in C have no MemoryError; Pillow tells their lack of memory in words.
        if isinstance(error.__cause__, MemoryError) or "out of memory" in str(error.__cause__):
            return (), {"error": MEMORY}
        return (), {"error": str(error), "code": error.code, "status": error.status, "kind": error.kind}
    except MemoryError:
        return (), {"error": MEMORY}


def _send(going: BinaryIO, found: Iterable[bytes], reply: dict[str, Any]) -> None:
    text = json.dumps(reply).encode()
    going.write(struct.pack(">I", len(text)) + text)
    for one in found:
        going.write(one)
    going.flush()


def bands(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Boxes of whole rows, from top to bottom, in which a picture is sent."""
    rows = max(1, BAND // width)
    return [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]


def _restrict(memory: int) -> None:
    """No more memory than allowed, no file written, no core dumped. Elsewhere than on Linux, time alone is limited."""
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for what, most in ((resource.RLIMIT_AS, taken + memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(what, (most, most))


def _begin(seconds: int) -> float:
    """Sets the time limit of the next picture, forgets the last one's peak; the processor's time so far."""
    now = time.process_time()
    # The kernel ends the process at this second, even inside of a decoder written in C.
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(now) + seconds, resource.RLIM_INFINITY))
    with contextlib.suppress(OSError):  # a kernel that does not forget it: the peak is that of all pictures so far
        Path("/proc/self/clear_refs").write_text("5")
    return now


def _peak() -> int | None:
    """The most memory that the process had since `_begin`, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
