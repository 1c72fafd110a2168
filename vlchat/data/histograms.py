"""How values are spread: as bars of text, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

_BARS = 12
_WIDTH = 40  # characters of the longest bar
_EIGHTHS = ("", *"\u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588")  # of a character's width
_STEPS = (1, 2, 2.5, 5, 10)  # a bar's width is one of these times a power of ten


@dataclass
class Histogram:
    """Values counted in bars.

    A few different whole numbers have a bar each. Else the bars are of equal width with round edges, and values far
    above the others share the last one.

    Args:
        name: what is counted, with its unit.
        values: the numbers.

    Attributes:
        bars: (what it holds, how many) of each bar, in order.
    """

    name: str
    values: Sequence[float] = field(repr=False)

    def __post_init__(self) -> None:
        self.data = numpy.asarray(self.values, dtype=numpy.float64)
        self.whole = bool((self.data == numpy.round(self.data)).all())
        different, counts = numpy.unique(self.data, return_counts=True)
        self.bars: list[tuple[str, int]] = []
        if self.whole and len(different) <= _BARS:
            self.bars = [(f"{int(value):,}", int(count)) for value, count in zip(different, counts, strict=True)]
        elif self.count:
            self.bars = self._equal_bars()

    @property
    def count(self) -> int:
        return len(self.data)

    def _equal_bars(self) -> list[tuple[str, int]]:
        low, high = float(self.data.min()), float(self.data.max())
        # Ten answers of a thousand words must not press all others into one bar.
        usual = float(numpy.quantile(self.data, 0.99))
        top = usual if usual > low and high - low > 2 * (usual - low) else high
        step = _round_step((top - low) / _BARS, self.whole)
        first = math.floor(low / step + 1e-9)
        number = math.floor(top / step + 1e-9) - first + 1
        place = numpy.clip(numpy.floor(self.data / step + 1e-9) - first, 0, number - 1).astype(int)
        counts = numpy.bincount(place, minlength=number)
        edges = [(first + bar) * step for bar in range(number)]
        ends = [*edges[1:], max(high, edges[-1]) if self.whole else max(high, edges[-1] + step)]
        return [
            (self._label(begin, end, last=bar == number - 1), int(counts[bar]))
            for bar, (begin, end) in enumerate(zip(edges, ends, strict=True))
        ]

    def _label(self, begin: float, end: float, last: bool) -> str:
        if not self.whole:
            return f"{begin:.4g}-{end:.4g}"
        end = end if last else end - 1
        return f"{int(begin):,}" if begin >= end else f"{int(begin):,}-{int(end):,}"

    def summary(self) -> str:
        """Smallest, middle and largest value."""
        if not self.count:
            return "none"
        low, middle, high = (f"{value:,.0f}" if self.whole else f"{value:,.4g}" for value in self._three())
        return low if low == high else f"{low} to {high}, median {middle}"

    def _three(self) -> tuple[float, float, float]:
        return float(self.data.min()), float(numpy.median(self.data)), float(self.data.max())

    def render(self) -> str:
        """Name and summary, then a line for each bar; one line alone where all values are equal."""
        lines = [f"{self.name}: {self.summary()}"]
        if len(self.bars) < 2:
            return lines[0]
        wide = max(len(label) for label, _ in self.bars)
        most = max(count for _, count in self.bars)
        for label, count in self.bars:
            eighths = max(round(count / most * _WIDTH * 8), int(count > 0))
            bar = _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8]
            lines.append(f"  {label.rjust(wide)} {bar} {count:,}" if count else f"  {label.rjust(wide)} 0")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        low, middle, high = self._three() if self.count else (None, None, None)
        return {
            "name": self.name,
            "count": self.count,
            "least": low,
            "median": middle,
            "most": high,
            "bars": [{"values": label, "count": count} for label, count in self.bars],
        }


def _round_step(width: float, whole: bool) -> float:
    if width <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(width))
    step = next(factor * power for factor in _STEPS if factor * power >= width * (1 - 1e-9))
    return max(1.0, math.ceil(step)) if whole else step
