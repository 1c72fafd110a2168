"""What the training room shows as tables and sentences: HTML in which people's and models' words are inert."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from serve.page.words import room_errors, told
from serve.page.words.errors import in_language
from serve.processes import Outcome
from serve.run_view import Run, RunView
from serve.trainings import Checked
from vlchat.runs import clock

_MOST_FAULTS = 100  # that are shown of a kind; `vlchat check` tells all
_MOST_WORDS = 240  # letters of an answer


def problem(sentence: object, language: str = "en") -> str:
    """A sentence that tells what went wrong, in the language where it is known in it."""
    return f'<p class="room-problem" role="alert">{_text(in_language(str(sentence), language))}</p>'


def notice(sentence: str) -> str:
    """A sentence that tells what was done."""
    return f'<p class="room-notice" role="status">{_text(sentence)}</p>'


def report(checked: Checked, language: str) -> str:
    """What `vlchat check` found, the bad rows in a table."""
    say = partial(told, language=language)
    found = checked.report
    counts = {name: f"{found[name]:,}" for name in ("rows", "images", "turns")}
    parts = [f"<p>{_text(say('room.holds', name=found['name'], **counts))}</p>"]
    if checked.settled:
        parts.append(f"<p>{_text(say('room.settled', count=f'{checked.settled:,}'))}</p>")
    if left := checked.upload.left_out:
        named = ", ".join(left[:5]) + (" " + say("room.more", count=len(left) - 5) if len(left) > 5 else "")
        parts.append(f"<p>{_text(say('room.left_out', names=named))}</p>")
    if bad := found["bad"]:
        count = say("room.bad", bad=f"{found['bad_rows']:,}", rows=f"{found['rows']:,}")
        parts += [problem(count), _faults(bad, say("room.faults"), language)]
    else:
        parts.append(notice(say("room.usable")))
    if notes := found["notes"]:
        rows = len({note["row"] for note in notes})
        parts.append(
            f"<details><summary>{_text(say('room.notes', count=f'{rows:,}'))}</summary>"
            f"{_faults(notes, say('room.looks'), language)}</details>"
        )
    return "".join(parts)


def plan(outcome: Outcome, language: str) -> str:
    """What `vlchat plan` printed, and its verdict."""
    say = partial(told, language=language)
    verdict = notice(say("room.fits")) if outcome.code == 0 else problem(say("room.too_large"))
    name = _text(say("room.plan_table"))
    return f'{verdict}<pre class="room-scroll" tabindex="0" aria-label="{name}">{_text(outcome.output.strip())}</pre>'


def runs_table(found: Sequence[Run], language: str) -> str:
    """All runs and how they stand."""
    say = partial(told, language=language)
    if not found:
        return f"<p>{_text(say('room.none'))}</p>"
    head = [say("room.name"), say("room.state"), say("room.step"), say("room.best")]
    return _table(say("room.runs"), head, ([run.name, *_standing(run, say)] for run in found))


def progress(view: RunView, language: str) -> str:
    """How far a run is, as a bar and in words."""
    say = partial(told, language=language)
    run, now = view.run, view.run.standing
    if now.planned:
        planned = f"{now.planned:,.0f}"
        parts = [say("room.progress", step=f"{now.step:,}", planned=planned)]
        bar = f'<progress max="{now.planned:.0f}" value="{now.step}" aria-label="{_text(parts[0])}"></progress>'
    else:
        parts, bar = [say("room.step_alone", step=f"{now.step:,}")], ""
    parts.insert(0, f"{run.name}: {say(f'room.{run.kind}')}")
    if view.losses:
        parts.append(say("room.now_loss", loss=f"{view.losses[-1][1]:.3g}"))
    if run.kind == "training":
        parts += [say("room.speed", rows=f"{view.speed:.3g}")] if view.speed is not None else []
        parts += [say("room.left", time=clock(now.left))] if now.left is not None else []
    told_why = problem(now.reason) if now.reason and now.reason not in ("SIGTERM", "SIGINT") else ""
    return f"{bar}<p>{_text(' · '.join(parts))}</p>{told_why}"


def curve(view: RunView, language: str) -> str:
    """The loss over the steps, of the rows that are learnt from and of those kept aside; the style sheet colors them.

    Gradio's own plot keeps the axes and colors of its first data, which of a run that begins is none.
    """
    say = partial(told, language=language)
    drawn = {say("room.loss_trained"): view.losses, say("room.loss_aside"): view.kept_aside}
    points = [point for line in drawn.values() for point in line]
    if not points:
        return ""
    last, low, high = max(step for step, _ in points), min(loss for _, loss in points), max(loss for _, loss in points)
    wide, tall = 100 / max(1, last), 100 / ((high - low) or 1)
    lines = ""
    for line in drawn.values():
        # Its last point twice: a line of one point would not be seen.
        places = " ".join(f"{wide * step:.2f},{tall * (high - loss):.2f}" for step, loss in [*line, *line[-1:]])
        lines += f'<polyline points="{places}"/>' if line else "<polyline/>"
    names = "".join(f"<span>{_text(name)}</span>" for name in drawn)
    title = _text(say("room.curve"))
    return (
        f'<figure class="room-curve"><figcaption>{title}</figcaption>'
        f"<div><span>{high:.3g}</span><span>{low:.3g}</span></div>"
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{title}">{lines}</svg>'
        f"<p><span>0</span><span>{_text(say('room.step_alone', step=f'{last:,}'))}</span></p></figure>"
        f'<p class="room-legend">{names}</p>'
    )


def samples(view: RunView, language: str) -> str:
    """Answers to rows that it never learns from: the right ones, before training, and now."""
    say = partial(told, language=language)
    if not view.samples:
        return f"<p>{_text(say('room.no_samples'))}</p>"
    compared = any(sample.before is not None for sample in view.samples)
    before = [say("room.before")] if compared else []
    head = [say("room.question"), say("room.reference"), *before, say("room.reply", step=f"{view.looked:,}")]
    rows = ([one.question, one.reference, *([one.before or ""] if compared else []), one.reply] for one in view.samples)
    return _table(say("room.samples"), head, rows)


def _standing(run: Run, say: Any) -> list[str]:
    planned = f" / {run.standing.planned:,.0f}" if run.standing.planned else ""
    best = f"{run.metric} {run.best:.3g}" if run.best is not None else ""
    return [say(f"room.{run.kind}"), f"{run.standing.step:,}{planned}", best]


def _faults(faults: Sequence[Mapping[str, Any]], caption: str, language: str) -> str:
    say = partial(told, language=language)
    head = [say(f"room.{name}") for name in ("row", "id", "field", "fault")]
    rows = ([f"{one['row']:,}", one["id"], one["field"], _reason(one, language)] for one in faults[:_MOST_FAULTS])
    more = len(faults) - _MOST_FAULTS
    return _table(caption, head, rows) + (f"<p>{_text(say('room.more', count=f'{more:,}'))}</p>" if more > 0 else "")


def _reason(fault: Mapping[str, Any], language: str) -> str:
    """The doctor's own words, which name the value; in Chinese behind what kind of fault it is."""
    kind = room_errors.KINDS.get(fault["kind"]) if language == "zh" else None
    return f"{kind}：{fault['reason']}" if kind else fault["reason"]


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(text)}</td>' for text in row)}</tr>" for row in rows)
    name = _text(caption)
    return (
        f'<div class="room-scroll" role="region" tabindex="0" aria-label="{name}"><table class="room-table">'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    return _text(text if len(text) <= _MOST_WORDS else text[:_MOST_WORDS] + " …")


def _text(text: str) -> str:
    return html.escape(text)
