"""`vlchat eval` and `vlchat compare`: their options, and what they do."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlchat.commands import known_format, loading, quiet
from vlchat.errors import VLChatError

if TYPE_CHECKING:
    from vlchat.evaluate import Result


def add_eval(parser: argparse.ArgumentParser) -> None:
    """The options of `vlchat eval`, besides those of every command with a model."""
    add = parser.add_argument
    add("--task", help="one of `--list`; by default vqa where --data is given, else scenes")
    add("--list", action="store_true", help="list the tasks and published protocols, with their options")
    add("--data", help="the questions: any file that `vlchat check` reads, or a protocol's official file or folder")
    add("--images", help="folder of their pictures (default: beside the data)")
    add("--format", help="as of `vlchat check`")
    add("--split", help="which split of a Hugging Face dataset (default: train, or the only one)")
    add("--floor", metavar="TRAIN_DATA", help="print what these rows' questions alone would give")
    add("--limit", type=int, metavar="N", help="only the first N rows of --data")
    add("--questions", type=int, metavar="N", help="questions of --task scenes (default: 2000)")
    add("--phrasings", choices=["seen", "held"], help="of --task scenes: trained on, or held back")
    add("--slice", dest="slices", action="append", metavar="FIELD", help="also split the table by this field of a row")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="any other option of the task")
    add("--suite", type=Path, metavar="FILE", help="a YAML file of several tasks, instead of --task")
    add("--url", help="ask an OpenAI-compatible server; MODEL is then its name there")
    add("--api-key", metavar="KEY", help="of the server (default: $OPENAI_API_KEY)")
    add("--controls", default="shuffled,none,blurred", metavar="NAMES", help="blind controls: shuffled, none, blurred")
    add("--no-controls", action="store_true", help="leave the blind controls out")
    add("--control-rows", type=int, default=500, metavar="N", help="rows of each control (default: 500; 0: all)")
    add("--seed", type=int, default=0, help="of the controls, and of the questions of --task scenes (default: 0)")
    add("--batch", type=int, default=16, metavar="N", help="questions at a time (default: 16)")
    add("--max-new-tokens", type=int, metavar="N", help="longest answer (default: what the task needs)")
    add("--cache", type=Path, metavar="FOLDER", help="where answers are kept (default: the user's cache)")
    add("--no-cache", action="store_true", help="ask everything again, and keep nothing")
    add("--out", type=Path, metavar="FOLDER", help="write the report, the replies and a certificate")
    add("--verify", type=Path, metavar="FOLDER", help="ask again what its certificate says, and compare")
    add("--json", action="store_true", help="print the result as JSON")


def evaluate(arguments: argparse.Namespace) -> int:
    """`vlchat eval`: a model's scores."""
    from vlchat.evaluate import open_answerer, result_folder, run, save, terminal
    from vlchat.evaluate.sharing import Processes

    known_format(arguments.format)
    quiet()
    if arguments.verify is not None:
        return _verify(arguments)
    if arguments.out is not None:
        result_folder(arguments.out)
    controls = [] if arguments.no_controls else [name.strip() for name in arguments.controls.split(",") if name.strip()]
    shared = {
        "batch_size": arguments.batch,
        "cache": arguments.cache,
        "remember": not arguments.no_cache,
        "loading": _loading(arguments),
        "url": arguments.url,
    }
    if arguments.suite is not None:
        return _suite(arguments, shared)
    options = _options(arguments)
    processes = Processes.launched()
    result = run(
        arguments.model,
        arguments.task or ("vqa" if "data" in options else "scenes"),
        answerer=open_answerer(arguments.model, url=arguments.url, loading=shared["loading"], processes=processes),
        controls=controls,
        control_rows=arguments.control_rows,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        **shared,
        **options,
    )
    if processes.first:
        _print(result, arguments.json, terminal)
        if arguments.out is not None:
            print(f"Written: {save(result, arguments.out)}")
    return 0


def _suite(arguments: argparse.Namespace, shared: dict[str, Any]) -> int:
    from vlchat.evaluate import open_answerer, save, terminal
    from vlchat.evaluate.sharing import Processes
    from vlchat.evaluate.suite import read_suite, run_suite

    if given := [name for name in ("task", "data") if getattr(arguments, name) is not None]:
        raise VLChatError(f"--suite names its own tasks and data; leave --{given[0]} out.")
    suite = read_suite(arguments.suite)
    processes = Processes.launched()
    answerer = open_answerer(arguments.model, url=arguments.url, loading=shared["loading"], processes=processes)
    for name, result in run_suite(suite, answerer, model=arguments.model, progress=processes.first, **shared):
        if processes.first:
            _print(result, arguments.json, terminal)
            if arguments.out is not None:
                print(f"Written: {save(result, arguments.out / name)}\n")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from vlchat.evaluate.certificate import verify

    device = None if arguments.device == "auto" else arguments.device
    found = verify(arguments.verify, model=arguments.model, data=arguments.data, device=device)
    for sentence in (*found.changed, *found.differs):
        print(sentence)
    for note in found.notes:
        print(f"Note: {note}")
    if found.changed:
        print("Not asked again: the certificate is of something else.")
    else:
        print("The certificate holds: every reply and figure is the same." if found.holds else "It does not hold.")
    return 0 if found.holds else 1


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The task's options. Only what was given: one that the task does not have is refused by name."""
    names = ("data", "format", "images", "split", "floor", "limit", "questions", "phrasings", "slices")
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    for text in arguments.option:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise VLChatError(f'--option takes NAME=VALUE, and "{text}" is not.')
        try:
            options[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise VLChatError(f'--option {name}: "{value}" cannot be read: {" ".join(str(error).split())}') from error
    return options


def _loading(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.url is not None:
        return {} if arguments.api_key is None else {"key": arguments.api_key}
    return loading(arguments)


def _print(result: Result, as_json: bool, text: Any) -> None:
    print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False, default=str) if as_json else text(result))
