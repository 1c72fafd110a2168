"""Several models behind one page: the one that a server began with, and those that are added while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve.metrics import Metrics
from serve.tickets import Backend, End, Options, Ticket
from vlchat.chat import Chat
from vlchat.conversation import Message
from vlchat.errors import VLChatError, nearest


class Several:
    """A backend that hands each conversation to the one that is asked for; as `serve.tickets.Backend`.

    Args:
        first: answers where nobody else is asked for. Its metrics are everybody's.
    """

    def __init__(self, first: Backend) -> None:
        self.first = first
        self._others: dict[str, Backend] = {}
        self._lock = threading.Lock()

    def add(self, name: str, backend: Backend) -> None:
        """Puts a model beside the others; one of this name that was added before ends.

        Raises:
            VLChatError: the name is one of the first backend's.
        """
        if name in self.first.names:
            raise VLChatError(f'"{name}" is a model of this server already. Choose another name.')
        with self._lock:
            before, self._others = self._others.get(name), {**self._others, name: backend}
        if before is not None:
            before.close()

    @property
    def metrics(self) -> Metrics:
        return self.first.metrics

    @property
    def description(self) -> Mapping[str, Any]:
        return self.first.description

    def described(self, name: str | None) -> Mapping[str, Any]:
        one, adapter = self._whose(name)
        return one.described(adapter)

    @property
    def names(self) -> list[str]:
        return [*self.first.names, *self._others]

    @property
    def joins(self) -> bool:
        return all(one.joins for one in self._all)

    @property
    def open(self) -> bool:
        return self.first.open

    @property
    def answering(self) -> int:
        return sum(one.answering for one in self._all)

    def submit(
        self, messages: Sequence[Message], options: Options | None = None,
        deliver: Callable[[str | End], object] | None = None,
    ) -> Ticket:  # fmt: skip
        options = options or Options()
        one, adapter = self._whose(options.adapter)
        return one.submit(messages, replace(options, adapter=adapter), deliver)

    def beside(self, adapter: str | None, left: threading.Event) -> Chat | None:
        one, name = self._whose(adapter)
        return one.beside(name, left)

    def close(self, wait: float | None = 10.0) -> None:
        for one in self._all:
            one.close(wait)

    @property
    def _all(self) -> list[Backend]:
        return [self.first, *self._others.values()]

    def _whose(self, name: str | None) -> tuple[Backend, str | None]:
        others = self._others
        if name in others:
            return others[name], None
        if name is not None and name not in self.first.names:
            known = ", ".join(self.names)
            raise VLChatError(f'There is no model "{name}" here any more; known: {known}{nearest(name, self.names)}')
        return self.first, name
