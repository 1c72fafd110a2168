"""Draws what `soak.py` saw: memory, slots and line, and how long answers took, over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], file: Path) -> None:
    """Three panels over the minutes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seconds, _, resident, _, _, running, waiting, kept = zip(*result["series"], strict=True)
    minutes = [one / 60 for one in seconds]
    figure, (memory, slots, latency) = pyplot.subplots(3, 1, figsize=(10, 9), sharex=True, constrained_layout=True)
    memory.plot(minutes, resident, label="resident, server and its workers")
    memory.plot(minutes, kept, label="of it, kept conversations")
    memory.set_ylabel("memory, MiB")
    memory.set_ylim(0, 1.25 * max(resident))
    slots.plot(minutes, waiting, label="waiting in line")
    slots.plot(minutes, running, label="in the batch")
    slots.set_ylabel("conversations")
    slots.set_ylim(0, 1.3 * max(*waiting, *running, 1))
    asked = [[row[0] / 60, *row[1:]] for row in result["asked"]]
    latency.plot([row[0] for row in asked], [row[2] for row in asked], label="95 of 100 answers within")
    latency.plot([row[0] for row in asked], [row[1] for row in asked], label="half of the answers within")
    latency.set_ylabel("time to a whole answer, s")
    latency.set_ylim(0, None)
    latency.set_xlabel("time, min")
    for panel in (memory, slots, latency):
        panel.grid(True, alpha=0.3)
        if result["killed_at"]:
            panel.axvline(result["killed_at"][1] / 60, color="black", linestyle="--", label="kill -9")
        panel.legend(loc="upper right", ncols=3, fontsize=9)
    told = result["requests"]
    figure.suptitle(
        f"{sum(told.values())} requests of {result['settings']['clients']} clients: {told.get('leave', 0)} left, "
        f"{told.get('bad picture', 0)} with bad pictures, {result['wrong'] + result['mixed']} wrong answers\n"
        f"{result['hardware']}, {result['date']}",
        fontsize=11,
    )
    figure.savefig(file, dpi=100, facecolor="white")
    pyplot.close(figure)
