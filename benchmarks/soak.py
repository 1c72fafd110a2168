"""Many clients on the real server for a long while: no wrong or mixed answer, and nothing that it does not give back.

    python benchmarks/soak.py --work /tmp/soak --out benchmarks/results/soak.json --plot docs/soak.png
    python benchmarks/soak.py --work /tmp/soak --requests 2000 --kill 1000         # kill -9 in the middle
    python benchmarks/soak.py --work /tmp/soak --clients 20 --requests 200         # to see that it runs

Every client holds conversations of several turns, half of them about pictures, each with a word of its own (its canary)
in the first question. A tenth of the requests are left in the middle, every twentieth has a picture that can't be used.
What the model answers to each conversation alone is computed first, by `Chat`, and kept in the folder --work for the
next start. Every answer must be that one, word by word; of those that are left, the part that came. A wrong answer that
begins another conversation's is a mixed one.

The server is a process of its own, watched once a second through /proc and /metrics. It has small budgets for what it
keeps, so that they are full before memory is measured. Growth is the median of resident memory over the last twentieth
of the requests, against that over the twentieth after the first fifth (of a server that was killed: of the next one's).
A full line (429) is waited for as long as the server says and tried again, as a lost connection is; both are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil
from interleaved import surroundings, write
from served import MIB, Server, gauges, save_tiny, vlchat
from soak_clients import Load, Settings
from soak_conversations import Conversation, conversations
from soak_plot import draw

TARGETS = {"wrong": 0, "mixed": 0, "failed": 0, "growth": 0.02}
KEPT, PICTURES = 64 * MIB, MIB // 16  # of a hundredth and less of what the conversations would take
_QUIET = 60.0  # seconds that the server may take to give all of it back


def main() -> int:
    arguments = read_arguments()
    settings = Settings(arguments.clients, arguments.requests, arguments.tokens, arguments.kill, arguments.seed)
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = arguments.work / "model"
    if not (model / "config.json").exists():
        save_tiny(model)
    pool = conversations(model, arguments.conversations, settings.tokens, arguments.work / "answers.json")
    server = vlchat(model, arguments.work / "server.log", KEPT, PICTURES)
    with server.running():
        result = asyncio.run(soak(server, pool, settings, say=print))
    result |= surroundings(f"python benchmarks/soak.py {options(arguments)}", "gradio", "uvicorn")
    for name, target in TARGETS.items():
        print(f"{name}: {'too few readings' if result[name] is None else f'{result[name]:.4g}'}, at most {target}")
    print("not given back:", result["not_given_back"] or "nothing")
    write(arguments.out, result)
    if arguments.plot is not None:
        draw(result, arguments.plot)
    missed = [name for name, target in TARGETS.items() if result[name] is None or result[name] > target]
    return int(bool(missed or result["not_given_back"]))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the model, its answers and the log")
    parser.add_argument("--clients", type=int, default=200, help="at once")
    parser.add_argument("--requests", type=int, default=5000, help="of all of them, tries apart")
    parser.add_argument("--conversations", type=int, default=200, help="unlike ones that the clients hold")
    parser.add_argument("--tokens", type=int, default=12, help="of an answer")
    parser.add_argument("--kill", type=int, help="kill the server with -9 after so many requests, and start it again")
    parser.add_argument("--seed", type=int, default=0, help="of who leaves and who sends what")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--plot", type=Path, help="a picture to write")
    return parser.parse_args()


def options(arguments: argparse.Namespace) -> str:
    """As they were given, but for the folders and files."""
    told = {name: value for name, value in vars(arguments).items() if name not in ("work", "out", "plot")}
    return " ".join(f"--{name} {value}" for name, value in told.items() if value is not None)


async def soak(server: Server, pool: list[Conversation], settings: Settings, say: Any) -> dict[str, Any]:
    """Asks a server that runs, and returns what came of it."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=settings.clients)
    watch = Watch(server, settings.requests)
    # 1. Every client once, so that what is set up on first use is there; then the server as it is at rest.
    await rest(server)
    async with httpx.AsyncClient(base_url=server.address, limits=limits, timeout=300) as client:
        await Load(client, pool, Settings(settings.clients, settings.clients, settings.tokens)).run()
    before = await rest(server)
    # 2. The load itself, with a killing in the middle where it is asked for.
    async with httpx.AsyncClient(base_url=server.address, limits=limits, timeout=300) as client:
        load = Load(client, pool, settings)
        watching = asyncio.create_task(watch.run(load, say))
        killing = asyncio.create_task(kill(server, load, settings.kill, watch))
        began = time.monotonic()
        await load.run()
        seconds = time.monotonic() - began
        await killing
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    # 3. The server at rest again.
    after = await rest(server, like=before)
    left = {name: (before[name], after[name]) for name in before if name != "resident" and after[name] > before[name]}
    return {
        "settings": asdict(settings), "targets": TARGETS, **load.counts(), "seconds": seconds,
        "latency": load.latencies(), "growth": watch.growth(), "before": before, "after": after,
        "not_given_back": left, "killed_at": watch.killed, "series": watch.series, "asked": load.series(),
        "what_went_wrong": load.wrong[:20],
    }  # fmt: skip


async def rest(server: Server, like: dict[str, int] | None = None) -> dict[str, int]:
    """The server's state once no conversation is in the batch or the line, and it is not above an earlier one."""
    end = time.monotonic() + _QUIET
    while True:
        async with httpx.AsyncClient(base_url=server.address, timeout=60) as reader:
            told = gauges((await reader.get("/metrics")).text)
        await asyncio.sleep(1)  # until the connection of this reading is closed as well
        slots = {"running": int(told["vlchat_running"]), "waiting": int(told["vlchat_waiting"])}
        found = {**server.state(), **slots}
        quiet = not any(slots.values())
        same = like is None or all(found[name] <= like[name] for name in found if name != "resident")
        if (quiet and same) or time.monotonic() > end:
            return found


async def kill(server: Server, load: Load, after: int | None, watch: Watch) -> None:
    """kill -9 once so many requests were made, and a new start."""
    if after is None:
        return
    while load.done < after:
        await asyncio.sleep(0.05)
    server.kill()
    watch.killed = (load.done, time.monotonic() - watch.began)
    await asyncio.to_thread(server.start)


class Watch:
    """The server, once a second.

    Attributes:
        series: rows of seconds, requests so far, resident MiB, threads, files, running, waiting, kept MiB.
        killed: requests and seconds at which it was killed.
    """

    def __init__(self, server: Server, requests: int) -> None:
        self.server, self.requests = server, requests
        self.series: list[list[float]] = []
        self.killed: tuple[int, float] | None = None
        self.began = time.monotonic()

    async def run(self, load: Load, say: Any) -> None:
        """Until it is cancelled."""
        self.began = told = time.monotonic()
        async with httpx.AsyncClient(base_url=self.server.address, timeout=5) as reader:
            while True:
                try:
                    seen = gauges((await reader.get("/metrics")).text)
                    state = self.server.state()
                except (httpx.TransportError, psutil.NoSuchProcess, ValueError, KeyError):  # killed, and not up again
                    await asyncio.sleep(0.5)
                    continue
                now = time.monotonic()
                self.series.append([
                    round(now - self.began, 1), load.done, round(state["resident"] / MIB, 2), state["threads"],
                    state["files"], seen["vlchat_running"], seen["vlchat_waiting"],
                    round(seen.get("vlchat_kept_bytes", 0) / MIB, 2),
                ])  # fmt: skip
                if now - told > 15:
                    told = now
                    say(f"{load.done} of {self.requests} requests, {now - self.began:.0f} s, "
                        f"{state['resident'] / MIB:.0f} MiB, {load.told()}", flush=True)  # fmt: skip
                await asyncio.sleep(1)

    def growth(self) -> float | None:
        """The share by which memory grew; None where there are too few readings."""
        first = self.killed[0] if self.killed else 0
        rows = [row for row in self.series if row[1] >= first and (not self.killed or row[0] > self.killed[1])]
        left = self.requests - first

        def readings(low: float, high: float) -> list[float]:
            return [row[2] for row in rows if first + low * left <= row[1] <= first + high * left]

        early, late = readings(0.2, 0.25), readings(0.95, 1.0)
        return statistics.median(late) / statistics.median(early) - 1 if early and late else None


if __name__ == "__main__":
    sys.exit(main())
