"""What the panel that looks inside an answer shows, as HTML. Whatever people or models wrote is escaped."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from serve.inside import Facts, Word
from vlchat.evaluate.trust import Trust
from vlchat.evidence import Deletion, Evidence, Heat, Saw

Say = Callable[..., str]  # `serve.page.words.told` in one language, without the file's name
_WIDTH = 560  # pixels of a drawn map: the panel's width on a screen with two pixels for each
_SMALL = 120  # of a piece
_LIKELY, _UNLIKELY = 0.9, 0.5  # below, a word is marked, and marked strongly
_MOST = 1_000_000  # times


def facts(told: Facts, trust: Trust | None, say: Say) -> str:
    """How an answer was written, and how sure it was."""
    rows = []
    if told.rate is not None:
        rows.append(("written", say("written_rate", tokens=f"{told.new_tokens:,}", rate=f"{told.rate:.3g}")))
    else:
        rows.append(("written", say("written_told", tokens=f"{told.new_tokens:,}")))
    if told.first_token is not None:
        rows.append(("first", say("first_told", seconds=f"{told.first_token:.2f}")))
    used = told.prompt_tokens + told.new_tokens
    if told.context is None:
        rows.append(("context", say("context_open", used=f"{used:,}")))
    else:
        left = max(0, told.context - used)
        rows.append(("context", say("context_told", used=f"{used:,}", most=f"{told.context:,}", left=f"{left:,}")))
    if told.cached_tokens:
        rows.append(("known", say("known_told", tokens=f"{told.cached_tokens:,}")))
    if told.reason in ("stop", "length", "cancelled"):
        rows.append(("ended", say(f"ended_{told.reason}")))
    lines = "".join(f"<dt>{say(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in rows)
    return f"<h3>{say('facts')}</h3><dl>{lines}{_sure(told, trust, say)}</dl>"


def _sure(told: Facts, trust: Trust | None, say: Say) -> str:
    if told.likelihood is None:
        return ""
    if trust is None:
        text = html.escape(say("likely_told", share=_percent(told.likelihood)))
    else:
        share = _percent(trust.confidence(told.likelihood))
        text = html.escape(say("sure_told", share=share, rows=f"{trust.rows:,}", task=trust.task))
        if trust.unsure(told.likelihood):
            text = f"<strong class='unsure'>{say('unsure')}</strong> {text}"
    return f"<dt>{say('sure')}</dt><dd id='inside-sure'>{text}</dd>"


def words(found: Sequence[Word], chosen: tuple[int, int] | None, drawn: bool, say: Say) -> str:
    """An answer's words as buttons, and one for all of it.

    Args:
        chosen: where the word begins and ends whose map is shown; None for the whole answer.
        drawn: a map is shown.
    """
    if not found:
        return ""
    buttons = [f"<button type='button' class='whole' aria-pressed='{_flag(drawn and chosen is None)}'>"
               f"{say('whole')}</button>"]  # fmt: skip
    marked = False
    for word in found:
        kind, name = "", say("word", word=word.text)
        if word.likelihood is not None:
            name = say("word_likely", word=word.text, share=_percent(word.likelihood))
            kind = "" if word.likelihood >= _LIKELY else "less" if word.likelihood >= _UNLIKELY else "least"
        marked = marked or bool(kind)
        buttons.append(
            f"<button type='button' class='{kind}' data-begin='{word.begin}' data-end='{word.end}' "
            f"aria-pressed='{_flag(drawn and chosen == (word.begin, word.end))}' aria-label='{_inert(name)}' "
            f"title='{_inert(name)}'>{_inert(word.text)}</button>"
        )
    hint = f"{say('from_hint')} {say('from_tint')}" if marked else say("from_hint")
    return f"<h3>{say('from')}</h3><p>{hint}</p><div class='words' role='group' aria-label='{say('from')}'>" + (
        "".join(buttons) + "</div>"
    )


def evidence_map(found: Evidence, say: Say) -> str:
    """The maps over their pictures, with what their colours mean and how they were made."""
    named = found.answer if found.word is None else found.word
    text = named if isinstance(named, str) else found.answer.strip()[slice(*named)]
    short = text if len(text) <= 80 else text[:79] + "…"
    figures = []
    for number, heat in enumerate(found.maps, start=1):
        if heat.values.any():
            alt = say("map_alt", number=number, words=short, place=say(f"place_{_strongest(heat)}"))
        else:
            alt = say("map_alt_none", number=number, words=short)
        width, height = heat.seen.size
        drawn = heat.overlay((_WIDTH, max(1, round(_WIDTH * height / width))))
        figures.append(f"<img src='{_source(drawn)}' alt='{_inert(alt)}'>")
    method = say("method", method=say(f"method_{found.method}"))
    return (
        f"<figure>{''.join(figures)}<figcaption><b>{_inert(say('map_of', words=short))}</b> {say('legend')} {method}"
        "</figcaption></figure>"
    )


def verdict(found: Deletion, say: Say) -> str:
    """Whether a map held when its places were covered."""
    worst = max(found.random)
    judged = say("check_good" if found.shown > worst else "check_bad")
    told = say(
        "check_told", share=f"{100 * found.share:.0f}", shown=_times(found.shown), random=_times(worst),
        draws=len(found.random),
    )  # fmt: skip
    return f"<p><strong>{judged}</strong> {told}</p>"


def saw(found: Sequence[Saw], say: Say) -> str:
    """The pictures as the model saw them, their sizes, pieces and tokens."""
    parts = []
    for number, one in enumerate(found, start=1):
        facts = [say("saw_came", number=number, came=_size(one.came))]
        if one.picture is None:
            facts.append(say("saw_unknown"))
        elif one.pieces:
            size = _size(one.pieces[0].size)
            if one.grid is None:
                facts.append(say("saw_pieces", pieces=len(one.pieces), size=size))
            else:
                facts.append(say("saw_grid", rows=one.grid[0], columns=one.grid[1], size=size))
        else:
            facts.append(say("saw_seen", seen=_size(one.picture.size)))
        if one.tokens is not None:
            facts.append(say("saw_tokens", tokens=f"{one.tokens:,}"))
        images = ""
        if one.pieces:
            alts = [say("saw_piece_alt", number=number, piece=piece) for piece in range(1, len(one.pieces) + 1)]
            drawn = "".join(_small(piece, alt) for piece, alt in zip(one.pieces, alts, strict=True))
            images = f"<div class='pieces'>{drawn}</div>"
        elif one.picture is not None:
            shown = one.picture.copy()
            shown.thumbnail((_WIDTH, _WIDTH))
            images = f"<img src='{_source(shown)}' alt='{say('saw_alt', number=number)}'>"
        parts.append(f"<figure>{images}<figcaption>{' '.join(facts)}</figcaption></figure>")
    return "".join(parts)


def note(text: str) -> str:
    """A sentence in place of what is not there."""
    return f"<p>{_inert(text)}</p>"


def _strongest(heat: Heat) -> int:
    """Which of nine parts of the picture, row by row, holds the strongest place."""
    rows, columns = heat.values.shape
    row, column = np.unravel_index(int(heat.values.argmax()), heat.values.shape)
    return int((row + 0.5) * 3 / rows) * 3 + int((column + 0.5) * 3 / columns)


def _inert(text: str) -> str:
    return html.escape(text, quote=True)


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _percent(share: float) -> str:
    percent = 100 * share
    return "< 1" if percent < 1 else f"{math.floor(percent) if percent > 99 else round(percent)}"


def _times(nats: float) -> str:
    """How many times less likely, of a loss of log-likelihood; a gain is told as no loss."""
    times = math.exp(min(max(nats, 0.0), math.log(_MOST)))
    return f"{times:.1f}" if times < 10 else f"{float(f'{times:.2g}'):,.0f}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]:,} × {size[1]:,}"


def _small(piece: Image.Image, alt: str) -> str:
    shown = piece.copy()
    shown.thumbnail((_SMALL, _SMALL))
    return f"<img src='{_source(shown)}' alt='{alt}'>"


def _source(picture: Image.Image) -> str:
    """The picture itself as an address: no file of it is left on the server."""
    held = io.BytesIO()
    picture.convert("RGB").save(held, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"
