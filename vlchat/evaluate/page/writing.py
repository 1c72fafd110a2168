"""Reports as HTML files.

What models and data say is untrusted here: templates escape everything, invisible characters are written out, and the
page's own policy lets no script run but the one it was written with, known by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

import vlchat
from vlchat import images
from vlchat.errors import ConfigError, ImageError
from vlchat.evaluate import plots
from vlchat.evaluate.page.comparing import ComparisonPage
from vlchat.evaluate.page.inputs import Report, number
from vlchat.folders import replacing

SIDE = 320  # pixels of a thumbnail's longer side
_QUALITY = 80
_HERE = Path(__file__).parent
# Letters of other scripts need these two to be drawn right; they are invisible and harmless.
_JOINERS = "\u200c\u200d"


def write_page(reports: Report | Sequence[Report], path: str | Path, title: str | None = None) -> Path:
    """Writes the report of one task, or of several under one table of contents.

    Raises:
        ConfigError: there is no report, or the file cannot be written.
    """
    several = [reports] if isinstance(reports, Report) else list(reports)
    if not several:
        raise ConfigError("There is nothing to report: no task was evaluated.")
    title = title or (several[0].task if len(several) == 1 else f"{len(several)} tasks")
    return _write("report.html.jinja", path, title=title, reports=several)


def write_comparison_page(comparison: ComparisonPage, path: str | Path) -> Path:
    """Writes the page of two models' answers to the same rows.

    Raises:
        ConfigError: the file cannot be written.
    """
    return _write("comparison.html.jinja", path, title=comparison.title, comparison=comparison)


def thumbnail(picture: Any, side: int = SIDE) -> str:
    """A picture as a data URL: a JPEG of at most `side` pixels. Empty for one that can't be read.

    Args:
        picture: as of `vlchat.images.decode`. Small ones are enlarged by a whole number, without smoothing.
    """
    try:
        shown = images.decode(picture)
    except ImageError:
        return ""
    factor = side // max(shown.size)
    if factor > 1:
        shown = shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.BICUBIC)
    shown.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def visible(text: Any) -> str:
    """Text in which what has no look of its own is written out, such as U+202E, which turns what follows it around."""
    return "".join(_visible(letter) for letter in str(text))


def _visible(letter: str) -> str:
    if letter in "\n\t" or letter in _JOINERS or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn"):
        return letter
    return f"[U+{ord(letter):04X}]"


def clipped(text: Any, length: int) -> str:
    """At most so many letters, cut with an ellipsis."""
    written = str(text)
    return written if len(written) <= length else written[: length - 1].rstrip() + "…"


def _write(template: str, path: str | Path, **content: Any) -> Path:
    target = Path(path)
    html = _environment().get_template(template).render(version=vlchat.__version__, **content)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, flush=False) as stage:
            stage.write_text(html, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The page {path} can't be written: {error.strerror}. Name another file.") from error
    return target


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        reliability=plots.reliability,
        risk_coverage=plots.risk_coverage,
        thumbnail=thumbnail,
        number=number,
    )
    environment.filters.update(
        visible=visible,
        clipped=clipped,
        plain_json=lambda content: json.dumps(content, indent=2, ensure_ascii=False, default=str),
    )
    return environment
