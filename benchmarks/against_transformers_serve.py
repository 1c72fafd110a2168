"""`vlchat serve` against `transformers serve` on the same weights: the same answers, sooner.

    python benchmarks/against_transformers_serve.py      # a language model of 360M's shape
    python benchmarks/against_transformers_serve.py --layers 2 --width 128 --rounds 1 --tokens 4    # a small one

Ours serves a vlchat folder, theirs what `vlchat export --layout llava` makes of it, for it can't load ours. (Given that
folder, `vlchat serve` runs transformers' own class and answers one request after another.) The weights are random, in
float32, so that no rounding decides between two words. Both servers are processes of their own, up all the while, and
asked in turn: questions in words alone and about a picture, by one client and by eight at once. Each round asks
something new, so that nothing of it is known. Every answer is compared before its time counts. `transformers serve`
answers a model that sees one request after another: its continuous batching takes text models.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import torch
from interleaved import ratios, surroundings, told, write
from served import Server
from serving import picture_of, save
from transformers.utils import logging

from vlchat.chat import Chat
from vlchat.export import export

OURS, THEIRS = "vlchat serve", "transformers serve"
CROWD = 8


def main() -> None:
    arguments = read_arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        saved = save(work / "saved", Chat.load(), arguments)
        exported = export(str(saved), work / "exported", layout="llava", dtype="float32", tell=lambda _: None)
        ours = Server(
            [sys.executable, "-m", "vlchat.cli", "serve", "--model", str(saved), "--port", "{port}",
             "--dtype", "float32"],
            work / "ours.log",
        )  # fmt: skip
        theirs = Server(
            [sys.executable, "-m", "transformers.cli.transformers", "serve", str(exported), "--port", "{port}",
             "--host", "127.0.0.1", "--dtype", "float32"],
            work / "theirs.log", ready="/health",
        )  # fmt: skip
        with ours.running(), theirs.running():
            times = compared({OURS: ours, THEIRS: theirs}, {THEIRS: str(exported)}, arguments)
    print(told({f"{where}, {server}": found for where, each in times.items() for server, found in each.items()}))
    found = {where: ratios(each, THEIRS, OURS)["median_wall"] for where, each in times.items()}
    for where, ratio in found.items():
        print(f"{where}: {THEIRS} takes {ratio:.2f} times as long")
    shape = {name: value for name, value in vars(arguments).items() if name != "out"}
    options = " ".join(f"--{name} {value}" for name, value in shape.items())
    command = f"python benchmarks/against_transformers_serve.py {options}"
    write(arguments.out, {"shape": shape, "theirs_to_ours": found, "answers": "equal", "seconds": times,
                          **surroundings(command, "fastapi", "uvicorn", "gradio")})  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="of the language model")
    parser.add_argument("--width", type=int, default=960, help="of the language model, a multiple of 64")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--rounds", type=int, default=3, help="of each, of which the median is told")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    return parser.parse_args()


def compared(
    servers: dict[str, Server], names: dict[str, str], arguments: argparse.Namespace
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Seconds by what was asked and by server, after a round that warms up.

    Args:
        names: what a server's requests call the model, where that is not the first of /v1/models.

    Raises:
        SystemExit: two answers differ.
    """
    numbers = count()
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    with httpx.Client(timeout=3600) as client, ThreadPoolExecutor(CROWD) as threads:
        for server in servers:
            if server not in names:
                listed = client.get(f"{servers[server].address}/v1/models").json()
                names = {**names, server: listed["data"][0]["id"]}

        def asked(server: str, messages: Any) -> tuple[str, int]:
            body = {"model": names[server], "messages": messages, "temperature": 0, "max_tokens": arguments.tokens}
            answer = client.post(f"{servers[server].address}/v1/chat/completions", json=body)
            if answer.status_code != 200:
                raise SystemExit(f"{server}: {answer.status_code} {answer.text[:300]}")
            whole = answer.json()
            return whole["choices"][0]["message"]["content"].strip(), whole["usage"]["completion_tokens"]

        for pictures in (False, True):
            for clients in (1, CROWD):
                where = f"{'a picture' if pictures else 'words'}, {clients} at once"
                times = found[where] = {server: {"wall": [], "processor": []} for server in servers}
                for round_ in range(arguments.rounds + 1):
                    conversations = [question(next(numbers), pictures) for _ in range(clients)]
                    answers = {}
                    for server in sorted(servers, reverse=bool(round_ % 2)):
                        before, began = servers[server].processor(), time.perf_counter()
                        answers[server] = list(threads.map(asked, [server] * clients, conversations))
                        if round_:
                            times[server]["wall"].append(time.perf_counter() - began)
                            times[server]["processor"].append(servers[server].processor() - before)
                    if answers[OURS] != answers[THEIRS]:
                        raise SystemExit(f"{where}: the answers differ: {answers}")
    return found


def question(number: int, picture: bool) -> list[dict[str, Any]]:
    """One that no other number gives."""
    words = f"What is number {number}? " + "It is red. " * (number % CROWD)
    if not picture:
        return [{"role": "user", "content": words}]
    data = io.BytesIO()
    picture_of(number).save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
    return [{"role": "user", "content": parts}]


if __name__ == "__main__":
    main()
