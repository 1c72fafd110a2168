"""One command: `vlchat chat | serve | models | init | plan | train | check | eval | compare | export | info | ...`.

What each command does stands in `vlchat.commands`.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vlchat import __version__, commands, scoring
from vlchat import init as beginning
from vlchat.arguments import Parser, named
from vlchat.attention import ATTENTION
from vlchat.errors import VLChatError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit code: 0, 2 for a user's mistake (one message on stderr), 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # half an emoji, or bytes of another alphabet, end nothing
            stream.reconfigure(errors="replace")
    try:
        if arguments[:1] == ["train"]:  # has its own options, --help included
            from train.__main__ import main as train

            return train(arguments[1:])
        if arguments[:1] == ["plan"]:
            from train.planning.command import main as plan

            return plan(arguments[1:])
        parsed, rest = _parser().parse_known_args(arguments)
        if rest and parsed.run is commands.chat and not any(word.startswith("-") for word in rest):
            parsed.words += rest  # argparse takes only those words that stand together, before or behind the options
        elif rest:
            raise VLChatError(f"Unrecognized arguments: {' '.join(rest)}. See vlchat --help.")
        return parsed.run(parsed)
    except VLChatError as error:
        print(f"vlchat: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vlchat",
        description="Chat about images, ask visual questions in bulk, and fine-tune on your own pictures.",
    )
    parser.add_argument("--version", action="version", version=f"vlchat {__version__}")
    known = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    chat = known.add_parser(
        "chat", help="ask about pictures in the terminal", description="Ask about pictures in the terminal."
    )
    chat.add_argument(
        "words",
        nargs="*",
        metavar="IMAGE ... QUESTION",
        help="pictures, then a question in quotes; without a question a conversation begins",
    )
    _add_model(chat, "--model")
    chat.add_argument(
        "--compare", nargs="+", metavar="MODEL", help="two or more instead of --model: their answers side by side"
    )
    chat.add_argument("--system", help="a system prompt: what the model should know or do in every answer")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 (default): always the likeliest answer")
    chat.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    chat.add_argument("--seed", type=int, help="makes answers with a temperature repeatable")
    chat.set_defaults(run=commands.chat)

    serve = known.add_parser(
        "serve",
        help="the chat page in a browser, and an API",
        description="Serve the chat page and an API for programs.",
    )
    _add_model(serve, "--model")
    serve.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=FOLDER", help="one to choose on the page (repeatable)"
    )
    serve.add_argument(
        "--backend",
        default="local",
        metavar="NAME",
        help="who answers: local (default), a model loaded here; openai, other servers with OpenAI's API, for many "
        "users or GPUs: vLLM, SGLang, other vlchats; --model is then one that they list (default: all of them)",
    )
    serve.add_argument(
        "--base-url", nargs="+", metavar="URL", help="with --backend openai: where they are, as http://gpu-1:8000"
    )
    serve.add_argument(
        "--backend-timeout",
        type=float,
        metavar="SECONDS",
        help="with --backend openai: how long one may be silent (default: 300); more where its line is long",
    )
    serve.add_argument(
        "--backend-cache-salt",
        action="store_const",
        const=True,
        help="with --backend openai: tell the servers who asks, by a digest, so that they use nothing computed for one "
        "for another (vLLM, SGLang and vlchat take this; others may refuse it)",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    serve.add_argument("--port", type=int, default=7860, help="default: 7860")
    serve.add_argument("--open", action="store_true", help="open the page in a browser")
    serve.add_argument(
        "--allow-images-from",
        action="append",
        default=[],
        metavar="HOST",
        help="fetch pictures that a program names by address from this host too; only data: URLs else (repeatable)",
    )
    _add_policy(serve)
    serve.set_defaults(run=_serve)

    feedback = known.add_parser(
        "feedback",
        help="what people said of answers on the page, as training data",
        description="What people said of answers on the page: thumbs, corrections, votes.",
    )
    about = feedback.add_subparsers(title="what to do", required=True, metavar="WHAT", dest="what")
    gather = about.add_parser("export", help="write the corrected answers as data for vlchat train")
    gather.add_argument("history", type=Path, metavar="HISTORY_FOLDER", help="where vlchat serve keeps its history")
    gather.add_argument("out", type=Path, metavar="OUT_FOLDER", help="gets data.json and images/")
    gather.add_argument("--liked", action="store_true", help="answers with a thumb up, too, as they are")
    gather.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    table = about.add_parser("show", help="counts and a table of what was said")
    table.add_argument("history", type=Path, metavar="HISTORY_FOLDER", help="as above")
    feedback.set_defaults(run=_feedback)

    pictures = known.add_parser(
        "pictures",
        help="try odd picture files as the server opens them",
        description="Open every file of a folder as `vlchat serve` does with uploads, and tell how each went: ok, "
        "refused, crash, timeout or memory. For files that made trouble. Exit code 1 when any of the last three came.",
    )
    pictures.add_argument("folder", type=Path, help="files of any kind, in folders below it too")
    pictures.add_argument("--json", action="store_true", help="print the result as JSON")
    pictures.set_defaults(run=_pictures)

    models = known.add_parser(
        "models", help="good starting points by short name", description="List models to begin with and what they take."
    )
    models.set_defaults(run=commands.models)

    init = known.add_parser(
        "init",
        help="a first configuration for your data, from three answers",
        description="Write a first configuration of a run from three answers: model, data, GPU. Asks in a terminal.",
    )
    beginning.add_init(init)
    init.set_defaults(run=beginning.init)

    known.add_parser("plan", help="what a run will take: memory, time, money", add_help=False)
    known.add_parser("train", help="train or fine-tune from a YAML file", add_help=False)

    check = known.add_parser(
        "check",
        help="look at every row of a dataset before training",
        description="Look at every row and picture of a dataset. Exit code 1 when any row cannot be used.",
    )
    check.add_argument("data", help="a JSON, JSONL or CSV file, or a Hugging Face dataset")
    check.add_argument("--images", help="folder of the pictures (default: beside the data)")
    check.add_argument("--format", help="llava, messages, caption or vqa (default: seen from each row)")
    check.add_argument("--split", help="which split of a Hugging Face dataset")
    check.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    check.add_argument(
        "--no-ids", dest="ids", action="store_false", help="ids name pictures and not rows, as in LLaVA's files"
    )
    check.add_argument(
        "--model",
        nargs="?",
        const="",
        metavar="MODEL",
        help="also count each row's tokens, and show a row, as this model reads it (no name: the embedded one)",
    )
    check.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model on the Hub")
    check.add_argument(
        "--max-length", type=int, metavar="N", help="most tokens of a row, with --model (default: what the model takes)"
    )
    check.add_argument("--sample", type=int, metavar="ROW", help="the row that --model shows (default: the first good)")
    check.add_argument(
        "--no-decode", dest="decode", action="store_false", help="quick: of each picture only the beginning of its file"
    )
    check.add_argument("--workers", type=int, metavar="N", help="processes that decode pictures (default: up to 4)")
    check.add_argument("--quarantine", type=Path, metavar="FILE", help="write what is wrong, a JSON line a fault")
    check.add_argument("--clean", type=Path, metavar="FILE", help="write a copy of the data without the bad rows")
    check.add_argument(
        "--report", type=Path, metavar="FOLDER", help="write report.json, histograms.png and, with --model, sample.png"
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.set_defaults(run=commands.check)

    evaluate = known.add_parser("eval", help="score a model", description="Score a model.")
    _add_model(evaluate, "model")
    scoring.add_eval(evaluate)
    evaluate.set_defaults(run=scoring.evaluate)

    compare = known.add_parser(
        "compare",
        help="what changed between two results of eval",
        description="Compare two results of `vlchat eval --out`, or two suites, row by row.",
    )
    scoring.add_compare(compare)
    compare.set_defaults(run=scoring.compare)

    export = known.add_parser(
        "export", help="write a model for other programs", description="Write a model for other programs."
    )
    export.add_argument("model", help="a folder that training wrote, or any other checkpoint")
    export.add_argument("out", type=Path, help="the folder to write")
    export.add_argument(
        "--layout", help="vlchat (default), llava, llava_next or blip2, which other programs load without vlchat"
    )
    export.add_argument(
        "--merge",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="add the adapter into the weights (default), or keep it apart in OUT/adapter",
    )
    export.add_argument("--dtype", default="bfloat16", help="bfloat16 (default), float16 or float32")
    export.add_argument("--name", help="what the model calls itself (default: the folder's name)")
    export.add_argument("--scores", type=Path, metavar="FOLDER", help="a result of vlchat eval --out, for the card")
    export.add_argument(
        "--check", action="store_true", help="read it again with plain transformers and compare before it is done"
    )
    export.add_argument("--overwrite", action="store_true", help="replace a model that is there already")
    export.set_defaults(run=commands.export)

    bring = known.add_parser(
        "import",
        help="a published LLaVA, BLIP-2 or InstructBLIP as a vlchat folder",
        description="Write a published LLaVA, BLIP-2 or InstructBLIP as a vlchat folder.",
    )
    bring.add_argument("model", help="a folder or Hub id")
    bring.add_argument("out", type=Path, help="the folder to write")
    bring.add_argument("--template", help="chat template by name, or a .jinja file, where the checkpoint stores none")
    bring.add_argument("--dtype", default="bfloat16", help="bfloat16 (default), float16 or float32")
    bring.add_argument("--name", help="what the model calls itself (default: the folder's name)")
    bring.add_argument("--revision", help="of a Hub id: branch, tag or commit")
    bring.add_argument("--overwrite", action="store_true", help="replace a model that is there already")
    bring.set_defaults(run=commands.bring_in)

    info = known.add_parser("info", help="what a model is and was trained on", description="Describe a model.")
    info.add_argument("model", nargs="?", help="a folder, Hub id or short name (default: the embedded model)")
    info.add_argument("--revision", metavar="NAME", help="as of `vlchat chat`")
    info.set_defaults(run=commands.info)

    push = known.add_parser(
        "push", help="publish a model on the Hub", description="Send an exported model or a run to the Hub."
    )
    push.add_argument("folder", type=Path, help="what `vlchat export` or training wrote")
    push.add_argument("repository", metavar="YOU/NAME", help="where to; made where it is not there yet")
    push.add_argument("--private", action="store_true", help="a new repository is for you alone")
    push.add_argument("--revision", metavar="BRANCH", help="another branch than main")
    push.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    push.set_defaults(run=commands.push)
    return parser


def _add_model(parser: argparse.ArgumentParser, name: str) -> None:
    help_text = "a folder that training wrote, an adapter, a Hub id or a name of `vlchat models` (default: embedded)"
    if name.startswith("-"):
        parser.add_argument(name, metavar="MODEL", help=help_text)
    else:
        parser.add_argument(name, nargs="?", help=help_text)
    parser.add_argument("--quantize", choices=["nf4", "int8"], help="load the language model in 4 or 8 bits")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 or float16 (default: what suits the device)")
    parser.add_argument("--attn", choices=ATTENTION, help="attention kernels (default: what suits the model)")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model on the Hub")


def _add_policy(parser: argparse.ArgumentParser) -> None:
    from serve.policy import add_policy

    add_policy(parser)


def _serve(arguments: argparse.Namespace) -> int:
    """The chat page. It stands here because no other file of `vlchat` may reach up to `serve`."""
    commands.quiet()
    from serve import main as serve
    from serve.policy import read_policy

    return serve(
        arguments.model,
        backend=arguments.backend,
        host=arguments.host,
        port=arguments.port,
        open_browser=arguments.open,
        allow_images_from=arguments.allow_images_from,
        adapters=named("--adapter", arguments.adapter),
        base_url=arguments.base_url,
        backend_timeout=arguments.backend_timeout,
        backend_cache_salt=arguments.backend_cache_salt,
        policy=read_policy(arguments),
        **commands.loading(arguments),
    )


def _feedback(arguments: argparse.Namespace) -> int:
    """As `_serve`: it reaches up."""
    from serve import feedback

    if arguments.what == "show":
        print(feedback.show(arguments.history))
        return 0
    written = feedback.export(arguments.history, arguments.out, liked=arguments.liked, overwrite=arguments.overwrite)
    for reason in written.left_out:
        print(reason, file=sys.stderr)
    print(f"Written: {written.data}, {written.rows} rows. Train on them:")
    print(f"vlchat train configs/finetune-mini.yaml data.0.path={written.data}")
    return 0


def _pictures(arguments: argparse.Namespace) -> int:
    """As `_serve`: it reaches up."""
    from serve.odd_pictures import run

    return run(arguments.folder, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
