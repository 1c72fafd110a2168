"""Asks a model every question of a task in batches, and the same questions again with other rows' pictures."""

from __future__ import annotations

import importlib.metadata
import inspect
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import vlchat
from vlchat.data.collate import decode_images
from vlchat.data.formats import Message
from vlchat.errors import ConfigError, VLChatError, nearest
from vlchat.evaluate.blind import images_of, shuffle_pictures, with_images
from vlchat.evaluate.metrics import wilson
from vlchat.evaluate.tasks import TASKS, Item, Task
from vlchat.models import resolve


class Answerer(Protocol):
    """What the runner needs of a model: `vlchat.chat.Chat` has it."""

    @property
    def description(self) -> dict[str, Any]: ...

    def batch(self, messages: list[list[Message]], *, max_new_tokens: int) -> list[str]: ...


@dataclass
class Share:
    """A sum of scores over `count` items, with Wilson's 95 % interval of their mean."""

    count: int = 0
    total: float = 0.0

    def add(self, score: float) -> None:
        self.count += 1
        self.total += score

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def to_dict(self) -> dict[str, float]:
        low, high = wilson(self.total, self.count)
        return {"count": self.count, "total": self.total, "mean": self.mean, "low": low, "high": high}


@dataclass
class Scores:
    """The overall share, one a group, and those by another reading of the replies."""

    overall: Share = field(default_factory=Share)
    groups: dict[str, Share] = field(default_factory=dict)
    extra: dict[str, Share] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "overall": self.overall.to_dict(),
            "groups": {name: share.to_dict() for name, share in self.groups.items()},
            "extra": {name: share.to_dict() for name, share in self.extra.items()},
        }


@dataclass
class Result:
    """Everything a reader needs to trust or repeat a score. `replies` has one entry a question, in the task's order."""

    task: str
    protocol: str
    metric: str
    model: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]
    scores: Scores
    blind: Scores | None
    floor: Scores | None
    counts: dict[str, int]
    notes: list[str]
    seconds: float
    versions: dict[str, str]
    replies: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The result without its replies, as plain JSON values."""
        scores = {name: getattr(self, name) for name in ("scores", "blind", "floor")}
        plain = ("task", "protocol", "metric", "model", "data", "settings", "counts", "notes", "seconds", "versions")
        return {name: getattr(self, name) for name in plain} | {
            name: None if value is None else value.to_dict() for name, value in scores.items()
        }


def make_task(name: str, **options: Any) -> Task:
    """A task by its name in `TASKS`, with its own options.

    Raises:
        ConfigError: an unknown task, or options that it does not have.
    """
    if name not in TASKS:
        raise ConfigError(f'Unknown task "{name}"; known: {", ".join(TASKS)}{nearest(name, TASKS)}')
    known = inspect.signature(TASKS[name]).parameters
    for option in options:
        if option not in known:
            owner = next((task for task in TASKS if option in inspect.signature(TASKS[task]).parameters), None)
            raise ConfigError(
                f'The task "{name}" has no option "{option}"'
                + (f"; the task {owner} has." if owner else nearest(option, known) or ".")
            )
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ConfigError(f'The task "{name}" needs {option}: --{option} on the command line.')
    return TASKS[name](**options)


def run(
    model: str | Path | None,
    task: str,
    *,
    blind: bool = False,
    seed: int = 0,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    quantize: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attn: str | None = None,
    revision: str | None = None,
    progress: bool = True,
    **options: Any,
) -> Result:
    """Loads a model and evaluates it; what `vlchat eval` calls.

    Args:
        model: a folder, a Hub id, a short name, or None for the embedded model; any image-text-to-text model with a
            chat template.
        task: a name of `TASKS`; `options` are its own (scenes: questions, phrasings; vqa: data, floor, format, images,
            split, limit). The scenes task draws its questions from `seed` as well.
        blind, batch_size, max_new_tokens, progress: as in `evaluate`.
        seed: shuffles the pictures of the blind control.
        quantize, dtype, device, attn, revision: as in `Chat.load`.

    Raises:
        VLChatError: the task, its data or the model cannot be used.
    """
    from vlchat.chat import Chat

    if task == "scenes":
        options.setdefault("seed", seed)
    made = make_task(task, **options)
    model = resolve(model)
    chat = Chat.load(model, quantize=quantize, dtype=dtype, device=device, attn=attn, revision=revision)
    result = evaluate(
        chat, made, blind=blind, seed=seed, batch_size=batch_size, max_new_tokens=max_new_tokens, progress=progress
    )
    result.task = task
    result.settings |= {"model": None if model is None else str(model), "quantize": quantize, "dtype": dtype}
    result.settings |= {name: value for name, value in (("attn", attn), ("revision", revision)) if value is not None}
    return result


def evaluate(
    chat: Answerer,
    task: Task,
    *,
    blind: bool = False,
    seed: int = 0,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    progress: bool = True,
) -> Result:
    """Asks every question greedily and scores the replies.

    Args:
        chat: the model.
        task: what to ask.
        blind: ask everything again with the pictures shuffled between rows: what is still right, language alone gives.
        seed: shuffles the pictures of the blind control.
        batch_size: questions answered together.
        max_new_tokens: the longest reply.
        progress: show a progress bar on stderr.
    """
    if batch_size < 1 or max_new_tokens < 1:
        raise ConfigError(f"batch_size is {batch_size} and max_new_tokens {max_new_tokens}; both must be at least 1")
    started = time.monotonic()
    items = task.items()
    if not items:
        raise ConfigError("the task has no questions")
    asked = [item.messages for item in items]
    answered = _ask(chat, asked, batch_size, max_new_tokens, "questions" if progress else None)
    counts = {"questions": len(items), "unanswered": sum(error is not None for _, error in answered)}
    notes = list(task.notes)
    replies: list[dict[str, Any]] = [
        {
            "id": item.id,
            "group": item.group,
            "reference": item.reference,
            "reply": reply,
            "score": _score(task, item, reply, error),
        }
        | ({} if error is None else {"error": error})
        for item, (reply, error) in zip(items, answered, strict=True)
    ]
    blind_scores = None
    if blind:
        shown = [images_of(messages) for messages in asked]
        shuffled, kept = shuffle_pictures(shown, seed)
        swapped = [with_images(messages, pictures) for messages, pictures in zip(asked, shuffled, strict=True)]
        blind_answered = _ask(chat, swapped, batch_size, max_new_tokens, "blind" if progress else None)
        for entry, (reply, _) in zip(replies, blind_answered, strict=True):
            entry["blind_reply"] = reply
        blind_scores = _tally(items, blind_answered, task)
        counts["blind_kept_pictures"] = kept
        notes.append(f"blind: the same questions, pictures shuffled between rows ({kept:,} have none or kept theirs).")
    guesses = [task.floor(item) for item in items]
    return Result(
        task=type(task).__name__,
        protocol=task.protocol,
        metric=task.metric,
        # The path stays out: settings hold it as it was given, and a result is something to share.
        model={key: value for key, value in chat.description.items() if key != "path"},
        data=task.data,
        settings={"seed": seed, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "decoding": "greedy"},
        scores=_tally(items, answered, task),
        blind=blind_scores,
        floor=None if None in guesses else _tally(items, [(str(guess), None) for guess in guesses], task),
        counts=counts,
        notes=notes,
        seconds=round(time.monotonic() - started, 1),
        versions=versions(),
        replies=replies,
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


def _ask(
    chat: Answerer, conversations: list[list[Message]], batch_size: int, max_new_tokens: int, label: str | None
) -> list[tuple[str, str | None]]:
    """(reply, None) for each conversation, or ("", why) where the model refuses it, such as for its length."""
    answers: list[tuple[str, str | None]] = [("", None)] * len(conversations)
    # Rows of like length together need the least padding.
    order = sorted(range(len(conversations)), key=lambda row: _length(conversations[row]))
    update, close = _progress(len(order), label)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        decoded = [decode_images(conversations[row], f"Question {row + 1}") for row in rows]
        try:
            replies = chat.batch(decoded, max_new_tokens=max_new_tokens)
            for row, reply in zip(rows, replies, strict=True):
                answers[row] = (reply, None)
        except VLChatError:
            # One row that the model cannot take must not cost its neighbours their answers: ask them one by one.
            for row, conversation in zip(rows, decoded, strict=True):
                try:
                    answers[row] = (chat.batch([conversation], max_new_tokens=max_new_tokens)[0], None)
                except VLChatError as error:
                    answers[row] = ("", str(error))
        update(len(rows))
    close()
    refusals = [error for _, error in answers if error is not None]
    if len(refusals) == len(answers):
        raise VLChatError(f"the model answered none of the {len(answers):,} questions. The first reason: {refusals[0]}")
    return answers


def _score(task: Task, item: Item, reply: str, error: str | None) -> float:
    return task.score(item, reply) if error is None else 0.0


def _tally(items: Sequence[Item], answered: Sequence[tuple[str, str | None]], task: Task) -> Scores:
    scores = Scores()
    for item, (reply, error) in zip(items, answered, strict=True):
        score = _score(task, item, reply, error)
        scores.overall.add(score)
        if item.group is not None:
            scores.groups.setdefault(item.group, Share()).add(score)
        for name, value in task.extra_scores(item, reply).items():
            scores.extra.setdefault(name, Share()).add(value)
    return scores


def _length(messages: list[Message]) -> tuple[int, int]:
    text = sum(len(part["text"]) for message in messages for part in message["content"] if part["type"] == "text")
    return len(images_of(messages)), text


def _progress(total: int, label: str | None) -> tuple[Callable[[int], Any], Callable[[], Any]]:
    if label is None:
        return lambda count: None, lambda: None
    from tqdm import tqdm  # type: ignore[import-untyped]

    bar = tqdm(total=total, desc=label, unit="question")
    return bar.update, bar.close
