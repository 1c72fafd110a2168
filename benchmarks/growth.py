"""How the cost of a training step grows: with image tokens, text, batch and processes; fitted exponents and a plot.

    python benchmarks/growth.py                             # the kept result: some minutes on two cores
    python benchmarks/growth.py --steps 1 --most 600 --out FOLDER    # a quick look at shapes of up to 600 tokens

The step is the training's own (`train.step.Stepper`): a frozen tower, a connector and a language model that learn, in
float32, one thread a process. Each point is a process of its own. Time is the CPU's, which others on the machine don't
lengthen, and the least of `--steps` steps after a first one; the time on the wall is kept beside it. Memory is the most
that a step takes beyond weights and optimizer state. What is fitted is `cost = factor * size ** exponent`, by least
squares over logarithms, with its 95 % interval: over all points, in which what does not grow (the other tokens, the
optimizer) hides at the small end, and over the larger half of them.

Up to 576 image tokens are one picture; beyond, several of 576 (or as many as divide it), as tiles are.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import math
import multiprocessing
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from scipy.stats import t as student
from torch import nn
from transformers import AutoConfig

from train import ranks, sharding
from train.likelihood import token_losses
from train.step import Stepper
from train.terms import Term
from vlchat import VLChatConfig, VLChatForConditionalGeneration

MIB = 2**20
PATCH, VOCABULARY = 14, 8000
AXES = {
    "image tokens": [64, 144, 256, 576, 1152, 2304, 2880],
    "text tokens": [64, 128, 256, 512, 1024, 2048],
    "rows of a batch": [1, 2, 4, 8, 16],
}
USUAL = {"image tokens": 144, "text tokens": 128, "rows of a batch": 1}
PROCESSES = [(1, "one process"), (2, "2, DDP"), (2, "2, FSDP2")]
ROWS = 4  # of each process, where their number is looked at
FIGURES = {"cpu_seconds": "CPU time of a step (s)", "mebibytes": "memory of a step (MiB)"}


class Grown(nn.Module):
    """A model of random weights and the next-token loss, as an objective of `train.step.Stepper`."""

    name, whole_batch = "growth", False

    def __init__(self, image_tokens: int, width: int, layers: int, tower: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pictures = max(1, image_tokens // 576)
        side = math.isqrt(image_tokens // self.pictures)
        heads = width // 32
        blocks = {"hidden_size": width, "num_attention_heads": heads}
        vision = AutoConfig.for_model(
            "clip_vision_model", **blocks, intermediate_size=4 * width, num_hidden_layers=tower,
            image_size=PATCH * side, patch_size=PATCH, projection_dim=width,
        )  # fmt: skip
        text = AutoConfig.for_model(
            "llama", **blocks, intermediate_size=3 * width, num_hidden_layers=layers, vocab_size=VOCABULARY,
            max_position_embeddings=8192,
        )  # fmt: skip
        config = VLChatConfig(
            vision_config=vision, text_config=text, connector={"type": "mlp", "depth": 2},
            image_token_id=VOCABULARY - 1, image_seq_length=side * side,
        )  # fmt: skip
        self.model = VLChatForConditionalGeneration(config)
        self.model.model.vision_tower.requires_grad_(False)

    def batch(self, rows: int, text_tokens: int) -> dict[str, Any]:
        """`pictures` before so many words a row, of which the last quarter is learnt."""
        config: Any = self.model.config
        words = torch.randint(3, VOCABULARY - 1, (rows, text_tokens))
        seen = torch.full((rows, self.pictures * config.image_seq_length), config.image_token_id)
        labels = torch.cat([torch.full_like(seen, -100), words], dim=1)
        labels[:, : -max(1, text_tokens // 4)] = -100
        side = config.vision_config.image_size
        return {
            "input_ids": torch.cat([seen, words], dim=1), "labels": labels,
            "pixel_values": torch.randn(rows * self.pictures, 3, side, side), "ids": [str(row) for row in range(rows)],
        }  # fmt: skip

    def shards(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return list(self.model.model.language_model.layers), [self.model.model.language_model, self.model.lm_head]

    def forward(self, batch: dict[str, Any]) -> dict[str, Term]:
        found = token_losses(self.model, batch)
        return {"answers": Term(found.total, found.count)}


def main() -> None:
    arguments = read_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    axes = {name: [size for size in sizes if size <= arguments.most] for name, sizes in AXES.items()}
    found: dict[str, Any] = {}
    for name, sizes in axes.items():
        points = [{"size": size, **point(arguments, {**USUAL, name: size})} for size in sizes]
        found[name] = {
            "points": points,
            "fits": fits(points),
            "fits of the larger half": fits(points[len(points) // 2 :]),
        }
        for which in ("fits", "fits of the larger half"):
            told = "; ".join(f"{key} ** {said(found[name][which][key])}" for key in FIGURES)
            print(f"{name}, {which}: {told}", flush=True)
    together = [
        {"processes": count, "how": how, **point(arguments, {**USUAL, "rows of a batch": ROWS}, count, "FSDP2" in how)}
        for count, how in PROCESSES
    ]
    result = {
        "step": {key: value for key, value in vars(arguments).items() if key != "out"},
        "usual": USUAL, "vocabulary": VOCABULARY, "dtype": "float32",
        "axes": found, "processes": {"rows of each": ROWS, "points": together}, **surroundings(),
    }  # fmt: skip
    (arguments.out / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, arguments.out / "growth.png")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=192, help="hidden size of tower and language model")
    parser.add_argument("--layers", type=int, default=4, help="of the language model")
    parser.add_argument("--tower", type=int, default=4, help="layers of the tower")
    parser.add_argument("--steps", type=int, default=2, help="steps of a point, of which the fastest is told")
    parser.add_argument("--most", type=int, default=10_000, help="leave out points of more tokens: for a quick look")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of growth.json and .png")
    return parser.parse_args()


def point(arguments: argparse.Namespace, sizes: dict[str, int], processes: int = 1, cut: bool = False) -> dict:
    """A step at these sizes, in fresh processes; of several, the slowest one's time and the fullest one's memory.

    They are forked from this one, which has computed nothing and so has no threads: the libraries are read once.
    """
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": port, "ACCELERATE_USE_FSDP": str(cut).lower(), "FSDP_VERSION": 2}
        context = multiprocessing.get_context("fork")
        started = [
            context.Process(target=measure, args=(arguments, sizes, {**shared, "RANK": rank}, Path(folder)))
            for rank in range(processes)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        if any(process.exitcode for process in started):
            raise SystemExit(f"A step at {sizes} on {processes} processes failed.")
        told = [json.loads(file.read_text()) for file in Path(folder).iterdir()]
    most = {key: max(one[key] for one in told) for key in told[0]}
    cost = f"{most['cpu_seconds']:.2f} s, {most['mebibytes']:.0f} MiB beside {most['kept']:.0f}"
    print(f"{sizes}, processes: {processes}: {cost}", flush=True)
    return most


def measure(arguments: argparse.Namespace, sizes: dict[str, int], settings: dict[str, Any], folder: Path) -> None:
    """One process of a point: writes its seconds, the most memory of its steps, and what it keeps between them."""
    bare = resident()
    if settings["WORLD_SIZE"] > 1:
        os.environ.update({key: str(value) for key, value in settings.items()} | {"LOCAL_RANK": str(settings["RANK"])})
    from accelerate import Accelerator

    torch.set_num_threads(1)
    ranks.join()
    objective: Any = Grown(sizes["image tokens"], arguments.width, arguments.layers, arguments.tower)
    batch = objective.batch(sizes["rows of a batch"], sizes["text tokens"])
    accelerator = Accelerator(cpu=True)
    groups = [{"params": [parameter for parameter in objective.parameters() if parameter.requires_grad]}]
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    if plugin := sharding.asked("no", "adamw", settings["WORLD_SIZE"]):
        sharding.shard(objective, plugin, accelerator)
        groups = sharding.regrouped(groups, names, objective)
    stepper = Stepper(objective, torch.optim.AdamW(groups, lr=1e-4, fused=True), accelerator, clip=1.0)
    counts = {"answers": float(sum((one["labels"] != -100).sum() for one in [batch]) * settings["WORLD_SIZE"])}
    seconds, cpu_seconds = [], []
    for step in range(arguments.steps + 1):
        if step == 1:  # the optimizer has made its state
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, or the step would take it unseen
            kept = resident()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        since, cpu_since = time.perf_counter(), time.process_time()
        stepper(step, [batch], counts)
        seconds.append(time.perf_counter() - since)
        cpu_seconds.append(time.process_time() - cpu_since)
    told = {
        "seconds": min(seconds[1:]), "cpu_seconds": min(cpu_seconds[1:]),
        "mebibytes": resident("VmHWM") - kept, "kept": kept - bare,
    }  # fmt: skip
    (folder / f"{settings['RANK']}.json").write_text(json.dumps(told))
    os._exit(0)  # the group's threads are not waited for


def resident(mark: str = "VmRSS") -> float:
    """MiB of this process in memory; of `VmHWM` the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(mark)).split()[1]) / 1024


def fits(points: list[dict[str, float]]) -> dict[str, Any]:
    return {key: fit([one["size"] for one in points], [one[key] for one in points]) for key in FIGURES}


def fit(sizes: Sequence[float], costs: Sequence[float]) -> dict[str, float | list[float]] | None:
    """`cost = factor * size ** exponent` by least squares over logarithms, with a 95 % interval; of three points on."""
    if len(sizes) < 3:
        return None
    x, y = ([math.log(value) for value in values] for values in (sizes, costs))
    mean_x, mean_y, degrees = sum(x) / len(x), sum(y) / len(y), len(x) - 2
    spread = sum((value - mean_x) ** 2 for value in x)
    exponent = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    left = sum((b - mean_y - exponent * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    half = float(student.ppf(0.975, degrees)) * math.sqrt(left / degrees / spread)
    return {
        "exponent": exponent, "interval": [exponent - half, exponent + half],
        "factor": math.exp(mean_y - exponent * mean_x),
    }  # fmt: skip


def said(found: dict[str, Any] | None) -> str:
    if found is None:
        return "?"
    low, high = found["interval"]
    return f"{found['exponent']:.2f} ({low:.2f} to {high:.2f})"


def surroundings() -> dict[str, Any]:
    """Date, hardware in words, how busy it was, and versions; no names of machines or folders."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python benchmarks/growth.py", *sys.argv[1:]]),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread a process",
        "load_average_of_15_minutes": os.getloadavg()[2],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def draw(result: dict[str, Any], file: Path) -> None:
    """Both figures over each axis with the fitted line, and the processes beside each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, 4, figsize=(17, 8), constrained_layout=True)
    for row, (key, title) in enumerate(FIGURES.items()):
        for place, (name, found) in zip(places[row], result["axes"].items(), strict=False):
            sizes = [one["size"] for one in found["points"]]
            place.loglog(sizes, [one[key] for one in found["points"]], "o", markersize=7)
            if line := found["fits"][key]:
                place.loglog(sizes, [line["factor"] * size ** line["exponent"] for size in sizes], "-", alpha=0.6)
            place.set_xticks(sizes, [str(size) for size in sizes], fontsize=9, rotation=45)
            place.set_xticks([], minor=True)
            for axis in (place.yaxis.set_major_formatter, place.yaxis.set_minor_formatter):
                axis("{x:g}")
            place.tick_params(axis="y", which="both", labelsize=8)
            told = [said(found[which][key]) for which in ("fits", "fits of the larger half")]
            place.set_title(f"exponent {told[0]}\nlarger half {told[1]}", fontsize=10)
            place.set_xlabel(name, fontsize=11)
            place.set_ylabel(title, fontsize=11)
            place.grid(True, which="both", alpha=0.25)
        points, last = result["processes"]["points"], places[row][3]
        bars = last.bar([one["how"] for one in points], [one[key] for one in points], width=0.6)
        last.bar_label(bars, fmt="%.2f" if key == "cpu_seconds" else "%.0f", fontsize=10)
        if key == "mebibytes":
            last.plot([one["how"] for one in points], [one["kept"] for one in points], "kD", label="kept between steps")
            last.legend(fontsize=9)
        last.margins(y=0.2)
        last.set_title(f"{result['processes']['rows of each']} rows a process", fontsize=11)
        last.set_xlabel("processes", fontsize=11)
        last.set_ylabel(title, fontsize=11)
    usual = ", ".join(f"{name}: {value}" for name, value in USUAL.items())
    figure.suptitle(
        f"A training step as it grows. Where nothing else is said, {usual}. {result['hardware']}, {result['date']}",
        fontsize=12,
    )
    figure.savefig(file, dpi=90)


if __name__ == "__main__":
    main()
