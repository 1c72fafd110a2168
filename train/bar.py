"""How far a run is: a bar in a terminal, plain lines now and then in a file or a pipe."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from vlchat.runs import clock

_BETWEEN = 30.0  # seconds between two plain lines


class Bar:
    """Args:
    total: optimizer steps of the whole run.
    initial: steps that are done already.
    shown: False is silent, as on all processes but the first.
    """

    def __init__(self, total: int, initial: int, shown: bool = True) -> None:
        self.total, self.step, self.shown = total, initial, shown
        self.begun, self.initial, self.told = time.monotonic(), initial, -_BETWEEN
        self.drawn: tqdm | None = None
        if shown and sys.stderr.isatty():
            self.drawn = tqdm(total=total, initial=initial, dynamic_ncols=True, mininterval=1, unit="step")

    def advance(self, step: int, total: int) -> None:
        """So many steps are done, of as many as it looks like now (a run of `loop.minutes` learns that on the way)."""
        self.total, done = total, step - self.step
        self.step = step
        if self.drawn is not None:
            self.drawn.total = total
            self.drawn.update(done)

    def note(self, text: str) -> None:
        """Figures of a logged step: beside the bar, or as a line of their own, not more often than is good to read."""
        if self.drawn is not None:
            self.drawn.set_postfix_str(text)
        elif self.shown and (time.monotonic() - self.told >= _BETWEEN or self.step >= self.total):
            self.told = time.monotonic()
            spent = self.told - self.begun
            left = spent / max(1, self.step - self.initial) * max(0, self.total - self.step)
            more = f"  {clock(left)} left" if self.step < self.total else ""
            print(f"step {self.step:,} of {self.total:,}  {text}{more}", flush=True)

    def say(self, text: str) -> None:
        """Lines for people, which stay above the bar."""
        if self.drawn is not None:
            self.drawn.write(text)
        elif self.shown:
            print(text, flush=True)

    def close(self) -> None:
        if self.drawn is not None:
            self.drawn.close()
