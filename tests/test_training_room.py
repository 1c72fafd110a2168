"""The training room in a real browser: data, plan, run, answers, stop, chat; real commands on a tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import base, config_of, squares

from vlchat.chat import Chat

gradio = pytest.importorskip("gradio", reason="gradio is not installed")
from serve.page.words import told  # noqa: E402
from serve.page.words.errors import in_language  # noqa: E402
from serve.page.words.room_errors import KINDS  # noqa: E402

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
PATIENCE = int(os.environ.get("VLCHAT_PATIENCE", 240_000))  # milliseconds: only a broken page waits this long


class Room:
    """A small page around the training room, the runs that it was asked to add, and their pictures' folder."""

    def __init__(self, folder: Path, model: Path) -> None:
        from serve.page import room
        from serve.page.words import label, translations
        from serve.theme import CSS, theme
        from serve.trainings import Trainings

        config = config_of(Path("runs/tiny"), model, Path("none.json"), heldout={"tokens": 2})
        (folder / "finetune.yaml").write_text(json.dumps(config))
        self.added: dict[str, Chat] = {}
        choices = {"finetune": folder / "finetune.yaml"}
        self.trainings = Trainings(folder / "runs", str(model), choices=choices, patience=PATIENCE / 1000)
        with gradio.Blocks() as self.page:
            with gradio.Tab(label("room.tab")):
                room.training_room(self.trainings, self.add)
        _, self.address, _ = self.page.launch(
            theme=theme(), css=CSS + room.CSS, i18n=translations(), prevent_thread_lock=True, quiet=True,
            max_file_size="32mb", ssr_mode=False,
        )  # fmt: skip

    def add(self, name: str, folder: Path) -> None:
        self.added[name] = Chat.load(folder)

    def close(self) -> None:
        self.page.close(verbose=False)
        self.trainings.close()


@pytest.fixture
def room(
    tmp_path: Path, tiny_model: Callable[..., Any], tiny_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Room]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "temporary"))
    made = Room(tmp_path, base(tmp_path, tiny_model, tiny_processor))
    yield made
    made.close()


@pytest.fixture
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser: Any, room: Room, locale: str = "en-US", width: int = 1280, theme: str = "light") -> Any:
    page = browser.new_context(locale=locale, viewport={"width": width, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE)
    page.say = partial(told, language=locale[:2])
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.goto(f"{room.address}?__theme={theme}")
    playwright.expect(page.locator("#room-runs p, #room-runs table").first).to_be_visible(timeout=PATIENCE)
    return page


def upload(page: Any, *files: Path) -> None:
    page.set_input_files("#room-files input[type=file]", [str(file) for file in files])
    playwright.expect(page.locator("#room-files .file")).to_have_count(len(files), timeout=PATIENCE)


def shows(page: Any, place: str, text: str | re.Pattern[str]) -> None:
    playwright.expect(page.locator(place)).to_contain_text(text, timeout=PATIENCE)


def fits(page: Any, name: str) -> None:
    """Nothing sticks out; where somebody wants to look, the page is kept."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if folder := os.environ.get("VLCHAT_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/room-{name}.png", full_page=True)


@pytest.mark.parametrize(("locale", "width", "theme"), [("en-US", 1280, "light"), ("zh-CN", 390, "dark")])
def test_somebody_trains_on_their_own_data_and_chats_with_the_result(
    browser: Any, room: Room, tmp_path: Path, locale: str, width: int, theme: str
) -> None:
    data = squares(tmp_path / "mine", pictures=8)
    rows = json.loads(data.read_text())
    rows[0]["question"] = rows[1]["question"] = "Is <img src=x onerror=alert(1)> it?"
    rows.append({"id": "<b>broken</b>", "image": "absent.png", "question": "What?", "answer": "red"})
    data.write_text(json.dumps(rows))
    page = opened(browser, room, locale, width, theme)
    say = page.say

    # A zip that leads out is refused in the room's own words, and the next try works.
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as packed:
        packed.writestr("../evil.png", b"x")
    upload(page, tmp_path / "bad.zip")
    page.click("#room-check")
    refused = "bad.zip is refused: its member ../evil.png leads out of the zip."
    shows(page, "#room-report [role=alert]", in_language(refused, locale[:2]))
    page.click("#room-start")
    shows(page, "#room-planned [role=alert]", say("room.check_first"))
    fits(page, f"refused-{width}")

    # The doctor's report names the bad row.
    page.click("#room-files .icon-button-wrapper button >> nth=-1")
    upload(page, data, *sorted(data.parent.glob("*.png")))
    page.click("#room-check")
    shows(page, "#room-report", say("room.bad", bad=1, rows=17))
    bad = page.locator("#room-report tbody tr")
    kind = "" if locale == "en-US" else f"{KINDS['missing_file']}："
    assert bad.locator("td").all_inner_texts() == ["17", "<b>broken</b>", "image", f'{kind}"absent.png" was not found']
    command = page.locator("#room-check-command textarea")
    assert command.input_value().startswith(f"vlchat check {room.trainings.folder}/uploads/data/data.json --model ")

    # It is not passed over unasked.
    page.fill("#room-steps input", "3000")
    page.fill("#room-aside input", "2")
    page.fill("#room-name textarea, #room-name input", "Squares")
    page.click("#room-plan")
    shows(page, "#room-planned [role=alert]", say("room.has_bad", bad=1))
    page.check("#room-leave-out input")
    page.click("#room-plan")
    shows(page, "#room-planned", say("room.fits"))
    shows(page, "#room-planned pre", "3,000 of 4 rows")
    begins = page.locator("#room-train-command textarea").input_value()
    assert begins.startswith("vlchat train ") and "loop.steps=3000" in begins and "max_bad=1" in begins
    fits(page, f"planned-{width}")

    # Loss and answers come while it trains.
    page.click("#room-start")
    shows(page, "#room-planned", say("room.begun", name="Squares"))
    told_so_far = f"{say('room.progress', step='!', planned='3,000')} · {say('room.now_loss', loss='!')}"
    shows(page, "#room-progress", re.compile(re.escape(told_so_far).replace("!", r"[\d.,]+")))
    shows(page, "#room-samples", say("room.reference"))
    shows(page, "#room-runs", say("room.training"))
    playwright.expect(page.locator("#room-curve polyline[points]")).to_have_count(2, timeout=PATIENCE)
    assert page.locator("#room-output textarea").input_value().startswith(f"$ {begins}\n")
    assert page.locator("#room-run-command textarea").input_value() == begins
    assert page.locator("#room-samples img, #room-report b").count() == 0, "people's words are inert"
    fits(page, f"training-{width}")

    # Another page sees it come along by itself.
    other = opened(browser, room, locale, width, theme)
    shows(other, "#room-runs", say("room.training"))
    shows(other, "#training-room", say("room.aside"))
    step = other.locator("#room-progress p").inner_text()
    other.wait_for_function("before => document.querySelector('#room-progress p').innerText != before", arg=step)
    other.context.close()

    # Stop saves, Resume goes on, and the result is there to chat with.
    page.click("#room-stop")
    shows(page, "#room-said", say("room.stopping", name="Squares"))
    shows(page, "#room-runs", say("room.stopped"))
    assert "--resume auto" in page.locator("#room-run-command textarea").input_value()
    page.click("#room-resume")
    shows(page, "#room-said", say("room.resumed", name="Squares"))
    shows(page, "#room-runs", say("room.training"))
    page.click("#room-stop")
    shows(page, "#room-runs", say("room.stopped"))
    page.click("#room-chat")
    shows(page, "#room-said", say("room.added", name="Squares"))
    assert room.added["Squares"].description["name"] == "Squares"
    chat = page.locator("#room-chat-command textarea").input_value()
    assert chat == f"vlchat chat --model {room.trainings.folder}/Squares"
    fits(page, f"stopped-{width}")

    # The page is opened anew, and the run is there.
    again = opened(browser, room, locale, width, theme)
    shows(again, "#room-runs", "Squares")
    shows(again, "#room-progress", say("room.stopped"))
    assert again.locator("#room-resume").inner_text() == say("room.resume")
    assert page.complaints == again.complaints == []
    page.context.close()
    again.context.close()
