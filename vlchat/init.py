"""`vlchat init`: its options, and what it does."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlchat.commands import known_format, quiet
from vlchat.errors import VLChatError
from vlchat.starting.machines import GPUS, NONE, Machine, detected, machine_of
from vlchat.starting.questions import ask

FILE = "finetune.yaml"
_DATA = {".json", ".jsonl", ".csv", ".parquet"}
_GIB = {"qwen3-vl-2b": 8, "qwen3-vl-4b": 12, "qwen3-vl-8b": 20}  # of a GPU on which each of these trains


def add_init(parser: argparse.ArgumentParser) -> None:
    """The options of `vlchat init`."""
    add = parser.add_argument
    add("out", nargs="?", type=Path, default=Path(FILE), help=f"the file to write, or a folder (default: {FILE})")
    add("--model", help="answers the first question: embedded, a name of `vlchat models`, a folder or a Hub id")
    add("--data", help="answers the second: any file that `vlchat check` reads")
    add("--gpu", help=f"answers the third: {NONE}, a name such as rtx-4090, or its memory in GiB")
    add("--images", help="folder of the pictures, where they don't lie beside the data")
    add("--format", help="as of `vlchat check`")
    add("--run", dest="folder", metavar="FOLDER", help="folder of the run (default: runs/ and the name of the data)")


def init(arguments: argparse.Namespace) -> int:
    """A first configuration, from three answers."""
    known_format(arguments.format)
    out = _place(arguments.out)
    quiet()
    from vlchat.data import SourceConfig
    from vlchat.starting.choices import choose
    from vlchat.starting.sizes import size_of
    from vlchat.starting.survey import survey
    from vlchat.starting.writing import document

    asking = sys.stdin.isatty() and sys.stdout.isatty()
    here = detected()

    # 1. Three answers.
    size = _answer(arguments.model, asking, _models(here), lambda text: size_of(_model(text)), "1 of 3. Which model? "
                   "A number, a folder or a Hub id.")  # fmt: skip
    processor = _processor(size.model)

    def look(text: str) -> Any:
        config = SourceConfig(text, images=arguments.images, format=arguments.format)
        return survey(config, processor, progress=sys.stderr.isatty())

    seen = _answer(arguments.data, asking, _files(), look, "2 of 3. Which data? A file that vlchat check reads.")
    machine: Machine = _answer(
        arguments.gpu, asking, _gpus(here), lambda text: here if text == "here" else machine_of(text),
        "3 of 3. Which GPU is it to train on? A name, its memory in GiB, or none.",
    )  # fmt: skip

    # 2. What was seen, and what follows.
    for sentence in seen.sentences():
        print(sentence)
    for note in _notes(size, seen, machine):
        print(f"Note: {note}")
    chosen = choose(size, machine, seen)
    run = arguments.folder or _run(Path(seen.config.path).stem)

    # 3. Write.
    text = document(run, size, machine, seen, chosen)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise VLChatError(f"{out} can't be written: {error.strerror}. Name another file.") from error
    print(f"\nWritten: {out}. Read it, then:\n{_next(out, run, seen, size.model)}")
    return 0


def _place(out: Path) -> Path:
    """The file to write.

    Raises:
        VLChatError: it is there already, or its ending is another.
    """
    file = out / FILE if out.is_dir() or not out.suffix else out
    if file.suffix not in (".yaml", ".yml"):
        raise VLChatError(f"{file} is to be a configuration: give it the ending .yaml, or name a folder.")
    if file.exists():
        raise VLChatError(f"{file} is there already, and nothing is overwritten: name another file.")
    return file


def _answer(given: str | None, asking: bool, choices: Sequence[tuple[str, str]], understand: Any, question: str) -> Any:
    """The answer that was given, the one that a person types, or the first choice."""
    if given is not None:
        return understand(given)
    if asking:
        return ask(question, choices, understand)
    if not choices:
        raise VLChatError("There is no data file here: name one, --data FILE. vlchat init --help tells of the rest.")
    return understand(choices[0][0])


def _model(text: str) -> str | None:
    return None if text.lower() in ("embedded", "mini", "null") else text


def _models(here: Machine) -> list[tuple[str, str]]:
    """What to begin with; the largest that trains on this machine's GPU comes first."""
    from vlchat.models import MODELS

    purposes = {entry.name: f"{entry.parameters:.1f} B, {entry.purpose}" for entry in MODELS}
    small = ("embedded", "11 M, trains on any machine; knows drawn pictures, and what you teach it")
    large = [(name, purposes[name]) for name in (*reversed(_GIB), "smolvlm-500m", "llava-1.5-7b")]
    fitting = [name for name, gib in reversed(_GIB.items()) if here.gpu and here.memory >= gib * 2**30]
    if not fitting:
        return [small, *large]
    return [*(entry for entry in large if entry[0] == fitting[0]), small, *(e for e in large if e[0] != fitting[0])]


def _files() -> list[tuple[str, str]]:
    """The data files that lie here."""
    found = sorted(path for path in Path().iterdir() if path.suffix in _DATA and path.is_file())
    found.sort(key=lambda path: path.stem not in ("data", "train"))
    return [(path.name, f"{path.stat().st_size / 1e6:,.1f} MB, here") for path in found[:5]]


def _gpus(here: Machine) -> list[tuple[str, str]]:
    own = ("here", f"this machine: {here}")
    return [own, *((name, f"{GPUS[name].memory:g} GiB") for name in ("rtx-3060", "rtx-4090", "a100-80", "h100"))]


def _processor(model: str | None) -> Any:
    """The model's processor where it is at hand: it counts tokens exactly."""
    from vlchat.data import lesson

    if model is not None and not Path(model).exists():
        return None  # a Hub id: nothing is downloaded to count
    return lesson.open_processor(model)[0]


def _notes(size: Any, seen: Any, machine: Machine) -> list[str]:
    notes = []
    foreign = [name.title() for name in seen.alphabets if name != "LATIN"]
    if foreign and (size.embedded or "llava-1.5" in size.name):
        notes.append(
            f"The text is partly in {', '.join(foreign)}, and {size.name} was trained on English: a Qwen model knows "
            "more languages (vlchat models)."
        )
    if not machine.gpu and not size.embedded:
        notes.append("Without a GPU this takes hours for a few hundred rows. --model embedded trains in minutes.")
    if seen.usable < 100:
        notes.append(f"{seen.usable} rows teach a form of answer, and few facts.")
    return notes


def _run(stem: str) -> str:
    """runs/NAME, or runs/NAME-2 and so on where there is one already."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in stem).strip(".-") or "tune"
    numbered = (f"runs/{name}" if number == 1 else f"runs/{name}-{number}" for number in range(1, 1000))
    return next(run for run in numbered if not Path(run).exists())


def _next(out: Path, run: str, seen: Any, model: str | None) -> str:
    config = seen.config
    data = shlex.quote(config.path) + (f" --images {shlex.quote(config.images)}" if config.images else "")
    check = data + ("" if config.ids else " --no-ids") + f" --model{'' if model is None else ' ' + shlex.quote(model)}"
    commands = [
        (f"vlchat check {check}", "every row and picture, and what is learnt of one"),
        (f"vlchat plan {shlex.quote(str(out))}", "memory and time, before anything is loaded"),
        (f"vlchat train {shlex.quote(str(out))}", "the run; any key can be changed: loop.steps=20"),
        (f"vlchat chat --model {run} PICTURE 'QUESTION'", "an answer"),
        (f"vlchat eval {run} --data TEST.json --out scores/after", "how good it is, on rows of a file of its own"),
    ]
    width = max(len(command) for command, _ in commands)
    return "\n".join(f"  {command.ljust(width)}  # {why}" for command, why in commands)
