"""Every benchmark of speed and memory in turn, never two at once; each writes its figures to benchmarks/results.

    python benchmarks/speed.py                         # all of them, at true size: most of an hour on two cores
    python benchmarks/speed.py --only step packing
    python benchmarks/speed.py --quick                 # small sizes, to see that they run; nothing is kept

A benchmark whose outputs or gradients differ from its peer's ends by itself; the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
# By benchmark, the options of a quick try.
SCRIPTS: dict[str, list[str]] = {
    "step": ["--layers", "2", "2", "--width", "64", "--rounds", "1"],
    "packing": ["--layers", "1", "--width", "128", "--rounds", "1"],
    "qlora": ["--layers", "1", "--width", "128", "--rounds", "1"],
    "pictures": ["--layers", "2", "--rounds", "3"],
    "plan_memory": ["--shapes", "lora", "--scale", "0.34"],
    "heap": ["--rounds", "1"],
    "growth": ["--width", "64", "--layers", "1", "--tower", "1", "--steps", "1", "--most", "500"],
    "against_trl": ["--layers", "2", "1", "--width", "64", "--batch", "2", "--micro", "1", "--steps", "2",
                    "--rounds", "1"],
}  # fmt: skip
A_FOLDER = ("growth",)  # which writes a plot as well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is kept")
    arguments = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as unused:
        folder = Path(unused) if arguments.quick else HERE / "results"
        for name in arguments.only:
            print(f"\n== {name}", flush=True)
            if name == "against_trl" and find_spec("trl") is None:
                print("left out: pip install trl")
                continue
            out = folder if name in A_FOLDER else folder / f"{name}.json"
            options = SCRIPTS[name] if arguments.quick else []
            started = time.monotonic()
            done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *options, "--out", str(out)])
            print(f"{(time.monotonic() - started) / 60:.1f} minutes", flush=True)
            if done.returncode:
                failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
