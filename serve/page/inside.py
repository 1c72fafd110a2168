"""The panel that looks inside one answer: its facts, where it came from, what the model saw of its pictures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from serve.inside import Facts, Found, Inside, words
from serve.page import inside_html
from serve.page.words import label, language_of, told
from serve.page.words.errors import in_language
from serve.tickets import Busy
from vlchat.data.formats import Message
from vlchat.errors import VLChatError

CSS = (Path(__file__).parent / "inside.css").read_text(encoding="utf-8")
_STILL_THERE = 0.5  # seconds between two looks at whether a visitor is
Turn = tuple[str, int]  # ids of a conversation and of an answer in it
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
_PRESS = """
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  const { begin, end } = button.dataset;
  trigger('select', begin === undefined ? { whole: true } : { begin: Number(begin), end: Number(end) });
});
"""


@dataclass(frozen=True)
class Told:
    """An answer to look into.

    Attributes:
        messages: the conversation up to the question; pictures as `Chat.stream` takes them.
        adapter: who answered, as of `Options.adapter`.
    """

    messages: Sequence[Message]
    answer: str
    adapter: str | None
    facts: Facts


# What is kept of an answer, for whoever asks; None where there is none of theirs.
Fetch = Callable[[gr.Request, Turn], Told | None]


@dataclass(frozen=True)
class Panel:
    """What the rest of the page may use.

    Attributes:
        refresh: shows the answer that is selected now; for events of the page: `event.then(panel.refresh,
            panel.selected, panel.outputs)`. A change of `selected` does so by itself.
        outputs: its components.
    """

    selected: gr.State
    refresh: Callable[..., Any]
    outputs: list[Any]


def inside_panel(inside: Inside, fetch: Fetch, selected: gr.State) -> Panel:
    """Builds it into the Blocks that is being built, such as in a sidebar.

    Args:
        inside: looks into the models.
        fetch: the answer of a turn. It is called in a thread, and raises VLChatError where the answer can't be shown.
        selected: holds the turn that is looked into, or None.
    """
    return _Builder(inside, fetch, selected).build()


class _Builder:
    def __init__(self, inside: Inside, fetch: Fetch, selected: gr.State) -> None:
        self.inside, self.fetch, self.selected = inside, fetch, selected

    def build(self) -> Panel:
        with gr.Column(elem_id="inside"):
            self.shown = gr.State(None)  # (turn, word) whose map is drawn
            self.facts = gr.HTML(label("inside.nothing"), elem_id="inside-facts", apply_default_css=False)
            self.words = gr.HTML("", elem_id="inside-words", js_on_load=_PRESS, apply_default_css=False)
            self.map = gr.HTML(
                "",
                elem_id="inside-map",
                html_template="<div aria-live='polite'>${value}</div>",
                apply_default_css=False,
            )
            self.check = gr.Button(label("inside.check"), elem_id="inside-check", size="sm", visible=False)
            self.verdict = gr.HTML(
                "", elem_id="inside-verdict", html_template="<div role='status'>${value}</div>", apply_default_css=False
            )
            with gr.Accordion(label("inside.saw"), open=False, elem_id="inside-saw", visible=False) as self.box:
                self.saw = gr.HTML("", elem_id="inside-seen", apply_default_css=False)
        outputs = [self.facts, self.words, self.map, self.check, self.verdict, self.box, self.saw, self.shown]
        mapped = [self.words, self.map, self.check, self.verdict, self.shown]
        drawing = self.words.select(self._draw, self.selected, mapped, trigger_mode="always_last", **_QUIET)
        checking = self.check.click(self._check, self.shown, self.verdict, trigger_mode="once", **_QUIET)
        seeing = self.box.expand(self._see, self.selected, self.saw, trigger_mode="once", **_QUIET)
        self.selected.change(self.refresh, self.selected, outputs, cancels=[drawing, checking, seeing], **_QUIET)
        return Panel(self.selected, self.refresh, outputs)

    async def refresh(self, selected: Turn | None, request: gr.Request) -> list[Any]:
        """Everything of the answer that costs nothing; the rest is drawn when it is asked for."""
        say = _say(request)
        found: Told | None = None
        told, buttons = say("nothing"), ""
        try:
            found = await self._fetched(request, selected)
            if found is not None:
                trust = await asyncio.to_thread(self.inside.trust, found.adapter)
                told = inside_html.facts(found.facts, trust, say)
                buttons = self._buttons(found, None, False, say)
        except VLChatError as error:
            told = _refusal(error, request)
        pictures = found is not None and _has_picture(found.messages) and self.inside.here
        return [
            told, buttons, "", gr.Button(visible=False), "", gr.Accordion(open=False, visible=pictures), "", None,
        ]  # fmt: skip

    async def _draw(
        self, selected: Turn | None, event: gr.EventData, request: gr.Request
    ) -> AsyncIterator[tuple[Any, ...]]:
        say = _say(request)
        hidden = gr.Button(visible=False)
        try:
            found = await self._fetched(request, selected)
            if found is None:
                return
            word = _word(event, found.answer)
            buttons = self._buttons(found, word, True, say)
            yield buttons, inside_html.note(say("drawing")), hidden, "", None
            work = partial(self.inside.explain, selected, found.messages, found.answer, word, found.adapter)
            async with aclosing(self._looked(work)) as looks:
                async for drawn in looks:
                    if drawn is None:
                        yield (gr.skip(),) * 5
                    else:
                        shown = inside_html.evidence_map(drawn, say)
                        yield buttons, shown, gr.Button(visible=True), "", (selected, word)
        except VLChatError as error:
            yield gr.skip(), _refusal(error, request), hidden, "", None

    async def _check(
        self, shown: tuple[Turn, tuple[int, int] | None] | None, request: gr.Request
    ) -> AsyncIterator[Any]:
        if shown is None:
            return
        say = _say(request)
        turn, word = shown
        try:
            found = await self._fetched(request, turn)
            if found is None:
                return
            yield inside_html.note(say("checking"))
            work = partial(self.inside.check, turn, found.messages, found.answer, word, found.adapter)
            async with aclosing(self._looked(work)) as looks:
                async for held in looks:
                    yield gr.skip() if held is None else inside_html.verdict(held, say)
        except VLChatError as error:
            yield _refusal(error, request)

    async def _see(self, selected: Turn | None, request: gr.Request) -> AsyncIterator[Any]:
        say = _say(request)
        try:
            found = await self._fetched(request, selected)
            if found is None:
                return
            work = partial(self.inside.saw, found.messages, found.adapter)
            async with aclosing(self._looked(work)) as looks:
                async for seen in looks:
                    yield gr.skip() if seen is None else inside_html.saw(seen, say)
        except VLChatError as error:
            yield _refusal(error, request)

    async def _looked(self, work: Callable[[threading.Event], Found]) -> AsyncGenerator[Found | None, None]:
        """What `Inside.look` finds, and None now and then before that: Gradio ends an event whose visitor has left
        only when it yields."""
        look = asyncio.ensure_future(self.inside.look(work))
        try:
            while not (await asyncio.wait([look], timeout=_STILL_THERE))[0]:
                yield None
            yield look.result()
        finally:
            look.cancel()

    async def _fetched(self, request: gr.Request, turn: Turn | None) -> Told | None:
        return None if turn is None else await asyncio.to_thread(self.fetch, request, turn)

    def _buttons(self, found: Told, chosen: tuple[int, int] | None, drawn: bool, say: Callable[..., str]) -> str:
        if not self.inside.here:
            return inside_html.note(say("elsewhere"))
        if not _has_picture(found.messages):
            return inside_html.note(say("no_picture"))
        return inside_html.words(words(found.answer, found.facts), chosen, drawn, say)


def _say(request: gr.Request) -> Callable[..., str]:
    language = language_of(request)
    return lambda key, **values: told(f"inside.{key}", language, **values)


def _has_picture(messages: Sequence[Message]) -> bool:
    return any(
        part["type"] != "text" for message in messages if not isinstance(message["content"], str)
        for part in message["content"]
    )  # fmt: skip


def _word(event: gr.EventData, answer: str) -> tuple[int, int] | None:
    """Where the pressed word begins and ends; None for the whole answer. It is a browser that says so."""
    data = event._data if isinstance(event._data, dict) else {}
    begin, end = data.get("begin"), data.get("end")
    if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin < end <= len(answer)):
        return None
    return begin, end


def _refusal(error: VLChatError, request: gr.Request) -> str:
    words = _say(request)("busy") if isinstance(error, Busy) else in_language(str(error), language_of(request))
    return inside_html.note(words)
