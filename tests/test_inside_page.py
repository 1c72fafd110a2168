"""The panel that looks inside an answer, in a real browser: words pressed by mouse and keys, in both languages."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from talkative import save_talkative
from test_browser import ARGUMENTS, CHROMIUM, EXAMPLES, PATIENCE

from vlchat.chat import Chat, ask_messages
from vlchat.evaluate import trust
from vlchat.folders import weights_digest

gr = pytest.importorskip("gradio", reason="gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
ANSWER = "two cats <b>and</b> ${1 + 1} {{dog}}"
TURNS = {"pictures": ("c", "1"), "words": ("c", "2"), "nothing": ("c", "9")}


@pytest.fixture
def served(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> Iterator[Any]:
    """A page with the panel alone, about answers that are given here."""
    from serve import gradio_mended
    from serve.engine import Engine
    from serve.inside import Facts, Inside
    from serve.page.inside import CSS, Told, inside_panel
    from serve.page.words import translations

    gradio_mended.mend()
    folder = save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer)
    steps = ((0.0, 0.2), (0.5, 0.9))
    known = trust.Trust("scenes", 200, weights_digest(folder), 0.1, 0.95, 0.5, steps)
    trust.write(known, folder)
    engine = Engine(Chat.load(folder))
    inside = Inside(engine)
    tokens = tuple(
        (text, logprob) for text, logprob in (("two", -0.01), (" cats", -0.4), (" ", 0.0), (ANSWER[9:], -2.0))
    )
    facts = Facts(300, 12, 4, "stop", 0.25, 1.25, 8192, tokens)
    pictures = [EXAMPLES / "owl.png", Image.new("RGB", (90, 30), "red")]
    answers = {
        "1": Told(ask_messages(pictures, "What is there?"), ANSWER, None, facts),
        "2": Told(ask_messages(None, "Hello"), "hello", None, Facts(3, 0, 1, "length")),
    }
    with gr.Blocks() as page:
        chosen = gr.Radio(list(TURNS), label="Turn")
        selected = gr.State(None)
        with gr.Sidebar(position="right", open=True):
            inside_panel(inside, lambda request, turn: answers.get(turn[1]), selected)
        chosen.change(lambda name: TURNS.get(name), chosen, selected, api_visibility="private")
    _, local, _ = page.launch(
        prevent_thread_lock=True, quiet=True, css=CSS, i18n=translations(), server_name="127.0.0.1", ssr_mode=False
    )
    yield SimpleNamespace(address=local, chat=engine.chat, inside=inside)
    page.close(verbose=False)
    inside.close()
    engine.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def opened(browser: Any, address: str, turn: str = "pictures", **options: Any) -> Any:
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 1500}, **options})
    page.set_default_timeout(PATIENCE)
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address)
    choose(page, turn)
    return page


def choose(page: Any, turn: str) -> None:
    """Selects an answer; again where the page's scripts were not there yet."""
    button = page.get_by_label(turn, exact=True)
    for _ in range(PATIENCE // 500):
        button.click(force=True)
        page.wait_for_timeout(500)
        if button.is_checked():
            return
    raise TimeoutError(turn)


def drawn(page: Any) -> list[str]:
    page.wait_for_selector("#inside-map img")
    return [str(one.get_attribute("src")) for one in page.locator("#inside-map img").all()]


def photographed(page: Any, name: str) -> None:
    if folder := os.environ.get("VLCHAT_SCREENSHOTS"):
        page.wait_for_timeout(500)
        page.screenshot(path=str(Path(folder) / f"inside-{name}.png"))


def test_words_are_pressed_by_mouse_and_by_keys(browser: Any, served: Any) -> None:
    page = opened(browser, served.address)
    facts = page.locator("#inside-facts")
    playwright.expect(facts).to_contain_text("4 tokens, 3 a second")
    playwright.expect(facts).to_contain_text("304 of 8,192 tokens used, 7,888 left")
    playwright.expect(facts).to_contain_text("after 0.25 s")
    playwright.expect(page.locator("#inside-sure")).to_have_text(
        "Not sure. 20 %: so many of the answers that were about as likely were right (200 questions of “scenes”)."
    )
    words = page.locator("#inside-words .words button")
    assert words.all_inner_texts() == ["Whole answer", *ANSWER.split()]
    assert page.locator("#inside-words .words b").count() == 0, "a model's words stay words"
    assert page.locator("#inside-words .less").inner_text() == "cats"
    playwright.expect(page.locator("#inside-check")).to_be_hidden()

    words.nth(2).click()
    cats = drawn(page)
    assert len(cats) == 2
    playwright.expect(words.nth(2)).to_have_attribute("aria-pressed", "true")
    caption = page.locator("#inside-map figcaption")
    playwright.expect(caption).to_contain_text("Where “cats” came from")
    playwright.expect(caption).to_contain_text("integrated gradients")
    alt = page.locator("#inside-map img").first.get_attribute("alt")
    assert re.match(r"Picture 1\. In colour: the places that “cats” came from, strongest (at|on|in) the ", alt)
    photographed(page, "light")

    page.click("#inside-check")
    playwright.expect(page.locator("#inside-verdict")).to_contain_text(
        re.compile(r"(The map holds|Do not trust this map)\. Covering the \d+ % .* at most [\d.,]+ times\.")
    )

    words.nth(1).focus()
    page.keyboard.press("Enter")
    playwright.expect(caption).to_contain_text("Where “two” came from")
    two = drawn(page)
    assert two != cats
    assert page.evaluate("document.activeElement.innerText") == "two", "the focus stays on the word"
    playwright.expect(page.locator("#inside-verdict")).to_be_empty()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    playwright.expect(caption).to_contain_text("Where “two cats <b>and</b> ${1 + 1} {{dog}}” came from")
    assert drawn(page) not in (two, cats)

    page.get_by_text("What the model saw").click()
    seen = page.locator("#inside-seen")
    playwright.expect(seen).to_contain_text("Picture 2 came with 90 × 30 pixels. The model saw 24 × 24 pixels.")
    playwright.expect(seen).to_contain_text("To the language model it is 4 tokens.")
    assert seen.locator("img").count() == 2 and page.complaints == []
    page.close()


@pytest.mark.parametrize("leaving", ["another answer", "the page"])
def test_a_map_that_nobody_waits_for_is_not_finished(browser: Any, served: Any, leaving: str) -> None:
    passes: list[int] = []
    served.chat.model.lm_head.register_forward_hook(lambda *_: (time.sleep(0.5), passes.append(1))[0])
    page = opened(browser, served.address)
    page.locator("#inside-words .words button").nth(1).click()
    playwright.expect(page.locator("#inside-map")).to_contain_text("Drawing the map", timeout=PATIENCE)
    while not passes:
        page.wait_for_timeout(50)
    choose(page, "words") if leaving == "another answer" else page.close()
    for _ in range(PATIENCE // 50):
        if not served.inside._looking:
            break
        time.sleep(0.05)
    assert not served.inside._looking and len(passes) < 8
    page.close()


def test_an_answer_without_a_picture_and_none_at_all(browser: Any, served: Any) -> None:
    page = opened(browser, served.address, "words")
    playwright.expect(page.locator("#inside-words")).to_contain_text("There is no picture in this conversation")
    playwright.expect(page.locator("#inside-facts")).to_contain_text("at the longest answer that was asked for")
    assert page.locator("#inside-sure").count() == 0 and page.locator("#inside-words button").count() == 0
    choose(page, "nothing")
    playwright.expect(page.locator("#inside-facts")).to_contain_text("Ask something")
    assert page.complaints == []
    page.close()


def test_chinese_on_a_phone_in_the_dark(browser: Any, served: Any) -> None:
    phone = {"viewport": {"width": 390, "height": 1400}, "locale": "zh-CN", "color_scheme": "dark"}
    page = opened(browser, served.address, **phone)
    playwright.expect(page.locator("#inside-sure")).to_contain_text("不确定。")
    page.get_by_role("button", name="整个回答").click()
    drawn(page)
    playwright.expect(page.locator("#inside-map figcaption")).to_contain_text("经过连接器的积分梯度")
    playwright.expect(page.locator("#inside-check")).to_have_text("检验这张证据图")
    playwright.expect(page.locator("#inside-saw")).to_contain_text("模型看到的画面")
    panel = page.locator("#inside").bounding_box()
    assert panel["x"] >= 0 and panel["x"] + panel["width"] <= 390
    for one in page.locator("#inside button, #inside img").all():
        if box := one.bounding_box():
            assert box["x"] >= panel["x"] - 1 and box["x"] + box["width"] <= panel["x"] + panel["width"] + 1
    photographed(page, "phone-dark-zh")
    page.close()
