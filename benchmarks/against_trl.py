"""Our training against TRL's SFTTrainer on the same LLaVA and the same rows: the same first step, sooner.

    pip install trl                                      # or --target FOLDER --no-deps, with FOLDER on PYTHONPATH
    python benchmarks/against_trl.py                     # ViT 256 x 12, language model 256 x 8, 16 rows a step
    python benchmarks/against_trl.py --layers 2 1 --width 64 --batch 2 --micro 1 --steps 2 --rounds 1    # a small one

Each trains by its own public loop, SFTTrainer.train() and train.loop.fit, from picture files and conversations of
unlike lengths: connector and language model learn with AdamW in float32, the tower is frozen, the loss is over the
assistant's tokens. A step's time is from one optimizer step to the next, so that data preparation, logging and clipping
are in it; what comes before the first step and after the last is not. CPU time counts the processes which prepare rows.

Both have as many such processes (ours has one by default, TRL none). TRL recomputes activations by default and ours
does not, so that both are timed both ways. What TRL 1.16 does not do: pack rows with pictures ("Packing is not
supported for vision datasets"), take the rows of a step by length, or, on a CPU, leave out the logits of tokens without
a loss (on a GPU it does; --vocabulary says how much they weigh). It shuffles otherwise and is given the rows in our
order.

The file is not called trl.py, which would be imported in TRL's place.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from datasets import Dataset, Image, List
from interleaved import Marks, largest_difference, ratios, surroundings, told, write
from PIL import Image as Picture
from step import CLOSE, VOCABULARY, config, our_names
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.utils import logging

from train.config import RunConfig, construct, typed
from train.loop import fit
from train.objectives import OBJECTIVES
from train.tokenizer import train_tokenizer
from vlchat import VLChatProcessor
from vlchat.interop.llava import read_model
from vlchat.runs import METRICS
from vlchat.saving import save_full
from vlchat.towers import clip_image_processor

RATE = 2e-5  # the default of both
PICTURES = 8
TOLERANCE = {"loss": 1e-5, "gradients": CLOSE, "update": 1e-3}
TRL, OURS = "TRL", "ours"
RECOMPUTED = ", recomputing"
WORDS = "what is to be seen in this picture and where does it stand beside the other small red one of them".split()


class Trainings:
    """The same weights and rows for both trainers, in a folder of files."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.arguments = folder, arguments
        self.rows = write_rows(folder, arguments.batch * arguments.steps, arguments.text)
        text = (turn["value"] for row in self.rows for turn in row["conversations"])
        tokenizer = train_tokenizer(text, 400)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]  # as Llama's
        llava = config(*arguments.layers, arguments.width, arguments.vocabulary)
        llava.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        self.plain = LlavaForConditionalGeneration(llava)
        self.plain.model.vision_tower.requires_grad_(False)
        pictures = clip_image_processor(336)
        processor = VLChatProcessor.from_backbones(pictures, copy.deepcopy(tokenizer), llava.image_seq_length, "chatml")
        self.processor = LlavaProcessor(
            pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=processor.chat_template,
        )  # fmt: skip
        save_full(folder / "model", read_model(copy.deepcopy(self.plain)), processor, trained_on="nothing")
        self.order = [example.id for example in self.objective().examples(range(arguments.batch * arguments.steps))]

    def objective(self, **changes: Any) -> Any:
        options = {"type": "tune", "model": str(self.folder / "model"), "sample_tokens": 1, **changes}
        return construct(OBJECTIVES, options, "objective", seed=0, data=self.data())

    def data(self) -> list[dict[str, Any]]:
        return [{"path": str(self.folder / "rows.json")}]

    def ours(self, marks: Marks, steps: int, recomputed: bool) -> tuple[Any, float]:
        """Trains as `vlchat train` does by default. Returns the model and the first step's loss."""
        loop = self.arguments
        run = self.folder / "run"
        tree = {
            "run": str(run), "objective": {"type": "tune"}, "data": self.data(),
            "optim": {"betas": [0.9, 0.999], "warmup": 0.0, "floor": 1.0},
            "loop": {"steps": steps, "batch": loop.batch, "micro_batch": loop.micro, "workers": loop.workers},
        }  # fmt: skip
        objective = self.objective(checkpointing=recomputed)
        marks.model = marks.model and objective.model
        with marks.kept():
            fit(objective, typed(RunConfig, tree, "ours"), steps)
        return objective.model, json.loads((run / METRICS).read_text().splitlines()[0])["loss"]

    def trl(self, marks: Marks, steps: int, recomputed: bool) -> tuple[Any, float]:
        """Trains as TRL's documentation says for pictures. Returns the model and the mean loss of the steps."""
        trl, loop = imported(), self.arguments
        options = trl.SFTConfig(
            output_dir=str(self.folder / "trl"), max_steps=steps, per_device_train_batch_size=loop.micro,
            gradient_accumulation_steps=loop.batch // loop.micro, gradient_checkpointing=recomputed,
            learning_rate=RATE, lr_scheduler_type="constant", max_length=None, assistant_only_loss=True,
            train_sampling_strategy="sequential", dataloader_num_workers=loop.workers, bf16=False,
            use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        by_id = {row["id"]: row for row in self.rows}
        rows = Dataset.from_list([as_messages(by_id[name], self.folder) for name in self.order])
        model = copy.deepcopy(self.plain)
        marks.model = marks.model and model
        with marks.kept():
            trainer = trl.SFTTrainer(
                model=model, args=options, train_dataset=rows.cast_column("images", List(Image())),
                processing_class=self.processor,
            )  # fmt: skip
            loss = trainer.train().training_loss
        return model, loss

    @property
    def peers(self) -> dict[str, Callable[[Marks, int], tuple[Any, float]]]:
        return {
            TRL + RECOMPUTED: lambda marks, steps: self.trl(marks, steps, True),
            TRL: lambda marks, steps: self.trl(marks, steps, False),
            OURS + RECOMPUTED: lambda marks, steps: self.ours(marks, steps, True),
            OURS: lambda marks, steps: self.ours(marks, steps, False),
        }


def main() -> None:
    arguments = read_arguments()
    imported()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        # 1. The same weights and rows.
        trainings = Trainings(Path(name), arguments)
        # 2. The same first step.
        differences = same(trainings)
        # 3. In turn, some steps each.
        times: dict[str, dict[str, list[float]]] = {one: {"wall": [], "processor": []} for one in trainings.peers}
        for number in range(arguments.rounds):
            for peer in sorted(trainings.peers, key=list(trainings.peers).index, reverse=bool(number % 2)):
                marks = Marks()
                trainings.peers[peer](marks, arguments.steps)
                for kind, found in marks.times().items():
                    times[peer][kind] += found
    print(told(times))
    pairs = [(TRL + RECOMPUTED, OURS), (TRL, OURS), (TRL + RECOMPUTED, OURS + RECOMPUTED)]
    found = {f"{slower} / {faster}": ratios(times, slower, faster) for slower, faster in pairs}
    for told_pair, ratio in found.items():
        print(f"{told_pair}: {ratio['median_wall']:.2f} by the clock, {ratio['median_processor']:.2f} by CPU time")
    write(arguments.out, {"shape": {name: value for name, value in vars(arguments).items() if name != "out"},
                          "differences_from_trl": differences, "target": "above 1", "ratios": found, "seconds": times,
                          **surroundings("python benchmarks/against_trl.py" + options(arguments), "trl")})  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=[12, 8], help="of the tower and the language model")
    parser.add_argument("--width", type=int, default=256, help="of both")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="of the language model, at least 400")
    parser.add_argument("--batch", type=int, default=16, help="rows of an optimizer step, of one picture each")
    parser.add_argument("--micro", type=int, default=4, help="rows at once, a divisor of --batch")
    parser.add_argument("--text", type=int, default=300, help="words of the longest conversation, about")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare rows, of both trainers")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of a turn, the first of which warms up")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    if arguments.batch % arguments.micro:
        parser.error("--batch must be a multiple of --micro: SFTTrainer takes equally many rows each time")
    if arguments.steps < 2:
        parser.error("--steps must be at least 2: the first step of a turn warms up")
    return arguments


def imported() -> Any:
    """TRL, or a sentence that says how to install it."""
    try:
        import trl

        trl.SFTTrainer  # noqa: B018  # TRL imports its parts when they are asked for
    except ImportError as error:
        raise SystemExit(
            f"TRL can't be imported ({error}). Install it with: pip install trl; or, so that nothing else changes: "
            "pip install --target FOLDER --no-deps trl, and put FOLDER on PYTHONPATH."
        ) from None
    return trl


def write_rows(folder: Path, count: int, most: int) -> list[dict[str, Any]]:
    """Pictures of 640 x 480 and conversations about them, of one to four exchanges and `most` words at most."""
    draw = random.Random(0)
    for number in range(PICTURES):
        coarse = numpy.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=numpy.uint8)
        Picture.fromarray(coarse).resize((640, 480)).save(folder / f"{number}.jpg", quality=90)
    rows = []
    for number in range(count):
        turns = []
        for turn in range(draw.randint(1, 4)):
            question, answer = (" ".join(draw.choices(WORDS, k=draw.randint(4, most // 8))) for _ in range(2))
            turns += [{"from": "human", "value": "<image>\n" * (not turn) + question}, {"from": "gpt", "value": answer}]
        rows.append({"id": str(number), "image": f"{number % PICTURES}.jpg", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    return rows


def as_messages(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row as TRL wants it: pictures beside `messages`, before whose first question it puts them by itself."""
    roles = {"human": "user", "gpt": "assistant"}
    turns = [(roles[turn["from"]], turn["value"].removeprefix("<image>\n")) for turn in row["conversations"]]
    return {
        "images": [str(folder / row["image"])],
        "messages": [{"role": role, "content": content} for role, content in turns],
    }


def same(trainings: Trainings) -> dict[str, dict[str, float]]:
    """How far each peer's first step is from TRL's as it is by default; ends the benchmark where that is too far.

    The update is compared as a whole, for AdamW's first one is as large where a gradient is nearly zero, and there its
    sign is a matter of the order of adding.
    """
    before = our_names(dict(trainings.plain.named_parameters()))
    found: dict[str, dict[str, float]] = {}
    wanted: tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None
    for peer, train in trainings.peers.items():
        marks = Marks(model=trainings.plain)
        model, loss = train(marks, 1)
        weights = our_names({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
        updates = {name: weight - before[name].detach() for name, weight in weights.items()}
        got = (loss, our_names(marks.gradients), updates)
        if wanted is None:
            wanted = got
            continue
        distance = sum(float((updates[name] - one).square().sum()) for name, one in wanted[2].items())
        length = sum(float(one.square().sum()) for one in wanted[2].values())
        found[peer] = {
            "loss": abs(loss - wanted[0]),
            "gradients": largest_difference(got[1], wanted[1]),
            "update": (distance / length) ** 0.5,
        }
        if any(found[peer][what] > most for what, most in TOLERANCE.items()):
            raise SystemExit(f"{peer} does not make TRL's first step: {found[peer]}")
    print("differences from TRL's first step:", found)
    return found


def options(arguments: argparse.Namespace) -> str:
    layers = " ".join(map(str, arguments.layers))
    names = ("width", "vocabulary", "batch", "micro", "text", "workers", "steps", "rounds")
    return f" --layers {layers} " + " ".join(f"--{name} {getattr(arguments, name)}" for name in names)


if __name__ == "__main__":
    main()
