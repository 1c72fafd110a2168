"""The chat page: `build_app` makes it from a `Chat` or a `Backend`, `run` serves it."""

from __future__ import annotations

import asyncio
import html
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # some of it is decided while gradio is imported
import gradio as gr  # noqa: E402
from gradio.utils import get_upload_folder  # noqa: E402
from starlette.applications import Starlette  # noqa: E402

import vlchat  # noqa: E402
from serve import gradio_mended  # noqa: E402
from serve.api import Api  # noqa: E402
from serve.decoding import Decoder  # noqa: E402
from serve.engine import Engine  # noqa: E402
from serve.fetching import Hosts  # noqa: E402
from serve.gradio_routes import MOST_SESSIONS, MOST_WAITING, GradioRoutes  # noqa: E402
from serve.guard import failure  # noqa: E402
from serve.logs import Line, Log  # noqa: E402
from serve.messages import conversation, escaped, in_line, refusal  # noqa: E402
from serve.policy import Policy  # noqa: E402
from serve.rates import Rates  # noqa: E402
from serve.requests import told  # noqa: E402
from serve.schema import complete_routes  # noqa: E402
from serve.server import Server  # noqa: E402
from serve.theme import CSS, theme  # noqa: E402
from serve.tickets import Backend, Closed, End, Options, Ticket  # noqa: E402
from serve.visits import Visit  # noqa: E402
from vlchat.chat import Chat  # noqa: E402
from vlchat.errors import VLChatError  # noqa: E402

gradio_mended.mend()
EXAMPLES = Path(vlchat.__file__).parent / "assets" / "examples"
WELCOME = "<div id='welcome'><b>Ask about a picture</b><br>Drop one below, or start from an example.</div>"
PLACEHOLDER = "Ask about pictures"
UPLOAD_LIMIT = "32mb"  # the size at which vlchat.images refuses a file
LONGEST_ANSWER = 1024
WAITING_LIMIT = 64
_LOOK = 0.5  # seconds between two looks at who is before one in the line


class Page(gr.ChatInterface):
    """Gradio's chat, mended: text is shown as text, editing keeps the pictures, the hint in the empty box comes back.

    Gradio's Chatbot puts every text into the page as HTML, with its Markdown off, too. So text is escaped on its way
    into the conversation and unescaped on its way out: to the model (`serve.messages`), on undo, retry and edit.

    Attributes:
        engine: answers; it ends with the page.
        decoder: opens pictures; it ends with the page.
        listening: takes questions, once the page is launched.
    """

    engine: Backend
    decoder: Decoder
    listening: Server | None = None

    def close(self, *args: Any, **kwargs: Any) -> None:
        super().close(*args, **kwargs)
        if self.listening is not None:
            self.listening.close()
        self.decoder.close()
        self.engine.close()

    def _message_as_message_dict(self, message: Any, role: Any) -> list[Any]:
        turns = [escaped(turn) for turn in super()._message_as_message_dict(message, role)]
        # Words first (the style sheet puts pictures on top): the page's script for editing expects them there.
        return [{**turn, "content": sorted(turn["content"], key=lambda p: not isinstance(p, str))} for turn in turns]

    def _pop_last_user_message(self, history: list[Any]) -> tuple[list[Any], Any]:
        popped: tuple[list[Any], Any] = super()._pop_last_user_message(history)
        kept, message = popped
        return kept, {**message, "text": html.unescape(message["text"])}

    def _edit_message(self, history: list[Any], edit_data: gr.EditData) -> tuple[list[Any], list[Any], Any]:
        edited: tuple[list[Any], list[Any], Any] = super()._edit_message(history, edit_data)
        kept, state, text = edited
        files = [part["file"] for part in history[len(kept)]["content"] if part["type"] == "file"]
        return kept, state, {"text": html.unescape(text), "files": files}

    def _render_footer(self) -> None:
        for choice in self.additional_inputs:
            if isinstance(choice, gr.Dropdown):  # chosen for each message: beside the question, not among the settings
                choice.render()
        super()._render_footer()

    def _clear_and_save_textbox(self, message: Any) -> tuple[Any, Any]:
        return gr.MultimodalTextbox("", interactive=False, placeholder=PLACEHOLDER), message


def build_app(
    chat: Chat | Backend, *, examples: Path = EXAMPLES, rates: Rates | None = None, log: Log | None = None
) -> Page:
    """The page for one model or backend; not yet listening, see `launch`.

    Args:
        chat: answers; a model by an engine of its own, see `serve.engine.Engine`.
        examples: a folder of pictures to try, each with its question in a `.txt` file of the same name.
        rates: what a visitor may ask; all they like, by default.
        log: where it is told what they asked.
    """
    engine: Backend = Engine(chat, waiting=WAITING_LIMIT) if isinstance(chat, Chat) else chat
    decoder = Decoder()
    page = Page(
        _answerer(engine, decoder, examples, rates or Rates(), log or Log()),
        multimodal=True,
        editable=True,
        title="vlchat",
        description=about(engine.description),
        chatbot=gr.Chatbot(
            show_label=False,
            height=None,
            min_height=320,
            scale=1,
            render_markdown=False,
            buttons=["copy"],
            feedback_options=None,
            allow_file_downloads=False,
            placeholder=WELCOME,
            elem_id="conversation",
        ),
        textbox=gr.MultimodalTextbox(
            file_types=["image"],
            file_count="multiple",
            sources=["upload"],
            placeholder=PLACEHOLDER,
            show_label=False,
            autofocus=True,
            stop_btn=True,
            max_plain_text_length=100_000,  # a long text stays text; Gradio would make it a file
            elem_id="question",
        ),
        additional_inputs=[
            gr.Textbox("", label="System prompt", info="What the model should know or do in every answer.", lines=2),
            gr.Slider(0, 1.5, 0, step=0.1, label="Temperature", info="0: always the likeliest answer."),
            gr.Slider(1, LONGEST_ANSWER, 256, step=1, label="Longest answer", info="In tokens, each a short word."),
            *_choice(engine.names),
        ],
        additional_inputs_accordion=gr.Accordion("Settings", open=False),
        examples=_examples(examples) or None,
        concurrency_limit=None,  # who is answered when is the engine's matter
        flagging_mode="never",
        analytics_enabled=False,
        delete_cache=(3600, 86400),
        api_name="chat",
    )
    page.engine, page.decoder = engine, decoder
    return page


def _answerer(
    engine: Backend, decoder: Decoder, examples: Path, rates: Rates, log: Log
) -> Callable[..., AsyncIterator[str | dict[str, Any]]]:
    async def answer(
        message: dict[str, Any],
        history: list[dict[str, Any]],
        system: str,
        temperature: float,
        max_new_tokens: int,
        adapter: str = "",
        request: gr.Request | None = None,
    ) -> AsyncIterator[str | dict[str, Any]]:
        # Async, so that Stop reaches `finally` at once and not when the next word is ready.
        came: asyncio.Queue[str | End] = asyncio.Queue()
        loop, left, begun = asyncio.get_running_loop(), threading.Event(), list[Ticket]()
        visitor = request.state if request is not None else None
        tenant, caller = getattr(visitor, "tenant", ""), getattr(visitor, "caller", "")
        line = Line(log, route="page", key=tenant or None)
        visit: Visit | None = None

        def deliver(one: str | End) -> None:
            loop.call_soon_threadsafe(take, one)

        def take(one: str | End) -> None:
            assert visit is not None
            visit.came(one)
            came.put_nowait(one)

        def begin() -> None:
            messages = conversation(message, history, system, [Path(get_upload_folder()), examples], decoder)
            options = Options(
                int(max_new_tokens),
                float(temperature),
                adapter=adapter or None,
                scope=f"page/{tenant}/{request.session_hash}" if request is not None else "",
            )
            begun.append(engine.submit(messages, options, deliver))
            if left.is_set():  # meanwhile
                begun[0].cancel()

        try:
            line.words(str(message.get("text") or ""))
            visit = Visit(rates, caller, line)
            await decoder.apart(begin)
            text = ""
            while not isinstance(piece := await _next(came, None if text else _LOOK), End):
                if piece is None:
                    if place := begun[0].place:
                        yield in_line(place)
                    continue
                text += piece
                yield text
            if piece.reason == "cancelled":
                raise Closed
            if piece.error is not None:
                raise piece.error
            if not text:
                yield refusal("The model ended its answer before the first word. Try other words or another setting.")
        except VLChatError as error:
            if not begun:
                engine.metrics.refused(told(error)[1]["error"]["code"])
            line.fields.setdefault("end", "refused")
            yield refusal(str(error))
        finally:
            left.set()
            for ticket in begun:
                ticket.cancel()
            if visit is not None and not begun:
                visit.refused()
            line.done()

    return answer


async def _next(came: asyncio.Queue[str | End], seconds: float | None) -> str | End | None:
    """What comes next; None where nothing did for so long."""
    try:
        async with asyncio.timeout(seconds):
            return await came.get()
    except TimeoutError:
        return None


def _choice(names: Sequence[str]) -> list[gr.Dropdown]:
    """Who answers the next question, where there is a choice."""
    first, *others = names
    return [gr.Dropdown([(first, ""), *others], value="", label="Who answers next")] if others else []


def about(description: Mapping[str, Any]) -> str:
    """One line for people, as HTML: which model answers, how large it is, what it was trained on."""
    facts = [f"<b>{html.escape(str(description.get('name') or 'A model without a name'))}</b>"]
    if parameters := description.get("parameters"):
        facts.append(f"{_count(int(parameters))} parameters")
    if trained_on := description.get("trained_on"):
        facts.append(f"trained on {html.escape(str(trained_on))}")
    return f"<div id='about'>{' · '.join(facts)}</div>"


def mount_options() -> dict[str, Any]:
    """What `gr.mount_gradio_app` needs for this page: its looks, its limits, and nothing that leaves this machine."""
    return {
        "theme": theme(),
        "css": CSS,
        "footer_links": [],
        "show_error": False,
        "max_file_size": UPLOAD_LIMIT,
        "ssr_mode": False,
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
    }


def launch(
    chat: Chat | Backend, *, host: str = "127.0.0.1", port: int = 7860, hosts: Hosts | None = None,
    policy: Policy | None = None,
) -> Page:  # fmt: skip
    """Begins to serve the page, in a thread of its own; `close()` ends it.

    `hosts` are those from which a program's pictures may be fetched; none by default.

    Raises:
        VLChatError: the address cannot be listened on.
    """
    if isinstance(chat, Chat):
        chat.warm_up()
    policy = policy or Policy()
    rates = Rates(policy.questions, policy.tokens)
    log = Log(policy.log_format, policy.log_prompts)
    page = build_app(chat, rates=rates, log=log)
    page.decoder.warm_up()
    page.queue(max_size=MOST_WAITING)
    page.state_session_capacity = MOST_SESSIONS
    api = Api(page.engine, page.decoder, rates, hosts or Hosts())
    app = Starlette(routes=complete_routes(api.routes, list(api.models)), exception_handlers={Exception: failure})
    gr.mount_gradio_app(app, page, "/", **mount_options())
    mounted: Any = app.routes[-1]
    page.app = page.server_app = mounted.app
    mounted.app = GradioRoutes(page.app)
    page.listening = Server(app, policy, log, host, port, page.engine.metrics)
    page.listening.start()
    return page


def run(
    chat: Chat | Backend, *, host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False,
    hosts: Hosts | None = None, policy: Policy | None = None,
) -> int:  # fmt: skip
    """Serves the page until SIGTERM or Ctrl-C, lets running answers end, and returns; see `launch`.

    A second signal ends the process at once.
    """
    policy = policy or Policy()
    app = launch(chat, host=host, port=port, hosts=hosts, policy=policy)
    address = f"http://{host}:{port}"
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(f"{chat.description.get('name', 'The model')} is ready: {address} (Ctrl-C ends)", flush=True)
        if not policy.keys and host not in ("127.0.0.1", "localhost"):
            print("Whoever reaches this port may ask; --api-keys FILE asks them for a key.", file=sys.stderr)
        if open_browser:
            webbrowser.open(address)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    try:
        print("Stopping.", flush=True)
        if app.listening is not None:
            app.listening.drain(app.engine, policy.grace)
        app.close(verbose=False)
    except KeyboardInterrupt:
        print("Stopped.", flush=True)
        os._exit(130)  # no thread is waited for
    return 0


def _examples(folder: Path) -> list[list[Any]]:
    rows = []
    for picture in sorted(folder.glob("*.png")):
        beside = picture.with_suffix(".txt")
        question = beside.read_text(encoding="utf-8").strip() if beside.exists() else "What is in this picture?"
        rows.append([{"text": question, "files": [str(picture)]}])
    return rows


def _count(parameters: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= size:
            return f"{parameters / size:.1f}{letter}".replace(".0", "")
    return str(parameters)
