"""The Feedback tab in a real browser: everybody's own thumbs, corrections and votes, shown inert and taken back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from talkative import save_talkative, serving

from serve.store import Store
from vlchat.chat import Chat

pytest.importorskip("gradio", reason="gradio is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
OWL = Path(__file__).resolve().parent.parent / "vlchat" / "assets" / "examples" / "owl.png"
KEYS = {"anna": "a-key-that-is-long-enough", "bob": "another-that-is-long-enough"}
PATIENCE = 180_000
EVIL = "<img src=x onerror='window.evil=1'> ${window.evil=2} {{evil}}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def filled(folder: Path) -> None:
    """What Anna thought of three answers and of two models, and Bob of one."""
    store = Store(folder)
    picture = [("owl.png", OWL.read_bytes())]
    talk = store.begin("key/anna").id
    asked = store.add("key/anna", talk, "user", "What is this called here?", picture)
    store.rate("key/anna", store.add("key/anna", talk, "assistant", "This is an owl."), -1, "This is a blort.")
    store.vote("key/anna", talk, asked, {"base": "This is an owl.", "tuned": "A blort."}, "tuned")
    store.add("key/anna", talk, "user", "And what colour is it?")
    store.rate("key/anna", store.add("key/anna", talk, "assistant", "Brown."), 1)
    store.add("key/anna", talk, "user", EVIL)
    store.rate("key/anna", store.add("key/anna", talk, "assistant", EVIL), -1, EVIL)
    store.add("key/bob", other := store.begin("key/bob").id, "user", "Bob's question", picture)
    store.rate("key/bob", store.add("key/bob", other, "assistant", "Bob's answer"), 1)
    store.close()


@contextmanager
def at(
    browser: Any, address: str, who: str, width: int = 1280, language: str = "en", dark: bool = False
) -> Iterator[Any]:
    """The tab, as somebody opens it."""
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        locale=language,
        http_credentials={"username": who, "password": KEYS[who]},
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(f"{address}/?__theme={'dark' if dark else 'light'}")
    page.wait_for_selector("#question textarea")
    counts = page.locator("#feedback .counts")
    page.get_by_role("tab", name="反馈" if language == "zh-CN" else "Feedback", exact=True).click()
    playwright.expect(counts).to_be_visible(timeout=PATIENCE)
    playwright.expect(page.locator("#feedback li").first).to_be_visible(timeout=PATIENCE)
    yield page
    assert page.complaints == [] and page.evaluate("window.evil") is None
    context.close()


def photographed(page: Any, name: str) -> None:
    if folder := os.environ.get("VLCHAT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"feedback-{name}.png")


@pytest.mark.parametrize(("width", "language", "dark"), [(1280, "en", False), (390, "zh-CN", True)])
def test_everybody_sees_and_takes_back_their_own(
    browser: Any, tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch,
    width: int, language: str, dark: bool,
) -> None:  # fmt: skip
    from serve.keys import Keys
    from serve.page.words import told
    from serve.policy import Policy

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    filled(tmp_path / "history")
    chat = Chat.load(save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer))
    policy = Policy(keys=Keys([f"{name}: {key}" for name, key in KEYS.items()]), history=tmp_path / "history")
    screen: dict[str, Any] = {"width": width, "language": language, "dark": dark}
    say = partial(told, language=language[:2])
    with serving(chat, policy) as address:
        with at(browser, address, "anna", **screen) as page:
            counted = page.locator("#feedback .counts").inner_text()
            assert counted == say("feedback.counts", answers=3, up=1, down=2, corrected=2, votes=1)
            answers = page.locator("#feedback .answers li")
            evil, colour, owl = (item.inner_text() for item in answers.all())
            assert evil.count(EVIL) == 3 and "Brown." in colour
            assert "What is this called here?" in owl and "This is a blort." in owl
            for key in ("question", "answer", "correction"):
                assert say(f"feedback.{key}") in owl
            assert answers.nth(1).get_by_role("img", name=say("feedback.up"), exact=True).count() == 1
            pictures = answers.last.locator("img")
            page.wait_for_function(
                "() => [...document.querySelectorAll('#feedback img')].every((one) => one.naturalWidth)"
            )
            assert pictures.get_attribute("alt") == "owl.png"
            assert page.locator("#feedback tbody").inner_text().split() == ["base", "tuned", "0", "1", "0"]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            photographed(page, f"{width}-{language}")

            # By keyboard alone, one thumb and the vote are taken back; a reload shows what is left.
            answers.nth(1).get_by_role("button", name=say("feedback.remove")).focus()
            page.keyboard.press("Enter")
            playwright.expect(answers).to_have_count(2, timeout=PATIENCE)
            page.locator("#feedback .votes li").get_by_role("button").click()
            playwright.expect(page.locator("#feedback .votes li")).to_have_count(0, timeout=PATIENCE)
        with at(browser, address, "anna", **screen) as page:
            counted = page.locator("#feedback .counts").inner_text()
            assert counted == say("feedback.counts", answers=2, up=0, down=2, corrected=2, votes=0)
        with at(browser, address, "bob", **screen) as page:
            assert page.locator("#feedback li").count() == 1
            assert "Bob's answer" in page.locator("#feedback li").inner_text()
            assert "blort" not in page.content()
    store = Store(tmp_path / "history")
    assert len(store.rated(None)) == 3 and store.votes(None) == []
    store.close()
