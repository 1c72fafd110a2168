"""A model's Markdown as HTML in which nothing acts: no HTML of its own, no pictures, no scripts behind links."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import cache
from typing import Any, cast
from xml.etree import ElementTree

from latex2mathml import converter
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

_LONGEST, _LONGEST_GROWING = 20_000, 8_000  # characters
_LONGEST_FORMULA = 2000
_LONGEST_CODE = 2000
# Of these, 2,000 odd characters take at most a fifth of a second; over some others Pygments takes a minute.
_LANGUAGES = {
    "python": "python", "py": "python", "json": "json", "bash": "bash", "sh": "bash", "shell": "bash", "sql": "sql",
    "yaml": "yaml", "toml": "toml", "diff": "diff", "css": "css", "go": "go", "rust": "rust",
}  # fmt: skip
# Of what latex2mathml writes; \href, \class and \style would let a model write any attribute.
_ATTRIBUTES = {
    "accent", "columnalign", "columnlines", "columnspacing", "display", "displaystyle", "fence", "form",
    "linethickness", "lspace", "mathvariant", "maxsize", "minsize", "notation", "rowlines", "rowspacing", "rspace",
    "scriptlevel", "stretchy", "voffset", "width",
}  # fmt: skip


def as_html(text: str, growing: bool = False) -> str:
    """What a model wrote: tables, code in colour, formulas between `$`, `$$`, `\\(` or `\\[` as MathML.

    Args:
        growing: there is more to come: code has no colours yet, and a long text is shown as it is.
    """
    if len(text) > (_LONGEST_GROWING if growing else _LONGEST):
        return f"<p class='plain'>{html.escape(text)}</p>"
    return str(_reader(not growing).render(text))


@cache
def _reader(colours: bool) -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "breaks": True, "highlight": _coloured if colours else None})
    reader.enable(["table", "strikethrough"]).disable("image")
    # As pandoc: no space within, no digit without, so that a price is none.
    dollarmath_plugin(reader, allow_labels=False, allow_space=False, allow_digits=False, double_inline=True)
    texmath_plugin(reader, delimiters="brackets")
    renderer = cast(RendererHTML, reader.renderer)
    rules: dict[str, Callable[..., str]] = cast(Any, renderer.rules)
    for name in ("math_single", "math_inline"):
        rules[name] = lambda tokens, place, *_: _formula(tokens[place].content, False)
    rules["math_inline_double"] = lambda tokens, place, *_: _formula(tokens[place].content, True)
    rules["math_block"] = lambda tokens, place, *_: f"<p>{_formula(tokens[place].content, True)}</p>\n"
    rules["table_open"] = lambda *_: '<div class="table" tabindex="0"><table>\n'
    rules["table_close"] = lambda *_: "</table></div>\n"
    opened = renderer.renderToken

    def link(tokens: Any, place: int, options: Any, _: Any) -> str:
        tokens[place].attrSet("target", "_blank")
        tokens[place].attrSet("rel", "noopener noreferrer nofollow")
        return str(opened(tokens, place, options, {}))

    rules["link_open"] = link
    return reader


def _coloured(code: str, language: str, _: str) -> str:
    lexer = _LANGUAGES.get(language.lower())
    if lexer is None or len(code) > _LONGEST_CODE:
        return html.escape(code)
    return str(highlight(code, get_lexer_by_name(lexer, stripnl=False), HtmlFormatter(nowrap=True)))


def _formula(words: str, display: bool) -> str:
    try:
        if len(words) > _LONGEST_FORMULA:
            raise ValueError
        math = converter.convert_to_element(words, display="block" if display else "inline")
        for one in math.iter():
            one.attrib = {name: value for name, value in one.attrib.items() if name in _ATTRIBUTES}
            one.text = one.text and html.unescape(one.text)  # it writes signs as entities
        told = ElementTree.tostring(math, encoding="unicode")
    except Exception:  # of many kinds, for what is half written or no formula
        told = f"<code>{html.escape(words)}</code>"
    return told
