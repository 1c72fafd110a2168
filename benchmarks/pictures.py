"""JPEG to tensor against Pillow and the stock processor, and what a kept picture costs of one that is encoded.

    python benchmarks/pictures.py --out benchmarks/results/pictures.json
    python benchmarks/pictures.py --layers 2 --rounds 3      # a short try

Both parts print what equals what first, then medians of rounds in which the two sides take turns. The pictures are
drawn: smooth colours with fine grain, as JPEGs of quality 90. The tower has the shape of CLIP ViT-L/14-336, in float32;
its layers share one layer's random weights, which is the same work in a 20th of the memory. A picture that is known is
read from a folder on disk with its checksum, as training reads it.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, CLIPImageProcessorPil

from train.features import FeatureCacheConfig, TowerFeatures, features_on_disk
from vlchat import VLChatConfig, VLChatForConditionalGeneration, images
from vlchat.data.opening import KNOWN, Opening
from vlchat.pixels import Pixels
from vlchat.processor import VLChatProcessor
from vlchat.towers import clip_image_processor

SIDE, PATCH = 336, 14
SIZES = {(640, 480): 1.5, (3000, 2000): 2.0}  # and how many times faster each is to be
MOST = 0.05  # of a miss, that a hit may take


def jpeg(size: tuple[int, int], seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).astype(int)
    grain = generator.integers(-12, 13, (size[1], size[0], 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def medians(rounds: int, clock: Callable[[], float], **sides: Callable[[int], Any]) -> dict[str, float]:
    """Milliseconds of each side, which take turns; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, run in sides.items():
            started = clock()
            run(turn)
            taken[name].append((clock() - started) * 1000)
    return {name: statistics.median(found[1:]) for name, found in taken.items()}


def to_tensor(size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Ours to the bit, ours with scaled decoding as training does it, and the stock path, for one size of picture."""
    stock = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    steps = Pixels.of(stock)
    assert steps is not None
    pictures = [jpeg(size, seed) for seed in range(4)]

    def peer(turn: int) -> torch.Tensor:
        picture = Image.open(io.BytesIO(pictures[turn % 4])).convert("RGB")
        return stock(picture, return_tensors="pt")["pixel_values"]

    def exact(turn: int) -> torch.Tensor:
        eight_bits = steps.eight_bits([images.decode(pictures[turn % 4])])
        assert eight_bits is not None
        return steps.scaled(eight_bits)

    def eight_bits(turn: int) -> torch.Tensor:
        picture = images.decode(pictures[turn % 4], shorter_side=steps.shorter_side)
        found = steps.eight_bits([picture], reducing=True)
        assert found is not None
        return found

    def scaled(turn: int) -> torch.Tensor:
        return steps.scaled(eight_bits(turn))

    equal = all(torch.equal(exact(turn), peer(turn)) for turn in range(4))
    assert equal, "the exact path is not the stock processor's"
    whole = [steps.eight_bits([images.decode(picture)]) for picture in pictures]
    apart = torch.stack([(eight_bits(turn).int() - one.int()).abs() for turn, one in enumerate(whole)]).float()
    # The work of one thread, as in a worker: a busy machine shows in the time on the wall, not in that of the
    # processor, in which more threads would count while they wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = medians(rounds, time.process_time, stock=peer, exact=exact, scaled=scaled, eight_bits=eight_bits)
    torch.set_num_threads(threads)
    return {
        "size": list(size),
        "exact_equals_stock_to_the_bit": equal,
        "scaled_decoding_apart_in_255ths": {"mean": float(apart.mean()), "largest": int(apart.max())},
        "milliseconds_of_one_thread": found,
        "stock_over_exact": found["stock"] / found["exact"],
        "stock_over_scaled": found["stock"] / found["scaled"],
        "wanted": SIZES[size],
    }


class NoTokens(VLChatProcessor):
    """A processor that is only asked for pictures."""

    def __init__(self) -> None:
        self.image_processor = clip_image_processor(SIDE)


def known_and_new(layers: int, rounds: int) -> dict[str, Any]:
    """A picture of 640 x 480 that is decoded, encoded and kept, against the same one read back."""
    torch.manual_seed(0)
    vision = AutoConfig.for_model(
        "clip_vision_model", hidden_size=1024, intermediate_size=4096, num_hidden_layers=1,
        num_attention_heads=16, image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    text = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = VLChatConfig(
        vision_config=vision, text_config=text, connector={"type": "linear"}, image_token_id=63,
        vision_feature_layer=-1, image_seq_length=(SIDE // PATCH) ** 2,
    )  # fmt: skip
    model = VLChatForConditionalGeneration(config).eval().requires_grad_(False)
    tower: Any = model.model.vision_tower
    tower.encoder.layers = torch.nn.ModuleList([tower.encoder.layers[0]] * layers)
    tower.config.num_hidden_layers = layers
    processor = NoTokens()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number in range(rounds + 1):
            files.append(Path(folder) / f"{number}.jpg")
            files[-1].write_bytes(jpeg((640, 480), number))
        place = FeatureCacheConfig(str(Path(folder) / "cache"))
        cache = features_on_disk(place, model, processor, True, "no", torch.device("cpu"))
        features = TowerFeatures(cache, model, "no", torch.device("cpu"))
        opening = Opening(processor, True, cache)
        steps = opening.pixels
        assert steps is not None

        def look(turn: int) -> tuple[torch.Tensor, bool]:
            batch = opening([opening.open(files[turn])])
            pixels = steps.scaled(batch["pixel_values"]) if "pixel_values" in batch else None
            return features.of(batch, pixels), bool(batch[KNOWN])

        first = look(0)
        again = look(0)
        assert not first[1] and again[1] and torch.equal(first[0], again[0]), "what is read back is not what was kept"
        eight_bits = steps.eight_bits([images.decode(files[0], shorter_side=steps.shorter_side)], reducing=True)
        assert eight_bits is not None
        plain = model.model.get_tower_features(steps.scaled(eight_bits))[1]
        assert torch.equal(plain, again[0]), "what is kept is not what the tower gives"
        next(features.cache.folder.rglob("*.features")).unlink()
        found = medians(rounds, time.perf_counter, miss=look, hit=look)  # with the disk
        size = next(features.cache.folder.rglob("*.features")).stat().st_size
    return {
        "tower": {"layers": layers, "hidden": 1024, "patches": (SIDE // PATCH) ** 2, "dtype": "float32"},
        "bytes_of_a_picture": size,
        "hit_equals_miss_and_the_tower_to_the_bit": True,
        "milliseconds": found,
        "hit_over_miss": found["hit"] / found["miss"],
        "wanted": MOST,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="of the tower; fewer for a short try")
    parser.add_argument(
        "--rounds", type=int, default=9, help="of hits; three times as many of JPEGs, a third of misses"
    )
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    arguments = parser.parse_args()
    found: dict[str, Any] = {
        "command": f"python benchmarks/pictures.py --layers {arguments.layers} --rounds {arguments.rounds}",
        "date": datetime.date.today().isoformat(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__, "pillow": PIL.__version__,
        },
        "to_tensor": [to_tensor(size, 3 * arguments.rounds) for size in SIZES],
        "cache": known_and_new(arguments.layers, max(2, arguments.rounds // 3)),
    }  # fmt: skip
    for one in found["to_tensor"]:
        taken = one["milliseconds_of_one_thread"]
        print(
            f"{one['size'][0]} x {one['size'][1]}: exact is the stock processor's tensor to the bit; scaled decoding"
            f" is {one['scaled_decoding_apart_in_255ths']['mean']:.2f} 255ths from it, at most "
            f"{one['scaled_decoding_apart_in_255ths']['largest']}\n"
            f"  stock {taken['stock']:.1f} ms, exact {taken['exact']:.1f} ms "
            f"({one['stock_over_exact']:.2f}x), scaled {taken['scaled']:.1f} ms "
            f"({one['stock_over_scaled']:.2f}x; wanted {one['wanted']}x)"
        )
    cache = found["cache"]
    print(
        f"cache: miss {cache['milliseconds']['miss']:.0f} ms, hit {cache['milliseconds']['hit']:.1f} ms, "
        f"{cache['hit_over_miss']:.2%} of a miss (wanted at most {MOST:.0%}); {cache['bytes_of_a_picture']:,} bytes"
    )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
