"""Packed rows against padded ones, and against one row with a dense mask: the same losses, sooner; how full rows are.

    python benchmarks/packing.py                         # language model 512 x 4, rows of 606 to 876 tokens
    python benchmarks/packing.py --layers 1 --rounds 1   # a small one, to see that it runs

A step is forward and backward over the same rows: padded to the longest; in one row whose positions begin anew, of
which transformers makes a dense mask for SDPA; and in one row as `objective.packing` takes it, each attended by itself.
All three have logits of the learnt tokens alone; "padded, every token's logits" is the padded step as transformers'
classes make it. Fill is how many tokens of rows of 4,096 are used when the rows of a step are packed.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleaved import gradients, largest_difference, ratios, seconds, surroundings, told, write
from torch.nn import functional
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.utils import logging

from train.grouping import Budget, grouped
from train.likelihood import answers, token_losses
from vlchat import VLChatConfig, VLChatForConditionalGeneration
from vlchat.data.packing import pack, packed_mask

CLOSE = 1e-5
TARGETS = {"padded": 1.4, "dense mask": 2.5, "fill": 0.95}
ROW = 4096
PLAIN = "padded, every token's logits"
# Tokens of a row, drawn: of benchmarks like this one, and of a mixture as LLaVA-1.5's (665,000 rows: pictures of 576
# tokens with a question, with a conversation, and conversations without a picture).
MIXTURES: dict[str, Callable[[random.Random], int]] = {
    "606 to 876": lambda draw: draw.randint(606, 876),
    "like LLaVA-1.5's": lambda draw: draw.choices(
        [draw.randint(590, 680), draw.randint(700, 1500), draw.randint(60, 2048)], [5, 4, 1]
    )[0],
    "words alone": lambda draw: min(2048, int(draw.lognormvariate(5.5, 1.0)) + 20),
}


def main() -> None:
    arguments = read_arguments()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    model = language_model(arguments.width, arguments.layers)
    padded = rows(arguments.rows, arguments.least, arguments.most)
    packed = pack(padded, filler=0)
    dense = dict(packed)  # by its positions alone, as long as the kernels are transformers' own
    attention = model.get_decoder()
    mask = packed_mask(model)

    def loss(batch: dict[str, Any], kernels: str) -> Any:
        attention.set_attn_implementation(kernels)
        return token_losses(model, batch)

    ours = attention.config._attn_implementation

    def transformers_own() -> torch.Tensor:
        attention.set_attn_implementation("sdpa")
        return model(**padded).loss

    losses: dict[str, Callable[[], Any]] = {
        "padded": lambda: loss(padded, "sdpa"),
        "dense mask": lambda: loss(dense, "sdpa"),
        "packed": lambda: loss(packed | {"attention_mask": mask(packed["position_ids"])}, ours),
    }
    # 1. The same losses, row by row, and the same gradients.
    differences = same(model, losses, transformers_own, padded)
    # 2. In turn.
    peers = {name: stepper(model, averaged(one)) for name, one in losses.items()}
    times = seconds(peers | {PLAIN: stepper(model, transformers_own)}, arguments.rounds)
    print(told(times))
    found = {name: ratios(times, name, "packed") for name in ("padded", "dense mask", PLAIN)}
    for name, ratio in found.items():
        wanted = f", target {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name} / packed: {ratio['median_wall']:.2f} by the clock, {ratio['median_processor']:.2f} by CPU time"
              f"{wanted}")  # fmt: skip
    # 3. How full the rows are.
    fills = {name: {str(batch): fill(draw, batch) for batch in (32, 128, 512)} for name, draw in MIXTURES.items()}
    for name, figures in fills.items():
        print(f"fill of rows of {ROW}, {name}:", ", ".join(f"batch {n}: {share:.3f}" for n, share in figures.items()))
    options = (f" --rows {arguments.rows} --least {arguments.least} --most {arguments.most} --width {arguments.width}"
               f" --layers {arguments.layers} --rounds {arguments.rounds}")  # fmt: skip
    write(arguments.out, {"lengths": padded["attention_mask"].sum(1).tolist(), "width": arguments.width,
                          "layers": arguments.layers, "differences": differences, "targets": TARGETS,
                          "ratios_to_packed": found, "seconds": times, "fill_of_4096_by_batch": fills,
                          **surroundings("python benchmarks/packing.py" + options)})  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--least", type=int, default=606, help="tokens of the shortest row")
    parser.add_argument("--most", type=int, default=876, help="tokens of the longest row")
    parser.add_argument("--width", type=int, default=512, help="of the language model")
    parser.add_argument("--layers", type=int, default=4, help="of the language model")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each, of which the median is told")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    return parser.parse_args()


def language_model(width: int, layers: int) -> VLChatForConditionalGeneration:
    """Random weights; its tower is the smallest there is and sees nothing."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=32064, hidden_size=width, intermediate_size=8 * width // 3 // 16 * 16, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64,
    )  # fmt: skip
    config = VLChatConfig(
        vision_config=vision, text_config=text, connector={"type": "linear"}, image_token_id=32000, image_seq_length=4
    )
    model = VLChatForConditionalGeneration(config).train()
    model.set_attn_implementation("sdpa")
    return model


def rows(count: int, least: int, most: int) -> dict[str, torch.Tensor]:
    """Random words, lengths from `least` to `most` evenly, of which the last 32 are learnt; padded on the right."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.linspace(least, most, count).long()[torch.randperm(count, generator=generator)]
    there = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(3, 30000, there.shape, generator=generator).masked_fill(~there, 0)
    learnt = there & (torch.arange(there.shape[1]) >= lengths[:, None] - 32)
    return {"input_ids": ids, "attention_mask": there.long(), "labels": ids.masked_fill(~learnt, -100)}


def same(
    model: Any, losses: dict[str, Callable[[], Any]], plain: Callable[[], torch.Tensor], padded: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """How far each one's losses by row, and gradients, are from the padded ones'; ends the benchmark where too far.

    Args:
        plain: another loss over the rows, of which the gradients alone are compared.
    """
    count = [int((row != -100).sum()) for row in padded["labels"]]

    def by_row(found: Any) -> torch.Tensor:
        """(rows,), the mean loss of each row's answer."""
        logits = found.answers.logits(found.answers.states)
        each = functional.cross_entropy(logits, found.answers.targets, reduction="none")
        return torch.stack([part.mean() for part in each.split(count)])

    with torch.no_grad():
        model.get_decoder().set_attn_implementation("sdpa")
        alone = []
        for row, there in enumerate(padded["attention_mask"].bool()):
            one = answers(model, {name: tensor[row : row + 1, there] for name, tensor in padded.items()})
            alone.append(functional.cross_entropy(one.logits(one.states), one.targets))
    wanted: dict[str, torch.Tensor] = {}
    differences = {}
    for name, loss in losses.items():
        found = loss()
        with torch.no_grad():
            worst = (by_row(found) - torch.stack(alone)).abs().max().item()
        (found.total / found.count).backward()
        got = gradients(model)
        wanted = wanted or got
        differences[name] = {"row_loss": worst, "gradients": largest_difference(got, wanted)}
        if worst > CLOSE or differences[name]["gradients"] > 10 * CLOSE:
            raise SystemExit(f"{name} is not the rows alone: {differences[name]}")
    plain().backward()
    differences[PLAIN] = {"gradients": largest_difference(gradients(model), wanted)}
    if differences[PLAIN]["gradients"] > 10 * CLOSE:
        raise SystemExit(f"{PLAIN} has other gradients: {differences[PLAIN]}")
    print("largest difference of a row's loss from the row alone, and of a gradient from the padded one:", differences)
    return differences


def averaged(loss: Callable[[], Any]) -> Callable[[], torch.Tensor]:
    def mean() -> torch.Tensor:
        found = loss()
        return found.total / found.count

    return mean


def stepper(model: Any, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    def step() -> None:
        loss().backward()
        model.zero_grad(set_to_none=True)

    return step


def fill(draw: Callable[[random.Random], int], batch: int, steps: int = 20) -> float:
    """The share of rows of 4,096 that are tokens, over some steps of `batch` drawn rows each."""
    generator = random.Random(0)
    tokens = bins = 0
    for _ in range(steps):
        lengths = [draw(generator) for _ in range(batch)]
        tokens += sum(lengths)
        bins += len(grouped(lengths, Budget(batch, ROW, True), 1)[0])
    return tokens / bins / ROW


if __name__ == "__main__":
    main()
