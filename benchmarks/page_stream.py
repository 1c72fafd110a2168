"""What the page costs: its streams against the engine's own, and how soon it can be used.

    python benchmarks/page_stream.py                           # 16 readers, 256 tokens each
    python benchmarks/page_stream.py --readers 2 --tokens 8 --rounds 1 --opened 1      # to see that it runs

- stream: the tokens a second of `--readers` visitors who ask at once, each by the requests that a browser sends (asked,
  answered, read to the end), against those of as many tickets of the engine of the same server: from the first word
  that anyone reads to the last, and from the questions on (uploads opened, conversations begun and kept). Rounds
  alternate. The words that the page kept are the engine's, for each question. The readers are a process of their own.
- opened: seconds from Chromium's request for the page, nothing of it known, to a question box that takes words.

The model is the embedded one; it is kept from ending its answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from interleaved import surroundings, write

STREAM, WHOLE, BOX = (
    "page / engine, tokens a second",
    "page / engine, from the questions on",
    "seconds to a question box",
)
TARGETS = {STREAM: 0.95, BOX: 2.0}
QUESTION = "Describe the picture, number {}."


def main() -> None:
    arguments = read_arguments()
    if arguments.read:
        asyncio.run(read(arguments.read, arguments.readers, arguments.tokens, arguments.round))
        return
    from serve.app import EXAMPLES, launch
    from serve.policy import Policy
    from vlchat.chat import Chat

    chat = Chat.load()
    chat.generation_config.suppress_tokens = chat._end_tokens(chat.generation_config)
    ratios: dict[str, list[float]] = {STREAM: [], WHOLE: []}
    rates: dict[str, list[float]] = {"engine": [], "page": []}
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        page = launch(chat, port=port, policy=Policy(history=Path(folder)))
        address = f"http://127.0.0.1:{port}"
        command = [sys.executable, __file__, "--read", address, "--readers", str(arguments.readers)]
        command += ["--tokens", str(arguments.tokens)]
        for number in range(arguments.rounds + 1):  # the first one warms up
            engine = ask_engine(page.engine, arguments, EXAMPLES / "owl.png", number)
            told = json.loads(subprocess.check_output([*command, "--round", str(number)]))
            assert told["texts"] == engine["texts"], "the page's words are not the engine's"
            if number:
                for name, which in ((STREAM, "streaming"), (WHOLE, "seconds")):
                    ratios[name].append(engine[which] / told[which])
                for name, one in (("engine", engine), ("page", told)):
                    rates[name].append(arguments.readers * arguments.tokens / one["streaming"])
        opened = [seconds_to_use(address) for _ in range(arguments.opened)] if shutil.which("chromium") else []
        page.close(verbose=False)
    found = {name: round(statistics.median(ratio), 3) for name, ratio in ratios.items()}
    if opened:
        found[BOX] = round(statistics.median(opened), 3)
    for name, value in found.items():
        print(f"{name}: {value}" + (f", target {TARGETS[name]}" if name in TARGETS else ""))
    write(arguments.out, {"readers": arguments.readers, "tokens": arguments.tokens, "targets": TARGETS, "found": found,
                          "ratios": ratios, "tokens_a_second": rates, "opened": opened,
                          **surroundings("python benchmarks/page_stream.py")})  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--opened", type=int, default=5, help="times that the page is opened")
    parser.add_argument("--out", type=Path, help="writes the figures there, as JSON")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def ask_engine(engine: Any, arguments: argparse.Namespace, picture: Path, number: int) -> dict[str, Any]:
    """What the engine answers to all questions at once, and in how many seconds."""
    from serve.tickets import Options
    from vlchat.chat import ask_messages

    texts, begun = [""] * arguments.readers, list[float]()
    start = time.perf_counter()

    def one(reader: int) -> None:
        messages = ask_messages(picture, question(number, reader, arguments.readers))
        for piece in engine.submit(messages, Options(arguments.tokens, scope=f"{number}/{reader}")):
            if not texts[reader]:
                begun.append(time.perf_counter())
            texts[reader] += piece

    threads = [threading.Thread(target=one, args=(reader,)) for reader in range(arguments.readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return timed([text.strip() for text in texts], start, begun)


def timed(texts: list[str], start: float, begun: list[float]) -> dict[str, Any]:
    """All texts, and the seconds from the questions and from the first word to now."""
    now = time.perf_counter()
    return {"texts": texts, "seconds": now - start, "streaming": now - min(begun)}


def question(number: int, reader: int, readers: int) -> str:
    return QUESTION.format(number * readers + reader)


async def read(address: str, readers: int, tokens: int, number: int) -> None:
    """Prints what the page answers to all questions at once, and in how many seconds."""
    visitors = [Reader(address, tokens) for _ in range(readers)]
    await asyncio.gather(*(visitor.open() for visitor in visitors))
    start = time.perf_counter()
    texts = await asyncio.gather(
        *(visitor.ask(question(number, place, readers)) for place, visitor in enumerate(visitors))
    )
    begun = [visitor.begun for visitor in visitors if visitor.begun]
    print(json.dumps(timed([text.strip() for text in texts], start, begun)))


class Reader:
    """A visitor who sends what the page's scripts send."""

    def __init__(self, address: str, tokens: int) -> None:
        self.client = httpx.AsyncClient(base_url=address, timeout=600, headers={"accept": "text/html"})
        self.tokens, self.session = tokens, ""
        self.begun = 0.0  # when the first words came, of an answer that did not wait in line

    async def open(self) -> None:
        """Gets the page's cookie and its events."""
        import secrets

        self.session = secrets.token_hex(6)
        await self.client.get("/")
        config = (await self.client.get("/config")).json()
        self.values = {one["id"]: one["props"].get("value") for one in config["components"]}
        (box,) = [one["id"] for one in config["components"] if one["props"].get("elem_id") == "question"]
        self.events = {one["id"]: one for one in config["dependencies"]}
        (self.asked,) = [one for one in config["dependencies"] if [box, "submit"] in one["targets"]]
        followers = [one for one in config["dependencies"] if one.get("trigger_after") == self.asked["id"]]
        (self.answered,) = [one for one in followers if one["backend_fn"]]
        (example,) = [one for one in config["components"] if one["props"].get("elem_id") == "longest"]
        self.values[example["id"]] = self.tokens
        owl = Path(__file__).resolve().parent.parent / "vlchat" / "assets" / "examples" / "owl.png"
        uploads = await self.client.post("/gradio_api/upload", files={"files": ("owl.png", owl.read_bytes())})
        self.picture = uploads.json()[0]

    async def ask(self, words: str) -> str:
        """The answer, once its stream has ended."""
        box, conversation, *_ = self.asked["inputs"]
        files = [{"path": self.picture, "orig_name": "owl.png", "meta": {"_type": "gradio.FileData"}}]
        self.values |= {box: {"text": words, "files": files}, conversation: ""}
        there = (await self._event(self.asked))[self.asked["outputs"].index(conversation)]
        self.values[conversation] = there
        await self._event(self.answered)
        told = (await self.client.get(f"/conversations/{there}.json")).json()
        return str(told["metadata"]["answer"])

    async def _event(self, event: dict[str, Any]) -> list[Any]:
        data = [self.values.get(one) for one in event["inputs"]]
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session, "trigger_id": None}
        joined = await self.client.post("/gradio_api/queue/join", json=body)
        joined.raise_for_status()
        first: list[Any] = []
        async with self.client.stream("GET", f"/gradio_api/queue/data?session_hash={self.session}") as stream:
            async for line in stream.aiter_lines():
                if first and '"process_completed"' not in line:
                    continue  # what has changed
                told = json.loads(line[5:]) if line.startswith("data:") else {}
                if told.get("msg") == "process_generating":
                    first = told["output"]["data"]
                    if event is self.answered and not first[0]["turns"][-1].get("waiting"):
                        self.begun = time.perf_counter()
                elif told.get("msg") == "process_completed":
                    assert told["success"], told
                    return first or told["output"]["data"]
        raise AssertionError("the stream ended before its answer")


def seconds_to_use(address: str) -> float:
    """From Chromium's request for the page to a question box that takes words."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(address, wait_until="commit")
        page.wait_for_selector("#question textarea:not([disabled])")
        page.wait_for_selector("#conversation .example")
        taken = time.perf_counter() - start
        browser.close()
    return taken


if __name__ == "__main__":
    main()
