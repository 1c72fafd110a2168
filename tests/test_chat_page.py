"""The chat page with its list, its history and its panels, in a real browser: kept, private, inert, for everyone."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from talkative import save_talkative, serving
from test_browser import (
    ANSWER,
    EXAMPLES,
    PATIENCE,
    QUESTION,
    answered,
    attach,
    browser,
    longest_answer,
    opened,
    part,
    playwright,
    pytestmark,
    ready,
    screen,
    send,
    wait,
)

from vlchat.chat import Chat

axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

from serve.engine import Engine  # noqa: E402
from serve.page.words import told  # noqa: E402
from serve.page.words.errors import in_language  # noqa: E402
from serve.policy import Policy  # noqa: E402
from serve.several import Several  # noqa: E402
from serve.store import Store  # noqa: E402
from serve.tickets import Options  # noqa: E402

__all__ = ["browser", "pytestmark", "screen"]
OWL, APPLES = EXAMPLES / "owl.png", EXAMPLES / "three-apples.png"
expect = playwright.expect


@pytest.fixture
def chat(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Chat:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    return Chat.load(save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer))


@pytest.fixture
def kept(tmp_path: Path) -> Policy:
    return Policy(history=tmp_path / "history")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the embedded model's page, which keeps conversations."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        with serving(Chat.load(), Policy(history=folder / "history")) as address:
            yield address


def owner_of(page: Any) -> str:
    (cookie,) = [one["value"] for one in page.context.cookies() if one["name"] == "vlchat_browser"]
    return f"browser/{cookie}"


def open_list(page: Any, whether: bool = True) -> None:
    if page.locator("#sidebar.open").count() != whether:
        page.locator("#sidebar .toggle-button").click()
    new = expect(page.locator("#new"))
    (new.to_be_in_viewport if whether else new.not_to_be_in_viewport)(timeout=PATIENCE)


def items(page: Any) -> Any:
    return page.locator("#conversations li")


def menu(page: Any, action: str, place: int = 0) -> None:
    items(page).nth(place).locator("summary").click()
    items(page).nth(place).locator(f".menu [data-action={action}]").click()


def identity(page: Any) -> str:
    """Of the conversation in the page's address."""
    wait(page, lambda: "c=" in page.url)
    return str(page.url.split("c=")[1])


def test_a_server_that_is_restarted_in_the_middle_of_an_answer_goes_on(
    browser: Any, screen: dict[str, Any], chat: Chat, kept: Policy
) -> None:
    pace = chat.model.lm_head.register_forward_hook(lambda *_: time.sleep(0.03))
    with serving(chat, kept) as address:
        page = opened(browser, address, **screen)
        longest_answer(page, 1024)
        send(page, "Tell me everything.", OWL)
        page.wait_for_function(f"() => document.querySelector('{ANSWER}')?.innerText.trim().split(' ').length > 3")
        id = identity(page)
    pace.remove()
    with serving(chat, kept) as address:
        page.goto(f"{address}?c={id}")
        expect(page.locator(QUESTION)).to_have_text("Tell me everything.", timeout=PATIENCE)
        said = page.locator(ANSWER).inner_text().strip()
        assert len(said.split()) > 3
        image = page.locator("#conversation .user-row img")
        wait(page, lambda: image.evaluate("image => image.naturalWidth") > 0)
        assert image.get_attribute("alt") == "owl.png"
        longest_answer(page, 6)
        send(page, "two cats")
        turns = [part("user", "Tell me everything.", OWL), part("assistant", said), part("user", "two cats")]
        answered(page, 2, "".join(chat.stream(turns, max_new_tokens=6)).strip())
        page.context.close()


def test_two_visitors_never_see_each_others_conversations(
    browser: Any, screen: dict[str, Any], chat: Chat, kept: Policy
) -> None:
    with serving(chat, kept) as address:
        anna, boris = opened(browser, address, **screen), opened(browser, address, **screen)
        longest_answer(anna, 5)
        send(anna, "my secret", OWL)
        answered(anna)
        id = identity(anna)
        assert anna.request.get(f"{address}/conversations/{id}.zip").ok
        for page in (boris, opened(browser, f"{address}?c={id}", **screen)):
            open_list(page)
            expect(page.locator("#conversations p")).to_have_text(told("chat.none", page.language), timeout=PATIENCE)
            assert items(page).count() == 0 and page.locator(QUESTION).count() == 0
            assert "my secret" not in page.content()
            for kind in ("zip", "json"):
                assert page.request.get(f"{address}/conversations/{id}.{kind}").status == 404
        # Whoever forges the other's id writes nowhere.
        boris.locator("#conversation-id textarea, #conversation-id input").evaluate(
            "(box, id) => { box.value = id; box.dispatchEvent(new Event('input', {bubbles: true})); }", id
        )
        open_list(boris, False)
        boris.fill("#question textarea", "let me in")
        boris.click("#question .submit-button")
        expect(boris.locator(".toast-body, [data-testid=toast-body]").first).to_contain_text(
            in_language("This conversation isn't here any more. Begin a new one.", boris.language), timeout=PATIENCE
        )
        assert kept.history is not None
        store = Store(kept.history)
        assert [turn.text for turn in store.turns(owner_of(anna), id)][::2] == ["my secret"]
        assert not store.conversations(owner_of(boris))
        store.close()
        for page in (anna, boris):
            page.context.close()


def test_conversations_are_searched_renamed_pinned_saved_and_deleted(
    browser: Any, screen: dict[str, Any], chat: Chat, kept: Policy
) -> None:
    with serving(chat, kept) as address:
        page = opened(browser, address, **screen)
        longest_answer(page, 5)
        send(page, "first words", OWL)
        answered(page)
        first = identity(page)
        open_list(page)
        page.click("#new")
        expect(page.locator(QUESTION)).to_have_count(0, timeout=PATIENCE)
        send(page, "这是什么？${document.title = 'taken'}")
        answered(page)
        expect(items(page)).to_have_count(2, timeout=PATIENCE)
        open_list(page)
        assert items(page).first.locator(".title").inner_text() == "这是什么？${document.title = 'taken'}"

        search = page.locator("#search textarea, #search input")
        search.press_sequentially("什么")
        expect(items(page)).to_have_count(1, timeout=PATIENCE)
        search.press_sequentially("nowhere")
        expect(page.locator("#conversations p")).to_have_text(told("chat.none-found", page.language), timeout=PATIENCE)
        search.press("Control+A")
        search.press("Backspace")
        expect(items(page)).to_have_count(2, timeout=PATIENCE)

        menu(page, "pin", 1)
        expect(items(page).first.locator(".title")).to_have_text("first words", timeout=PATIENCE)
        menu(page, "rename")
        page.keyboard.type("An owl")
        page.keyboard.press("Enter")
        expect(items(page).first.locator(".title")).to_have_text("An owl", timeout=PATIENCE)
        page.reload()
        page.wait_for_selector("#question textarea")
        open_list(page)
        expect(items(page).first.locator(".title")).to_have_text("An owl", timeout=PATIENCE)
        items(page).first.locator(".open").click()
        expect(page.locator(QUESTION)).to_have_text("first words", timeout=PATIENCE)
        wait(page, lambda: identity(page) == first)

        if page.viewport_size["width"] < 500:  # there the list has lain over the conversation
            expect(page.locator("#new")).not_to_be_in_viewport(timeout=PATIENCE)
        open_list(page)
        parcel = zipfile.ZipFile(io.BytesIO(page.request.get(f"{address}/conversations/{first}.zip").body()))
        assert {Path(name).suffix for name in parcel.namelist()} == {".md", ".png"}
        asked = json.loads(page.request.get(f"{address}/conversations/{first}.json").body())
        reply = page.request.post(f"{address}/v1/chat/completions", data=json.dumps(asked))
        assert reply.ok and reply.json()["choices"][0]["message"]["content"]

        menu(page, "delete")
        expect(items(page)).to_have_count(1, timeout=PATIENCE)
        expect(page.locator(QUESTION)).to_have_count(0, timeout=PATIENCE)
        assert page.request.get(f"{address}/conversations/{first}.zip").status == 404
        assert page.title() == "vlchat" and page.complaints == []
        page.context.close()


def test_what_is_not_kept_and_what_is_erased_leaves_nothing(
    browser: Any, screen: dict[str, Any], chat: Chat, kept: Policy
) -> None:
    folder = kept.history
    assert folder is not None

    def on_disk(words: str) -> bool:
        return any(words.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())

    with serving(chat, kept) as address:
        page = opened(browser, address, **screen)
        longest_answer(page, 5)
        send(page, "zebra crossing", OWL)
        answered(page)
        assert on_disk("zebra crossing")
        open_list(page)
        page.click("#erase")
        page.click("#erase-no")
        expect(items(page)).to_have_count(1, timeout=PATIENCE)
        page.click("#erase")
        page.click("#erase-yes")
        expect(items(page)).to_have_count(0, timeout=PATIENCE)
        expect(page.locator(QUESTION)).to_have_count(0, timeout=PATIENCE)

        page.uncheck("#keep input")
        page.wait_for_timeout(500)
        open_list(page, False)
        send(page, "umbrella stand", APPLES)
        answered(page)
        expect(items(page)).to_have_count(1, timeout=PATIENCE)
        page.reload()
        expect(page.locator(QUESTION)).to_have_text("umbrella stand", timeout=PATIENCE)
        assert not page.locator("#keep input").is_checked()
        page.context.close()
    assert not on_disk("zebra crossing") and not on_disk("umbrella stand")


def test_an_earlier_question_is_edited_with_its_picture(browser: Any, screen: dict[str, Any], chat: Chat) -> None:
    with serving(chat) as address:
        page = opened(browser, address, **screen)
        longest_answer(page, 6)
        send(page, "two cats", OWL)
        answered(page)
        send(page, "and dogs ?")
        answered(page, 2)
        page.locator("#conversation [data-action=edit]").first.click()
        box = page.locator("#conversation form textarea")
        assert box.input_value() == "two cats"
        page.keyboard.press("Escape")
        expect(box).to_have_count(0)
        page.locator("#conversation [data-action=edit]").first.click()
        box.fill("three <b>cats</b>")
        page.keyboard.press("Enter")
        answered(page, 1, chat.ask(OWL, "three <b>cats</b>", max_new_tokens=6))
        assert page.locator(QUESTION).inner_text() == "three <b>cats</b>"
        assert page.locator("#conversation .user-row img").count() == 1
        page.context.close()


NASTY = [
    "<script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "![x](http://elsewhere.invalid/x.png) <svg onload=\"document.title='taken'\">",
    "[click](javascript:document.title='taken') <a href='javascript:1'>x</a>",
    "${document.title='taken'} {{constructor.constructor('document.title=1')()}} `${document.title='taken'}`",
    "$$\\href{javascript:document.title='taken'}{x}$$ $\\text{<script>document.title='taken'</script>}$",
    "```html\n<script>document.title='taken'</script>\n```",
    "<style>* { display: none }</style><form action=http://elsewhere.invalid><button>b</button></form>",
    "\u202egnihtemos\u202c & &amp; &lt;b>",
]


def test_nasty_words_do_nothing(browser: Any, screen: dict[str, Any], chat: Chat, kept: Policy) -> None:
    with serving(chat, kept) as address:
        page = opened(browser, address, **screen)
        assert kept.history is not None
        store, owner = Store(kept.history), owner_of(page)
        talk = store.begin(owner)
        for words in NASTY:
            store.add(owner, talk.id, "user", words, [(f"{words}.png".replace("/", ""), OWL.read_bytes())])
            store.finish(owner, store.add(owner, talk.id, "assistant", words), words, {"adapter": words})
        store.close()
        blocked: list[str] = []
        page.on("console", lambda one: blocked.append(one.text) if one.type in ("error", "warning") else None)
        page.goto(f"{address}?c={talk.id}")
        expect(page.locator(ANSWER)).to_have_count(len(NASTY), timeout=PATIENCE)
        open_list(page)
        assert page.locator(QUESTION).all_text_contents() == NASTY
        assert page.locator("#conversation article :is(script, style, svg[onload], form, iframe)").count() == 0
        assert page.locator("#conversation .message-content img").count() == 0
        links = page.locator("#conversation .message-content a").evaluate_all("all => all.map(a => a.protocol)")
        assert set(links) <= {"http:", "https:"}
        page.wait_for_timeout(300)
        assert page.title() == "vlchat" and page.hosts == {page.url.split("/")[2]}
        assert page.complaints == [] and not [one for one in blocked if "Content Security" in one]
        page.context.close()


def test_markdown_tables_code_and_formulas_are_shown(
    browser: Any, screen: dict[str, Any], chat: Chat, kept: Policy
) -> None:
    table, code = "| a | b |\n|--|--|\n| 1 | 2 |", "```python\nprint('x')\n```"
    words = f"# Head\n\n{table}\n\n{code}\n\nIs $x^2$ a formula? It costs $5 or $6."
    with serving(chat, kept) as address:
        page = opened(browser, address, **screen)
        assert kept.history is not None
        store, owner = Store(kept.history), owner_of(page)
        talk = store.begin(owner)
        store.add(owner, talk.id, "user", "show me")
        store.add(owner, talk.id, "assistant", words)
        store.close()
        page.goto(f"{address}?c={talk.id}")
        said = page.locator(ANSWER)
        expect(said.locator("table td")).to_have_count(2, timeout=PATIENCE)
        assert said.locator("h1").inner_text() == "Head" and said.locator("math msup").count() == 1
        assert said.locator("pre span").count() > 1 and "It costs $5 or $6." in said.inner_text()
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.locator("#conversation .bot-row [data-action=copy]").click()
        wait(page, lambda: page.evaluate("navigator.clipboard.readText()") == words)
        page.context.close()


def test_two_models_answer_side_by_side_and_the_better_answer_stays(
    browser: Any, screen: dict[str, Any], chat: Chat, kept: Policy, tmp_path: Path
) -> None:
    other = Chat.load(tmp_path / "model")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.model.model.connector.parameters():
            parameter.add_(torch.randn_like(parameter))
    other.description["trained_on"] = "other things"
    left, right = (one.ask(OWL, "two cats", max_new_tokens=6) for one in (chat, other))
    assert left != right, "the test needs answers that differ"
    both = Several(Engine(chat))
    both.add("other", Engine(other))
    with serving(both, kept) as address:
        page = opened(browser, address, **screen)
        longest_answer(page, 6)
        page.click("#beside input")
        page.get_by_role("option", name="other").click()
        send(page, "two cats", OWL)
        expect(page.locator("#left-answer")).to_contain_text(left, timeout=PATIENCE)
        expect(page.locator("#right-answer")).to_contain_text(right, timeout=PATIENCE)
        page.wait_for_selector("#question .submit-button:not([disabled])")
        page.click("#vote-right")
        expect(page.locator(ANSWER)).to_have_text(right, timeout=PATIENCE)
        expect(page.locator("#beside-answers")).to_be_hidden(timeout=PATIENCE)
        page.reload()
        expect(page.locator(ANSWER)).to_have_text(right, timeout=PATIENCE)
        assert kept.history is not None
        store = Store(kept.history)
        (vote,) = store.votes(owner_of(page))
        assert vote.chosen == "other" and sorted(vote.answers.values()) == sorted([left, right])
        store.close()

        # The other one goes on alone; the page tells what it is.
        page.click("#adapter input")
        page.get_by_role("option", name="other").click()
        expect(page.locator("#about-model")).to_contain_text("trained on other things", timeout=PATIENCE)
        page.click("#beside input")
        page.get_by_role("option", name="–").click()
        asked = [part("user", "two cats", OWL), part("assistant", right), part("user", "and dogs ?")]
        send(page, "and dogs ?")
        answered(page, 2, other.batch([asked], max_new_tokens=6)[0].strip())
        page.context.close()


def test_thumbs_and_corrections_are_kept(browser: Any, screen: dict[str, Any], chat: Chat, kept: Policy) -> None:
    with serving(chat, kept) as address:
        page = opened(browser, address, **screen)
        longest_answer(page, 5)
        send(page, "two cats", OWL)
        answered(page)
        page.locator("#conversation [data-action=like]").click()
        expect(page.locator("#conversation [data-action=like]")).to_have_attribute(
            "aria-pressed", "true", timeout=PATIENCE
        )
        page.locator("#conversation [data-action=dislike]").click()
        page.locator("#conversation form textarea").fill("an owl")
        page.locator("#conversation form [type=submit]").click()
        assert kept.history is not None
        store, owner = Store(kept.history), owner_of(page)

        def corrected() -> bool:
            return [(one.turns[-1].rating, one.turns[-1].correction) for one in store.rated(owner)] == [(-1, "an owl")]

        wait(page, corrected)
        store.close()
        page.context.close()


def test_a_suggestion_is_asked_as_the_settings_say(browser: Any, screen: dict[str, Any], chat: Chat) -> None:
    """Drawn with a seed, then by beams: each answer is the model's own with these settings."""
    with serving(chat) as address:
        page = opened(browser, address, **screen)
        longest_answer(page, 6)
        page.click("#settings > button")
        for name, value in (("temperature", "0.9"), ("top-p", "0.95"), ("seed", "11")):
            page.locator(f"#{name} input[type=number]").fill(value)
            page.keyboard.press("Tab")
        page.click("#settings > button")
        attach(page, OWL)
        page.locator("#suggestions button").first.click()
        box = page.locator("#question textarea")
        expect(box).to_have_value("What is this?", timeout=PATIENCE)
        box.press("Enter")
        asked = [part("user", "What is this?", OWL)]
        with closing(Engine(chat)) as engine:
            drawn = "".join(engine.submit(asked, Options(6, temperature=0.9, top_p=0.95, seed=11))).strip()
        assert drawn != chat.batch([asked], max_new_tokens=6)[0].strip(), "the test needs a seed that draws another"
        answered(page, 1, drawn)
        expect(page.locator("#suggestions")).to_be_hidden(timeout=PATIENCE)

        page.click("#settings > button")
        for name, value in (("temperature", "0"), ("beams", "4")):
            page.locator(f"#{name} input[type=number]").fill(value)
            page.keyboard.press("Tab")
        page.click("#settings > button")
        send(page, "two cats")
        asked += [part("assistant", drawn), part("user", "two cats")]
        answered(page, 2, chat.answers([asked], max_new_tokens=6, beams=4)[0].text.strip())
        page.context.close()


def test_settings_stay_with_their_conversation(browser: Any, screen: dict[str, Any], chat: Chat, kept: Policy) -> None:
    with serving(chat, kept) as address:
        page = opened(browser, address, **screen)
        longest_answer(page, 7)
        page.click("#settings > button")
        page.click("#preset input")
        page.get_by_role("option", name=told("chat.preset-short", page.language)).click()
        system = page.locator("#system textarea")
        expect(system).to_have_value("Answer in as few words as possible.", timeout=PATIENCE)
        page.click("#settings > button")
        send(page, "two cats", OWL)
        answered(page, 1, chat.ask(OWL, "two cats", max_new_tokens=7, system="Answer in as few words as possible."))
        id = identity(page)
        page.goto(address)
        page.wait_for_selector("#conversation .example")
        page.goto(f"{address}?c={id}")
        expect(page.locator(QUESTION)).to_have_text("two cats", timeout=PATIENCE)
        page.click("#settings > button")
        expect(system).to_have_value("Answer in as few words as possible.", timeout=PATIENCE)
        page.context.close()


@pytest.mark.parametrize(("width", "scheme", "locale"), [(1280, "light", "en-US"), (390, "dark", "zh-CN")])
def test_the_page_is_for_everyone(browser: Any, embedded: str, width: int, scheme: str, locale: str) -> None:
    """axe finds nothing serious, nothing sticks out, and all of it is in the visitor's language."""
    # axe is put into the page as a script, which the page's own policy would not run.
    context = browser.new_context(
        viewport={"width": width, "height": 844 if width < 500 else 800}, color_scheme=scheme, locale=locale,
        bypass_csp=True,
    )  # fmt: skip
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    folder = os.environ.get("VLCHAT_SCREENSHOTS")

    def looked_at(name: str) -> None:
        page.wait_for_timeout(400)
        found = axe_playwright.Axe().run(page).response["violations"]
        serious = [
            (one["id"], one["nodes"][0]["html"][:120]) for one in found if one["impact"] in ("serious", "critical")
        ]
        assert serious == [], (name, serious)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        if folder:
            page.screenshot(path=str(Path(folder) / f"{name}-{width}-{scheme}-{locale[:2]}.png"))

    chinese = locale == "zh-CN"
    page.goto(embedded)
    page.wait_for_selector("#conversation .example")
    expect(page.locator("#conversation h2")).to_have_text(
        told("chat.welcome", "zh" if chinese else "en"), timeout=PATIENCE
    )
    placeholder = page.locator("#question textarea").get_attribute("placeholder")
    assert placeholder == told("chat.placeholder", "zh" if chinese else "en")
    looked_at("empty")
    page.locator("#conversation .example", has_text="What is this?").click()
    expect(page.locator(ANSWER)).to_contain_text("owl", timeout=PATIENCE)
    actions = page.locator("#conversation .bot-row .actions button")
    expect(actions.first).to_be_visible(timeout=PATIENCE)
    labels = actions.evaluate_all("all => all.map(one => one.ariaLabel)")
    assert told("chat.retry", "zh" if chinese else "en") in labels
    expect(page.locator("#conversation .facts").last).to_contain_text(
        told("chat.tokens", "zh" if chinese else "en", count="")
    )
    assert page.locator("#question").bounding_box()["y"] < page.viewport_size["height"]
    looked_at("answer")
    page.locator("#conversation [data-action=look]").click()
    page.locator("#inside-words button", has_text="owl").click()
    expect(page.locator("#inside-map img")).to_be_visible(timeout=PATIENCE)
    looked_at("inside")
    page.locator("#inside-sidebar .toggle-button").click()
    page.wait_for_timeout(500)
    open_list(page)
    items(page).first.locator("summary").click()
    looked_at("list")
    open_list(page, False)
    page.locator("#settings > button").click()
    looked_at("settings")
    page.get_by_role("tab", name=told("feedback.tab", "zh" if chinese else "en")).click()
    looked_at("feedback")
    context.close()


def test_the_page_is_used_by_keyboard_alone(browser: Any, embedded: str) -> None:
    page = opened(browser, embedded)
    page.wait_for_selector("#conversation .example")

    def reach(selector: str) -> None:
        for _ in range(60):
            if page.evaluate("selector => document.activeElement?.matches(selector) ?? false", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab never comes to {selector}")

    reach("#conversation .example")
    page.keyboard.press("Enter")
    expect(page.locator(ANSWER)).not_to_be_empty(timeout=PATIENCE)
    ready(page)
    page.locator("#conversation .turns").focus()
    reach("#conversation [data-action=edit]")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+A")
    page.keyboard.type("What colour is it?")
    page.keyboard.press("Enter")
    expect(page.locator(QUESTION)).to_have_text("What colour is it?", timeout=PATIENCE)
    ready(page)
    page.locator("#conversation .turns").focus()
    reach("#conversation [data-action=dislike]")
    page.keyboard.press("Enter")
    expect(page.locator("#conversation form textarea")).to_be_focused(timeout=PATIENCE)
    page.keyboard.press("Escape")
    expect(page.locator("#conversation form")).to_have_count(0)
    page.context.close()
