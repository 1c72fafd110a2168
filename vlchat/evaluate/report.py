"""A result as a table for the terminal, as Markdown, and as files."""

from __future__ import annotations

import json
from pathlib import Path

from vlchat.errors import ConfigError
from vlchat.evaluate.metrics import wilson
from vlchat.evaluate.runner import Result, Share

Line = tuple[str, ...]


def table(result: Result) -> list[Line]:
    """The header and the lines: name, count, score in %, 95 % interval, and the controls that were run."""
    controls = [(name, scores) for name, scores in (("blind", result.blind), ("floor", result.floor)) if scores]
    lines = [("kind", "n", f"{result.metric} %", "95 % interval", *(f"{name} %" for name, _ in controls))]
    for part in ("groups", "extra"):
        for name in sorted(getattr(result.scores, part)):
            beside = [getattr(scores, part).get(name) for _, scores in controls]
            lines.append(_line(name, getattr(result.scores, part)[name], beside))
    lines.append(_line("overall", result.scores.overall, [scores.overall for _, scores in controls]))
    return lines


def terminal(result: Result) -> str:
    """The result as aligned text."""
    lines = table(result)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    aligned = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    rule = "-" * len(aligned[0])
    return "\n".join([*_facts(result), "", aligned[0], rule, *aligned[1:-1], rule, aligned[-1]])


def markdown(result: Result) -> str:
    """The result as a Markdown section."""
    header, *lines = table(result)
    rows = [header, ("---", *["---:"] * (len(header) - 1)), *lines[:-1], tuple(f"**{cell}**" for cell in lines[-1])]
    facts = [f"- {fact}" for fact in _facts(result)]
    escaped = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"## {result.task}", "", *facts, "", *escaped, ""])


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
    """Writes result.json, result.md and replies.jsonl (one question a line) into `folder`, and returns it."""
    target = result_folder(folder)
    text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False, default=str)
    (target / "result.json").write_text(text + "\n", encoding="utf-8")
    (target / "result.md").write_text(markdown(result), encoding="utf-8")
    # Half an emoji, as cut texts end in, is no UTF-8.
    with (target / "replies.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as stream:
        for reply in result.replies:
            stream.write(json.dumps(reply, ensure_ascii=False) + "\n")
    return target


def _facts(result: Result) -> list[str]:
    model = result.model.get("name") or result.settings.get("model") or "model"
    trained = result.model.get("trained_on")
    data = ", ".join(f"{key} {value}" for key, value in result.data.items() if value is not None and key != "floor")
    facts = [
        f"model: {model}" + (f" (trained on: {trained})" if trained else ""),
        f"protocol: {result.protocol}",
        f"data: {data}",
        f"{result.counts['questions']:,} questions, seed {result.settings['seed']}, {result.settings['decoding']}, "
        f"{result.seconds:,.0f} s",
        *result.notes,
    ]
    if result.counts["unanswered"]:
        facts.append(
            f"{result.counts['unanswered']:,} questions got no reply and count as wrong; replies.jsonl says why."
        )
    return facts


def _line(name: str, share: Share, beside: list[Share | None]) -> Line:
    low, high = wilson(share.total, share.count)
    cells = [f"{100 * other.mean:.1f}" if other else "-" for other in beside]
    return (name, f"{share.count:,}", f"{100 * share.mean:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", *cells)
