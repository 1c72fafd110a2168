"""A model's Markdown on the page: what is shown, and that nothing in it acts."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")

from serve.page.markdown import as_html  # noqa: E402

ALLOWED = set("a blockquote br code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong".split())
ALLOWED |= set("table tbody td th thead tr ul".split())
ATTRIBUTES = {"class", "href", "rel", "target", "tabindex", "start", "style", "title"}


class Seen(HTMLParser):
    """Elements, and what they name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


NASTY = [
    "<script>x</script>",
    "<img src=x onerror=y>",
    "![x](http://a.b/c.png)",
    "[x](javascript:y)",
    "[x](data:text/html,y)",
    "<a href='javascript:x'>y</a>",
    "$\\href{javascript:x}{y}$",
    "$\\text{<script>x</script>}$",
    "$$\n\\class{a}{b}\n$$",
    "```html\n<script>x</script>\n```",
    "```\n<i>",
    "| <b> | `<i>` |\n|--|--|\n| <s> | 2 |",
    "<!-- x --> &lt;b>",
    "[a]: javascript:x\n\n[a]",
    "<http://a.b> <javascript:x>",
    "# <h1 onclick=x>",
    "\\(\\style{color:red}{x}\\)",
    "a\0b",
]


@pytest.mark.parametrize("words", NASTY)
def test_nothing_acts(words: str) -> None:
    for growing in (False, True):
        seen = Seen(as_html(words, growing))
        maths = {tag for tag in seen.tags if tag.startswith("m")}
        assert seen.tags - maths <= ALLOWED
        for name, value in seen.attributes:
            assert not name.startswith("on")
            if name == "href":
                assert value.startswith(("http://", "https://"))
            elif not maths:
                assert name in ATTRIBUTES
                assert name != "style" or value.startswith("text-align")


def test_what_is_meant_is_shown() -> None:
    seen = Seen(as_html("# Head\n\n- a\n- b\n\n| x | y |\n|--|--|\n| 1 | 2 |\n\n**bold** ~~gone~~\nnext line"))
    assert {"h1", "ul", "li", "table", "td", "strong", "s", "br"} <= seen.tags
    assert Seen(as_html("$x^2$, \\(y\\) and $$\\frac{1}{2}$$")).tags >= {"math", "msup", "mfrac"}
    assert "costs $5 and $6" in Seen(as_html("It costs $5 and $6.")).text
    assert Seen(as_html("$\\left($")).text.strip() == "\\left("


def test_code_is_coloured_once_it_is_whole() -> None:
    code = "```python\nprint('x')\n```"
    assert "span" in Seen(as_html(code)).tags
    assert "span" not in Seen(as_html(code, growing=True)).tags
    assert Seen(as_html(code)).text.strip() == Seen(as_html(code, growing=True)).text.strip() == "print('x')"
    # Of languages that Pygments takes too long over, and of long code, the words alone.
    assert "span" not in Seen(as_html("```autohotkey\nx\n```")).tags
    assert "span" not in Seen(as_html("```python\n" + "x = 1\n" * 1000 + "```")).tags


def test_a_very_long_text_is_shown_as_it_is() -> None:
    words = "*a* <b> " * 10_000
    assert Seen(as_html(words)).text == words and Seen(as_html(words)).tags == {"p"}
