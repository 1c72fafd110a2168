"""A plan as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from train.planning.changes import Change
from train.planning.plan import RunPlan


def size(count: float) -> str:
    """Bytes, such as "1.25 GiB"."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 2**power:
            return f"{count / 2**power:.{2 if power >= 30 else 0}f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Such as "2 h 05 min"."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def table(found: RunPlan, price: float | None = None) -> str:
    """The whole plan, a line a figure."""
    step, target = found.step, found.target
    lines = [f"{'part':24} {'parameters':>16} {'train':>16}"]
    lines += [f"{part:24} {count:16,} {trained:16,}" for part, (count, trained) in step.parameters.items()]
    lines += ["", f"{'memory, one process':24} {'held':>16} {'at the peak':>16}"]
    at_peak = found.at_peak
    for kind in dict.fromkeys([*step.held, *at_peak]):
        held = size(step.held[kind]) if kind in step.held else "-"
        lines.append(f"{kind:24} {held:>16} {size(at_peak[kind]) if kind in at_peak else '-':>16}")
    verdict = "fits" if found.fits else "DOES NOT FIT"
    lines.append(f"{'peak':24} {'':16} {size(found.peak):>16}   {verdict} in {size(target.memory)} of {target.name}")
    lines += ["", *_rows(found)]
    lines.append(f"{'a checkpoint':24} {size(step.checkpoint)}; {size(found.disk)} on disk at most (loop.keep)")
    if step.feature_cache is not None:
        lines.append(
            f"{'features of pictures':24} {size(step.feature_cache)} on disk at most (objective.feature_cache)"
        )
    lines.append(f"{'work a step':24} {step.flops / 1e12:,.3g} TFLOP in {step.pieces.count} micro-batches a process")
    lines.append(f"{'rate':24} {target.rate / 1e12:.3g} TFLOP/s, {target.measured}")
    if found.config.loop.precision == "bf16" and not target.bf16:
        lines.append(f"{'':24} {target.name} does not compute in bfloat16: set loop.precision=fp16")
    lines.append(f"{'time a step':24} {duration(found.seconds_a_step)}")
    lines.append(f"{'time':24} {_time(found)}{_money(found, price)}")
    return "\n".join(lines)


def _rows(found: RunPlan) -> list[str]:
    step, lines = found.step, []
    if step.lengths is not None:
        for name, figures in (("tokens a row", step.lengths.tokens), ("of them pictures'", step.lengths.image_tokens)):
            lines.append(f"{name:24} {figures[0]:,} (median), {figures[1]:,} (95 %), {figures[2]:,} (longest)")
        if step.lengths.assumed:
            lines.append(f"{'':24} assumed: the data is not there. A row of one picture and about 180 words")
        else:
            left = f"; {step.lengths.left_out} longer ones are left out" if step.lengths.left_out else ""
            lines.append(f"{'':24} of {step.lengths.count} rows looked at{left}")
    if step.steps is None:
        lines.append(f"{'steps':24} not known without the data")
    else:
        rows = f", {step.rows:,} rows" if step.rows else ""
        lines.append(f"{'steps':24} {step.steps:,} of {found.config.loop.batch:,} rows{rows}")
    return lines


def _time(found: RunPlan) -> str:
    return "not known without the data" if found.seconds is None else f"about {duration(found.seconds)}"


def _money(found: RunPlan, price: float | None) -> str:
    if price is None or found.seconds is None:
        return ""
    return f", {price * found.ranks * found.seconds / 3600:,.2f} at {price:g} an hour a process"


def short(found: RunPlan) -> str:
    """What `vlchat train` says first."""
    parts = found.step.parameters.values()
    lengths = found.step.lengths
    tokens = (
        "" if lengths is None else f" Rows of {lengths.tokens[0]:,} tokens (median), {lengths.tokens[2]:,} at most."
    )
    return (
        f"Planned: {sum(count for count, _ in parts):,} parameters, {sum(trained for _, trained in parts):,} train. "
        f"Peak memory about {size(found.peak)} of {size(found.target.memory)}.{tokens} Time {_time(found)}, "
        f"{duration(found.seconds_a_step)} a step."
    )


def changes(found: Sequence[Change]) -> str:
    """Ways to make a run fit."""
    if not found:
        return "No change of the configuration makes it fit: take a larger machine, more processes or a smaller model."
    typed = [" ".join(f"'{key}'" if " " in key else key for key in change.keys) for change in found]
    wide = max(64, *map(len, typed))
    lines = [f"{'what makes it fit':{wide}} {'peak':>10} {'time':>8}"]
    for keys, change in zip(typed, found, strict=True):
        lines.append(f"{keys:{wide}} {size(change.plan.peak):>10} {change.slower:>+8.0%}  {change.means}".rstrip())
    return "\n".join(lines)
