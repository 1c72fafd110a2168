"""Components of our own: what they look like and do stands in files beside the Python that fills them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def template(name: str) -> dict[str, Any]:
    """What `gr.HTML` takes of `NAME.html`, `NAME.css` and `NAME.js`.

    The first names no value: Gradio makes a JavaScript template literal of it once values are filled in, and `${...}`
    in somebody's words would run. The script builds what depends on the value.
    """
    html, css, js = (
        Path(__file__).with_name(f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    return {"html_template": html, "css_template": css, "js_on_load": js}
