"""`vlchat eval` and `vlchat compare`: their options, and what they do."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import yaml

from vlchat.commands import known_format, loading, quiet
from vlchat.errors import VLChatError
from vlchat.folders import weights_digest
from vlchat.places import locate

if TYPE_CHECKING:
    from vlchat.evaluate import Result


# What a suite's file says, for each task or for all.
_OF_A_SUITE = (
    "task", "data", "images", "format", "split", "floor", "limit", "questions", "phrasings", "slices", "option",
    "controls", "no_controls", "control_rows", "seed", "max_new_tokens",
)  # fmt: skip


def add_eval(parser: argparse.ArgumentParser) -> None:
    """The options of `vlchat eval`, besides those of every command with a model."""
    add = parser.add_argument
    add("--task", help="one of `--list`; by default vqa where --data is given, else scenes")
    add("--list", action="store_true", help="list the tasks and published protocols, with their options")
    add("--data", help="the questions: any file that `vlchat check` reads, or a protocol's official file or folder")
    add("--images", help="folder of their pictures (default: beside the data)")
    add("--format", help="as of `vlchat check`")
    add("--split", help="which split of a Hugging Face dataset (default: train, or the only one)")
    add("--floor", metavar="TRAIN_DATA", help="a guess from its questions alone, and what leaked from it")
    add("--limit", type=int, metavar="N", help="only the first N rows of --data")
    add("--questions", type=int, metavar="N", help="questions of --task scenes (default: 2000)")
    add("--phrasings", choices=["seen", "held"], help="of --task scenes: trained on, or held back")
    add("--slice", dest="slices", action="append", metavar="FIELD", help="also split the table by this field of a row")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="any other option of the task")
    add("--suite", type=Path, metavar="FILE", help="a YAML file of several tasks, instead of --task")
    add("--url", help="ask an OpenAI-compatible server; MODEL is then its name there")
    add("--api-key", metavar="KEY", help="of the server (default: $OPENAI_API_KEY)")
    add("--concurrency", type=int, default=8, metavar="N", help="requests to the server at a time (default: 8)")
    add("--controls", default="shuffled,none,blurred", metavar="NAMES", help="blind controls (default: %(default)s)")
    add("--no-controls", action="store_true", help="leave the blind controls out")
    add("--control-rows", type=int, default=500, metavar="N", help="rows of each control (default: 500; 0: all)")
    add("--seed", type=int, default=0, help="of the controls, and of the questions of --task scenes (default: 0)")
    add("--batch", type=int, default=16, metavar="N", help="questions at a time (default: 16)")
    add("--max-new-tokens", type=int, metavar="N", help="longest answer (default: what the task needs)")
    add("--cache", type=Path, metavar="FOLDER", help="where answers are kept (default: the user's cache)")
    add("--no-cache", action="store_true", help="ask everything again, and keep nothing")
    add("--out", type=Path, metavar="FOLDER", help="write the report, the replies and a certificate")
    add("--evidence", type=int, default=8, metavar="N", help="evidence maps of the report's worst rows (default: 8)")
    add(
        "--calibrate",
        type=float,
        nargs="?",
        const=0.1,
        metavar="RISK",
        help="note in the model's folder from which "
        'likelihood on at most this share of its answers is wrong (default: 0.1), for the chat page\'s "not sure"',
    )
    add("--track", action="append", default=[], metavar="NAME", help="also to tensorboard, trackio, wandb or mlflow")
    add("--verify", type=Path, metavar="FOLDER", help="ask again what its certificate says, and compare")
    add("--json", action="store_true", help="print the result as JSON")


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The options of `vlchat compare`."""
    add = parser.add_argument
    add("first", help="the folder of a result or a suite, or several of one recipe with other seeds: A1,A2,A3")
    add("second", nargs="?", help="what is compared with it; may be left out where the first are several")
    add("--replay", action="append", default=[], metavar="TASK", help="a task of what was known before (repeatable)")
    add("--out", type=Path, metavar="FOLDER", help="write compare.html, compare.md and compare.json")
    add("--json", action="store_true", help="print the comparison as JSON")


def compare(arguments: argparse.Namespace) -> int:
    """`vlchat compare`: what changed between two results, and whether that can be told from chance."""
    quiet()
    first = _folders(arguments.first)
    second = [] if arguments.second is None else _folders(arguments.second)
    if len(first) > 1 or len(second) > 1:
        return _compare_runs(arguments, first, second)
    if not second:
        raise VLChatError("vlchat compare takes two folders, BEFORE and AFTER, or several seeds: A1,A2,A3.")
    from vlchat.evaluate import comparison_report as report
    from vlchat.evaluate.comparison import compare_suites
    from vlchat.evaluate.stored import read_results

    names = (first[0], second[0])
    found = compare_suites(read_results(first[0]), read_results(second[0]), names=names, replay=arguments.replay)
    short = (Path(first[0]).name, Path(second[0]).name)
    found = replace(found, names=short if all(short) and short[0] != short[1] else names)
    as_json = arguments.json and json.dumps(report.to_dict(found), indent=2, ensure_ascii=False, default=str)
    print(as_json or report.terminal(found))
    if arguments.out is not None:
        print(f"Written: {report.write(found, arguments.out)}", file=_aside(arguments))
    return 0


def _compare_runs(arguments: argparse.Namespace, first: list[str], second: list[str]) -> int:
    from vlchat.evaluate.seeds import compare_runs

    if arguments.out is not None or arguments.replay:
        raise VLChatError("Several seeds are compared by their scores alone: leave --out and --replay out.")
    found = compare_runs(first, second)
    print(json.dumps(found.to_dict(), indent=2) if arguments.json else "\n".join(found.sentences()))
    return 0


def _folders(text: str) -> list[str]:
    """A folder, or several with commas between them."""
    return [text] if Path(text).exists() else [part.strip() for part in text.split(",") if part.strip()]


def evaluate(arguments: argparse.Namespace) -> int:
    """`vlchat eval`: a model's scores."""
    try:
        return _evaluate(arguments)
    except KeyboardInterrupt:
        if not (arguments.list or arguments.verify or arguments.no_cache):
            print("\nStopped. The answers so far are kept: the same command goes on from there.", file=sys.stderr)
        raise


def _evaluate(arguments: argparse.Namespace) -> int:
    from vlchat import trackers
    from vlchat.evaluate import open_answerer, result_folder, run
    from vlchat.evaluate.page import write_page
    from vlchat.evaluate.report import PAGE, page
    from vlchat.evaluate.sharing import Processes

    if arguments.list:
        from vlchat.evaluate.known import listing

        print(listing())
        return 0
    known_format(arguments.format)
    quiet()
    if arguments.verify is not None:
        return _verify(arguments)
    if arguments.evidence < 0:
        raise VLChatError(f"--evidence is {arguments.evidence}: it is a number of rows, or 0 for none.")
    trackers.check(arguments.track, "--track")
    if arguments.track and arguments.out is None:
        raise VLChatError("--track needs --out FOLDER: what trackers keep on this machine lies there.")
    if arguments.out is not None:
        result_folder(arguments.out)
    calibrated = _calibrated_folder(arguments)
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
        _show(arguments, result, arguments.out)
        if calibrated is not None:
            from vlchat.evaluate import trust

            found = trust.trust_of(result, arguments.calibrate, weights_digest(calibrated))
            print(f"Calibrated: {trust.write(found, calibrated)}", file=_aside(arguments))
        if arguments.out is not None:
            place = write_page(page(result, arguments.evidence), arguments.out / PAGE)
            print(f"The report: {place}", file=_aside(arguments))
    return 0


def _calibrated_folder(arguments: argparse.Namespace) -> Path | None:
    """Where --calibrate writes; None without it."""
    if arguments.calibrate is None:
        return None
    if not 0 < arguments.calibrate < 1:
        raise VLChatError(f"--calibrate is {arguments.calibrate:g}; it is a share between 0 and 1, such as 0.1.")
    folder = None if arguments.url or arguments.suite else locate(arguments.model)[0]
    if not isinstance(folder, Path):
        raise VLChatError("--calibrate takes one task and a model in a folder: its calibration is kept there.")
    return folder


def _suite(arguments: argparse.Namespace, shared: dict[str, Any]) -> int:
    from vlchat.evaluate import open_answerer
    from vlchat.evaluate.page import write_page
    from vlchat.evaluate.report import PAGE, page
    from vlchat.evaluate.sharing import Processes
    from vlchat.evaluate.stored import write_order
    from vlchat.evaluate.suite import read_suite, run_suite

    parser = argparse.ArgumentParser()
    add_eval(parser)
    for name in _OF_A_SUITE:
        if getattr(arguments, name) != parser.get_default(name):
            shown = name.removesuffix("s") if name == "slices" else name.replace("_", "-")
            raise VLChatError(f"--suite has its own tasks, data, controls and seed; leave --{shown} out.")
    suite = read_suite(arguments.suite)
    processes = Processes.launched()
    answerer = open_answerer(arguments.model, url=arguments.url, loading=shared["loading"], processes=processes)
    parts, found = [], {}
    shared |= {"progress": processes.first, "say": lambda text: print(text, file=_aside(arguments), flush=True)}
    for name, result in run_suite(suite, answerer, model=arguments.model, **shared):
        if processes.first:
            found[name] = _show(arguments, result, arguments.out and arguments.out / name, printed=not arguments.json)
            if arguments.out is not None:
                parts.append(replace(page(result, arguments.evidence), task=name))
    if arguments.json and processes.first:
        print(_json(found))
    if parts:
        write_order(arguments.out, [entry.name for entry in suite.tasks])
        print(f"The report: {write_page(parts, arguments.out / PAGE)}", file=_aside(arguments))
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
        return {"key": arguments.api_key, "concurrency": arguments.concurrency}
    return loading(arguments)


def _show(arguments: argparse.Namespace, result: Result, out: Path | None, printed: bool = True) -> dict[str, Any]:
    """Prints a result, writes it down where that was asked for, and returns it as JSON has it."""
    from vlchat.evaluate import save, terminal
    from vlchat.evaluate.tracking import log_result

    found = result.to_dict()
    if printed:
        print(_json(found) if arguments.json else terminal(result))
    if out is not None:
        print(f"Written: {save(result, out)}", file=_aside(arguments))
        if arguments.track:
            log_result(found, arguments.track, out, say=lambda text: print(text, file=_aside(arguments)))
    return found


def _json(found: Any) -> str:
    return json.dumps(found, indent=2, ensure_ascii=False, default=str)


def _aside(arguments: argparse.Namespace) -> TextIO:
    """Where to say what is not the result itself."""
    return sys.stderr if arguments.json else sys.stdout
