"""A result as a table for the terminal, as Markdown, and as files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlchat import video
from vlchat.errors import ConfigError, VLChatError
from vlchat.evaluate import certificate
from vlchat.evaluate.blind import images_of
from vlchat.evaluate.measures import Measure
from vlchat.evaluate.result import FORMAT, Result
from vlchat.evaluate.statistics import Figure

if TYPE_CHECKING:
    from vlchat.evaluate.page import Report

Line = tuple[str, ...]
RESULT, ROWS, PAGE = "result.json", "replies.jsonl", "report.html"
_NAME = 60  # letters of a slice's value in a table
EVIDENCE = 8  # rows of a page that are explained


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
    parts = ["\n".join(facts(result)), aligned(table(result), last=True)]
    if found := measures(result):
        parts.append(aligned(found))
    parts.append("\n".join(sentences(result)))
    return "\n\n".join(part for part in parts if part)


def sentences(result: Result) -> list[str]:
    """What the figures mean: the controls, the floor, how far the model's confidence can be trusted."""
    found = [str(verdict) for verdict in result.verdicts]
    if result.calibration.rows:
        found += [*result.calibration.sentences(), result.abstention().sentence]
    return found


def markdown(result: Result) -> str:
    """The result as a Markdown section."""
    parts = [f"## {result.task}", "\n".join(f"- {fact}" for fact in facts(result)), piped(table(result), last=True)]
    if found := measures(result):
        parts.append(piped(found))
    parts += sentences(result)
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
    write(target / RESULT, json.dumps(result.to_dict(), indent=2, ensure_ascii=False, default=str) + "\n")
    write(target / "result.md", markdown(result))
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in result.rows)
    write(target / ROWS, "".join(lines))
    found = json.dumps(certificate.certificate(result), indent=2, ensure_ascii=True)
    write(target / certificate.FILE, found + "\n")
    return target


def page(result: Result, evidence: int = EVIDENCE) -> Report:
    """The result as a part of a page, for `vlchat.evaluate.page.write_page`.

    Args:
        evidence: for how many of the worst rows a map is drawn of the pixels that the answer came from.
    """
    from vlchat.evaluate.page import choose, explain, report_of

    mapped = set(choose(result.rows)[0][:evidence]) if result.chat is not None and result.items else set()

    def pictures(number: int) -> list[Any]:
        return images_of(video.expanded(result.items[number].messages)) if result.items else []

    def explained(number: int) -> tuple[Any, str]:
        if number not in mapped or result.chat is None:
            return (), ""
        return explain(result.chat(), result.items[number].messages, result.rows[number])

    return report_of(
        result, pictures=pictures, explained=explained, certificate=certificate.certificate(result)
    )


def load(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `save` wrote: the content of result.json, and the rows.

    Raises:
        VLChatError: there is no result, or it is damaged or of another version.
    """
    place = Path(folder)
    try:
        result = json.loads((place / RESULT).read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (place / ROWS).read_text(encoding="utf-8").split("\n") if line]
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
    number = counts["questions"]
    known = f"; {counts['known']:,} of {counts['known'] + counts['asked']:,} answers were known"
    found = [
        f"model: {model}" + (f" (trained on: {trained})" if trained else ""),
        f"protocol: {result.protocol}",
        f"data: {data}",
        f"{number:,} question{'' if number == 1 else 's'}, seed {result.settings['seed']}, "
        f"{result.settings['decoding']}, {result.seconds:,.0f} s" + (known if counts["known"] else ""),
        *result.notes,
    ]
    if counts["unanswered"]:
        found.append(f"{counts['unanswered']:,} questions got no reply and count as wrong; {ROWS} says why.")
    return [_one_line(fact) for fact in found]


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
    return (_one_line(name, _NAME), f"{figure.rows:,}", shown(measure, figure.value), interval, *others)


def _one_line(text: str, most: int | None = None) -> str:
    """Text that breaks no table and steers no terminal: on one line, invisible characters written out."""
    joiners = "\u200c\u200d"  # letters of other scripts need these two to be drawn right
    plain = "".join(
        letter if letter.isprintable() or letter in joiners else f"[U+{ord(letter):04X}]"
        for letter in " ".join(text.split())
    )
    return plain if most is None or len(plain) <= most else plain[: most - 1] + "…"


def aligned(lines: list[Line], last: bool = False) -> str:
    """Lines as columns, for a terminal; the first is the header, and with `last` the last one stands apart."""
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


def piped(lines: list[Line], last: bool = False) -> str:
    """Lines as a Markdown table; the first is the header, and with `last` the last one is bold."""
    header, *rows = lines
    bold = [tuple(f"**{cell}**" for cell in rows[-1])] if last else [rows[-1]]
    marked = [header, ("---", *["---:"] * (len(header) - 1)), *rows[:-1], *bold]
    escaped = [[cell.replace("\\", "\\\\").replace("|", "\\|") for cell in row] for row in marked]
    return "\n".join("| " + " | ".join(row) + " |" for row in escaped)


def write(path: Path, text: str) -> None:
    """Writes a text file.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        # Half an emoji, as cut texts end in, is no UTF-8.
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}. Make room, or name another folder.") from error
