"""What comes into the question box of the page, in a real browser: dropped, pasted, chosen, filmed."""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from talkative import save_talkative, serving
from test_browser import (
    ANSWER,
    ARGUMENTS,
    CHROMIUM,
    EXAMPLES,
    PATIENCE,
    answered,
    longest_answer,
    opened,
    part,
    playwright,
    pytestmark,
    screen,
    send,
    wait,
)
from test_documents import film, pdf, written_pdf
from test_video import moving
from tiny_tokenizers import byte_level
from transformers import CLIPVisionConfig, CLIPVisionModel

from serve import documents
from vlchat.chat import Chat

__all__ = ["pytestmark", "screen"]
pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
pytest.importorskip("av", reason="PyAV is not installed")
OWL, APPLES = EXAMPLES / "owl.png", EXAMPLES / "three-apples.png"
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
BRING = """([where, kind, files]) => {
  const transfer = new DataTransfer();
  for (const [name, type, content] of files)
    transfer.items.add(new File([Uint8Array.from(atob(content), (one) => one.charCodeAt(0))], name, {type}));
  const event = kind === 'drop' ? new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: transfer})
    : new ClipboardEvent('paste', {bubbles: true, cancelable: true, clipboardData: transfer});
  document.querySelector(where).dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    tower = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=24, patch_size=12, projection_dim=16)).eval()
    folder = tmp_path_factory.mktemp("question")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        yield Chat.load(save_talkative(folder / "model", tower, byte_level()))


@pytest.fixture(scope="module")
def address(chat: Chat) -> Iterator[str]:
    with serving(chat) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *FAKE_CAMERA])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str, screen: dict[str, Any]) -> Iterator[Any]:
    page = opened(browser, address, permissions=["camera"], **screen)
    page.wait_for_selector("#media .open")
    yield page
    assert page.complaints == []
    page.context.close()


def bring(page: Any, kind: str, *files: Path, where: str = "#question textarea") -> None:
    """As a hand or a clipboard brings files to a place of the page."""
    told = [
        (file.name, mimetypes.guess_type(file.name)[0] or "", base64.b64encode(file.read_bytes()).decode())
        for file in files
    ]
    page.evaluate(BRING, [where, kind, told])


def holds(page: Any, count: int) -> None:
    playwright.expect(page.locator("#question .thumbnail-item")).to_have_count(count, timeout=PATIENCE)
    playwright.expect(page.locator("#question .loader")).to_have_count(0, timeout=PATIENCE)


def ask(page: Any, text: str) -> None:
    """With a short answer, each time: a page that is slow to load sets its settings late."""
    longest_answer(page, 8)
    send(page, text)


def expected(chat: Chat, *turns: Any) -> str:
    return "".join(chat.stream(list(turns), max_new_tokens=8)).strip()


def pictures_of(document: documents.Document) -> list[Image.Image]:
    return [Image.open(io.BytesIO(one.content)).convert("RGB") for one in document.parts]


def either(page: Any, english: str, chinese: str) -> str:
    return {"en": english, "zh": chinese}[page.language]


def told(page: Any, words: str) -> None:
    playwright.expect(page.locator("#media .told")).to_contain_text(words, timeout=PATIENCE)


def test_pictures_are_dropped_and_pasted_several_at_once_and_across_turns(page: Any, chat: Chat) -> None:
    bring(page, "drop", OWL, APPLES)
    holds(page, 2)
    bring(page, "paste", APPLES, OWL)
    holds(page, 4)
    first = part("user", "two cats", OWL, APPLES, APPLES, OWL)
    answer = expected(chat, first)
    ask(page, "two cats")
    answered(page, 1, answer)
    bring(page, "drop", APPLES, where="#conversation .turns")
    holds(page, 1)
    ask(page, "and now?")
    answered(page, 2, expected(chat, first, part("assistant", answer), part("user", "and now?", APPLES)))
    assert page.locator("#conversation .user-row img").count() == 5


def test_a_pdf_becomes_its_pages_and_stays_them(page: Any, chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(pdf())
    pages = pictures_of(documents.rendered(pdf(), 8, None))
    answer = expected(chat, part("user", "two cats", *pages))
    assert answer != expected(chat, part("user", "two cats", *pages[:7])), "the test needs answers that differ"
    bring(page, "drop", tmp_path / "report.pdf")
    holds(page, 1)
    ask(page, "two cats")
    playwright.expect(page.locator("body")).to_contain_text(
        either(page, "report.pdf has 12 pages", "report.pdf 共有 12 页"), timeout=PATIENCE
    )
    answered(page, 1, answer)
    names = page.locator("#conversation .user-row img").evaluate_all("all => all.map((one) => one.alt)")
    name = either(page, "report.pdf, page {}.png", "report.pdf，第 {} 页.png")
    assert names == [name.format(number) for number in (1, 3, 4, 6, 7, 9, 10, 12)]
    page.locator("#conversation [data-action=undo]").last.click()
    holds(page, 8)
    page.click("#question .submit-button")
    answered(page, 1, answer)


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif"])
def test_a_film_becomes_frames(page: Any, chat: Chat, tmp_path: Path, kind: str) -> None:
    clips = {"mp4": film, "webm": lambda: film("libvpx", "webm"), "gif": lambda: moving("GIF")}
    clip = tmp_path / f"clip.{kind}"
    clip.write_bytes(clips[kind]())
    frames = pictures_of(documents.rendered(clip.read_bytes(), 8, None))
    bring(page, "paste" if kind == "mp4" else "drop", clip)
    holds(page, 1)
    ask(page, "two cats")
    answered(page, 1, expected(chat, part("user", "two cats", *frames)))
    hint = either(page, f"sees clip.{kind} as 8 pictures", f"模型把 clip.{kind} 看作 8 张图片")
    playwright.expect(page.locator("body")).to_contain_text(hint, timeout=PATIENCE)
    assert page.locator("#conversation .user-row img").last.get_attribute("alt").startswith(f"clip.{kind}, 0m01s.")


def test_the_camera_takes_a_picture_by_keyboard(page: Any, chat: Chat) -> None:
    camera = page.get_by_role("button", name=either(page, "Camera", "相机"))
    camera.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#media video').videoWidth > 0")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('#media video').srcObject === null")  # it is off again
    camera.click()
    page.wait_for_function("() => document.querySelector('#media video').videoWidth > 0")
    page.get_by_role("button", name=either(page, "Take the picture", "拍照")).click()
    holds(page, 1)
    told(page, either(page, "Added: camera-1.jpg", "已添加：camera-1.jpg"))
    ask(page, "What is this?")
    answered(page)
    size = page.locator("#conversation .user-row img").evaluate("one => [one.naturalWidth, one.naturalHeight]")
    assert min(size) >= 240


def test_what_is_not_taken_is_told_in_a_sentence(page: Any, chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "large.mp4").write_bytes(bytes(33 * 2**20))
    bring(page, "drop", tmp_path / "notes.txt", OWL)
    told(page, either(page, "“notes.txt” can't be looked at", "无法查看“notes.txt”"))
    holds(page, 1)
    page.set_input_files("#question input[type=file]", str(tmp_path / "large.mp4"))
    told(page, either(page, "“large.mp4” has 33 MB; at most 32 MB are taken", "“large.mp4” 有 33 MB，最多接受 32 MB"))
    bring(page, "drop", *[OWL] * 16)
    told(
        page,
        either(
            page,
            "These are 17 files; a conversation has at most 16 pictures",
            "这里有 17 个文件，一个对话最多有 16 张图片",
        ),
    )
    holds(page, 1)
    (tmp_path / "archive.pdf").write_bytes(b"PK\x03\x04 and more")
    bring(page, "drop", tmp_path / "archive.pdf")
    holds(page, 2)
    ask(page, "two cats")
    hint = either(page, "“archive.pdf” can't be looked at", "无法查看“archive.pdf”")
    playwright.expect(page.locator("body")).to_contain_text(hint, timeout=PATIENCE)
    playwright.expect(page.locator("#question textarea")).to_have_value("two cats", timeout=PATIENCE)
    holds(page, 2)
    page.locator("#question .thumbnail-item .delete-button").last.click()
    page.click("#question .submit-button:not([disabled])")
    answered(page, 1, expected(chat, part("user", "two cats", OWL)))


def test_a_conversations_pictures_are_counted_over_its_turns(page: Any, tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(written_pdf(40))
    for number in (1, 2):
        bring(page, "drop", tmp_path / "report.pdf")
        holds(page, 1)
        ask(page, "two cats")
        answered(page, number)
    assert page.locator("#conversation .user-row img").count() == 16
    bring(page, "drop", OWL)
    holds(page, 1)
    ask(page, "two cats")
    hint = either(page, "with these it would have 17", "加上这些会有 17 张")
    playwright.expect(page.locator("body")).to_contain_text(hint, timeout=PATIENCE)
    assert page.locator(ANSWER).count() == 2


def test_it_fits_a_phone_and_speaks_chinese(browser: Any, address: str, tmp_path: Path) -> None:
    page = opened(browser, address, locale="zh-CN")
    page.set_viewport_size({"width": 390, "height": 844})
    (tmp_path / "a-name-of-a-file-that-is-very-long-and-has-no-place-to-break-it-at-all.txt").write_text("words")
    page.wait_for_selector("#media .open[aria-label=相机]")
    wait(page, lambda: page.locator("#question input[type=file]").count() == 1)
    bring(page, "drop", *tmp_path.glob("*.txt"))
    told(page, "请添加图片")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "nothing sticks out"
    for part_of in (".told", ".open"):
        box = page.locator(f"#media {part_of}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.context.close()
