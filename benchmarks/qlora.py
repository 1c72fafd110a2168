"""A step of LoRA on an nf4 language model (QLoRA) against LoRA on the same one in bfloat16.

    python benchmarks/qlora.py                            # language model 1024 x 4, rows of 600 tokens
    python benchmarks/qlora.py --width 256 --rounds 1     # a small one, to see that it runs

A step is forward and backward of 600 tokens, of which 64 are learnt, under bfloat16 autocast as `loop.precision=bf16`.
Shown first: the gradients of the nf4 model are those of a bfloat16 model that holds the same rounded weights.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from interleaved import gradients, ratios, seconds, surroundings, told, write
from packing import language_model
from transformers.utils import logging

from train.likelihood import token_losses
from vlchat import VLChatForConditionalGeneration
from vlchat.lora import add_lora
from vlchat.quantize import linear_layers_to_keep, pack_for_cpu, quantization_config

CLOSE = 0.05  # cosine's distance from 1 of two gradients in bfloat16
TARGET = 1.25


def main() -> None:
    arguments = read_arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        language_model(arguments.width, arguments.layers).save_pretrained(folder)
        loaded = {kind: load(folder, kind) for kind in ("bf16", "nf4")}
        twin = rounded(load(folder, "bf16"), loaded["nf4"])
    models = {name: adapted(model) for name, model in loaded.items()}
    batch = row(arguments.tokens)
    # 1. The gradients of nf4 are those of its rounded weights.
    distance = apart(step(models["nf4"], batch), step(adapted(twin), batch))
    print(f"gradients of nf4 against the same weights in bfloat16: 1 - cosine {distance:.2e}")
    if distance > CLOSE:
        raise SystemExit("The quantized step learns something else.")
    del twin
    # 2. In turn.
    peers = {name: partial(step, model, batch) for name, model in models.items()}
    times = seconds(peers, arguments.rounds)
    print(told(times))
    found = ratios(times, "nf4", "bf16")
    print(f"nf4 / bf16: {found['median_wall']:.2f} by the clock, {found['median_processor']:.2f} by CPU time, "
          f"target at most {TARGET}")  # fmt: skip
    options = f" --width {arguments.width} --layers {arguments.layers} --tokens {arguments.tokens}"
    write(arguments.out, {"width": arguments.width, "layers": arguments.layers, "tokens": arguments.tokens,
                          "gradient_distance": distance, "target_at_most": TARGET, "nf4_to_bf16": found,
                          "seconds": times,
                          **surroundings(f"python benchmarks/qlora.py{options} --rounds {arguments.rounds}",
                                         "bitsandbytes", "peft")})  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024, help="of the language model")
    parser.add_argument("--layers", type=int, default=4, help="of the language model")
    parser.add_argument("--tokens", type=int, default=600, help="of the row")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each, of which the median is told")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    return parser.parse_args()


def load(folder: str, kind: str) -> Any:
    options: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
    if kind == "nf4":
        with torch.device("meta"):
            skeleton = language_model(64, 1)  # only for the names of its layers
        options["quantization_config"] = quantization_config("nf4", torch.bfloat16, linear_layers_to_keep(skeleton))
    model = VLChatForConditionalGeneration.from_pretrained(folder, **options)
    pack_for_cpu(model, allowed=False)  # packed layers pass no gradient back
    return model


def rounded(model: Any, quantized: Any) -> Any:
    """The model with the weights that the quantized one computes with."""
    from bitsandbytes.functional import dequantize_4bit

    layers = dict(quantized.named_modules())
    for name, layer in model.named_modules():
        other = layers[name]
        if other.__class__.__name__ == "Linear4bit":
            weight = dequantize_4bit(other.weight.data, other.weight.quant_state)
            layer.weight.data.copy_(weight.view_as(layer.weight))
    return model


def adapted(model: Any) -> Any:
    torch.manual_seed(1)
    model = add_lora(model, r=16, dropout=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model.train()


def row(tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 30000, (1, tokens), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :-64] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def step(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        found = token_losses(model, batch)
    (found.total / found.count).backward()
    return gradients(model)


def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """1 - the cosine of two gradients."""
    a, b = (torch.cat([found[name].flatten().float() for name in sorted(found)]) for found in (one, two))
    return 1 - float(torch.nn.functional.cosine_similarity(a, b, dim=0))


if __name__ == "__main__":
    main()
