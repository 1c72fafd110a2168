"""The plot of a run, RUN/loss.png, from its metrics."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from vlchat import runs
from vlchat.folders import replacing

_INK, _GREY, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_TRAIN, _HELD, _RATE = "#2b6cb0", "#c2410c", "#7b8794"
_LINES = ("#2b6cb0", "#c2410c", "#2f855a", "#8b5cf6", "#b7791f", "#0f766e", "#be185d", "#525252")  # told apart by all
_FEW = 60  # steps that are logged
_SHARE = re.compile("score|exact|right|accuracy|recall|_to_|naming")


def draw(run: Path) -> str | None:
    """Draws the losses, the scores between 0 and 1, and the learning rate over the steps, and replaces the last plot.

    Returns a sentence for people where it cannot be drawn; None where it was, or nothing is there to draw yet.
    """
    lines = runs.lines(run / runs.METRICS)
    losses = series(lines, "loss")
    if len(losses[0]) < 2:
        return None
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return f"{run / runs.PLOT} is not drawn: pip install matplotlib, or 'vlchat[train]'. The figures are kept."
    try:
        _figure(run, lines, losses)
    except Exception as error:  # no run ends for a drawing of it: a full disk, a font that is broken
        return f"{run / runs.PLOT} could not be drawn: {type(error).__name__}: {error}"
    return None


def series(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure; values that were no number are left out."""
    found = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
    return [step for step, _ in found], [float(value) for _, value in found]


def smoothed(values: list[float], share: float = 0.06) -> list[float]:
    """The mean around each value, over about `share` of all of them.

    At the steep beginning it looks no further ahead than back, so that it does not run below the curve; at the end it
    looks back alone.
    """
    reach = max(2, int(share * len(values) / 2))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    result = []
    for place in range(len(values)):
        first = max(0, place - reach)
        last = min(len(values), place + 1 + min(reach, place))
        result.append((sums[last] - sums[first]) / (last - first))
    return result


def scores(lines: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Figures that are shares, such as of right answers: those of sample answers, and those with a name like one.

    Some objectives call a loss as they call the share that it is for, so that the two are told by their lines.
    """
    of_steps = [line for line in lines if "loss" in line]
    of_looks = [line for line in lines if "loss" not in line]
    found = {}
    for kept, held in ((of_steps, False), (of_looks, False), (of_looks, True)):
        for name in dict.fromkeys(name for line in kept for name in line if name.startswith("heldout_") == held):
            steps, values = series(kept, name)
            meant = _SHARE.search(name) or (kept is of_looks and not held)
            if name != "step" and meant and values and all(0 <= value <= 1 for value in values):
                found[name] = (steps, values)
    return dict(sorted(found.items(), key=lambda entry: not entry[0].startswith("heldout_")))


def _figure(run: Path, lines: list[dict[str, Any]], losses: tuple[list[int], list[float]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    shown = scores(lines)
    heights = [3.2, *([1.8] if shown else []), 0.8]
    figure = Figure(figsize=(9, 1.25 * sum(heights)), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]

    _losses(axes[0], lines, losses)
    best = runs.read_json(run / runs.BEST)
    if isinstance(best, dict) and isinstance(best.get("step"), int):
        late = best["step"] > 0.6 * lines[-1]["step"]  # its name is then written on the left
        for axis in axes[:-1]:
            axis.axvline(best["step"], color=_GREY, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        axes[0].annotate(
            f"best, step {best['step']:,}", (best["step"], 1.0), xycoords=("data", "axes fraction"),
            xytext=(-4 if late else 4, -11), ha="right" if late else "left", textcoords="offset points", fontsize=8,
            color=_GREY,
        )  # fmt: skip
    if shown:
        _scores(axes[1], shown)
    steps, rates = series(lines, "lr")
    axes[-1].fill_between(steps, rates, color=_RATE, alpha=0.25, linewidth=0)
    axes[-1].plot(steps, rates, color=_RATE, linewidth=1.2)
    axes[-1].set_ylim(bottom=0)
    peak = max(rates, default=0.0)
    axes[-1].set_yticks([0, peak] if peak else [0], ["0", f"{peak:.2g}"] if peak else ["0"])
    _head(axes[-1], "learning rate")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    reached = max(line["step"] for line in lines)
    axes[-1].set_xlim(-0.006 * reached, 1.006 * reached)
    for axis in axes:
        axis.grid(axis="y", color=_GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(colors=_GREY, labelsize=8, length=0)
        for side, spine in axis.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_GRID)
    about = runs.read_json(run / runs.ABOUT)
    planned = about.get("steps") if isinstance(about, dict) else None
    of = f" of {planned:,}" if isinstance(planned, int) else ""
    axes[-1].set_xlabel(f"step   (now {reached:,}{of})", color=_GREY, fontsize=9)
    title = run.absolute().name.replace("$", r"\$")  # a pair of them is a formula to matplotlib
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, color=_INK, fontweight="bold")

    with replacing(run / runs.PLOT, flush=False) as stage:
        figure.savefig(stage, format="png")


def _losses(axis: Any, lines: list[dict[str, Any]], losses: tuple[list[int], list[float]]) -> None:
    steps, values = losses
    if len(values) < _FEW:  # a mean of so few hides more than it shows
        smooth, label = values, f"training  {values[-1]:.4g}"
    else:
        axis.plot(steps, values, color=_TRAIN, alpha=0.25, linewidth=0.9)
        smooth, label = smoothed(values), f"training  {values[-1]:.4g} (thick: the mean around each step)"
    axis.plot(steps, smooth, color=_TRAIN, linewidth=1.8, label=label)
    held = series(lines, "heldout_loss")
    if held[0]:
        label = f"held out  {held[1][-1]:.4g}"
        axis.plot(*held, color=_HELD, linewidth=1.6, marker="o", markersize=4, label=label, zorder=3)
    # The first steps of a run may be many times higher than all that follows, which is what people come to see.
    later = [*smooth[len(smooth) // 10 :], *held[1][1:]]
    top, low = max(later), min([*values, *held[1]])
    if max([*values, *held[1]]) > low + 3 * (top - low) and top > low:
        axis.set_ylim(low - 0.08 * (top - low), top + 0.6 * (top - low))
    _head(axis, "loss")


def _scores(axis: Any, shown: dict[str, tuple[list[int], list[float]]]) -> None:
    top = 0.0
    for (name, (steps, values)), color in zip(shown.items(), _LINES, strict=False):
        dense = len(values) > 60
        twice = name.startswith("heldout_") and name.removeprefix("heldout_") in shown
        label = name.removeprefix("heldout_").replace("_", " ") + (", held out" if twice else "")
        label += f"  {100 * values[-1]:.1f}"
        axis.plot(
            steps, smoothed(values) if dense else values, color=color, linewidth=1.5, label=label,
            marker=None if dense else "o", markersize=4, alpha=0.75 if dense else 1, clip_on=False,
        )  # fmt: skip
        top = max(top, *values)
    axis.set_ylim(0, min(1.0, max(0.1, math.ceil(top * 11) / 10)) + 0.02)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    _head(axis, "scores, %")


def _head(axis: Any, title: str) -> None:
    """The panel's name and legend above it, where no line runs through them."""
    axis.set_title(title, loc="left", fontsize=9.5, color=_GREY, pad=6)
    handles, _ = axis.get_legend_handles_labels()
    if handles:
        axis.legend(
            loc="lower right", bbox_to_anchor=(1.0, 0.985), ncols=4, frameon=False, fontsize=8.5, labelcolor=_INK,
            handlelength=1.4, columnspacing=1.6, borderaxespad=0.2,
        )  # fmt: skip
