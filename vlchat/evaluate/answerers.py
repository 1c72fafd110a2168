"""Who is asked: one of vlchat's or transformers' models here, or (`vlchat.evaluate.remote`) one behind a URL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vlchat.errors import VLChatError
from vlchat.evaluate.endpoint import ServerError
from vlchat.evaluate.items import Reply, Request


class Answerer(Protocol):
    """What the runner needs of a model.

    Attributes:
        description: what people should know of it: `name`, `parameters`, `trained_on`, ...
        identity: a hash that changes with its weights or settings; None where it has none, so that nothing is cached.
    """

    @property
    def description(self) -> dict[str, Any]: ...

    @property
    def identity(self) -> str | None: ...

    def answer(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Reply]:
        """A reply to each request, in order. Their pictures are decoded.

        Args:
            max_new_tokens: the longest reply of a request that does not say.

        Raises:
            VLChatError: one of the requests cannot be answered; the runner then asks them one by one.
        """
        ...


class ChatAnswerer:
    """A `vlchat.chat.Chat` as an answerer.

    Args:
        chat: the model, or what loads it once it is needed: where every answer is known, it never is.
        description, identity: as of `Answerer`; by default the chat's own, and none.
    """

    def __init__(
        self, chat: Any | Callable[[], Any], description: dict[str, Any] | None = None, identity: str | None = None
    ) -> None:
        self._chat = chat
        self._loaded = hasattr(chat, "answers")
        self._description = description
        self.identity = identity

    @property
    def chat(self) -> Any:
        """The model, loaded."""
        if not self._loaded:
            self._chat, self._loaded = self._chat(), True
        return self._chat

    @property
    def description(self) -> dict[str, Any]:
        return self.chat.description if self._description is None else self._description

    def answer(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Reply]:
        replies: list[Reply] = [Reply()] * len(requests)
        together: dict[tuple[int, int], list[int]] = {}
        for number, request in enumerate(requests):
            if request.choices:
                replies[number] = self._chosen(request)
            else:
                longest = request.max_new_tokens or max_new_tokens
                together.setdefault((longest, request.beams), []).append(number)
        for (longest, beams), numbers in together.items():
            asked = [requests[number].messages for number in numbers]
            for number, answer in zip(
                numbers, self.chat.answers(asked, max_new_tokens=longest, beams=beams), strict=True
            ):
                # A model whose numbers overflow says nothing of how sure it is.
                sure = None if math.isnan(answer.logprob) else answer.logprob
                replies[number] = Reply(answer.text, sure, answer.tokens)
        return replies

    def _chosen(self, request: Request) -> Reply:
        found = self.chat.likelihoods(request.messages, request.choices)
        return Reply(
            choices=tuple(answer.logprob for answer in found), choice_tokens=tuple(answer.tokens for answer in found)
        )


def one_by_one(answerer: Answerer, requests: Sequence[Request], max_new_tokens: int) -> list[Reply]:
    """The replies to a batch; where it is refused, to each alone, so that one request costs no other its answer.

    Raises:
        ServerError: there is nobody to ask; asking one by one would not help.
    """
    try:
        return answerer.answer(requests, max_new_tokens=max_new_tokens)
    except ServerError:
        raise
    except VLChatError as error:
        if len(requests) == 1:
            return [Reply(error=str(error))]
        return [one_by_one(answerer, [request], max_new_tokens)[0] for request in requests]
