"""Plots as inline SVG: text that scales, colours from the page's own style sheet, no library and no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

# The drawing's own units; a page shows it at about this width, so that its letters have the page's size.
WIDTH, HEIGHT = 380, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 40
_MOST_POINTS = 240  # of a curve; more are not seen


@dataclass(frozen=True)
class Bin:
    """Some rows of about the same confidence.

    Attributes:
        confidence: their mean, 0 to 1.
        right: the mean of their scores, 0 to 1, with its interval `low` to `high` (NaN where there is none).
        count: how many rows.
    """

    confidence: float
    right: float
    low: float
    high: float
    count: int


def reliability(bins: Sequence[Bin]) -> Markup:
    """Confidence against how often it was right: on the diagonal a model is as sure as it is right.

    A dot a bin, its area after the number of rows, its interval as a whisker.
    """
    kept = [one for one in bins if one.count]
    if not kept:
        return Markup("")
    most = max(one.count for one in kept)
    parts = [_frame("confidence", "right")]
    parts.append(_line([(0, 0), (1, 1)], "ideal"))
    parts.append(_line([(one.confidence, one.right) for one in kept], "curve thin"))
    for one in kept:
        x = _x(one.confidence)
        if math.isfinite(one.low) and math.isfinite(one.high):
            parts.append(_tag("line", x1=x, x2=x, y1=_y(one.low), y2=_y(one.high), class_="whisker"))
        radius = 3 + 6 * math.sqrt(one.count / most)
        about = f"{one.count:,} rows: confidence {_percent(one.confidence)}, right {_percent(one.right)}"
        parts.append(_tag("circle", _title(about), cx=x, cy=_y(one.right), r=radius, class_="dot"))
    told = "; ".join(f"{_percent(one.confidence)} sure, {_percent(one.right)} right" for one in kept)
    return _svg(parts, f"Reliability diagram. {told}.")


def risk_coverage(points: Sequence[tuple[float, float]], chosen: tuple[float, float] | None = None) -> Markup:
    """The share of wrong answers among the surest ones, over the share that is answered.

    Args:
        points: (coverage, risk), both 0 to 1, by rising coverage.
        chosen: the point of an abstain threshold, drawn as a mark.
    """
    kept = [(coverage, risk) for coverage, risk in points if math.isfinite(coverage) and math.isfinite(risk)]
    if not kept:
        return Markup("")
    step = max(1, math.ceil(len(kept) / _MOST_POINTS))
    curve = kept[::step] + ([kept[-1]] if (len(kept) - 1) % step else [])
    top = _round_up(max(risk for _, risk in [*curve, *([chosen] if chosen else [])]))
    parts = [_frame("answered, the surest first", "wrong", top)]
    area = [(curve[0][0], 0.0), *curve, (curve[-1][0], 0.0)]
    parts.append(_tag("polygon", points=_points(area, top), class_="area"))
    parts.append(_line(curve, "curve", top))
    told = f"All answered: {_percent(kept[-1][1])} wrong."
    if chosen is not None:
        x, y = _x(chosen[0]), _y(chosen[1], top)
        parts.append(_tag("line", x1=x, x2=x, y1=_y(0), y2=y, class_="whisker"))
        about = f"answering {_percent(chosen[0])}, {_percent(chosen[1])} wrong"
        parts.append(_tag("circle", _title(about), cx=x, cy=y, r=5, class_="dot"))
        told += f" The threshold: {about}."
    return _svg(parts, f"Risk over coverage. {told}")


def _frame(across: str, up: str, top: float = 1.0) -> Markup:
    """Axes with light lines, their numbers in percent, and the names of what they show."""
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _x(tick), _y(tick * top, top)
        parts.append(_tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(_text(_LEFT - 7, y + 4, _number(100 * tick * top), "end"))
        anchor = "end" if tick == 1 else "middle"
        parts.append(_text(x + (6 if tick == 1 else 0), HEIGHT - _BOTTOM + 17, _number(100 * tick), anchor))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 5, f"{across}, %", "middle", "axis"))
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    turned = {"transform": f"rotate(-90 12 {middle:.1f})", "class_": "axis"}
    parts.append(_tag("text", escape(f"{up}, %"), x=12, y=middle, text_anchor="middle", **turned))
    return Markup("").join(parts)


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: float = 1.0) -> float:
    return HEIGHT - _BOTTOM - value / top * (HEIGHT - _TOP - _BOTTOM)


def _round_up(value: float) -> float:
    """A round share at or above a value, so that quarters of it are round as well."""
    return next((top for top in (0.02, 0.04, 0.08, 0.2, 0.4, 0.6, 0.8) if value <= top), 1.0)


def _points(points: Sequence[tuple[float, float]], top: float) -> str:
    return " ".join(f"{_x(x):.1f},{_y(y, top):.1f}" for x, y in points)


def _line(points: Sequence[tuple[float, float]], style: str, top: float = 1.0) -> Markup:
    return _tag("polyline", points=_points(points, top), class_=style)


def _text(x: float, y: float, words: str, anchor: str, style: str = "tick") -> Markup:
    return _tag("text", escape(words), x=x, y=y, text_anchor=anchor, class_=style)


def _title(words: str) -> Markup:
    return Markup("<title>{}</title>").format(words)


def _svg(parts: Sequence[Markup], label: str) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, label)
    return opening + Markup("").join(parts) + Markup("</svg>")


def _tag(name: str, inside: Markup | str = "", **attributes: object) -> Markup:
    """An element; numbers are rounded to what can be seen, and everything else is escaped."""
    written = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    ]
    return Markup("<{}{}>{}</{}>").format(Markup(name), Markup("").join(written), inside, Markup(name))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
