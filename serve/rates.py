"""How often one caller may ask: buckets that fill up again at a steady rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from serve.policy import Rate
from serve.requests import RequestError

MIB = 2**20
_HOURS_A_DAY = 4  # of uploading as much as is allowed
_MANY = 10_000  # callers that are remembered before those who may ask again anyway are forgotten


class RateError(RequestError):
    """A caller has asked too often.

    Attributes:
        retry_after: whole seconds after which a question is taken.
    """

    def __init__(self, told: str, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__(f"{told} Ask again in {self.retry_after} s.", 429, "rate_limit_exceeded", None)


class Buckets:
    """One bucket a caller: `rate.most` at once when it is full, and full again after `rate.seconds`.

    Kept as the generic cell rate algorithm keeps it (ITU-T I.371): one number a caller, the time at which the bucket is
    full. For one thread.

    Args:
        rate: of each caller.
        clock: seconds that only grow.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._clock = rate, clock
        self._each = rate.seconds / rate.most
        self._full: dict[str, float] = {}

    def wait(self, caller: str, units: int = 1) -> float:
        """Seconds until so many may be taken; 0 for now."""
        now = self._clock()
        seconds = max(self._full.get(caller, now), now) + units * self._each - now - self.rate.seconds
        return seconds if seconds > 1e-6 else 0.0

    def spend(self, caller: str, units: int = 1) -> None:
        """Takes so many, more than there are if need be: the caller waits the longer."""
        now = self._clock()
        if len(self._full) >= _MANY:
            self._full = {one: full for one, full in self._full.items() if full > now}
        self._full[caller] = max(self._full.get(caller, now), now) + units * self._each


class Uploads:
    """What a caller may upload. Pictures stay on the disk for a day, so what is taken in a day is what they take there.

    Args:
        an_hour: bytes.
    """

    def __init__(self, an_hour: int) -> None:
        self._buckets = [Buckets(Rate(an_hour, "hour")), Buckets(Rate(_HOURS_A_DAY * an_hour, "day"))]

    def admit(self, caller: str, size: int) -> None:
        """Counts an upload, before it has come and whether it comes or not.

        Args:
            size: bytes.

        Raises:
            RequestError: 413 where it is more than may be uploaded in an hour at all, 429 where it is too much now.
        """
        most = self._buckets[0].rate.most
        if size > most:
            raise RequestError(f"At most {most // MIB} MiB an hour can be uploaded. Send less.", 413, "too_large")
        for buckets in self._buckets:
            if seconds := buckets.wait(caller, size):
                rate = buckets.rate
                raise RateError(f"More than {rate.most // MIB} MiB of uploads per {rate.unit}.", seconds)
        for buckets in self._buckets:
            buckets.spend(caller, size)


class Rates:
    """What a caller may ask: questions, and tokens of questions and answers, which are counted when they are known.

    Args:
        questions, tokens: None for as many as they like.
    """

    def __init__(self, questions: Rate | None = None, tokens: Rate | None = None) -> None:
        self._questions = Buckets(questions) if questions else None
        self._tokens = Buckets(tokens) if tokens else None

    def admit(self, caller: str) -> None:
        """Counts a question.

        Raises:
            RateError: it is one too many.
        """
        for buckets, what in ((self._questions, "questions"), (self._tokens, "tokens")):
            if buckets is not None and (seconds := buckets.wait(caller)):
                raise RateError(f"More than {buckets.rate} {what}.", seconds)
        if self._questions is not None:
            self._questions.spend(caller)

    def used(self, caller: str, tokens: int) -> None:
        """Counts tokens."""
        if self._tokens is not None and tokens:
            self._tokens.spend(caller, tokens)
