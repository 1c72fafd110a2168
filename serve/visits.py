"""One question of one caller, from the page or a program: counted, timed, and told of in the log."""

from __future__ import annotations

from typing import Any

from serve.logs import Line
from serve.rates import Rates
from serve.tickets import End


class Visit:
    """A question that was let in.

    Args:
        rates: what its caller may ask.
        caller: a key's name, or an address where there are no keys.
        line: of the log; held until the answer has ended.

    Raises:
        RateError: the caller has asked too often.
    """

    def __init__(self, rates: Rates, caller: str, line: Line) -> None:
        rates.admit(caller)
        self._rates, self._caller, self._line, self._open = rates, caller, line, True
        line.hold()

    def came(self, one: str | End) -> None:
        """Something of the answer. Called in the event loop, until its end."""
        if isinstance(one, End):
            self._rates.used(self._caller, one.prompt_tokens + one.new_tokens)
            self._tell(
                prompt_tokens=one.prompt_tokens,
                cached_tokens=one.cached_tokens,
                new_tokens=one.new_tokens,
                end="error" if one.error is not None else one.reason,
            )
            if one.error is not None:
                self._line.failed(one.error)
            self._done()
        elif "first_token_seconds" not in self._line.fields:
            self._tell(first_token_seconds=self._line.seconds)

    def refused(self) -> None:
        """There will be no answer."""
        self._tell(end="refused")
        self._done()

    def _tell(self, **fields: Any) -> None:
        self._line.fields |= fields

    def _done(self) -> None:
        if self._open:
            self._open = False
            self._line.done()
