"""The chat: its components, and what happens when they are used."""

from __future__ import annotations

import asyncio
import functools
import html
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from serve.page.attached import take_time
from serve.page.beside import pair_of
from serve.page.inside import Panel
from serve.page.listing import listed, listing
from serve.page.media import FILE_TYPES, media
from serve.page.settings import Choices, about, choose_how, choose_who, to_choose
from serve.page.talk import Talk, Visitor
from serve.page.view import conversation_view, examples_shown, forget, shown, to_be_opened
from serve.page.words import label, language_of, told
from serve.page.words.errors import in_language
from serve.store import Absent, Turn
from serve.tickets import Backend
from vlchat.errors import VLChatError

_SUGGESTIONS = ("what", "describe", "count")
# The address names the conversation, so that it can be kept as a bookmark and is there after a reload.
_ADDRESS = """(id) => {
  const url = new URL(location.href);
  if (id) url.searchParams.set('c', id); else url.searchParams.delete('c');
  history.replaceState(history.state, '', url);
  return id;
}"""


@dataclass
class ChatTab:
    """The chat's components, for other parts of the page.

    Attributes:
        talk: what happens to conversations.
        conversation: the id of the open one.
        chatbot: shows it.
        chosen: the settings, in the order of `Choices`.
        picker: the components that say who answers, for `choose_newest`.
    """

    talk: Talk
    conversation: gr.Textbox
    chatbot: gr.HTML
    chosen: list[Any]
    picker: list[Any]

    def choose_newest(self) -> list[Any]:
        """Brings the chat into sight, and the model that was added last to answer there beside the first one."""
        names = self.talk.asking.engine.names
        choices = Choices(beside=names[-1])
        return [gr.Tabs(selected="chat"), *to_choose(names, choices)]


class Sidebar:
    """The list of conversations, its search, and whether they are kept. Built within the current context."""

    def __init__(self, keeps: bool) -> None:
        self.new = gr.Button(label("chat.new"), variant="primary", elem_id="new")
        self.search = gr.Textbox(
            show_label=False, label=label("chat.search"), placeholder=label("chat.search"), elem_id="search",
            max_length=200,
        )  # fmt: skip
        self.listing = listing()
        self.keep = gr.Checkbox(
            True, label=label("chat.keep"), info=label("chat.keep-info"), elem_id="keep", visible=keeps
        )
        self.erase = gr.Button(label("chat.erase"), size="sm", elem_id="erase")
        with gr.Group(visible=False, elem_id="erase-sure") as self.sure:
            gr.Markdown(label("chat.erase-sure"))
            with gr.Row():
                self.yes = gr.Button(label("chat.erase-yes"), variant="stop", size="sm", elem_id="erase-yes")
                self.no = gr.Button(label("chat.erase-no"), size="sm", elem_id="erase-no")


class Conversing:
    """The conversation itself. Built within the current context."""

    def __init__(self, engine: Backend, examples: Path) -> None:
        self.about = gr.HTML(about(engine.description), elem_id="about-model")
        self.examples = examples_of(examples)
        self.chatbot = conversation_view()
        with gr.Column(visible=False, elem_id="beside-answers") as self.pair:
            with gr.Row():
                self.left = gr.HTML("", elem_id="left-answer", container=True)
                self.right = gr.HTML("", elem_id="right-answer", container=True)
            gr.Markdown(label("chat.which"))
            with gr.Row():
                self.votes = [
                    gr.Button(label(f"chat.{side}"), size="sm", elem_id=f"vote-{side}")
                    for side in ("left", "same", "right")
                ]
        with gr.Row(elem_id="suggestions") as self.suggesting:
            self.suggestions = [
                gr.Button(label(f"chat.suggest-{name}"), size="sm", elem_classes="suggestion") for name in _SUGGESTIONS
            ]
        with gr.Row(elem_id="asking"):
            self.question = gr.MultimodalTextbox(
                file_types=FILE_TYPES,
                file_count="multiple",
                sources=["upload"],
                placeholder=label("chat.placeholder"),
                label=label("chat.question"),
                show_label=False,
                autofocus=True,
                max_plain_text_length=100_000,  # a long text stays text; Gradio would make it a file
                elem_id="question",
            )
            media()
        self.who, first = choose_who(engine.names)
        with gr.Accordion(label("chat.settings"), open=False, elem_id="settings"):
            self.chosen = [*first, *choose_how()]


def chat_tab(
    talk: Talk, sidebar: Sidebar, conversing: Conversing, page: gr.Blocks, panel: gr.Sidebar, inside: Panel
) -> ChatTab:
    """Wires the events of both parts; within the page's context.

    Args:
        panel: holds `inside`, and opens when an answer is to be looked into.
    """
    side, here = sidebar, conversing
    conversation = gr.Textbox(visible="hidden", elem_id="conversation-id", label="id")
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    quick: dict[str, Any] = {**quiet, "queue": False}
    slow: dict[str, Any] = {**quiet, "concurrency_limit": None}
    busy: dict[str, Any] = {"interactive": False, "submit_btn": False, "stop_btn": True}
    idle: dict[str, Any] = {"interactive": True, "submit_btn": True, "stop_btn": False}
    whole = [
        here.chatbot, side.listing, here.pair, here.left, here.right, here.suggesting, here.question
    ]  # fmt: skip

    def view(who: Visitor, there: str, turns: Sequence[Mapping[str, Any]] | None = None, busy: bool = False) -> Any:
        if turns is None:
            turns = who.shown(who.turns(there))
        examples = [] if turns else examples_shown(here.examples)
        deep = talk.inside.here
        return shown(there, turns, who.language, examples=examples, busy=busy, inside=deep)

    def at_rest(who: Visitor, there: str, turns: Sequence[Turn], words: str) -> list[Any]:
        """What the page shows of a conversation at rest, for `whole`."""
        pair = pair_of(turns[-1], who.language) if turns else None
        left, right = pair or ("", "")
        return [
            view(who, there, who.shown(turns[:-1] if pair else turns)),
            listed(who.store.conversations(who.owner, words), there, who.language, words),
            gr.Column(visible=bool(pair)),
            left,
            right,
            gr.Row(visible=not turns),
            gr.MultimodalTextbox(**idle),
        ]  # fmt: skip

    # A question goes in, in whichever way; its answer comes; the page is at rest again.

    async def ask(request: gr.Request, message: dict[str, Any], there: str, *values: Any) -> AsyncIterator[Any]:
        who = talk.visitor(request)
        waits = take_time(message)
        if waits:
            turns = [*who.shown(who.turns(there)), to_be_opened(waits, who.language)]
            yield view(who, there, turns, busy=True), there, gr.MultimodalTextbox(interactive=False), gr.skip()
        try:
            there, sentences = await talk.ask(who, there, Choices.of(values), message)
        except VLChatError as error:
            gr.Warning(html.escape(in_language(str(error), who.language)))
            yield view(who, there) if waits else gr.skip(), there, gr.MultimodalTextbox(**idle), gr.skip()
            return
        for sentence in sentences:
            gr.Info(html.escape(sentence), duration=20)
        yield view(who, there, busy=True), there, gr.MultimodalTextbox(None, **busy), gr.Row(visible=False)

    async def example(data: gr.EventData, request: gr.Request, there: str, *values: Any) -> AsyncIterator[Any]:
        picture, question = here.examples[_told(data, "index")]
        async for one in ask(request, {"text": question, "files": [str(picture)]}, there, *values):
            yield one

    @sentences
    def again(there: str, request: gr.Request) -> Any:
        who = talk.visitor(request)
        talk.again(who, there)
        return view(who, there, busy=True), gr.MultimodalTextbox(**busy)

    @sentences
    def edit(there: str, data: gr.EventData, request: gr.Request) -> Any:
        who = talk.visitor(request)
        talk.edit(who, there, _told(data, "turn"), str(data._data.get("text", "")))
        return view(who, there, busy=True), gr.MultimodalTextbox(**busy)

    async def answer(request: gr.Request, there: str, *values: Any) -> AsyncIterator[Any]:
        who = talk.visitor(request)
        if not there:
            return
        try:
            choices = Choices.of(values)
            async with aclosing(talk.answers(who, there, choices, request)) as answers:
                first = True
                async for turns, pair in answers:
                    # Once: an update has Gradio make the component anew, which takes longer than all else here.
                    beside = gr.Column(visible=bool(pair)) if first else None
                    first = False
                    yield view(who, there, turns, busy=True), beside, *(pair or ("", ""))
        except VLChatError as error:
            gr.Warning(html.escape(in_language(str(error), who.language)))

    async def settle(there: str, words: str, request: gr.Request) -> Any:
        who = talk.visitor(request)
        try:
            turns = await talk.settled(who, there)
        except Absent:  # deleted, such as in another tab
            there, turns = "", []
        return [there, *await asyncio.to_thread(at_rest, who, there, turns, words)]

    @sentences
    def take_back(there: str, words: str, request: gr.Request) -> Any:
        who = talk.visitor(request)
        message = talk.undo(who, there)
        return [*at_rest(who, there, who.turns(there), words)[:-1], gr.MultimodalTextbox(message, **idle)]

    asked = [here.chatbot, conversation, here.question, here.suggesting]
    begun = [
        here.question.submit(ask, [here.question, conversation, *here.chosen], asked, **slow),
        here.chatbot.example_select(example, [conversation, *here.chosen], asked, **slow),
        here.chatbot.retry(again, conversation, [here.chatbot, here.question], **quick),
        here.chatbot.edit(edit, conversation, [here.chatbot, here.question], **quick),
    ]
    streams = []
    for event in begun:
        event.then(None, conversation, None, js=_ADDRESS)  # whoever reloads the page meanwhile finds it again
        stream = event.then(
            answer, [conversation, *here.chosen], [here.chatbot, here.pair, here.left, here.right],
            postprocess=False, **slow,
        )  # fmt: skip
        stream.then(settle, [conversation, side.search], [conversation, *whole], **quick).then(
            None, conversation, None, js=_ADDRESS
        )
        streams.append(stream)
    here.question.stop(None, None, None, cancels=streams, api_visibility="private")
    here.chatbot.undo(take_back, [conversation, side.search], whole, **quick)
    for button in here.suggestions:
        button.click(lambda message, words: {**message, "text": words}, [here.question, button], here.question, **quick)

    # The list.

    def opened(there: str, words: str, request: gr.Request) -> Any:
        who = talk.visitor(request)
        try:
            found = who.store.conversation(who.owner, there) if there else None
        except VLChatError:
            found = None  # deleted, or somebody else's
        there = found.id if found else ""
        values = settings_of(talk.settings(who, found)) if found else [gr.skip()] * (2 + len(here.chosen))
        return [there, *values, *at_rest(who, there, who.turns(there), words)]

    def settings_of(choices: Choices) -> list[Any]:
        chosen = [*to_choose(talk.asking.engine.names, choices), *choices.values[2:]]
        return [*chosen, described(choices.adapter)]

    def described(adapter: str) -> str:
        return about(talk.asking.engine.described(adapter or None))

    def load(request: gr.Request) -> Any:
        keeps = talk.disk is not None and talk.disk.keeps(talk.visitor(request).owner)
        there, *shown = opened(request.query_params.get("c", ""), "", request)
        values = [] if there else settings_of(Choices())
        return [keeps, there, *values, *shown[len(values) :]]

    def act(data: gr.EventData, there: str, words: str, request: gr.Request) -> Any:
        who, told_of = talk.visitor(request), data._data or {}
        action, one = told_of.get("action"), str(told_of.get("id", ""))
        try:
            if action == "open":
                return opened(one, words, request)
            if action == "rename":
                who.store.rename(who.owner, one, str(told_of.get("title", "")))
            elif action == "pin":
                pinned = who.store.conversation(who.owner, one).pinned
                who.store.pin(who.owner, one, not pinned)
            elif action == "delete":
                who.store.delete(who.owner, one)
                forget(who.owner)
                if one == there:
                    return opened("", words, request)
        except VLChatError as error:
            gr.Warning(html.escape(in_language(str(error), who.language)))
        after = [gr.skip()] * len(opening)
        after[opening.index(side.listing)] = search(there, words, request)
        return after

    @sentences
    def search(there: str, words: str, request: gr.Request) -> Any:
        who = talk.visitor(request)
        return listed(who.store.conversations(who.owner, words), there, who.language, words)

    @sentences
    def keep(whether: bool, request: gr.Request) -> Any:
        who = talk.visitor(request)
        if talk.disk is not None and who.owner:
            talk.disk.keep(who.owner, whether)
        return opened("", "", request)

    @sentences
    def erase(request: gr.Request) -> Any:
        who = talk.visitor(request)
        for store in filter(None, (talk.disk, talk.memory)):
            store.erase(who.owner)
        forget(who.owner)
        gr.Info(told("chat.erased", who.language))
        return [gr.Group(visible=False), *opened("", "", request)]

    opening = [conversation, here.who, *here.chosen, here.about, *whole]
    for event in (
        page.load(load, None, [side.keep, *opening], **quick),
        side.new.click(opened, [gr.State(""), side.search], opening, cancels=streams, **quick),
        side.listing.click(act, [conversation, side.search], opening, cancels=streams, **quick),
        side.keep.input(keep, side.keep, opening, cancels=streams, **quick),
        side.yes.click(erase, None, [side.sure, *opening], cancels=streams, **quick),
    ):
        event.then(None, conversation, None, js=_ADDRESS)
    here.chosen[0].input(described, here.chosen[0], here.about, **quick)
    side.search.change(search, [conversation, side.search], side.listing, trigger_mode="always_last", **quick)
    side.erase.click(lambda: gr.Group(visible=True), None, side.sure, **quick)
    side.no.click(lambda: gr.Group(visible=False), None, side.sure, **quick)

    # What people think of answers.

    def look(there: str, data: gr.EventData) -> Any:
        return (there, _told(data, "turn")), gr.Sidebar(open=True)

    @sentences
    def like(there: str, data: gr.EventData, request: gr.Request) -> Any:
        who, turn = talk.visitor(request), _told(data, "turn")
        correction = next((one.correction for one in who.turns(there) if one.id == turn), "")
        talk.rate(who, turn, _told(data, "rating"), correction)
        return view(who, there)

    @sentences
    def correct(there: str, data: gr.EventData, request: gr.Request) -> Any:
        who = talk.visitor(request)
        talk.rate(who, _told(data, "turn"), -1, str(data._data.get("text", "")))
        gr.Info(told("chat.thanks", who.language))
        return view(who, there)

    @sentences
    def vote(there: str, words: str, chosen: str, request: gr.Request) -> Any:
        who = talk.visitor(request)
        talk.vote(who, there, chosen)
        return at_rest(who, there, who.turns(there), words)

    here.chatbot.select(look, conversation, [inside.selected, panel], **quick).then(
        inside.refresh, inside.selected, inside.outputs, **quiet
    )
    here.chatbot.like(like, conversation, here.chatbot, **quick)
    here.chatbot.submit(correct, conversation, here.chatbot, **quick)
    for button, chosen in zip(here.votes, ("left", "same", "right"), strict=True):
        button.click(vote, [conversation, side.search, gr.State(chosen)], whole, **quick)
    return ChatTab(talk, conversation, here.chatbot, here.chosen, [here.who, *here.chosen[:2]])


def sentences(handler: Callable[..., Any]) -> Callable[..., Any]:
    """An event's handler whose errors are told to whoever caused them, and change nothing on the page."""

    @functools.wraps(handler)
    def told_of(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except VLChatError as error:
            request = next((one for one in arguments if isinstance(one, gr.Request)), None)
            words = in_language(str(error), language_of(request))
            raise gr.Error(html.escape(words), print_exception=False) from None

    return told_of


def _told(data: gr.EventData, name: str) -> int:
    """A number that the browser tells with an event; 0 where it tells none."""
    found = (data._data or {}).get(name)
    return found if isinstance(found, int) else 0


def examples_of(folder: Path) -> list[tuple[Path, str]]:
    """Its PNG files, each with the question of the `.txt` file of its name."""
    rows = []
    for picture in sorted(folder.glob("*.png")):
        beside = picture.with_suffix(".txt")
        question = beside.read_text(encoding="utf-8").strip() if beside.exists() else "What is in this picture?"
        rows.append((picture, question))
    return rows
