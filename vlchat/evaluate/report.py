"""A result as a table for the terminal, as Markdown, and as files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vlchat.errors import ConfigError, VLChatError
from vlchat.evaluate import certificate
from vlchat.evaluate.measures import Measure
from vlchat.evaluate.result import FORMAT, Result
from vlchat.evaluate.statistics import Figure

Line = tuple[str, ...]
RESULT, ROWS = "result.json", "replies.jsonl"


def table(result: Result) -> list[Line]:
    """The header and the lines: name, count, score, 95 % interval, and the controls that were asked."""
    headline = result.measures[0]
    beside = [*result.controls, *(["floor"] if result.floor else [])]
    lines: list[Line] = [("", "n", _titled(headline), "95 % interval", *beside)]
    for name, values in result.table.slices.items():
        for value, measured in values.items():
            floors = [result.floor.slices[name][value][headline.name]] if result.floor else []
            blind = [result.control_slice(control, name, value) for control in result.controls]
            lines.append(_line(value, headline, measured[headline.name], [*blind, *floors]))
    controls = [control.blind for control in result.controls.values()]
    floors = [result.floor.overall[headline.name]] if result.floor else []
    lines.append(_line("overall", headline, result.headline, [*controls, *floors]))
    return lines


def measures(result: Result) -> list[Line]:
    """The header and the lines of the other measures, over all rows that have them."""
    lines: list[Line] = [("measure", "n", "value", "95 % interval")]
    for measure in result.measures[1:]:
        figure = result.table.overall[measure.name]
        if figure.rows:
            lines.append(_line(_titled(measure), measure, figure, []))
    return lines if len(lines) > 1 else []


def terminal(result: Result) -> str:
    """The result as aligned text."""
    parts = ["\n".join(facts(result)), _aligned(table(result), last=True)]
    if found := measures(result):
        parts.append(_aligned(found))
    if result.verdicts:
        parts.append("\n".join(map(str, result.verdicts)))
    return "\n\n".join(parts)


def markdown(result: Result) -> str:
    """The result as a Markdown section."""
    parts = [f"## {result.task}", "\n".join(f"- {fact}" for fact in facts(result)), _piped(table(result), last=True)]
    if found := measures(result):
        parts.append(_piped(found))
    parts += map(str, result.verdicts)
    return "\n\n".join(parts) + "\n"


def result_folder(folder: str | Path) -> Path:
    """The folder of a result, made where it is not there. Call it before asking: no result is then left without one.

    Raises:
        ConfigError: it is a file, or cannot be made.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"No result can be written to {folder}: {error.strerror}. Name another folder.") from error
    return target


def save(result: Result, folder: str | Path) -> Path:
    """Writes result.json, result.md, replies.jsonl (a line a question) and certificate.json, and returns the folder."""
    target = result_folder(folder)
    _write(target / RESULT, json.dumps(result.to_dict(), indent=2, ensure_ascii=False, default=str) + "\n")
    _write(target / "result.md", markdown(result))
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in result.rows)
    _write(target / ROWS, "".join(lines))
    found = json.dumps(certificate.certificate(result), indent=2, ensure_ascii=True)
    _write(target / certificate.FILE, found + "\n")
    return target


def load(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `save` wrote: the content of result.json, and the rows.

    Raises:
        VLChatError: there is no result, or it is damaged or of another version.
    """
    place = Path(folder)
    try:
        result = json.loads((place / RESULT).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (place / ROWS).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise VLChatError(
            f"{folder} holds no result of `vlchat eval --out`: {error}. Name the folder that it wrote."
        ) from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise VLChatError(f"{place / RESULT} was written by another version of vlchat: evaluate again.")
    return result, rows


def facts(result: Result) -> list[str]:
    """What the score is of and how it came about, a sentence or two each."""
    model = result.model.get("name") or result.settings.get("model") or "model"
    trained = result.model.get("trained_on")
    plain = {key: value for key, value in result.data.items() if not isinstance(value, dict)}
    data = ", ".join(f"{key} {str(value)[:12] if key == 'sha256' else value}" for key, value in plain.items())
    counts = result.counts
    known = f"; {counts['known']:,} of {counts['known'] + counts['asked']:,} answers were known"
    found = [
        f"model: {model}" + (f" (trained on: {trained})" if trained else ""),
        f"protocol: {result.protocol}",
        f"data: {data}",
        f"{counts['questions']:,} questions, seed {result.settings['seed']}, {result.settings['decoding']}, "
        f"{result.seconds:,.0f} s" + (known if counts["known"] else ""),
        *result.notes,
    ]
    if counts["unanswered"]:
        found.append(f"{counts['unanswered']:,} questions got no reply and count as wrong; {ROWS} says why.")
    return found


def shown(measure: Measure, value: float) -> str:
    """A value of a measure as tables print it."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:.1f}" if measure.percent else f"{value:.3f}"


def _titled(measure: Measure) -> str:
    return f"{measure.name} %" if measure.percent else measure.name


def _line(name: str, measure: Measure, figure: Figure, beside: list[Figure]) -> Line:
    interval = "-" if math.isnan(figure.low) else f"{shown(measure, figure.low)} to {shown(measure, figure.high)}"
    others = [shown(measure, other.value) for other in beside]
    return (name, f"{figure.rows:,}", shown(measure, figure.value), interval, *others)


def _aligned(lines: list[Line], last: bool = False) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    rule = "-" * len(aligned[0])
    body = [*aligned[1:-1], rule, aligned[-1]] if last and len(lines) > 2 else aligned[1:]
    return "\n".join([aligned[0], rule, *body])


def _piped(lines: list[Line], last: bool = False) -> str:
    header, *rows = lines
    bold = [tuple(f"**{cell}**" for cell in rows[-1])] if last else [rows[-1]]
    marked = [header, ("---", *["---:"] * (len(header) - 1)), *rows[:-1], *bold]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in marked)


def _write(path: Path, text: str) -> None:
    # Half an emoji, as cut texts end in, is no UTF-8.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
