"""How long the first token takes, over the example pictures: `python benchmarks/first_token.py [MODEL]`."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

import vlchat
from vlchat import Chat
from vlchat.chat import ask_messages
from vlchat.images import decode

EXAMPLES = Path(vlchat.__file__).parent / "assets" / "examples"
ROUNDS = 5


def main() -> None:
    chat = Chat.load(sys.argv[1] if len(sys.argv) > 1 else None)
    pictures = sorted(EXAMPLES.glob("*.png"))
    questions = [(decode(path), path.with_suffix(".txt").read_text().strip()) for path in pictures]
    first, whole, tokens = [], [], 0
    for turn in range(ROUNDS + 1):
        for picture, question in questions:
            started = time.perf_counter()
            pieces = chat.stream(ask_messages([picture], question))
            text = next(pieces)
            reached = time.perf_counter()
            text += "".join(pieces)
            if turn:  # the first round warms up
                first.append((reached - started) * 1000)
                whole.append((time.perf_counter() - started) * 1000)
                tokens += len(chat.processor.tokenizer(text)["input_ids"])
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"first token: median {statistics.median(first):.0f} ms, worst of {len(first)} {max(first):.0f} ms")
    print(f"whole answer: median {statistics.median(whole):.0f} ms, {tokens / sum(whole) * 1000:.0f} tokens/s")


if __name__ == "__main__":
    main()
