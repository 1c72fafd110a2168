"""How soon a slot is free after its client left in the middle of an answer, streaming or not.

    python benchmarks/disconnects.py                                                          # 50 of each
    python benchmarks/disconnects.py --clients 3 --out /tmp/disconnects.json                  # to see that it runs

Clients are plain sockets that are closed while a slot is taken, one after another; the server is a process of its own.
When its slot is free is read from /metrics. What is told is the time from closing the socket to the answer of the first
reading without a slot taken, so that it is at most one reading too long.
It ends with 1 where one takes longer than 500 ms.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from interleaved import surroundings, write
from served import Server, gauges, save_tiny, vlchat

TARGET = 0.5  # seconds
_PATIENCE = 60.0  # seconds until a slot is taken, and until it is free again


def main() -> int:
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as name:
        model = arguments.model or save_tiny(Path(name) / "model")
        with vlchat(model, Path(name) / "server.log").running() as server:
            found = {mode: leave(server, arguments.clients, mode == "streaming") for mode in ("streaming", "whole")}
    result: dict[str, Any] = {"clients_of_each": arguments.clients, "target_seconds": TARGET, "seconds": found}
    for mode, seconds in found.items():
        in_time = sum(one <= TARGET for one in seconds)
        result[mode] = {"in_time": in_time, "median": statistics.median(seconds), "longest": max(seconds)}
        print(
            f"{mode}: free within {TARGET * 1000:.0f} ms in {in_time} of {len(seconds)}, "
            f"median {statistics.median(seconds) * 1000:.0f} ms, longest {max(seconds) * 1000:.0f} ms"
        )
    command = f"python benchmarks/disconnects.py --clients {arguments.clients}"
    write(arguments.out, {**result, **surroundings(command, "gradio", "uvicorn")})
    return verdict(found)


def verdict(found: Mapping[str, Sequence[float]]) -> int:
    """The exit code: 1 where one slot took longer than `TARGET` seconds, of either mode."""
    return int(any(one > TARGET for seconds in found.values() for one in seconds))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50, help="that leave, streaming and not")
    parser.add_argument("--model", type=Path, help="another model than the tests' tiny one; it must write long answers")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    return parser.parse_args()


def leave(server: Server, clients: int, stream: bool) -> list[float]:
    """Seconds from each client's leaving to the moment at which no slot is seen taken."""
    found = []
    chance = random.Random(0)
    with httpx.Client(base_url=server.address, timeout=_PATIENCE) as reader:
        name = reader.get("/v1/models").json()["data"][0]["id"]
        for number in range(clients):
            _until(reader, taken=False)
            asked = {"model": name, "messages": [{"role": "user", "content": f"Tell me of {number} cats."}],
                     "max_tokens": 8000, "temperature": 0, "stream": stream}  # fmt: skip
            with _asked(server, json.dumps(asked)) as connection:
                _until(reader, taken=True)
                if stream:
                    _first_word(connection)
                time.sleep(chance.uniform(0, 0.2))
                assert _taken(reader), "the answer ended before its client left: take a model that writes longer ones"
            left = time.perf_counter()
            _until(reader, taken=False)
            found.append(time.perf_counter() - left)
    return found


def _asked(server: Server, body: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=_PATIENCE)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    return connection


def _first_word(connection: socket.socket) -> None:
    came = b""
    while not re.search(rb'"content": ?"[^"]', came):
        part = connection.recv(65536)
        if not part:
            raise SystemExit(f"The server closed the connection: {came[:300]!r}")
        came += part


def _taken(reader: httpx.Client) -> bool:
    return gauges(reader.get("/metrics").text)["vlchat_running"] > 0


def _until(reader: httpx.Client, taken: bool) -> None:
    end = time.monotonic() + _PATIENCE
    while _taken(reader) != taken:
        if time.monotonic() > end:
            raise SystemExit(f"After {_PATIENCE:.0f} s {'no' if taken else 'a'} slot is taken.")
        time.sleep(0.002)


if __name__ == "__main__":
    sys.exit(main())
