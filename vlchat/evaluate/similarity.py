"""Runs a task of similarity: opens the embedder, keeps what it said, and makes the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlchat.evaluate.answerers import Answerer
from vlchat.evaluate.cache import AnswerCache
from vlchat.evaluate.embedders import Embedder, LikelihoodMatcher, open_embedder
from vlchat.evaluate.embeddings import EmbeddingTask, evaluate_with
from vlchat.evaluate.identity import model_identity, request_key
from vlchat.evaluate.items import Reply, Request
from vlchat.evaluate.result import Result
from vlchat.evaluate.rows import row_of
from vlchat.evaluate.sharing import Processes
from vlchat.evaluate.verdicts import CHANCE


def run_similarity(
    model: str | Path | None,
    task: EmbeddingTask,
    *,
    url: str | None = None,
    loading: Mapping[str, Any] | None = None,
    chatting: Callable[[], Answerer] | None = None,
    cache: Path | None = None,
    batch_size: int = 16,
    processes: Processes | None = None,
    progress: bool = True,
) -> Result:
    """A task of similarity, of a model that embeds or one that chats.

    Several processes do not share the work: the first one does it, and tells the others.

    Args:
        model: a folder, a Hub id, or None for the embedded model, which only chats.
        url: a server, which only chats.
        loading: `dtype`, `device` and `revision` of `open_embedder`.
        chatting: opens the model as an answerer, where it has no embeddings; by default `open_answerer`.
        cache: the folder that keeps embeddings and answers; None keeps nothing.

    Raises:
        VLChatError: the model, or a row of the task, cannot be used.
    """
    started = time.monotonic()
    processes = processes or Processes()
    loading = {name: value for name, value in (loading or {}).items() if value is not None}

    def everything() -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
        embedder = _opened(model, task, url, loading, chatting, cache, batch_size)
        done = evaluate_with(
            embedder,
            task,
            batch_size=batch_size,
            cache=None if cache is None else cache / "embeddings",
            progress=_Bars() if progress else None,
        )
        rows = [row_of(item, [], reading) for item, reading in done]
        for row, stats in zip(rows, task.chances(), strict=True):
            row["controls"] = {CHANCE: {"reply": [], "answer": "", "score": 0.0, "stats": stats}}
        description = {key: value for key, value in embedder.description.items() if key != "path"}
        return description | {"embedder": embedder.identity}, rows, task.notes

    description, rows, notes = processes.agreed(everything)
    if url is None and "weights" not in description:
        description["weights"] = model_identity(model, loading.get("revision"))
    from vlchat.evaluate.certificate import prompts_of
    from vlchat.evaluate.runner import versions

    return Result(
        task=type(task).__name__,
        protocol=task.protocol,
        measures=task.measures,
        model=description,
        data=task.data,
        settings={
            "seed": 0,
            "batch_size": batch_size,
            "max_new_tokens": None,
            "decoding": "nothing is written",
            "controls": [CHANCE],
            "control_rows": 0,
        },
        rows=rows,
        counts={"questions": len(rows), "unanswered": 0, "asked": len(rows), "known": 0},
        notes=list(notes),
        seconds=round(time.monotonic() - started, 1),
        versions=versions(),
        prompts=prompts_of(task, task.items()),
        items=task.items(),
    )


class RememberedAnswerer:
    """An answerer that is asked nothing twice, for pairs that are judged one by one."""

    def __init__(self, answerer: Answerer, cache: AnswerCache) -> None:
        self._answerer, self._cache = answerer, cache
        self.description, self.identity = answerer.description, answerer.identity

    def answer(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Reply]:
        """As of `Answerer`; what is known is taken from the cache."""
        if self.identity is None:
            return self._answerer.answer(requests, max_new_tokens=max_new_tokens)
        keys = [f"{self.identity} {request_key(request)}" for request in requests]
        known = self._cache.find(keys)
        left = [number for number, key in enumerate(keys) if key not in known]
        if left:
            found = self._answerer.answer([requests[number] for number in left], max_new_tokens=max_new_tokens)
            fresh = {keys[number]: reply for number, reply in zip(left, found, strict=True)}
            self._cache.keep(fresh)
            known |= fresh
        return [known[key] for key in keys]


def _opened(
    model: str | Path | None,
    task: EmbeddingTask,
    url: str | None,
    loading: Mapping[str, Any],
    chatting: Callable[[], Answerer] | None,
    cache: Path | None,
    batch_size: int,
) -> Embedder:
    wanted = {name: loading[name] for name in ("dtype", "device", "revision") if name in loading}
    embedder = None if url is not None else open_embedder(model, **wanted)
    if embedder is not None:
        return embedder
    if chatting is None:
        from vlchat.evaluate.runner import open_answerer

        answerer = open_answerer(model, url=url, loading=loading)
    else:
        answerer = chatting()
    if cache is not None:
        answerer = RememberedAnswerer(answerer, AnswerCache(cache))
    return LikelihoodMatcher(answerer, task.likelihood, batch_size)


class _Bars:
    """Progress bars on stderr, one for each kind of thing that is embedded."""

    def __init__(self) -> None:
        self._what = ""
        self._bar: Any = None

    def __call__(self, done: int, total: int, what: str) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        if what != self._what:
            if self._bar is not None:
                self._bar.close()
            self._what, self._bar = what, tqdm(total=total, desc=what, unit=what.rstrip("s"))
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.close()
