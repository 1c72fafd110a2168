"""The report page: what it shows, that nothing a model or a data set says becomes part of the page, and a browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlchat.errors import ConfigError
from vlchat.evaluate import plots
from vlchat.evaluate.comparison import compare
from vlchat.evaluate.measures import mean_of
from vlchat.evaluate.page import (
    Beside,
    Calibration,
    Change,
    Compared,
    ComparisonPage,
    Line,
    Pair,
    Report,
    Row,
    Said,
    Score,
    choose,
    compared,
    confusion,
    report_of,
    write_comparison_page,
    write_page,
)
from vlchat.evaluate.page.writing import thumbnail, visible
from vlchat.evaluate.plots import Bin
from vlchat.evaluate.result import Result

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NASTY = [
    "<script>document.title = 'taken'</script>",
    "\"><img src=x onerror=\"document.title = 'taken'\">",
    "</script></style></textarea><svg onload=\"document.title='taken'\">",
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnihtemos\u202c and \u200b nothing",
    "שלום עולם ' \" & &amp;",
    "w" * 3000,
    "half an emoji \ud83d",
]
VOID = {"meta", "link", "img", "input", "br"}


class Parsed(HTMLParser):
    """Elements in order, and the text that a reader sees; complains of elements that are closed wrongly."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def score(value: float, rows: int = 100, **more: Any) -> Score:
    return Score("right", value, value - 0.05, value + 0.05, rows=rows, **more)


def report(words: list[str] | None = None, **changes: Any) -> Report:
    words = words or ["top left", "a cat"]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8))
    rows = [
        Row(
            f"q{number} {word}", f"Where? {word}", f"there {word}", Said(f"It is {word}", word, 0.0), 0.25,
            {"kind": word}, {"shuffled": Said(f"other {word}", word, 1.0)}, [noise], [noise.convert("L")],
            f"note {word}",
        )
        for number, word in enumerate(words)
    ]  # fmt: skip
    word = words[0]
    found = Report(
        f"task {word}", f"protocol {word}", f"model {word}", [score(0.875), replace(score(0.5), name=f"F1 {word}")],
        [Beside(f"control {word}", f"meaning {word}", score(0.3), score(0.86), score(0.56), f"It looks. {word}", True)],
        [f"verdict {word}"], [f"note {word}"], {f"kind {word}": [Line(f"value {word}", score(0.7), (score(0.2),))]},
        Calibration([Bin(0.9, 0.8, 0.7, 0.88, 90)], [(0.5, 0.1), (1.0, 0.2)], score(0.04), [f"sure {word}"],
                    (0.5, 0.1)),
        confusion([(word[:20], "no")] * 9 + [("no", word[:20])] * 9 + [("no", "no")] * 9), rows, rows[:1], rows, 3000,
        [replace(rows[0], error=f"too long {word}")], [(f"fact {word}", word)], {word: word}, {word: [word]},
    )  # fmt: skip
    return replace(found, **changes)


def comparison(words: list[str] | None = None) -> ComparisonPage:
    words = words or ["cat"]
    change = Change(words[0], score(0.4), score(0.6), score(0.2), 0.01, True)
    shown = [Image.new("RGB", (9, 9))]
    pairs = [
        Pair(f"r {one}", f"What? {one}", one, Said(f"before {one}", one, 1.0), Said(f"after {one}", one, 0.0),
             {"kind": one}, shown)
        for one in words
    ]  # fmt: skip
    counts = {"gained": 3, "lost": 9, "both right": 1, "both wrong": 2}
    task = Compared(words[0], words[0], [change, change], counts, False, [words[0]], {words[0]: [change]}, pairs, pairs,
                    [(words[0], words[0])])  # fmt: skip
    return ComparisonPage(f"A {words[0]}", f"B {words[0]}", [task, replace(task, replay=True)])


def page(tmp_path: Path, content: Any) -> tuple[Parsed, str]:
    write = write_comparison_page if isinstance(content, ComparisonPage) else write_page
    html = write(content, tmp_path / "page.html").read_text(encoding="utf-8")
    return Parsed(html), html


def test_the_page_says_what_it_was_given(tmp_path: Path) -> None:
    parsed, _ = page(tmp_path, report())
    told = " ".join(parsed.text.split())
    for words in ("87.5 %", "95 % interval 82.5 to 92.5, 100 rows", "It looks. top left", "control top left", "+56.0",
                  "verdict top left", "It is a cat", "other a cat", "there a cat", "25.0 % sure", "too long top left",
                  "2 of 3,000 rows as a table", "sure top left", "fact top left",
                  '{ "top left": "top left" }'):  # fmt: skip
        assert words in told, words


@pytest.mark.parametrize("content", [report, comparison])
def test_people_with_a_screen_reader_find_their_way(tmp_path: Path, content: Any) -> None:
    parsed, html = page(tmp_path, content())
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(image.get("alt") for image in parsed.all("img"))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in parsed.all("svg"))
    assert len(parsed.all("caption")) == len(parsed.all("table"))
    assert all(cell.get("scope") for cell in parsed.all("th"))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link["href"][1:] in ids for link in parsed.all("a") if link["href"])  # type: ignore[index]
    assert parsed.all("html")[0]["lang"] == "en"


@pytest.mark.parametrize("word", NASTY)
@pytest.mark.parametrize("content", [report, comparison])
def test_nothing_that_was_said_becomes_part_of_the_page(tmp_path: Path, content: Any, word: str) -> None:
    """The same elements with the same attributes, whatever a task, a model or a row says."""
    tame, _ = page(tmp_path, content(["cat"]))
    wild, html = page(tmp_path, content([word]))

    def shape(parsed: Parsed) -> list[tuple[str, list[str]]]:
        kept = [(tag, sorted(attributes)) for tag, attributes in parsed.elements]
        # A long text is folded; a text that is read as itself has no second line.
        return [one for one in kept if one[0] not in ("details", "summary", "dt", "dd", "div", "span")]

    assert shape(wild) == shape(tame) or len(word) > 600
    assert len(wild.all("script")) == 1 and not wild.all("iframe")
    assert not [name for _, attributes in wild.elements for name in attributes if name.startswith("on")]
    assert "\u202e" not in html and "\u200b" not in html and "49{" not in wild.text
    assert visible(word)[:300] in wild.text


def test_pages_need_nothing_from_outside(tmp_path: Path) -> None:
    for content in (report(), comparison()):
        parsed, html = page(tmp_path, content)
        addresses = [one.get("src") or one.get("href") or "" for _, one in parsed.elements if {"src", "href"} & {*one}]
        assert all(address.startswith(("data:", "#")) for address in addresses)
        assert "url(" not in html and "@import" not in html
        assert "default-src 'none'" in html


def test_several_tasks_have_a_table_of_contents(tmp_path: Path) -> None:
    other = report(["dog"])
    parsed, _ = page(tmp_path, [report(), other])
    assert [link["href"] for link in parsed.all("a")][1:] == ["#task-1", "#task-2"]
    with pytest.raises(ConfigError, match="nothing to report"):
        write_page([], tmp_path / "page.html")


def test_a_bare_report_is_a_page_too(tmp_path: Path) -> None:
    bare = Report("t", "p", "m", [Score("CIDEr", 0.59984, percent=False)])
    parsed, _ = page(tmp_path, bare)
    assert "0.5998" in parsed.text and not parsed.all("table") and not parsed.all("svg")
    nothing = replace(report(), scores=[Score("right", float("nan"))])
    assert "-" in page(tmp_path, nothing)[0].text


def test_thumbnails_are_small_and_a_broken_picture_is_told(tmp_path: Path) -> None:
    small = thumbnail(Image.new("RGB", (2000, 1000), "red"))
    assert small.startswith("data:image/jpeg;base64,") and len(small) < 4000
    rows = [replace(report().worst[0], pictures=[b"no picture"], overlays=[])]
    assert "This picture can't be read." in page(tmp_path, report(worst=rows))[0].text
    _, html = page(tmp_path, report(["a"] * 24))
    assert len(html) < 5_000_000, "48 pictures of noise, the worst there are for JPEG"


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        write_page(report(), tmp_path / "file" / "page.html")


def test_confusion_counts_by_hand() -> None:
    pairs = [("Yes", "yes."), ("yes", "No"), ("no", "no"), ("no", "perhaps"), ("yes", "yes"), ("no", "no"),
             ("red", "no")]  # fmt: skip
    found = confusion(pairs, most=2)
    assert found is None, "three rows a class at least, or it is a list of rows"
    found = confusion(pairs * 2, most=2)
    assert found is not None and list(found.answers) == ["no", "yes", "another"]
    assert found.lines == {"no": [4, 0, 2], "yes": [2, 4, 0]} and found.left_out == 2
    assert confusion([("a cat sits on a mat in the sun", "x")] * 50 + [("y", "x")]) is None


def test_a_risk_curve_and_a_reliability_diagram_draw_the_points() -> None:
    svg = str(plots.risk_coverage([(0.5, 0.0), (1.0, 0.08)], (0.5, 0.0)))
    line = re.search(r'<polyline points="([^"]+)" class="curve"', svg)
    assert line is not None
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line[1].split())
    left, right, bottom, top = 44, plots.WIDTH - 12, plots.HEIGHT - 40, 12
    assert (x1, x2) == (left + (right - left) / 2, right) and y1 == bottom and y2 == top, "8 % is the axis' end"
    svg = str(plots.reliability([Bin(0.5, 1.0, 0.75, 1.0, 4), Bin(0.1, 0.0, 0.0, 0.5, 0)]))
    assert svg.count("<circle") == 1 and 'cy="12.0"' in svg and "50.0 % sure, 100.0 % right" in svg
    many = [(number / 5000, 0.5) for number in range(1, 5001)]
    assert len(str(plots.risk_coverage(many))) < 12_000
    assert str(plots.reliability([])) == "" and str(plots.risk_coverage([])) == ""


def row(number: int, right: float, sure: float, cluster: str | None = None, **more: Any) -> dict[str, Any]:
    said = {"reply": [f"reply {number}"], "answer": str(number), "score": right, "stats": {"right": right}}
    place = {"slices": {"kind": "even" if number % 2 == 0 else "odd"}, "cluster": cluster or f"c{number}"}
    asked = {"id": f"r{number}", "question": f"question {number}", "pictures": [], "reference": "x"}
    return {**asked, **place, **said, "confidence": sure, **more}


def test_the_worst_rows_are_the_surest_wrong_ones_of_many_pictures() -> None:
    rows = [row(0, 0, 0.9, "p"), row(1, 0, 0.8, "p"), row(2, 0, 0.7, "p"), row(3, 0.5, 0.99), row(4, 0, 0.1),
            row(5, 1, 0.9), row(6, 1, 0.2), row(7, 0, 1.0, error="too long")]  # fmt: skip
    assert choose(rows, worst=4, right=5) == ([0, 1, 4, 3], [5, 6])
    assert choose(rows, worst=9, right=1, seed=1)[0] == [0, 1, 4, 3, 2]


def test_a_result_becomes_a_report(tmp_path: Path) -> None:
    blind = {"reply": ["?"], "answer": "?", "score": 0.0, "stats": {"right": 0.0}}
    rows = [
        row(number, float(number % 4 > 0), 0.9, controls={"shuffled": blind}, floor=blind) for number in range(40)
    ]  # fmt: skip
    rows[0] |= {"error": "too long"}
    result = Result(
        "vqa", "vlchat-vqa", [mean_of("right", "right")], {"name": "m", "parameters": 7, "identity": "abc"},
        {"path": "test.json"}, {"controls": ["shuffled"], "seed": 3, "decoding": "greedy"}, rows, {"questions": 40},
        ["a note"], 3.0, {"vlchat": "0"},
    )  # fmt: skip
    told = report_of(
        result, pictures=lambda number: [Image.new("RGB", (4, 4))], explained=lambda number: ([], f"map {number}"),
        certificate={"protocol": "vlchat-vqa"}, worst=3, right=2, listed=10,
    )  # fmt: skip
    assert told.scores[0].value == 0.75 and told.scores[0].rows == 40
    assert [one.name for one in told.beside] == ["shuffled", "floor"]
    assert all(one.told and one.gap is not None and one.gap.value == 0.75 for one in told.beside)
    lines = {line.name: line for line in told.slices["kind"]}
    assert lines["odd"].score.value == 1.0 and lines["even"].score.value == 0.5 and lines["odd"].score.rows == 20
    assert [len(line.beside) for line in lines.values()] == [2, 2]
    assert [one.id for one in told.worst] == ["r4", "r8", "r12"] and told.worst[0].overlay_note == "map 4"
    assert len(told.right) == 2 and len(told.listed) == 10 and told.total == 40
    assert [one.error for one in told.refused] == ["too long"]
    assert told.calibration is not None and told.calibration.curve[-1] == pytest.approx((1.0, 0.25))
    parsed, _ = page(tmp_path, told)
    assert "75.0 %" in parsed.text and "+75.0" in parsed.text


def test_two_results_are_compared_row_by_row(tmp_path: Path) -> None:
    def result(scores: list[float]) -> Result:
        return Result("vqa", "p", [mean_of("right", "right")], {}, {}, {"controls": []},
                      [row(number, score, 0.5) for number, score in enumerate(scores)], {}, [], 0.0, {})  # fmt: skip

    before, after = result([1.0, 0.0] * 20), result([1.0, 1.0] * 15 + [0.0, 0.0] * 5)
    told = compared(compare(before, after), verdicts=["A sentence."], pictures=lambda number: [], shown=4)
    assert told.verdicts[0].startswith("Better: ") and told.verdicts[1] == "A sentence."
    (change,) = told.scores
    assert (change.first.value, change.second.value, change.gap.value) == (0.5, 0.75, 0.25)
    assert change.better and change.p is not None and change.p == pytest.approx(0.041, abs=0.02)
    assert told.counts == {"gained": 15, "lost": 5, "both right": 15, "both wrong": 5}
    assert [pair.id for pair in told.gained] == ["r1", "r3", "r5", "r7"]
    assert [pair.id for pair in told.lost] == ["r30", "r32", "r34", "r36"]
    lines = {line.name: line for line in told.slices["kind"]}
    assert lines["odd"].gap.value == 0.75 and lines["even"].gap.value == -0.25
    assert lines["odd"].told and not lines["even"].better
    assert "reply 30" in page(tmp_path, ComparisonPage("A", "B", [told]))[0].text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


def opened(browser: Any, path: Path, **options: Any) -> Any:
    """The page; what it asks for outside of itself, and what its console says, is kept on `seen`."""
    page = browser.new_page(**options)
    page.seen = SimpleNamespace(requests=[], complaints=[])
    page.on("request", lambda one: page.seen.requests.append(one.url))
    page.on("console", lambda message: page.seen.complaints.append(message.text))
    page.on("pageerror", lambda error: page.seen.complaints.append(str(error)))
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("content", [report, comparison])
def test_no_script_of_a_reply_runs_and_nothing_is_asked_of_the_network(
    browser: Any, tmp_path: Path, content: Any
) -> None:
    path = tmp_path / "page.html"
    (write_page if content is report else write_comparison_page)(content(NASTY), path)
    shown = opened(browser, path)
    assert "taken" not in shown.title().split("·")[1] and shown.evaluate("document.images.length") > 0
    assert shown.title() != "taken"
    assert shown.seen.complaints == []
    assert all(url == path.as_uri() or url.startswith("data:") for url in shown.seen.requests)
    shown.set_viewport_size({"width": 390, "height": 844})
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    shown.close()


def test_even_an_unescaped_script_would_not_run(browser: Any, tmp_path: Path) -> None:
    path = write_page(report(), tmp_path / "page.html")
    text = path.read_text().replace("<footer>", "<footer><script>document.title = 'taken'</script>"
                                    "<img src='data:,' onerror=\"document.title = 'taken'\">")  # fmt: skip
    path.write_text(text)
    shown = opened(browser, path)
    shown.wait_for_timeout(100)
    assert "taken" not in shown.title() and len(shown.seen.complaints) >= 1
    shown.close()


def test_rows_are_filtered_and_tables_sorted(browser: Any, tmp_path: Path) -> None:
    rows = [
        Row(f"r{number}", f"question {number}", "x", Said(f"reply {number}", "", 0.0), number / 10,
            {"kind": f"k{number % 2}"})  # fmt: skip
        for number in range(4)
    ]
    told = report(worst=rows, right=[replace(rows[0], id="fine")], listed=rows)
    shown = opened(browser, write_page(told, tmp_path / "page.html"))
    visible_cards = ".card:not([hidden])"
    assert shown.locator(visible_cards).count() == 5
    shown.fill("input[name=words]", "reply 2")
    assert shown.locator(visible_cards).count() == 1 and "1 of 5 shown" in shown.inner_text("[data-told]")
    shown.fill("input[name=words]", "")
    shown.select_option("select[name=shown]", "kind: k1")
    assert shown.locator(visible_cards).count() == 2
    shown.select_option("select[name=shown]", "right")
    assert shown.locator(visible_cards).count() == 1
    shown.select_option("select[name=shown]", "")
    shown.select_option("select[name=order]", "sure")
    assert shown.locator(".card h4").first.inner_text() == "question 3"
    shown.locator("summary", has_text="rows as a table").click()
    table = shown.locator("details[data-filter] table")
    table.locator("th button", has_text="sure").click()
    table.locator("th button", has_text="sure").click()
    assert table.locator("tbody tr th").all_inner_texts() == ["r3", "r2", "r1", "r0"]
    shown.fill("details[data-filter] input", "question 1")
    assert table.locator("tbody tr:not([hidden])").count() == 1
    assert shown.seen.complaints == []
    shown.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Any, tmp_path: Path, scheme: str) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3), by its formula, of every pair of colours that the page uses."""
    shown = opened(browser, write_page(report(), tmp_path / "page.html"), color_scheme=scheme)
    names = ("ink", "soft", "paper", "card", "wash", "good", "bad", "warn", "accent", "good-wash", "warn-wash")
    style = "getComputedStyle(document.documentElement).getPropertyValue"
    colours = {name: shown.evaluate(f"{style}.call(getComputedStyle(document.documentElement), '--{name}')").strip()
               for name in names}  # fmt: skip
    shown.close()

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for ink, grounds in {"ink": ("paper", "card", "wash", "good-wash", "warn-wash"), "soft": ("paper", "card", "wash"),
                         "good": ("card", "good-wash", "wash"), "bad": ("card", "wash"), "warn": ("warn-wash",),
                         "accent": ("paper",)}.items():  # fmt: skip
        for ground in grounds:
            one, other = sorted((light(colours[ink]), light(colours[ground])))
            assert (other + 0.05) / (one + 0.05) >= 4.5, (scheme, ink, ground)
