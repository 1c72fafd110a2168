"""The panel that looks inside an answer, in a real browser: words pressed by mouse and keys, in both languages."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from talkative import save_talkative
from test_browser import ARGUMENTS, CHROMIUM, EXAMPLES, PATIENCE, SCREENS

from vlchat.chat import Chat, ask_messages
from vlchat.evaluate import trust
from vlchat.folders import weights_digest

gr = pytest.importorskip("gradio", reason="gradio is not installed")
from serve.page.words import told  # noqa: E402

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
    tall = {"width": options["viewport"]["width"], "height": 1500} if "viewport" in options else {}
    page = browser.new_page(**{**options, "viewport": tall or {"width": 1280, "height": 1500}})
    page.set_default_timeout(PATIENCE)
    page.say = partial(told, language=str(options.get("locale", "en"))[:2])
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address)
    choose(page, turn)
    return page


def choose(page: Any, turn: str) -> None:
    """Selects an answer, on a phone from below the panel; again where the page's scripts were not there yet."""
    button = page.get_by_label(turn, exact=True)
    for _ in range(PATIENCE // 500):
        button.evaluate("one => one.click()")
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
        page.screenshot(path=str(Path(folder) / f"inside-{name.replace(', ', '-')}.png"))


@pytest.mark.parametrize("screen", SCREENS)
def test_words_are_pressed_by_mouse_and_by_keys(browser: Any, served: Any, screen: str) -> None:
    page = opened(browser, served.address, **SCREENS[screen])
    say = page.say
    facts = page.locator("#inside-facts")
    playwright.expect(facts).to_contain_text(say("inside.written_rate", tokens="4", rate="3"))
    playwright.expect(facts).to_contain_text(say("inside.context_told", used="304", most="8,192", left="7,888"))
    playwright.expect(facts).to_contain_text(say("inside.first_told", seconds="0.25"))
    sure = say("inside.sure_told", share="20", rows="200", task="scenes")
    playwright.expect(page.locator("#inside-sure")).to_have_text(f"{say('inside.unsure')} {sure}")
    words = page.locator("#inside-words .words button")
    assert words.all_inner_texts() == [say("inside.whole"), *ANSWER.split()]
    assert page.locator("#inside-words .words b").count() == 0, "a model's words stay words"
    assert page.locator("#inside-words .less").inner_text() == "cats"
    playwright.expect(page.locator("#inside-check")).to_be_hidden()

    words.nth(2).click()
    cats = drawn(page)
    assert len(cats) == 2
    playwright.expect(words.nth(2)).to_have_attribute("aria-pressed", "true")
    caption = page.locator("#inside-map figcaption")
    playwright.expect(caption).to_contain_text(say("inside.map_of", words="cats"))
    playwright.expect(caption).to_contain_text(say("inside.method_integrated"))
    alt = page.locator("#inside-map img").first.get_attribute("alt")
    places = [say(f"inside.place_{place}") for place in range(9)]
    assert alt in [say("inside.map_alt", number=1, words="cats", place=place) for place in places]
    inside_the_panel(page)
    photographed(page, screen)

    playwright.expect(page.locator("#inside-check")).to_have_text(say("inside.check"))
    page.click("#inside-check")
    verdict = page.locator("#inside-verdict")
    playwright.expect(verdict).to_contain_text(
        re.compile("|".join(re.escape(say(f"inside.check_{how}")) for how in ("good", "bad")))
    )
    sentence = say("inside.check_told", share="!", shown="!", draws="!", random="!")
    playwright.expect(verdict).to_contain_text(re.compile(re.escape(sentence).replace("!", r"[\d.,]+")))

    words.nth(1).focus()
    page.keyboard.press("Enter")
    playwright.expect(caption).to_contain_text(say("inside.map_of", words="two"))
    two = drawn(page)
    assert two != cats
    assert page.evaluate("document.activeElement.innerText") == "two", "the focus stays on the word"
    playwright.expect(verdict).to_be_empty()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    playwright.expect(caption).to_contain_text(say("inside.map_of", words="two cats <b>and</b> ${1 + 1} {{dog}}"))
    assert drawn(page) not in (two, cats)

    page.get_by_text(say("inside.saw")).click()
    seen = page.locator("#inside-seen")
    came, saw = say("inside.saw_came", number=2, came="90 × 30"), say("inside.saw_seen", seen="24 × 24")
    playwright.expect(seen).to_contain_text(f"{came} {saw}")
    playwright.expect(seen).to_contain_text(say("inside.saw_tokens", tokens="4"))
    assert seen.locator("img").count() == 2 and page.complaints == []
    inside_the_panel(page)
    page.close()


def inside_the_panel(page: Any) -> None:
    """Nothing that is pressed or looked at sticks out."""
    panel, width = page.locator("#inside").bounding_box(), page.viewport_size["width"]
    assert panel["x"] >= 0 and panel["x"] + panel["width"] <= width
    for one in page.locator("#inside button, #inside img").all():
        if box := one.bounding_box():
            assert box["x"] >= panel["x"] - 1 and box["x"] + box["width"] <= panel["x"] + panel["width"] + 1


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


@pytest.mark.parametrize("screen", SCREENS)
def test_an_answer_without_a_picture_and_none_at_all(browser: Any, served: Any, screen: str) -> None:
    page = opened(browser, served.address, "words", **SCREENS[screen])
    playwright.expect(page.locator("#inside-words")).to_contain_text(page.say("inside.no_picture"))
    playwright.expect(page.locator("#inside-facts")).to_contain_text(page.say("inside.ended_length"))
    assert page.locator("#inside-sure").count() == 0 and page.locator("#inside-words button").count() == 0
    choose(page, "nothing")
    playwright.expect(page.locator("#inside-facts")).to_contain_text(page.say("inside.nothing"))
    assert page.complaints == []
    page.close()
