"""Asks a model every question of a task, and some of them again blind."""

from __future__ import annotations

import importlib.metadata
import platform
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vlchat
from vlchat.errors import ConfigError, nearest
from vlchat.evaluate.answerers import Answerer, ChatAnswerer
from vlchat.evaluate.asking import Asker
from vlchat.evaluate.blind import CONTROLS, control, images_of
from vlchat.evaluate.cache import AnswerCache, default_folder
from vlchat.evaluate.certificate import prompts_of
from vlchat.evaluate.embeddings import EmbeddingTask
from vlchat.evaluate.identity import model_identity
from vlchat.evaluate.items import Item, Reading, Reply
from vlchat.evaluate.known import make_task
from vlchat.evaluate.result import Result
from vlchat.evaluate.rows import control_of, read_all, row_of
from vlchat.evaluate.sharing import Processes
from vlchat.evaluate.similarity import run_similarity
from vlchat.evaluate.tasks.base import Task
from vlchat.models import resolve

CONTROL_ROWS = 500  # so many rows tell what the pictures are worth to within a few points


def run(
    model: str | Path | None,
    task: str,
    *,
    url: str | None = None,
    loading: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    remember: bool = True,
    seed: int = 0,
    answerer: Answerer | None = None,
    controls: Sequence[str] = (),
    control_rows: int = CONTROL_ROWS,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Result:
    """Loads a model and evaluates it; what `vlchat eval` calls.

    Args:
        model: a folder, a Hub id, a short name, or None for the embedded model; any image-text-to-text model with a
            chat template. With `url`, what the server calls it.
        task: a name of `TASKS`; `options` are its own. The scenes task draws its questions from `seed` as well.
        url: an OpenAI-compatible server that is asked instead of a model here.
        loading: `quantize`, `dtype`, `device`, `attn` and `revision` of `Chat.load`, or with `url` the options of
            `vlchat.evaluate.remote.RemoteAnswerer`.
        cache: the folder of the answer cache; None is the user's own.
        remember: whether answers are taken from there and kept there.
        answerer: the model, where several tasks share one.
        controls, control_rows, seed, batch_size, max_new_tokens, progress: as in `evaluate`.

    Raises:
        VLChatError: the task, its data or the model cannot be used.
    """
    made = make_task(task, **options, **({"seed": seed} if task == "scenes" else {}))
    processes = Processes.launched()

    def opened() -> Answerer:
        return answerer or open_answerer(model, url=url, loading=loading, processes=processes)

    place = cache or default_folder()
    shared: dict[str, Any] = {"batch_size": batch_size, "processes": processes, "progress": progress}
    if isinstance(made, EmbeddingTask):
        kept_in = place if remember else None
        found: dict[str, Any] = {"url": url, "loading": loading, "chatting": opened, "cache": kept_in}
        result = run_similarity(model, made, **found, **shared)
    else:
        shared |= {"controls": controls, "control_rows": control_rows, "seed": seed, "max_new_tokens": max_new_tokens}
        kept = AnswerCache(place) if remember else None
        try:
            result = evaluate(opened(), made, cache=kept, **shared)
        finally:
            if kept is not None:
                kept.close()
    result.task = task
    secret = ("key",)
    chosen = {n: value for n, value in (loading or {}).items() if value not in (None, "auto") and n not in secret}
    result.settings |= {"model": None if model is None else str(model), "options": options, "loading": chosen}
    # As the answerer says it: the URL that was given may hold a password, and a result is something to share.
    result.settings["url"] = None if url is None else result.model["url"]
    return result


def open_answerer(
    model: str | Path | None,
    *,
    url: str | None = None,
    loading: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
) -> Answerer:
    """The model of `run`. One that is here is loaded with the first question whose answer is not known.

    Raises:
        VLChatError: there is no such model.
    """
    loading = dict(loading or {})
    if url is not None:
        from vlchat.evaluate.remote import RemoteAnswerer

        return RemoteAnswerer(url, None if model is None else str(model), **loading)
    from vlchat import checkpoint
    from vlchat.chat import Chat

    model = resolve(model)
    revision = loading.get("revision")
    weights = model_identity(model, revision)
    # The device is no part of it: what one machine answered is another's answer.
    settings = {name: loading.get(name) for name in ("quantize", "dtype", "attn")}
    known = {name: found for name, found in versions().items() if name in ("vlchat", "torch", "transformers")}
    if loading.get("device", "auto") == "auto" and processes is not None and processes.device is not None:
        loading["device"] = processes.device
    description = {**checkpoint.describe(model, revision), "weights": weights}
    return ChatAnswerer(lambda: Chat.load(model, **loading), description, f"{weights} {settings} {known}")


def evaluate(
    answerer: Any,
    task: Task,
    *,
    controls: Sequence[str] = (),
    control_rows: int = CONTROL_ROWS,
    seed: int = 0,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    cache: AnswerCache | None = None,
    processes: Processes | None = None,
    progress: bool = True,
) -> Result:
    """Asks every question and scores the replies.

    Args:
        answerer: the model: a `Chat`, or any `Answerer`.
        task: what to ask.
        controls: names of `CONTROLS`; each asks again without the right pictures: what is still right then, language
            alone gives.
        control_rows: on how many rows, chosen at random; 0 is all of them.
        seed: chooses these rows, and shuffles their pictures.
        batch_size: questions answered together.
        max_new_tokens: the longest reply; None is what the task needs.
        cache: answers that are known; only for an answerer with an identity.
        processes: who shares the work.
        progress: show a progress bar on stderr.

    Raises:
        ConfigError: a setting out of range, or a task without questions. VLChatError: the model answers none of them.
    """
    started = time.monotonic()
    _check(controls, control_rows, batch_size, max_new_tokens)
    asked: Answerer = ChatAnswerer(answerer) if hasattr(answerer, "answers") else answerer
    items = task.items()
    if not items:
        raise ConfigError("the task has no questions")
    processes = processes or Processes()
    asker = Asker(
        asked,
        batch_size,
        max_new_tokens or task.max_new_tokens,
        cache if asked.identity is not None else None,
        processes,
        progress and processes.first,
    )
    everything = range(len(items))
    replies = asker.rounds(task, items, everything, "questions")
    readings = read_all(task, items, replies)
    finished = task.finish(items, [readings[row] for row in everything])
    rows = [row_of(item, replies[row], finished[row]) for row, item in enumerate(items)]
    counts = {"questions": len(items), "unanswered": sum("error" in row for row in rows)}
    notes = list(task.notes)
    chosen = _chosen([row for row, item in enumerate(items) if images_of(item.messages)], control_rows, seed)
    for name in dict.fromkeys(controls):
        counts[f"{name}_kept_pictures"], note = _ask_blind(name, asker, task, items, readings, rows, chosen, seed)
        notes += [note] if note else []
    if controls and (blind := sum(not images_of(item.messages) for item in items)):
        notes.append(f"{blind:,} of {len(items):,} questions show no picture, and are no part of the controls.")
    guesses = [task.floor(item) for item in items]
    if None not in guesses:
        guessed = {row: [Reply(str(guess))] for row, guess in enumerate(guesses)}
        floors = read_all(task, items, guessed)
        for row, reading in enumerate(task.finish(items, [floors[row] for row in everything])):
            rows[row]["floor"] = control_of(guessed[row], reading)
    leaks = task.leakage(None if cache is None else cache.path.parent)
    if leaks is not None:
        notes += leaks.sentences()
        for line, part in zip(rows, leaks.slices(), strict=True):
            line["slices"] |= part
    counts |= {"asked": asker.asked, "known": asker.known}
    notes += getattr(asked, "notes", [])
    return Result(
        task=type(task).__name__,
        protocol=task.protocol,
        measures=task.measures,
        # The path stays out: settings hold it as it was given, and a result is something to share.
        model={key: value for key, value in asked.description.items() if key != "path"},
        data=task.data,
        settings={
            "seed": seed,
            "batch_size": batch_size,
            "max_new_tokens": asker.max_new_tokens,
            "decoding": _decoding(task, items),
            "controls": list(dict.fromkeys(controls)),
            "control_rows": control_rows,
        },
        rows=rows,
        counts=counts,
        notes=notes,
        seconds=round(time.monotonic() - started, 1),
        versions=versions(),
        prompts=prompts_of(task, items),
        leakage=leaks,
        items=items,
        chat=(lambda: asked.chat) if isinstance(asked, ChatAnswerer) else None,
    )


def versions() -> dict[str, str]:
    """The versions that a score may depend on."""
    packages = ("torch", "transformers", "peft", "bitsandbytes", "pillow", "numpy")
    found = {"vlchat": vlchat.__version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _ask_blind(
    name: str,
    asker: Asker,
    task: Task,
    items: Sequence[Item],
    readings: dict[int, Reading],
    rows: list[dict[str, Any]],
    chosen: list[int],
    seed: int,
) -> tuple[int, str | None]:
    """Asks the chosen rows again under a control, and writes what came of it into `rows`.

    Rows whose pictures it leaves as they are would say that pictures are worth nothing, and rows without a reply that
    they are worth everything: neither is a part of it.

    Returns:
        How many rows kept their pictures, and a sentence on the rows that are left out.
    """
    shown = [images_of(items[row].messages) for row in chosen]
    change, kept = control(name, shown, seed)
    asked = [row for number, row in enumerate(chosen) if number not in kept]
    place = {row: number for number, row in enumerate(chosen)}
    replies = asker.rounds(task, items, asked, name, lambda row, messages: change(place[row], messages))
    failed = {row: reply.error for row, several in replies.items() for reply in several if reply.error is not None}
    found = read_all(task, items, replies)
    # Statistics that need all rows are made among the readings of the others.
    finished = task.finish(items, [found.get(row, readings[row]) for row in range(len(items))])
    for row in asked:
        if row not in failed:
            rows[row].setdefault("controls", {})[name] = control_of(replies[row], finished[row])
    left_out = [f"{len(kept):,} that would be shown their own pictures"] if kept else []
    if failed:
        left_out.append(f'{len(failed):,} without a reply (the first: "{next(iter(failed.values()))}")')
    note = f"The control {name} leaves out rows: {', and '.join(left_out)}." if left_out else None
    return len(kept), note


def _decoding(task: Task, items: Sequence[Item]) -> str:
    ways = {request.beams for item in items for request in task.requests(item, []) if not request.choices}
    named = sorted("greedy" if beams == 1 else f"{beams} beams" for beams in ways)
    return ", ".join(named) or "likelihood of choices"


def _chosen(rows: list[int], wanted: int, seed: int) -> list[int]:
    if wanted == 0 or wanted >= len(rows):
        return rows
    return sorted(random.Random(f"blind rows {seed}").sample(rows, wanted))


def _check(controls: Sequence[str], control_rows: int, batch_size: int, max_new_tokens: int | None) -> None:
    if batch_size < 1 or (max_new_tokens is not None and max_new_tokens < 1):
        raise ConfigError(f"batch_size is {batch_size} and max_new_tokens {max_new_tokens}; both must be at least 1")
    if control_rows < 0:
        raise ConfigError(f"control_rows is {control_rows}; it must be at least 1, or 0 for all rows")
    for name in controls:
        if name not in CONTROLS:
            raise ConfigError(f'There is no control "{name}"; known: {", ".join(CONTROLS)}{nearest(name, CONTROLS)}')
