"""A model behind an OpenAI-compatible URL (vLLM, SGLang, llama.cpp, a provider), asked as the runner asks any other."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlchat.errors import VLChatError, nearest
from vlchat.evaluate import remote_choices
from vlchat.evaluate.endpoint import Endpoint, Refused, ServerError
from vlchat.evaluate.items import Reply, Request
from vlchat.evaluate.wire import PICTURES, wire

# What a server may not take, and what is lost without it. One that is refused is left out, and a note says so.
_OPTIONAL = {
    "logprobs": "there are no probabilities, so nothing can be calibrated",
    "seed": "its replies may differ from run to run",
    "temperature": "its replies are drawn as the server likes, so they differ from run to run",
    "max_tokens": "",  # goes as max_completion_tokens then, and nothing is lost
}


class RemoteAnswerer:
    """Asks a server by chat completions: temperature 0, seed 0, pictures as `data:` URLs, log-probabilities if it has
    them.

    A row that the server refuses, or fails at again and again, is a `Reply` with its sentence in `error`. A server that
    answers nobody raises `ServerError`, which nothing should catch and go on from.

    Args:
        url, key, timeout, retries: as of `vlchat.evaluate.endpoint.Endpoint`.
        model: one of those that the server lists; by default the only one.
        concurrency: requests under way at a time.

    Attributes:
        description: `name`, `url`, `server` (what its list says of the model), `pictures` (how they are sent).
        identity: a hash of the URL, the model, what the server's list says of it, and how pictures are sent. Of
            weights that are changed behind the same name it knows nothing.
        usage: tokens so far, as the server counts them: `prompt_tokens`, `completion_tokens`.

    Raises:
        ServerError: no server, a key that it does not take, a model that it does not list.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        *,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 4,
    ) -> None:
        if concurrency < 1:
            raise VLChatError(f"concurrency is {concurrency}; it must be at least 1.")
        self.endpoint = Endpoint(url, key, timeout=timeout, retries=retries)
        self.concurrency = concurrency
        listed = self._models()
        self.model = _chosen(model, listed, self.endpoint.shown)
        # vLLM's `created` is the time of asking, and its `permission` has new ids each time.
        about = {k: v for k, v in listed.get(self.model, {}).items() if k not in ("created", "permission", "id")}
        self.description: dict[str, Any] = {
            "name": self.model, "url": self.endpoint.shown, "server": about, "parameters": None, "trained_on": None,
            "pictures": PICTURES,
        }  # fmt: skip
        known = json.dumps([self.endpoint.shown, self.model, about, PICTURES], sort_keys=True)
        self.identity = hashlib.sha256(known.encode()).hexdigest()
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0}
        self._left_out: frozenset[str] = frozenset()
        self._fingerprints: dict[str, None] = {}
        self._ways: dict[str, None] = {}  # how choices were judged: keys of `remote_choices.WAYS`
        self._only_first = False  # the server has no log-probabilities of prompts
        self._lock = threading.Lock()

    @property
    def notes(self) -> list[str]:
        """Sentences for the reader of a result, known once it has been asked."""
        found = [
            f'The server does not take "{name}": {lost}.' for name, lost in _OPTIONAL.items()
            if name in self._left_out and lost
        ]  # fmt: skip
        found += [remote_choices.WAYS[way] for way in self._ways]
        if any(self.usage.values()):
            read, written = self.usage["prompt_tokens"], self.usage["completion_tokens"]
            found.append(f"The server counted {read:,} tokens read and {written:,} written.")
        if len(self._fingerprints) > 1:
            found.append(f"The server changed while it was asked: it called itself {', '.join(self._fingerprints)}.")
        return found

    def answer(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Reply]:
        """The replies, in order, asked `concurrency` at a time.

        Raises:
            ServerError: the server answers nobody, failed at every one of several requests, or cannot do what is asked
                (beams; choices without probabilities).
        """
        for request in requests:
            if request.beams != 1:
                raise ServerError(
                    f"A server of the OpenAI kind has no beam search, and {request.beams} beams were asked for: set "
                    "beams=1, or give the model's folder or Hub id instead of the URL."
                )
        failures: list[Refused] = []

        def ask(request: Request) -> Reply:
            try:
                most = request.max_new_tokens or max_new_tokens
                return self._choose(request) if request.choices else self._write(request, most)
            except ServerError:
                raise
            except VLChatError as error:
                if isinstance(error, Refused) and (error.status == 0 or error.status >= 429):
                    failures.append(error)  # not an opinion about this row
                return Reply(error=str(error))

        replies = in_parallel(ask, requests, self.concurrency, self.endpoint.stopped)
        if len(failures) == len(requests) > 1:
            raise ServerError(f"The server failed at each of {len(requests)} requests. The last time: {failures[-1]}")
        return replies

    def _models(self) -> dict[str, dict[str, Any]]:
        """What the server lists, by id; empty where it keeps no list."""
        try:
            found = self.endpoint.get("models")
        except Refused as refused:
            if refused.status != 404:
                raise ServerError(str(refused)) from None
            if not self.endpoint.shown.endswith("/v1"):  # people leave it out after a path, too
                self.endpoint.shown += "/v1"
                return self._models()
            return {}
        entries = found.get("data") if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise ServerError(
                f"{self.endpoint.shown}/models answered, but with no list of models. Is this the URL of an "
                "OpenAI-compatible API? It often ends in /v1."
            )
        return {str(entry["id"]): entry for entry in entries if isinstance(entry, dict) and "id" in entry}

    def _write(self, request: Request, most: int) -> Reply:
        found = self._complete({"messages": wire(request), "max_tokens": most, "logprobs": True})
        choice = found["choices"][0]
        message = choice["message"]
        if choice.get("finish_reason") == "content_filter" or (message.get("refusal") and not message.get("content")):
            raise Refused(f"The server withheld its answer: {message.get('refusal') or 'content filter'}.", 400)
        known = remote_choices.tokens(choice)
        total = sum(token["logprob"] for token in known) if known else None
        return Reply(_text(message).strip(), total, len(known))

    def _choose(self, request: Request) -> Reply:
        """How likely each choice is: of letters from the answer's first token, of longer ones from the whole answer."""
        letters = all(len(choice.strip()) == 1 for choice in request.choices)
        reply = None if letters or self._only_first else remote_choices.by_prompt(self._complete, request)
        self._ways["first token" if reply is None else "whole answer"] = None
        if reply is not None:
            return reply
        self._only_first |= not letters
        return remote_choices.by_first_token(self._complete, request, self.endpoint.shown)

    def _complete(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A chat completion with a message in it, asked for without what the server does not take."""
        payload = {"model": self.model, "temperature": 0, "seed": 0, **asked}
        left_out = self._left_out
        while True:
            try:
                found = self.endpoint.post("chat/completions", _without(payload, left_out))
                break
            except Refused as refused:
                blamed = _blamed(refused, [name for name in _OPTIONAL if name in payload and name not in left_out])
                if blamed is None:
                    if refused.status == 404:
                        raise ServerError(f'{refused} The model asked for is "{self.model}".') from None
                    raise
                left_out |= {blamed}
        choices = found.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)
                and isinstance(choices[0].get("message"), dict)):  # fmt: skip
            raise Refused(f"{self.endpoint.shown} answered without a message: {json.dumps(found)[:200]}")
        with self._lock:
            self._left_out |= left_out
            for name in self.usage:
                self.usage[name] += (found.get("usage") or {}).get(name) or 0
            if found.get("system_fingerprint"):
                self._fingerprints[str(found["system_fingerprint"])] = None
        return found


def in_parallel(
    function: Callable[[Any], Any], items: Sequence[Any], threads: int, stopped: threading.Event | None = None
) -> list[Any]:
    """`function` of each item, in order, on so many threads.

    The first exception ends it: no further item is begun, `stopped` is set, and the exception is raised here. The
    threads are daemons, so that Ctrl-C waits for none of them.
    """
    results: list[Any] = [None] * len(items)
    errors: list[BaseException] = []
    left = iter(range(len(items)))
    lock = threading.Lock()

    def work() -> None:
        while not errors:
            with lock:
                index = next(left, None)
            if index is None:
                return
            try:
                results[index] = function(items[index])
            except BaseException as error:
                errors.append(error)
                if stopped is not None:
                    stopped.set()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(items)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if stopped is not None:
        stopped.clear()
    if errors:
        raise errors[0]
    return results


def _chosen(model: str | None, listed: Mapping[str, Any], url: str) -> str:
    if model is not None:
        if listed and model not in listed:
            hint = nearest(model, listed) or "."
            raise ServerError(f'{url} has no model "{model}"; it lists: {_names(listed)}{hint}')
        return model
    if len(listed) == 1:
        return next(iter(listed))
    if not listed:
        raise ServerError(f"{url} lists no models: name the one to ask, as MODEL.")
    raise ServerError(f"{url} has {len(listed)} models: name one, as MODEL. It lists: {_names(listed)}.")


def _names(listed: Mapping[str, Any]) -> str:
    names = list(listed)
    return ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")


def _without(payload: Mapping[str, Any], left_out: frozenset[str]) -> dict[str, Any]:
    kept = {name: value for name, value in payload.items() if name not in left_out}
    if "logprobs" in left_out:
        kept.pop("top_logprobs", None)
    if "max_tokens" in left_out:
        kept["max_completion_tokens"] = payload["max_tokens"]
    return kept


def _blamed(refused: Refused, names: Sequence[str]) -> str | None:
    """Which optional field of the request the server will not have."""
    if refused.status not in (400, 422, 501):
        return None
    text = str(refused)
    # "max_tokens is too large" is about this row; only a server that wants the other name is about the field.
    fits = [name for name in names if name != "max_tokens" or re.search(r"instead|unsupported|not supported", text)]
    if refused.parameter in fits:
        return refused.parameter
    return next((name for name in fits if re.search(rf"(?<![a-z_]){name}(?![a-z_])", text)), None)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):  # parts, as some servers answer
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
