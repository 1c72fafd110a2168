"""`vlchat plan` against what a run really takes: the peak of two optimizer steps, for shapes that differ truly.

    python benchmarks/plan_memory.py                  # all shapes, 0.8 to 3 GB each
    python benchmarks/plan_memory.py --scale 0.5      # a quarter of the weights
    python benchmarks/plan_memory.py --shapes lora qlora

Each shape is planned in one process and run in another, with random weights and blank pictures, by the loop's own
objective, optimizer and step. On a CPU the peak is the kernel's VmHWM, set back after loading (/proc/self/clear_refs):
while weights load, their file is mapped as well, which the system takes back when it must. malloc is set as `vlchat
train` sets it for models of this size and more (`train.heap`). On a GPU it is `torch.cuda.max_memory_allocated`,
without what CUDA itself takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import peft  # noqa: F401  # the processes that are measured have it as their parent has
import torch
import transformers
from accelerate import Accelerator
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from train.config import RunConfig, construct, typed
from train.heap import settle
from train.loop import precision_of
from train.objectives import OBJECTIVES
from train.optim import optimizer as optimizer_of
from train.optim import parameter_groups
from train.planning.plan import plan
from train.planning.step import drawn, split
from train.planning.target import target
from train.step import Stepper
from train.terms import add
from train.tokenizer import train_tokenizer
from vlchat import VLChatForConditionalGeneration, VLChatProcessor
from vlchat.saving import save_full
from vlchat.towers import clip_image_processor

RESULT = Path(__file__).parent / "results" / "plan_memory.json"
WITHIN = 0.10
_LORA = {"r": 32, "alpha": 64, "dropout": 0.05}
_QFORMER = {"type": "qformer", "num_query_tokens": 32, "hidden_size": 512, "num_hidden_layers": 6,
            "num_attention_heads": 8}  # fmt: skip
# objective, loop, optim
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "stage 1 mlp": ({"type": "align", "connector": {"type": "mlp", "depth": 2}, "itc": 0.0}, {"batch": 8}, {}),
    "stage 1 qformer ITC": ({"type": "align", "connector": _QFORMER, "itc": 1.0}, {"batch": 8}, {}),
    "full": ({"type": "tune"}, {"batch": 4, "micro_batch": 2}, {}),
    "lora": ({"type": "tune", "lora": _LORA}, {"batch": 8}, {}),
    "lora checkpointing": ({"type": "tune", "lora": _LORA, "checkpointing": True}, {"batch": 8}, {}),
    "qlora": ({"type": "tune", "lora": _LORA, "quantize": "nf4"}, {"batch": 8, "precision": "bf16"}, {}),
    "packed": ({"type": "tune", "lora": _LORA, "packing": True}, {"batch": 6}, {}),
    "muon": ({"type": "tune"}, {"batch": 2}, {"name": "muon"}),
}


def prepare(folder: Path, scale: float) -> None:
    """A model, its two backbones and rows of unlike lengths."""
    torch.manual_seed(0)
    side = int(768 * scale) // 64 * 64
    words = "what is to be seen in this picture and where does it stand beside the other one".split()
    tokenizer = train_tokenizer((" ".join(words) for _ in range(100)), 400)
    tower = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=side // 2, intermediate_size=2 * side, num_hidden_layers=6,
                         num_attention_heads=side // 128, image_size=224, patch_size=14)
    )  # fmt: skip
    language = LlamaForCausalLM(
        LlamaConfig(vocab_size=int(24000 * scale), hidden_size=side, intermediate_size=8 * side // 3,
                    num_hidden_layers=8, num_attention_heads=side // 64, max_position_embeddings=4096,
                    eos_token_id=0, pad_token_id=0)
    )  # fmt: skip
    pictures = clip_image_processor(224)
    for part, name in ((tower, "vision"), (pictures, "vision"), (language, "language"), (tokenizer, "language")):
        part.save_pretrained(folder / name)
    model = VLChatForConditionalGeneration.from_backbones(
        tower, language, {"type": "mlp", "depth": 2}, tokenizer=tokenizer
    )
    processor = VLChatProcessor.from_backbones(pictures, tokenizer, model.config.image_seq_length, "chatml")
    save_full(folder / "whole", model, processor, trained_on="nothing")
    random = Random(0)
    Image.new("RGB", (320, 240)).save(folder / "blank.png")
    rows = [
        {"id": str(row), "image": "blank.png", "question": " ".join(random.choices(words, k=random.randint(5, 60))),
         "answer": " ".join(random.choices(words, k=random.randint(20, 60)))}
        for row in range(32)
    ]  # fmt: skip
    (folder / "rows.json").write_text(json.dumps(rows))


def run_of(name: str, folder: Path) -> RunConfig:
    """The configuration of a shape."""
    objective, loop, optim = SHAPES[name]
    if objective["type"] == "align":
        base = {"vision": str(folder / "vision"), "language": str(folder / "language"), "template": "chatml"}
    else:
        base = {"model": str(folder / "whole")}
    tree = {"run": str(folder / "run"), "objective": {**objective, **base}, "loop": {"steps": 2, **loop},
            "optim": optim, "data": [{"path": str(folder / "rows.json")}]}  # fmt: skip
    return typed(RunConfig, tree, name)


def planned(config: RunConfig) -> dict[str, Any]:
    """What the plan says."""
    found = plan(config, target(rate=1.0))
    program = 0 if found.target.device == "cuda" else found.target.taken
    return {"peak": found.peak - found.target.taken + program, "at_peak": found.at_peak | {"program": program}}


def measured(config: RunConfig) -> dict[str, Any]:
    """What two steps take, of rows like those that were planned with."""
    settle(large=True)
    objective: Any = construct(OBJECTIVES, config.objective, "objective", seed=0, data=config.data)
    groups, _ = parameter_groups(objective, config.trainable or objective.default_trainable(), config.optim)
    accelerator = Accelerator(
        mixed_precision=precision_of(config.loop.precision, objective), cpu=not torch.cuda.is_available()
    )
    objective.to(accelerator.device).train()
    optimizer: Any = optimizer_of(groups, config.optim)
    pieces = split(objective, config)
    rows = drawn(objective, pieces).pieces.positions
    gpu = accelerator.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    stepper = Stepper(objective, optimizer, accelerator, config.optim.clip)
    for step in range(2):
        batches = [objective.batch(rows) for _ in pieces.micro_batches(step)]
        stepper(step, batches, add(map(objective.counts, batches)))
    if gpu:
        return {"peak": torch.cuda.max_memory_allocated()}
    lines = Path("/proc/self/status").read_text().splitlines()
    return {"peak": next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024}


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """`work(*given)` in a process of its own. This one computes nothing: threads of OpenMP do not survive a fork."""
    kind = "spawn" if torch.cuda.is_available() else "fork"  # a fork shares its parent's imports, which count in both
    with multiprocessing.get_context(kind).Pool(1) as pool:
        return pool.apply(work, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="of the model's width (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        apart(prepare, folder, arguments.scale)
        for shape in arguments.shapes:
            config = run_of(shape, folder)
            said, seen = apart(planned, config), apart(measured, config)
            error = said["peak"] / seen["peak"] - 1
            lines.append({"shape": shape, "planned": said["peak"], "measured": seen["peak"], "error": error,
                          "at_peak": said["at_peak"]})  # fmt: skip
            sizes = f"planned {said['peak'] / 1e6:8.0f} MB   measured {seen['peak'] / 1e6:8.0f} MB   {error:+.1%}"
            print(f"{shape:22} {sizes}{'' if abs(error) <= WITHIN else '   MORE THAN 10 %'}", flush=True)
            device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
            told = {"date": str(date.today()), "hardware": f"{platform.machine()}, {device}", "scale": arguments.scale,
                    "torch": torch.__version__, "transformers": transformers.__version__, "shapes": lines,
                    "command": f"python benchmarks/plan_memory.py --scale {arguments.scale:g}"}  # fmt: skip
            arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
