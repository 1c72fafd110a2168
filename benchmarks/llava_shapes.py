"""Ours against plain transformers on a LLaVA of true shapes with random weights: the same answers, and what they cost.

    python benchmarks/llava_shapes.py                     # SigLIP-so400m-patch14-384 and Qwen2-0.5B
    python benchmarks/llava_shapes.py --config 7b         # LLaVA-1.5-7B: CLIP-L/14-336 and Vicuna-7B
    python benchmarks/llava_shapes.py --out benchmarks/results/llava-shapes-0.5b.json

A checkpoint is written with transformers, in the layout in which LLaVA models are published, and converted. Then the
two are loaded and asked in turn, each time in a fresh process. Everything is written to a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, StoppingCriteria

from vlchat import VLChatForConditionalGeneration
from vlchat.interop.llava import read_model

GIB = 2**30
DTYPE = torch.bfloat16
# The shapes of llava-hf/llava-interleave-qwen-0.5b-hf and llava-hf/llava-1.5-7b-hf. The first one's tower ends with the
# layer that is read. The language models' weights are spread wider than theirs would start, or they would say one token
# for ever; as it is, the least difference anywhere soon gives other tokens.
CONFIGS: dict[str, dict[str, Any]] = {
    "0.5b": {
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
            "num_hidden_layers": 26, "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
            "vision_use_head": False,
        },
        "text_config": {
            "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "max_position_embeddings": 32768, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True, "initializer_range": 0.1,
        },
        "image_token_index": 151646, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "image_seq_length": 729, "tie_word_embeddings": True,
    },
    "7b": {
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            "projection_dim": 768,
        },
        "text_config": {
            "model_type": "llama", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "initializer_range": 0.1,
        },
        "image_token_index": 32000, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "image_seq_length": 576,
    },
}  # fmt: skip
CLASSES = {"transformers": LlavaForConditionalGeneration, "vlchat": VLChatForConditionalGeneration}


def main() -> None:
    arguments = read_arguments()
    if arguments.step is not None:  # a process of its own, started below
        kind, *folders = arguments.step
        return {"build": build, "convert": convert, "measure": measure}[kind](arguments, *map(Path, folders))

    # 1. Is there room for it?
    check_room(arguments.config)
    with tempfile.TemporaryDirectory(prefix="llava-shapes-", dir=arguments.folder) as name:
        folders = {"transformers": Path(name) / "llava", "vlchat": Path(name) / "vlchat"}
        # 2. The same weights in both layouts.
        started = time.perf_counter()
        step(arguments, "build", folders["transformers"])
        step(arguments, "convert", folders["transformers"], folders["vlchat"])
        print(f"wrote both checkpoints in {time.perf_counter() - started:.0f} s", flush=True)
        # 3. In turn, so that neither has the quieter machine; the first of a round changes.
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in CLASSES}
        differences = []
        for turn in range(arguments.rounds):
            for kind in sorted(CLASSES, reverse=bool(turn % 2)):
                step(arguments, "measure", folders[kind], Path(name) / kind)
                runs[kind].append(json.loads((Path(name) / f"{kind}.json").read_text()))
                print(f"round {turn + 1}, {kind}: {told(runs[kind][-1])}", flush=True)
            differences.append(difference(*(load_file(Path(name) / f"{kind}.safetensors") for kind in CLASSES)))
    # 4. The verdict.
    report(arguments, runs, differences)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=list(CONFIGS), default="0.5b")
    parser.add_argument("--tokens", type=int, default=64, help="how many to generate, greedily")
    parser.add_argument(
        "--rounds", type=int, default=3, help="processes for each of the two, of which the median and the best are told"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help="where the temporary folder lies, when not in the usual place")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def check_room(config: str) -> None:
    """Ends with both numbers where memory or disk do not suffice."""
    with torch.device("meta"):
        parameters = LlavaForConditionalGeneration(llava_config(config)).num_parameters()
    weights = parameters * DTYPE.itemsize
    needs = {  # a checkpoint is built in memory and written twice
        "memory": (1.15 * weights + 1.5 * GIB, psutil.virtual_memory().available),
        "disk": (2.05 * weights, shutil.disk_usage(tempfile.gettempdir()).free),
    }
    for what, (needed, free) in needs.items():
        if needed > free:
            raise SystemExit(
                f"The {config} shapes are {weights / GIB:.1f} GiB in bfloat16 and need {needed / GIB:.1f} GiB of {what}"
                f"; {free / GIB:.1f} GiB are free. Take --config 0.5b or a larger machine."
            )
    print(f"{config}: {parameters / 1e9:.2f} G parameters, {weights / GIB:.1f} GiB in bfloat16", flush=True)


def step(arguments: argparse.Namespace, *parts: Any) -> None:
    """Runs a part of this script in a fresh process."""
    options = ["--config", arguments.config, "--tokens", str(arguments.tokens), "--device", arguments.device]
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, __file__, *options, "--step", *map(str, parts)]
    subprocess.run(command, check=True, env={**os.environ, **quiet})


def llava_config(config: str) -> LlavaConfig:
    shapes = dict(CONFIGS[config])
    parts = {part: AutoConfig.for_model(**shapes.pop(part)) for part in ("vision_config", "text_config")}
    return LlavaConfig(**parts, **shapes)


def build(arguments: argparse.Namespace, target: Path) -> None:
    """Writes a checkpoint of random weights as transformers does."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPE)
    model = LlavaForConditionalGeneration(llava_config(arguments.config))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(target)


def convert(arguments: argparse.Namespace, source: Path, target: Path) -> None:
    """Writes a published LLaVA checkpoint as one of ours, with the same weights."""
    transformers.utils.logging.disable_progress_bar()
    llava = LlavaForConditionalGeneration.from_pretrained(source, dtype=DTYPE)
    model = read_model(llava)
    model.save_pretrained(target)


@torch.no_grad()
def measure(arguments: argparse.Namespace, folder: Path, out: Path) -> None:
    """Loads one model, asks it, and writes what that took to `out`.json and the answer to `out`.safetensors."""
    transformers.utils.logging.disable_progress_bar()
    device = torch.device(arguments.device)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    started = now()
    model = CLASSES[out.name].from_pretrained(folder, dtype="auto", device_map={"": str(device)}).eval()
    loaded = now() - started
    batch = {name: tensor.to(device) for name, tensor in prompt(model.config).items()}

    def generate(tokens: int) -> tuple[list[float], Any]:
        """When each token was there, in seconds from the start, and what `generate` returned."""
        options = GenerationConfig(
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, eos_token_id=1,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        clock = Clock(now)
        return clock.stamps, model.generate(**batch, generation_config=options, stopping_criteria=[clock])

    generate(2)  # warms up
    spent = time.process_time()
    first = statistics.median(generate(1)[0][0] for _ in range(3))
    stamps, output = generate(arguments.tokens)
    spent = time.process_time() - spent
    between = [later - earlier for earlier, later in zip(stamps, stamps[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {
        "load_seconds": loaded,
        "first_token_seconds": first,
        "tokens_per_second": 1 / statistics.median(between),
        "processor_seconds": spent,
        "peak_memory_gib": peak / GIB,
    }
    if device.type == "cuda":
        found["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / GIB
    out.with_suffix(".json").write_text(json.dumps(found))
    answer = output.sequences[:, batch["input_ids"].shape[1] :]
    tensors = {"answer": answer.cpu(), "logits": torch.cat(output.logits).float().cpu()}  # (tokens, vocabulary)
    save_file(tensors, out.with_suffix(".safetensors"))


class Clock(StoppingCriteria):
    """Notes when tokens come, in seconds from its making, and never stops them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.started, self.stamps = now, now(), list[float]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.stamps.append(self.now() - self.started)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def prompt(config: Any) -> dict[str, torch.Tensor]:
    """A picture of noise, some words before it and a question's worth after it."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(3, 30000, (40,), generator=generator)
    ids = torch.cat([words[:10], torch.full((config.image_seq_length,), config.image_token_id), words[10:]])[None]
    size = config.vision_config.image_size
    pixels = torch.randn(1, 3, size, size, generator=generator).to(DTYPE)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def difference(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "same_tokens": torch.equal(theirs["answer"], ours["answer"]),
        "different_tokens": int(ours["answer"].unique().numel()),
        "largest_logit_difference": (theirs["logits"] - ours["logits"]).abs().max().item(),
        "largest_logit": theirs["logits"].abs().max().item(),
    }


def report(
    arguments: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], differences: list[dict[str, Any]]
) -> None:
    medians = {
        kind: {name: statistics.median(run[name] for run in found) for name in found[0]} for kind, found in runs.items()
    }
    # On a machine that others use as well, the best round tells more than the one in the middle.
    best = {
        kind: {name: (max if name == "tokens_per_second" else min)(run[name] for run in found) for name in found[0]}
        for kind, found in runs.items()
    }
    ratios = {}
    for title, figures in (("median", medians), ("best", best)):
        ratios[title] = {name: figures["vlchat"][name] / value for name, value in figures["transformers"].items()}
        for name, ratio in ratios[title].items():
            theirs, ours = (figures[kind][name] for kind in CLASSES)
            print(f"{title:6} {name:20} transformers {theirs:8.3f}   vlchat {ours:8.3f}   ratio {ratio:.3f}")
    same = all(found["same_tokens"] for found in differences)
    largest = max(found["largest_logit_difference"] for found in differences)
    print(f"the same {arguments.tokens} tokens: {'yes' if same else 'NO'}; largest logit difference {largest:g}")
    if arguments.out is not None:
        result = {
            "config": arguments.config, "shapes": CONFIGS[arguments.config], "dtype": str(DTYPE).removeprefix("torch."),
            "tokens": arguments.tokens, "rounds": arguments.rounds, "medians": medians, "best": best,
            "ratios_vlchat_to_transformers": ratios, "outputs": differences, "runs": runs, **surroundings(arguments),
        }  # fmt: skip
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    if not same:
        raise SystemExit("The two do not answer alike.")


def surroundings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Date, hardware in words, how busy it was, and versions; no names of machines or folders."""
    memory = psutil.virtual_memory().total / GIB
    threads = torch.get_num_threads()
    hardware = f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, {memory:.0f} GiB memory"
    if arguments.device.startswith("cuda"):
        hardware += f", {torch.cuda.get_device_name()}"
    names = ["--config", arguments.config, "--tokens", str(arguments.tokens), "--rounds", str(arguments.rounds)]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python benchmarks/llava_shapes.py", *names, "--device", arguments.device]),
        "hardware": hardware,
        "load_average_of_15_minutes": os.getloadavg()[2],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def told(run: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in run.items())


if __name__ == "__main__":
    main()
