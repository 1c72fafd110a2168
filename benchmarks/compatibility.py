"""docs/compatibility.md: what works with a tiny random checkpoint of each published family, measured cell by cell.

`python benchmarks/compatibility.py` takes some two minutes on two cores and needs no network.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import numpy as np
import torch
import transformers
import yaml
from PIL import Image

from train.__main__ import main as train
from vlchat import checkpoint, foreign, prompt
from vlchat.chat import Chat, ask_messages
from vlchat.errors import VLChatError
from vlchat.export import export, import_model
from vlchat.lora import is_lora

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the families are those of the tests

from families import FAMILIES  # noqa: E402

OUT = ROOT / "docs" / "compatibility.md"
VERSIONS = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "pillow")
ANSWER = "A red circle."
HEAD = """# Compatibility

What works with which family of `AutoModelForImageTextToText`, measured by `python benchmarks/compatibility.py` on tiny
random checkpoints that are saved to disk in each family's published form ([tests/families.py](../tests/families.py)),
on a machine without torchvision and without a GPU. It tells that the code fits, not how well a model answers.

- **chat**: a question about a picture, streamed; where the family takes them, a conversation about two pictures and one
  about none; control tokens that a person typed stay text; Stop ends it.
- **batch == single**: conversations of unlike length and number of pictures, answered at once and one by one, in
  float32: the same words, and the largest difference between the first tokens' logits; "one by one" where a model
  can't answer them together so, and is not asked to.
- **nf4**: `--quantize nf4`: answers, with the language model's layers in 4 bits and no layer of tower or connector.
- **tune**: `vlchat train`, stage 2, LoRA, 20 steps: the model then gives the answer it was taught and stops there, and
  the run's folder, loaded again, answers the same. The loss of the first and the last step.
- **tune on nf4**: the same with `objective.quantize: nf4`.
- **import**: `vlchat import` makes it one of vlchat's own models: the same messages give the same logits.
- **export**: `vlchat export --check`: what was tuned, merged and written, answers the same when a fresh process
  reads it.

BLIP-2 and InstructBLIP with a decoder are loaded as vlchat's own class; they, those with a T5, and PaliGemma get
the prompt of their papers where they store no template.

"Template added" is a family that is published without a chat template, with a `chat_template.jinja` in its folder.
"""


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def conversations(chat: Chat) -> list[list[dict[str, Any]]]:
    """About one picture, and about two and none where the family takes that; all but the first with typed tokens."""
    again = [{"role": "assistant", "content": "Two cats."}, {"role": "user", "content": "a red </s> <image> circle"}]
    asked = [ask_messages(picture(1), "What is it?"), [*ask_messages(picture(2, 30, 80), "Is it?"), *again]]
    for more in (
        ask_messages([picture(3), picture(4, 70, 40)], "How many cats are there in the two pictures?"),
        ask_messages(None, "Is it green?"),
    ):
        try:
            chat.batch([more], max_new_tokens=1)
        except VLChatError:  # a family that takes exactly one picture, or at least one
            continue
        asked.append(more)
    return asked


def first_logits(chat: Chat, several: list[list[dict[str, Any]]]) -> torch.Tensor:
    options = {"max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.inference_mode():
        return chat.model.generate(**chat._inputs(several), **options).logits[0]


def chats(folder: Path, work: Path) -> str:
    chat = Chat.load(folder)
    chat.ask(picture(1), "What is it?", max_new_tokens=4)  # or the reason why not
    asked = conversations(chat)
    for messages in asked:
        if "".join(chat.stream(messages, max_new_tokens=6)).strip() != chat.batch([messages], max_new_tokens=6)[0]:
            return "no: streamed words differ"
    if stopped_after(chat, asked[0]) > 1:
        return "no: Stop does not stop"
    return "yes" if len(asked) == 4 else "yes, with a picture" if len(asked) == 3 else "yes, with one picture"


def stopped_after(chat: Chat, messages: list[dict[str, Any]]) -> int:
    """Tokens that are computed for a question which was called off at once."""
    stop, steps = threading.Event(), []
    stop.set()
    hook = chat.model.get_output_embeddings().register_forward_hook(lambda *_: steps.append(1))
    list(chat.stream(messages, stop=stop))
    hook.remove()
    return len(steps)


def batches(folder: Path, work: Path) -> str:
    chat = Chat.load(folder)
    chat.ask(picture(1), "What is it?", max_new_tokens=1)
    asked = conversations(chat)
    alone = [chat.batch([messages], max_new_tokens=8)[0] for messages in asked]
    same = "yes" if chat.batch(asked, max_new_tokens=8) == alone else "no: other words"
    if not foreign.apart(chat._inputs(asked), [prompt.validate(messages) for messages in asked]):
        return f"{same}, one by one"
    difference = first_logits(chat, asked) - torch.cat([first_logits(chat, [messages]) for messages in asked])
    return f"{same}, {difference.abs().max().item():.0e}"


def quantizes(folder: Path, work: Path) -> str:
    chat = Chat.load(folder, quantize="nf4")  # refuses to load where a layer outside the language model is quantized
    count = sum(type(module).__name__ == "Linear4bit" for module in chat.model.modules())
    chat.ask(picture(1), "What is it?", max_new_tokens=4)
    return f"yes, {count} layers"


def tunes(folder: Path, work: Path, quantize: str | None = None) -> str:
    run = tuned(folder, work, quantize)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    chat = Chat.load(run, quantize=quantize)
    answer = chat.ask(picture(0), "What is it?", max_new_tokens=12)
    if answer != ANSWER or not is_lora(chat.model):
        return f"no: it says {answer!r}"
    return f"yes, {losses[0]:.1f} → {losses[-1]:.1f}"


def tuned(folder: Path, work: Path, quantize: str | None = None) -> Path:
    """The run of 20 steps on eight rows with a picture each, made once."""
    run = work / f"run-{quantize}"
    if list(run.glob("step-*")):
        return run
    rows = []
    for index in range(8):
        picture(index, 24 + 8 * index).save(work / f"{index}.png")
        rows.append({"image": f"{index}.png", "question": "What is it?", "answer": ANSWER})
    (work / "data.json").write_text(json.dumps(rows))
    objective = {"type": "tune", "model": str(folder), "quantize": quantize, "sample_tokens": 4,
                 "lora": {"r": 4, "alpha": 8, "dropout": 0.0}}  # fmt: skip
    loop = {"steps": 20, "batch": 2, "workers": 0, "log_every": 1}
    config = {"run": str(run), "objective": objective, "data": [{"path": str(work / "data.json")}], "loop": loop,
              "trainable": {"lora_": 1e-2}}  # fmt: skip
    (work / "run.yaml").write_text(yaml.safe_dump(config))
    train([str(work / "run.yaml"), "--overwrite"])
    return run


def imports(folder: Path, work: Path) -> str:
    out = import_model(str(folder), work / "imported", dtype="float32")
    model, processor = checkpoint.load(folder)
    one, other = Chat(model, processor), Chat.load(out)
    asked = conversations(one)
    pairs = [(first_logits(one, [messages]), first_logits(other, [messages])) for messages in asked]
    difference = max((mine - theirs).abs().max().item() for mine, theirs in pairs)
    return f"yes, {difference:.0e}" if difference < 1e-3 else f"no: logits differ by {difference:.0e}"


def exports(folder: Path, work: Path) -> str:
    told: list[str] = []
    export(str(tuned(folder, work)), work / "exported", check=True, tell=told.append)
    return "yes"


COLUMNS: dict[str, Callable[[Path, Path], str]] = {
    "chat": chats,
    "batch == single": batches,
    "nf4": quantizes,
    "tune": tunes,
    "tune on nf4": lambda folder, work: tunes(folder, work, "nf4"),
    "import": imports,
    "export": exports,
}


def measured(column: Callable[[Path, Path], str], folder: Path, work: Path, kind: str, reasons: list[str]) -> str:
    """A cell: what was found, or `no` with the number of the reason."""
    try:
        return column(folder, work)
    except VLChatError as error:
        reason = re.sub(rf"{re.escape(str(folder.parent))}\S*", "FOLDER", " ".join(str(error).split()))
        reason = re.sub(r'^Row "[^"]*": ', "", reason).replace(kind, "This model")
    except Exception as error:  # a cell that fails is a finding, too
        reason = f"fails with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if reason not in reasons:
        reasons.append(reason)
    return f"no [{reasons.index(reason) + 1}]"


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    reasons: list[str] = []
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for name, make in FAMILIES.items():
            folder, work = Path(root) / name / "model", Path(root) / name / "work"
            work.mkdir(parents=True)
            make(folder)
            kind = json.loads((folder / "config.json").read_text())["architectures"][0]
            cells = [measured(column, folder, work, kind, reasons) for column in COLUMNS.values()]
            rows.append(f"| {name} | {kind} | " + " | ".join(cells) + " |")
            print(rows[-1], file=sys.stderr)
    titles = f"| family | class | {' | '.join(COLUMNS)} |"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    where = f"{datetime.date.today()}, Python {platform.python_version()}, {versions}; {platform.machine()}, CPU."
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    table = [titles, "|" + "---|" * (len(COLUMNS) + 2), *rows]
    OUT.write_text("\n".join([HEAD, *table, "", where, "", "What is refused, in vlchat's own words:", "", *notes, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
