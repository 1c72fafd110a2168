"""A training step of ours against a plain transformers loop on the same LLaVA: the same loss and gradients, sooner.

    python benchmarks/step.py                            # ViT 256 x 12, language model 256 x 8, 576 + 64 tokens
    python benchmarks/step.py --layers 2 2 --rounds 1    # a small one, to see that it runs
    python benchmarks/step.py --compile                  # our step once more through torch.compile

The plain loop is LlavaForConditionalGeneration as its class is: `gradient_checkpointing_enable()`, logits of every
token, `torch.optim.AdamW(parameters)`. Both train the connector and the language model; the tower is frozen. A step is
forward, backward and AdamW, which is the fused one in `vlchat train`: "plain, fused AdamW" tells how much of the ratio
that is, and --no-optimizer leaves it out.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from interleaved import gradients, largest_difference, ratios, seconds, surroundings, told, write
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from train.checkpointing import recompute_language_model
from train.likelihood import token_losses
from vlchat.interop.llava import read_model
from vlchat.towers.features import tower_features

CLOSE = 1e-4  # of the largest number of each gradient: two orders of summing in float32
TARGETS = {"recomputed": 2.0, "recomputed, cached features": 2.6, "cached features": 3.4}
VOCABULARY, IMAGE_TOKEN = 32064, 32000


def main() -> None:
    arguments = read_arguments()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    # 1. Two models of the same weights.
    plain = LlavaForConditionalGeneration(config(*arguments.layers, arguments.width))
    ours = read_model(copy.deepcopy(plain))
    for model in (plain, ours):
        model.train().set_attn_implementation("sdpa")
        model.model.vision_tower.requires_grad_(False)
    plain.gradient_checkpointing_enable()
    batch = rows(plain.config, arguments.batch, arguments.text)
    with torch.no_grad():
        layer, strategy = ours.config.vision_feature_layer, ours.config.vision_feature_select_strategy
        features = tower_features(ours.model.vision_tower.eval(), batch["pixel_values"], layer, strategy)[1]
    text = {name: tensor for name, tensor in batch.items() if name != "pixel_values"}

    def cached() -> dict[str, Any]:
        connected = ours.model.connector(features)
        return text | {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(connected))}}

    losses: dict[str, Callable[[], torch.Tensor]] = {
        "plain": lambda: plain(**batch).loss,
        "recomputed": lambda: mean_loss(ours, batch, True),
        "recomputed, cached features": lambda: mean_loss(ours, cached(), True),
        "kept": lambda: mean_loss(ours, batch, False),
        "cached features": lambda: mean_loss(ours, cached(), False),
    }
    # 2. The same loss and gradients, under the names of ours.
    differences = same(plain, ours, losses)
    # 3. In turn.
    end = optimizer_of(ours, arguments.optimizer)
    peers = {name: stepper(loss, end) for name, loss in losses.items() if name != "plain"}
    peers["plain"] = stepper(losses["plain"], optimizer_of(plain, arguments.optimizer, fused=False))
    if arguments.optimizer:
        peers["plain, fused AdamW"] = stepper(losses["plain"], optimizer_of(plain, True))
    if arguments.compile:
        peers["kept, compiled"] = compiled(ours, batch, arguments.optimizer)
    times = seconds(peers, arguments.rounds)
    print(told(times))
    found = {name: ratios(times, "plain", name) for name in peers if name != "plain"}
    for name, ratio in found.items():
        wanted = f", target {TARGETS[name]}" if name in TARGETS else ""
        print(f"plain / {name}: {ratio['median_wall']:.2f} by the clock, {ratio['median_processor']:.2f} by CPU time"
              f"{wanted}")  # fmt: skip
    write(arguments.out, {"shape": shape(arguments), "differences_from_plain": differences, "targets": TARGETS,
                          "ratios_to_plain": found, "seconds": times,
                          **surroundings("python benchmarks/step.py" + options(arguments))})  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=[12, 8], help="of the tower and the language model")
    parser.add_argument("--width", type=int, default=256, help="of both")
    parser.add_argument("--batch", type=int, default=2, help="rows, of one picture each")
    parser.add_argument("--text", type=int, default=64, help="tokens of words in a row; half of them are learnt")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each, of which the median is told")
    parser.add_argument("--compile", action="store_true", help="time our step through torch.compile as well")
    parser.add_argument("--no-optimizer", dest="optimizer", action="store_false", help="forward and backward alone")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    return parser.parse_args()


def config(tower: int, language: int, width: int, vocabulary: int = VOCABULARY) -> LlavaConfig:
    heads = width // 64
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=tower, num_attention_heads=heads,
            image_size=336, patch_size=14, projection_dim=width,
        ),
        text_config=LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=8 * width // 3 // 16 * 16,
            num_hidden_layers=language, num_attention_heads=heads, num_key_value_heads=heads,
        ),
        image_token_index=IMAGE_TOKEN, vision_feature_layer=-2, vision_feature_select_strategy="default",
        image_seq_length=576,
    )  # fmt: skip


def rows(config: LlavaConfig, count: int, text: int) -> dict[str, torch.Tensor]:
    """Rows of a picture of noise, a question and an answer of equally many random words."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(3, 30000, (count, text), generator=generator)
    pictures = torch.full((count, config.image_seq_length), IMAGE_TOKEN)
    ids = torch.cat([words[:, :4], pictures, words[:, 4:]], dim=1)
    labels = ids.clone()
    labels[:, : -(text // 2)] = -100
    pixels = torch.randn(count, 3, 336, 336, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}


def mean_loss(model: Any, batch: dict[str, Any], recomputed: bool) -> torch.Tensor:
    if recomputed:
        recompute_language_model(model, True)
    else:
        model.get_decoder().gradient_checkpointing_disable()
    found = token_losses(model, batch)
    return found.total / found.count


def optimizer_of(model: torch.nn.Module, learns: bool, fused: bool = True) -> Callable[[], Any]:
    """What ends a step: AdamW, or nothing but the gradients' end."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-6, fused=fused)

    def end() -> None:
        if learns:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return end


def same(plain: Any, ours: Any, losses: dict[str, Callable[[], torch.Tensor]]) -> dict[str, dict[str, float]]:
    """How far each step's loss and gradients are from the plain one's; ends the benchmark where that is too far."""
    expected = losses["plain"]()
    expected.backward()
    wanted = our_names(gradients(plain))
    found = {}
    for name, loss in losses.items():
        if name == "plain":
            continue
        value = loss()
        value.backward()
        got = gradients(ours)
        found[name] = {
            "loss": abs(value.item() - expected.item()),
            "gradients": largest_difference(got, wanted),
        }
        if found[name]["loss"] > 1e-5 or found[name]["gradients"] > CLOSE:
            raise SystemExit(f"{name} is not the plain step: {found[name]}")
    print("largest differences from the plain step:", found)
    return found


def our_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Llava's tensors as our class calls them: the projector's layers have other names, all else is called alike."""
    for layer, linear in enumerate(("linear_1", "linear_2")):
        there, here = f"multi_modal_projector.{linear}", f"connector.layers.{layer}"
        tensors = {name.replace(there, here): one for name, one in tensors.items()}
    return tensors


def stepper(loss: Callable[[], torch.Tensor], end: Callable[[], Any]) -> Callable[[], None]:
    def step() -> None:
        loss().backward()
        end()

    return step


def compiled(model: Any, batch: dict[str, Any], learns: bool) -> Callable[[], None]:
    """Our step with each layer of the language model compiled, which is what transformers' users are advised."""
    copied = copy.deepcopy(model)
    for layer in copied.get_decoder().layers:
        layer.compile()
    return stepper(lambda: mean_loss(copied, batch, False), optimizer_of(copied, learns))


def shape(arguments: argparse.Namespace) -> dict[str, int]:
    return {
        "tower_layers": arguments.layers[0], "language_layers": arguments.layers[1], "hidden": arguments.width,
        "image_tokens": 576, "text_tokens": arguments.text, "batch": arguments.batch, "vocabulary": VOCABULARY,
    }  # fmt: skip


def options(arguments: argparse.Namespace) -> str:
    layers = " ".join(map(str, arguments.layers))
    switches = (" --compile" if arguments.compile else "") + ("" if arguments.optimizer else " --no-optimizer")
    return (f" --layers {layers} --width {arguments.width} --batch {arguments.batch} --text {arguments.text}"
            f" --rounds {arguments.rounds}{switches}")  # fmt: skip


if __name__ == "__main__":
    main()
