"""What an evaluation costs apart from the model: rows read, asked, kept and scored, and every figure made.

    python benchmarks/bookkeeping.py [--rows 10000]

The model is one that answers at once, so that all of the time is the evaluation's own. Pictures are small files, one
for two rows; they are decoded, as a model would need them. Prints each step's seconds of CPU time, which other work on
the machine does not lengthen much.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vlchat.evaluate import Reply, Request, VqaTask, evaluate, save
from vlchat.evaluate.cache import AnswerCache


class AtOnce:
    """Answers with the length of the question, without thinking."""

    description = {"name": "at once"}
    identity = "at once"

    def answer(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Reply]:
        return [Reply(str(len(str(request.messages)) % 7), logprob=-0.3, tokens=2) for request in requests]


def rows(folder: Path, count: int) -> Path:
    """Questions with answers of ten people, half of them also with one word only."""
    for number in range(count // 2):
        Image.new("RGB", (64, 64), (number % 256, number // 256 % 256, 90)).save(folder / f"{number}.png")
    found = [
        {
            "id": str(number),
            "image": f"{number // 2}.png",
            "question": f"How many of the {number} things are there?",
            "answers": [str((number + person) % 5) for person in range(10 if number % 2 else 1)],
            "answer_type": ["number", "other"][number % 2],
        }
        for number in range(count)
    ]
    path = folder / "rows.json"
    path.write_text(json.dumps(found))
    return path


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = rows(folder, count)
        steps: dict[str, float] = {}
        started = time.process_time()

        def done(step: str) -> None:
            nonlocal started
            steps[step] = time.process_time() - started
            started = time.process_time()

        task = VqaTask(data=str(data))
        done("rows read and checked")
        for step in ("asked, kept and scored", "the same again, all known"):
            result = evaluate(AtOnce(), task, cache=AnswerCache(folder), batch_size=64, progress=False)
            done(step)
        save(result, folder / "out")
        done("figures, tables, certificate and files")
        again = steps.pop("the same again, all known")
        for step, seconds in steps.items():
            print(f"{step:42} {seconds:6.2f} s")
        print(f"{f'an evaluation of {count:,} rows':42} {sum(steps.values()):6.2f} s")
        print(f"{'asking once more, every answer known':42} {again:6.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    main(parser.parse_args().rows)
