"""Comparisons as tables for the terminal, as Markdown, JSON and the page for people."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlchat import video
from vlchat.evaluate import report
from vlchat.evaluate.blind import images_of
from vlchat.evaluate.comparison import Change, Comparison, Comparisons, p_text
from vlchat.evaluate.statistics import plain
from vlchat.evaluate.stored import items_of

TEXT, JSON, PAGE = "compare.md", "compare.json", "compare.html"
SHOWN, LISTED = 5, 100  # changed rows of each kind in the terminal, and in the files


def terminal(found: Comparisons) -> str:
    """The comparison as aligned text."""
    parts = [f"{found.names[0]}  ->  {found.names[1]}", *found.notes]
    for part in found.parts:
        if len(found.parts) > 1:
            parts.append(f"== {part.task}{' (known before)' if part.replay else ''}")
        parts.append(part.verdict)
        parts.append(report.aligned(table(part), last=True))
        if found_measures := measures(part):
            parts.append(report.aligned(found_measures))
        parts.append(counts(part))
        for title, rows in (("Gained (scored higher)", part.gained), ("Lost (scored lower)", part.lost)):
            if rows:
                shown = [f"{title}, {min(SHOWN, len(rows)):,} of {len(rows):,}:"]
                parts.append("\n".join(shown + [_row_text(part, row) for row in rows[:SHOWN]]))
        parts += [*part.notes, "\n".join(_differing(part))]
    if found.forgotten is not None:
        parts.append(found.forgotten.sentence)
    return "\n\n".join(part for part in parts if part)


def markdown(found: Comparisons) -> str:
    """The comparison as Markdown."""
    parts = [f"# {found.names[0]} and then {found.names[1]}", *found.notes]
    if found.forgotten is not None:
        parts.append(found.forgotten.sentence)
    for part in found.parts:
        parts += [
            f"## {part.task}{' (known before)' if part.replay else ''}",
            f"**{part.verdict}**",
            part.before.protocol,
        ]
        parts.append(report.piped(table(part), last=True))
        if found_measures := measures(part):
            parts.append(report.piped(found_measures))
        parts += [counts(part), *part.notes, "\n".join(f"- {line}" for line in _differing(part))]
        for title, rows in (("Gained (scored higher)", part.gained), ("Lost (scored lower)", part.lost)):
            if rows:
                lines: list[report.Line] = [("row", "question", "right is", "before", "after")]
                lines += [_cells(part, row) for row in rows[:LISTED]]
                parts += [f"### {title}: {min(LISTED, len(rows)):,} of {len(rows):,}", report.piped(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_dict(found: Comparisons) -> dict[str, Any]:
    """The comparison as plain JSON values, with every changed row."""
    forgotten = found.forgotten
    return {
        "first": found.names[0],
        "second": found.names[1],
        "notes": list(found.notes),
        "forgotten": None if forgotten is None else plain(forgotten) | {
            "tasks": list(forgotten.tasks), "share": forgotten.share.to_dict(), "sentence": forgotten.sentence,
        },
        "tasks": {part.task: _task(part) for part in found.parts},
    }  # fmt: skip


def write(found: Comparisons, folder: str | Path) -> Path:
    """Writes compare.md, compare.json and compare.html, and returns the folder."""
    from vlchat.evaluate.page import ComparisonPage, compared, write_comparison_page

    target = report.result_folder(folder)
    replayed = [part.task for part in found.parts if part.replay]
    tasks = []
    for part in found.parts:
        # What was forgotten over all of them stands with the first.
        told = [found.forgotten.sentence] if found.forgotten is not None and part.task == replayed[0] else []
        tasks.append(compared(part, verdicts=told, pictures=_pictures(part)))
    report.write(target / TEXT, markdown(found))
    report.write(target / JSON, json.dumps(to_dict(found), indent=2, ensure_ascii=False, default=str) + "\n")
    write_comparison_page(ComparisonPage(*found.names, tasks), target / PAGE)
    return target


def table(part: Comparison) -> list[report.Line]:
    """The header and the lines of the headline: by slice, then overall."""
    headline = part.changes[0]
    unit = " %" if headline.measure.percent else ""
    lines: list[report.Line] = [
        ("", "n", f"before{unit}", f"after{unit}", "change", "95 % interval", "p", ""),
    ]
    several = len(part.slices) > 1
    for name, changes in part.slices.items():
        lines += [_line(f"{name}: {change.name}" if several else change.name, change) for change in changes]
    lines.append(_line(headline.measure.name, headline))
    return lines


def measures(part: Comparison) -> list[report.Line]:
    """The header and the lines of the other measures."""
    lines: list[report.Line] = [("measure", "n", "before", "after", "change", "95 % interval", "p", "")]
    lines += [_line(change.name, change) for change in part.changes[1:] if change.difference.rows]
    return lines if len(lines) > 1 else []


def counts(part: Comparison) -> str:
    """How many rows changed, in a sentence."""
    found = part.counts
    return (
        f"Of {len(part.before.rows):,} rows {found['gained']:,} are scored higher and {found['lost']:,} lower; "
        f"{found['both right']:,} were and are right, {found['both wrong']:,} wrong."
    )


def _line(name: str, change: Change) -> report.Line:
    measure, gap = change.measure, change.difference
    interval = "-"
    if not math.isnan(gap.low):
        interval = f"{report.shown(measure, gap.low)} to {report.shown(measure, gap.high)}"
    value = report.shown(measure, gap.value)
    return (
        name,
        f"{gap.rows:,}",
        report.shown(measure, change.before.value),
        report.shown(measure, change.after.value),
        f"+{value}" if gap.value > 0 else value,
        interval,
        p_text(change.p).removeprefix("p = ").removeprefix("p "),
        change.verdict,
    )


def _row_text(part: Comparison, row: int) -> str:
    name, question, reference, before, after = _cells(part, row)
    return f"  {name}: {question}\n    right is {reference}; before: {before}; after: {after}"


def _cells(part: Comparison, row: int) -> report.Line:
    one, two = part.before.rows[row], part.after.rows[row]
    texts = (one["id"], one["question"], one["reference"], _reply(one), _reply(two))
    return tuple(_short(str(text)) for text in texts)


def _reply(row: Mapping[str, Any]) -> str:
    return "\n".join(row["reply"]).strip() or row["answer"] or "(nothing)"


def _short(text: str, length: int = 120) -> str:
    """On one line, without what a terminal would obey."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return words if len(words) <= length else words[: length - 3].rstrip() + "..."


def _differing(part: Comparison) -> Sequence[str]:
    return [f"{what}: {_short(one)} -> {_short(two)}" for what, one, two in part.differing]


def _task(part: Comparison) -> dict[str, Any]:
    return {
        "protocol": part.before.protocol,
        "replay": part.replay,
        "verdict": part.changes[0].verdict,
        "sentence": part.verdict,
        "measures": [_change(change) for change in part.changes],
        "slices": {name: [_change(change) for change in changes] for name, changes in part.slices.items()},
        "counts": part.counts,
        "gained": [_pair(part, row) for row in part.gained],
        "lost": [_pair(part, row) for row in part.lost],
        "differing": [{"what": what, "first": one, "second": two} for what, one, two in part.differing],
        "notes": list(part.notes),
    }


def _change(change: Change) -> dict[str, Any]:
    gap = change.difference
    return {
        "name": change.name,
        "measure": change.measure.name,
        "percent": change.measure.percent,
        "better": change.measure.better,
        "first": change.before.to_dict(),
        "second": change.after.to_dict(),
        "difference": gap.to_dict(),
        "p": None if math.isnan(change.p) else change.p,
        "detectable": gap.detectable if math.isfinite(gap.detectable) else None,
        "rows_needed": gap.rows_needed(),
        "verdict": change.verdict,
    }


def _pair(part: Comparison, row: int) -> dict[str, Any]:
    one, two = part.before.rows[row], part.after.rows[row]
    told = {name: one[name] for name in ("id", "question", "reference", "slices")}
    said = [{name: side[name] for name in ("reply", "answer", "score")} for side in (one, two)]
    return told | {"first": said[0], "second": said[1]}


def _pictures(part: Comparison) -> Callable[[int], Sequence[Any]]:
    items = items_of(part.before)
    return lambda number: images_of(video.expanded(items[number].messages)) if items else ()
