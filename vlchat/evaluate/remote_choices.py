"""How likely a server holds each of several answers, by the two ways that such servers have of saying so."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlchat.evaluate.endpoint import Refused, ServerError
from vlchat.evaluate.items import Reply, Request
from vlchat.evaluate.wire import wire

Complete = Callable[[Mapping[str, Any]], dict[str, Any]]

WAYS = {
    "first token": "Choices were judged by the probability of the answer's first token, without the closing one.",
    "whole answer": "Choices were judged by the probability of the whole answer (vLLM's prompt_logprobs).",
}
_MOST_ALTERNATIVES = (20, 5)  # tried in turn: what OpenAI and vLLM give at most, and what stricter servers do
_WAY_OUT = "Ask for the letter instead (how=letter), or give the model's folder or Hub id instead of the URL."


def by_first_token(complete: Complete, request: Request, url: str) -> Reply:
    """The probability that the answer begins with each choice, by `top_logprobs`.

    Only of a choice that is a single token is that its probability, so one of several letters must turn up as it is. A
    letter that does not turn up among the alternatives gets the most that can be left for it.

    Raises:
        ServerError: the server does not say, or a choice of several letters did not turn up.
    """
    first = None
    for most in _MOST_ALTERNATIVES:
        try:
            asked = {"messages": wire(request), "max_tokens": 1, "logprobs": True, "top_logprobs": most}
            first = next(iter(tokens(complete(asked)["choices"][0])), None)
            break
        except Refused as refused:
            if "top_logprobs" not in f"{refused.parameter} {refused}":
                raise
    if first is None or not first.get("top_logprobs"):
        raise ServerError(f"{url} does not say how likely the choices are. {_WAY_OUT}")
    listed: dict[str, list[float]] = {}
    for token in first["top_logprobs"]:
        listed.setdefault(str(token["token"]).strip(), []).append(float(token["logprob"]))
    missing = [choice.strip() for choice in request.choices if choice.strip() not in listed]
    if long := next((choice for choice in missing if len(choice) > 1), None):
        raise ServerError(
            f'{url} says how likely single tokens are, and "{long}" is not among the first {most}. {_WAY_OUT}'
        )
    known = {text: _log_sum(values) for text, values in listed.items()}
    least = min(value for values in listed.values() for value in values)
    left = min(least, math.log(max(1 - sum(map(math.exp, known.values())), 1e-10)))
    found = tuple(known.get(choice.strip(), left) for choice in request.choices)
    return Reply(choices=found, choice_tokens=(1,) * len(found))


def by_prompt(complete: Complete, request: Request) -> Reply | None:
    """The probability of each choice as the whole answer, its closing token included, by vLLM's `prompt_logprobs`.

    Each choice is sent as an answer that was given. Where it begins is known from the prompt that asks for an answer;
    where it closes, from one that leaves the first choice open.

    Returns:
        None where the server does not say, or its template writes answers otherwise than it asks for them.
    """
    messages = wire(request)

    def prompt(*answers: str, **options: bool) -> list[tuple[str, float]] | None:
        said = [{"role": "assistant", "content": answer} for answer in answers]
        found = complete({"messages": [*messages, *said], "max_tokens": 1, "prompt_logprobs": 0, **options})
        return _prompt_tokens(found)

    given = {"add_generation_prompt": False}
    try:
        asked = prompt()
        if asked is None:
            return None
        begun = prompt(request.choices[0], **given, continue_final_message=True)
        closed = [prompt(choice, **given) for choice in request.choices]
    except Refused as refused:
        if any(name in str(refused) for name in ("prompt_logprobs", *given, "continue_final_message")):
            return None
        raise
    whole = [answer for answer in closed if answer is not None]
    if begun is None or len(whole) < len(closed):
        return None
    after = len(whole[0]) - len(begun)  # the closing token, and what the template writes after it
    ends = {_ids(answer[len(answer) - after :]) for answer in whole}
    if not _starts(whole[0], begun) or len(ends) > 1 or not all(_starts(answer, asked) for answer in whole):
        return None
    answers = [answer[len(asked) : len(answer) - max(after - 1, 0)] for answer in whole]
    return Reply(
        choices=tuple(sum(logprob for _, logprob in answer) for answer in answers),
        choice_tokens=tuple(map(len, answers)),
    )


def tokens(choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tokens written, each with its `logprob`; none where the server does not say."""
    known = (choice.get("logprobs") or {}).get("content") or []
    complete = all(isinstance(token, dict) and isinstance(token.get("logprob"), int | float) for token in known)
    return list(known) if complete else []


def _prompt_tokens(found: Mapping[str, Any]) -> list[tuple[str, float]] | None:
    """(id, log-probability) of each token of the prompt; the first one has none, and counts 0."""
    listed = found.get("prompt_logprobs")
    if not isinstance(listed, list) or not listed:
        return None
    result = []
    for entry in listed:
        if entry is None:
            result.append(("", 0.0))
        else:
            token, about = next(iter(entry.items()))  # the prompt's own token comes first
            result.append((token, float(about["logprob"])))
    return result


def _starts(whole: Sequence[tuple[str, float]], start: Sequence[tuple[str, float]]) -> bool:
    return _ids(whole[: len(start)]) == _ids(start)


def _ids(found: Sequence[tuple[str, float]]) -> tuple[str, ...]:
    return tuple(token for token, _ in found)


def _log_sum(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
