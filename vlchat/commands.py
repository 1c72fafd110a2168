"""What each command of `vlchat` does: parsed arguments in, exit code out.

Heavy imports stay inside the functions that need them: `vlchat --help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlchat.errors import VLChatError, nearest

if TYPE_CHECKING:
    from vlchat.chat import Chat

PICTURE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".svg", ".pdf"}


def chat(arguments: argparse.Namespace) -> int:
    """`vlchat chat`: one answer, or a conversation."""
    compared, others = models_and_words(arguments.compare or [])
    words = [*arguments.words, *others]
    if compared:  # argparse does not tell which came first
        words.sort(key=lambda word: not _is_picture(word))
    pictures, question = pictures_and_question(words)
    if compared and arguments.model is not None:
        raise VLChatError("--compare names the models: leave --model out.")
    from vlchat import images
    from vlchat.terminal import Session

    opened = [images.decode(Path(picture)) for picture in pictures]  # before the model: a wrong path is told at once
    options = {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
    }
    if compared:
        from vlchat import compare

        quiet()
        chats = compare.load(compared, **loading(arguments))
        session: Session = compare.Comparison(chats, arguments.system, options, sys.stdout)
    else:
        session = Session(_load(arguments), arguments.system, options, sys.stdout)
    session.waiting = opened
    if question is None:
        session.run()
    else:
        session.ask(question)
    return 0


def models_and_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What follows `--compare`: the models, at least two, and then pictures and the question."""
    count = min(2, len(words))
    while count < len(words) and _is_model(words[count]):
        count += 1
    return list(words[:count]), list(words[count:])


def _is_model(word: str) -> bool:
    """Whether a third word is a model: a folder, a short name, or shaped like a Hub id."""
    from vlchat.models import resolve

    try:
        path = Path(word)
        if path.exists():
            return path.is_dir()
    except (OSError, ValueError):  # a question that is too long for a file's name, or holds a NUL
        return False
    named_like_a_file = path.suffix.lower() in PICTURE_ENDINGS or word.startswith(("/", ".", "~"))
    return resolve(word) != word or (word.count("/") == 1 and " " not in word and not named_like_a_file)


def pictures_and_question(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Pictures and the question: the last word is the question unless it is a file or is named like a picture."""
    if not words:
        return [], None
    *before, last = words
    if before and not last.strip():
        raise VLChatError("The question is empty. Say in quotes what you want to know.")
    for word in before:
        if not _is_file(word) and not Path(word).suffix and "/" not in word:
            raise VLChatError(f'There is no picture "{word}". A question of several words goes in quotes.')
    if _is_picture(last):
        return list(words), None
    if not before and " " not in last.strip():
        return [last], None  # a lone word is a path with an error in it, more likely than a question
    return before, last


def _is_picture(word: str) -> bool:
    return Path(word).suffix.lower() in PICTURE_ENDINGS and " " not in word.strip() or _is_file(word)


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a question that is too long for a file's name, or holds a NUL
        return False


def quiet() -> None:
    """Nothing of transformers' own on the screen, beside what people asked for."""
    import transformers
    from huggingface_hub.utils import logging

    transformers.logging.set_verbosity_error()
    logging.set_verbosity_error()  # each of its attempts at a server that is out of reach
    transformers.logging.disable_progress_bar()


def _load(arguments: argparse.Namespace) -> Chat:
    quiet()
    from vlchat.chat import Chat

    if sys.stderr.isatty():
        print(f"Loading {arguments.model or 'the embedded model'} ...", file=sys.stderr)
    return Chat.load(arguments.model, **loading(arguments))


def loading(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `Chat.load` that every command with a model has."""
    return _named(arguments, "quantize", "dtype", "device", "attn", "revision")


def _named(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names}


def models(arguments: argparse.Namespace) -> int:
    """`vlchat models`: what to begin with."""
    from vlchat.models import table

    print(table())
    return 0


def check(arguments: argparse.Namespace) -> int:
    """`vlchat check`: every row of a dataset."""
    from vlchat.data import SourceConfig, doctor

    known_format(arguments.format)
    source = _named(arguments, "format", "images", "split", "limit", "ids")
    return doctor.run(
        SourceConfig(arguments.data, **source),
        **_named(
            arguments, "decode", "workers", "model", "revision", "max_length", "sample", "quarantine", "clean", "report"
        ),
        as_json=arguments.json,
    )


def known_format(name: str | None) -> None:
    from vlchat.data.formats import FORMATS

    if name is not None and name not in FORMATS:  # else every row would be told to be bad
        hint = nearest(name, FORMATS)
        raise VLChatError(f'There is no format "{name}"; known: {", ".join(FORMATS)}{hint or "."}')


def export(arguments: argparse.Namespace) -> int:
    """`vlchat export`: a model as one folder."""
    quiet()
    from vlchat.export import export as write

    names = ("layout", "dtype", "name", "merge", "overwrite", "scores", "check")
    print(f"Written: {write(arguments.model, arguments.out, **_named(arguments, *names))}")
    return 0


def bring_in(arguments: argparse.Namespace) -> int:
    """`vlchat import`: a published checkpoint as a vlchat folder."""
    quiet()
    from vlchat.export import import_model

    names = ("template", "dtype", "name", "revision", "overwrite")
    print(f"Written: {import_model(arguments.model, arguments.out, **_named(arguments, *names))}")
    return 0


def info(arguments: argparse.Namespace) -> int:
    """`vlchat info`: what a model is, and how far a run is."""
    quiet()
    from vlchat import runs

    folder = Path(arguments.model) if arguments.model else None
    if folder is not None and folder.is_dir() and runs.is_run(folder):
        return _info_of_run(arguments, folder)
    _print_model(arguments)
    return 0


def _info_of_run(arguments: argparse.Namespace, folder: Path) -> int:
    from vlchat.folders import steps
    from vlchat.run_info import describe

    try:
        _print_model(arguments)
        print()
    except VLChatError as error:  # a run that has saved nothing yet, or whose newest save is damaged
        print(f"{'model':>12}  {error if steps(folder) else 'no checkpoint yet'}\n")
    for name, text in describe(folder):
        print(f"{name:>12}  {text}")
    return 0


def _print_model(arguments: argparse.Namespace) -> None:
    from vlchat import checkpoint, hub

    about = checkpoint.describe(arguments.model, arguments.revision)
    if "/" in about["path"] and not Path(about["path"]).exists():
        about |= hub.facts(about["path"], arguments.revision)
    about["base"] = about["base"] and {key: found or "the embedded model" for key, found in about["base"].items()}
    for name, value in about.items():
        print(f"{name.replace('_', ' '):>12}  {_readable(value)}")


def push(arguments: argparse.Namespace) -> int:
    """`vlchat push`: a checkpoint on the Hub."""
    from vlchat.export import push as sending

    sending.check_name(arguments.repository)
    parcel = sending.pack(arguments.folder)
    print(parcel.render(), flush=True)
    if arguments.dry_run:
        print("Nothing was sent.")
        return 0
    where = sending.push(parcel, arguments.repository, private=arguments.private, revision=arguments.revision)
    print(f"Sent: {where}")
    return 0


def _readable(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
