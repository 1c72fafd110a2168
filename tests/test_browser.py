"""The page in a real browser: a picture goes in, an answer comes out, and every button does what it says."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talkative import Steps, save_talkative, serving

from vlchat.chat import Chat
from vlchat.checkpoint import EMBEDDED

pytest.importorskip("gradio", reason="gradio is not installed")
from serve.page.words import told  # noqa: E402

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip
EXAMPLES = Path(__file__).resolve().parent.parent / "vlchat" / "assets" / "examples"
# Milliseconds: a busy machine is slow, and only a broken page waits this long.
PATIENCE = int(os.environ.get("VLCHAT_PATIENCE", 180_000))
ANSWER = "#conversation .bot-row .message-content"
QUESTION = "#conversation .user-row .message-content"
SCREENS: dict[str, dict[str, Any]] = {
    "desktop, English": {"viewport": {"width": 1280, "height": 800}, "locale": "en-US"},
    "phone, Chinese, dark": {"viewport": {"width": 390, "height": 844}, "locale": "zh-CN", "color_scheme": "dark"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def chat(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Chat:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    chat = Chat.load(save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer))
    chat.description.update(name="Tiny", trained_on="nothing at all")
    return chat


@pytest.fixture(params=SCREENS.values(), ids=SCREENS)
def screen(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a visitor's browser is, for `opened`."""
    return dict(request.param)


@pytest.fixture
def page(browser: Any, chat: Chat, screen: dict[str, Any]) -> Iterator[Any]:
    with serving(chat) as address:
        page = opened(browser, address, **screen)
        yield page
        page.context.close()


def opened(browser: Any, address: str, **options: Any) -> Any:
    """The page, ready to be asked. What it requests, and what its scripts complain of, is kept on it."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **options})
    page.set_default_timeout(PATIENCE)
    page.language = str(options.get("locale", "en"))[:2]
    page.hosts, page.complaints = set(), []
    page.on("request", lambda request: page.hosts.add(request.url.split("/")[2]) if "://" in request.url else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#question textarea")
    # The server has told what to show, and with it the settings, which it would else put over a test's own.
    page.wait_for_selector("#conversation .example, #conversation article")
    return page


def send(page: Any, text: str, *pictures: Path) -> None:
    if pictures:
        attach(page, *pictures)
        playwright.expect(page.locator("#question img")).to_have_count(len(pictures), timeout=PATIENCE)
    page.fill("#question textarea", text)
    page.click("#question .submit-button")


def attach(page: Any, *pictures: Path) -> None:
    """Gives the page pictures; again after 20 seconds, since it drops what comes before its scripts are there."""
    there = page.locator("#question .thumbnail-item, #question img").first

    def taken() -> bool:
        page.set_input_files("#question input[type=file]", [str(picture) for picture in pictures])
        for _ in range(400):
            if there.is_visible():
                return True
            page.wait_for_timeout(50)
        return False

    wait(page, taken)


def ready(page: Any) -> None:
    """The page has finished an answer and takes the next question."""
    page.wait_for_selector("#question .submit-button:not([disabled])")
    page.wait_for_selector("#conversation [data-action=retry]:not([disabled])")


def answered(page: Any, count: int = 1, text: str | None = None) -> str:
    """The last of `count` answers once the page takes the next question; where `text` is given, once it says that."""
    playwright.expect(page.locator(ANSWER)).to_have_count(count, timeout=PATIENCE)
    if text is not None:
        playwright.expect(page.locator(ANSWER).last).to_have_text(text, timeout=PATIENCE)
    ready(page)
    return page.locator(ANSWER).last.inner_text().strip()


def longest_answer(page: Any, tokens: int) -> None:
    page.click("#settings > button")
    number = page.locator("#longest input[type=number]")
    # The slider beside the number shows what the page has taken in. It takes nothing until its scripts are there.
    slider = page.locator("#longest input[type=range]")

    def taken() -> bool:
        number.fill(str(tokens))
        number.press("Tab")
        page.wait_for_timeout(200)
        return slider.input_value() == number.input_value() == str(tokens)

    wait(page, taken)
    page.click("#settings > button")


def part(role: str, text: str, *pictures: Path) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "image", "image": path} for path in pictures]
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


def at_rest(steps: Steps) -> bool:
    """Whether nothing is computed for ten steps' time."""
    before = steps.count
    time.sleep(0.3)
    return steps.count == before


def wait(page: Any, done: Callable[[], bool]) -> None:
    """Lets the page go on until something is so on the server's side."""
    for _ in range(PATIENCE // 50):
        if done():
            return
        page.wait_for_timeout(50)
    raise TimeoutError("it never came to be")


def test_a_picture_and_a_question_get_the_models_answer(page: Any, chat: Chat) -> None:
    owl, apples = EXAMPLES / "owl.png", EXAMPLES / "three-apples.png"
    about = page.locator("#about").inner_text()
    assert "Tiny" in about and "k parameters" in about and "trained on nothing at all" in about
    longest_answer(page, 12)

    words = "What is <b>this</b> & that?"
    turns = [part("user", words, owl)]
    first = "".join(chat.stream(turns, max_new_tokens=12)).strip()
    send(page, words, owl)
    answered(page, 1, first)
    assert page.locator(QUESTION).inner_text() == words
    assert page.locator("#conversation .user-row img").count() == 1

    # Two pictures in one turn of the same conversation.
    turns += [part("assistant", first), part("user", "And these?", owl, apples)]
    second = "".join(chat.stream(turns, max_new_tokens=12)).strip()
    assert second != first, "the test needs answers that differ"
    send(page, "And these?", owl, apples)
    answered(page, 2, second)
    assert page.locator("#conversation .user-row img").count() == 3

    # Undo takes back the last question, and puts it where it can be changed.
    page.locator("#conversation [data-action=undo]").last.click()
    playwright.expect(page.locator(ANSWER)).to_have_count(1, timeout=PATIENCE)
    playwright.expect(page.locator("#question textarea")).to_have_value("And these?", timeout=PATIENCE)
    assert page.locator("#conversation .user-row img").count() == 1

    assert page.hosts == {page.url.split("/")[2]}, "nothing is fetched from elsewhere"
    assert page.complaints == []


def test_retry_asks_the_same_again(page: Any, chat: Chat) -> None:
    first = chat.ask(EXAMPLES / "owl.png", "a < b & &lt;", max_new_tokens=7)
    steps = Steps(chat)
    longest_answer(page, 7)
    send(page, "a < b & &lt;", EXAMPLES / "owl.png")
    answered(page, 1, first)
    assert steps.count == 7
    page.locator("#conversation [data-action=retry]").last.click()
    wait(page, lambda: steps.count >= 14)
    answered(page, 1, first)
    assert page.locator(QUESTION).inner_text() == "a < b & &lt;"
    assert steps.count == 14


def test_an_answer_is_seen_while_it_comes_and_stop_ends_the_computation(page: Any, chat: Chat) -> None:
    steps = Steps(chat)
    # A larger model's pace: half a minute for all of the answer, so that there is something to stop.
    pace = chat.model.lm_head.register_forward_hook(lambda *_: time.sleep(0.03))
    longest_answer(page, 1024)
    send(page, "Tell me everything.", EXAMPLES / "owl.png")
    page.wait_for_function(f"() => document.querySelector('{ANSWER}')?.innerText.trim().split(' ').length > 3")
    page.click("#question .stop-button")
    wait(page, lambda: at_rest(steps))
    counted = steps.count
    assert counted < 1024
    assert len(answered(page).split()) > 3
    pace.remove()

    # The next question is answered, with what was said so far in its context.
    longest_answer(page, 5)
    send(page, "two cats")
    wait(page, lambda: steps.count >= counted + 5)
    answered(page, 2)
    assert steps.count == counted + 5


def test_an_example_is_asked_with_one_click(page: Any, chat: Chat) -> None:
    expected = chat.ask(EXAMPLES / "owl.png", "What is this?", max_new_tokens=6)
    longest_answer(page, 6)
    page.locator("#conversation .example", has_text="What is this?").click()
    answered(page, 1, expected)
    assert "What is this?" in page.locator("#conversation .user-row").inner_text()


def test_a_bad_picture_is_told_in_the_chat_and_the_next_question_works(page: Any, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes((EXAMPLES / "owl.png").read_bytes()[:200])
    longest_answer(page, 6)
    attach(page, tmp_path / "torn.png")
    page.fill("#question textarea", "What is this?")
    page.click("#question .submit-button")
    playwright.expect(page.locator("#conversation .bot-row")).to_contain_text("torn.png", timeout=PATIENCE)
    playwright.expect(page.locator("#conversation .bot-row")).to_contain_text(
        told("chat.refused", page.language), timeout=PATIENCE
    )
    ready(page)
    send(page, "two cats", EXAMPLES / "owl.png")
    page.wait_for_function("() => document.querySelectorAll('#conversation .bot-row').length == 2")
    assert told("chat.refused", page.language) not in page.locator("#conversation .bot-row").last.inner_text()


def test_the_page_fits_a_phone(browser: Any, chat: Chat) -> None:
    with serving(chat) as address:
        page = opened(browser, address)
        page.set_viewport_size({"width": 390, "height": 844})
        longest_answer(page, 200)
        send(page, "two cats", EXAMPLES / "owl.png", EXAMPLES / "word.png")
        answered(page)
        width, height = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert width <= 390 and height <= 844, "nothing sticks out, and the question box stays in sight"
        page.close()


@pytest.mark.skipif(not list(EMBEDDED.glob("*.safetensors")), reason="this checkout has no embedded model")
def test_the_embedded_model_answers_about_an_uploaded_picture(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    chat = Chat.load()
    with serving(chat) as address:
        page = opened(browser, address)
        send(page, "What is this?", EXAMPLES / "owl.png")
        answered(page)
        playwright.expect(page.locator(ANSWER)).to_contain_text("owl", timeout=PATIENCE)
        if target := os.environ.get("VLCHAT_SCREENSHOT"):
            page.wait_for_timeout(1000)  # until the page has scrolled to the end
            page.screenshot(path=target)
        assert str(chat.description["name"]) in page.locator("#about").inner_text()
        page.close()


def test_a_key_is_the_password_of_the_browsers_own_dialog(browser: Any, chat: Chat) -> None:
    from serve.keys import Keys
    from serve.policy import Policy

    picture = min(EXAMPLES.glob("*.png"))
    with serving(chat, Policy(keys=Keys(["anna: a-key-that-is-long-enough"]))) as address:
        with pytest.raises(playwright.Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
            opened(browser, address)
        page = opened(
            browser, address, http_credentials={"username": "anybody", "password": "a-key-that-is-long-enough"}
        )
        blocked: list[str] = []
        page.on("console", lambda one: blocked.append(one.text) if "Content Security Policy" in one.text else None)
        longest_answer(page, 8)
        send(page, "two cats", picture)
        assert answered(page) == chat.ask(picture, "two cats", max_new_tokens=8)
        assert page.locator("#conversation .user-row img").first.evaluate("image => image.naturalWidth") > 0
        assert not page.complaints and not blocked, blocked
        page.context.close()
