"""The chat page: `build_app` makes it from a `Chat` or a `Backend`, `run` serves it."""

from __future__ import annotations

import asyncio
import html
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # some of it is decided while gradio is imported
import gradio as gr  # noqa: E402
from gradio.utils import get_upload_folder  # noqa: E402

import vlchat  # noqa: E402
from serve.api import Api  # noqa: E402
from serve.decoding import Decoder  # noqa: E402
from serve.engine import Engine  # noqa: E402
from serve.fetching import Hosts  # noqa: E402
from serve.messages import conversation, escaped, refusal  # noqa: E402
from serve.theme import CSS, theme  # noqa: E402
from serve.tickets import Backend, End, Options, Ticket  # noqa: E402
from vlchat.chat import Chat  # noqa: E402
from vlchat.errors import VLChatError  # noqa: E402

EXAMPLES = Path(vlchat.__file__).parent / "assets" / "examples"
WELCOME = "<div id='welcome'><b>Ask about a picture</b><br>Drop one below, or start from an example.</div>"
PLACEHOLDER = "Ask about pictures"
UPLOAD_LIMIT = "32mb"  # the size at which vlchat.images refuses a file
LONGEST_ANSWER = 1024
WAITING_LIMIT = 64


class Page(gr.ChatInterface):
    """Gradio's chat, mended: text is shown as text, editing keeps the pictures, the hint in the empty box comes back.

    Gradio's Chatbot puts every text into the page as HTML, with its Markdown off, too. So text is escaped on its way
    into the conversation and unescaped on its way out: to the model (`serve.messages`), on undo, retry and edit.

    Attributes:
        engine: answers; it ends with the page.
        decoder: opens pictures; it ends with the page.
    """

    engine: Backend
    decoder: Decoder

    def close(self, *args: Any, **kwargs: Any) -> None:
        super().close(*args, **kwargs)
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


def build_app(chat: Chat | Backend, *, examples: Path = EXAMPLES) -> Page:
    """The page for one model or backend; not yet listening, see `launch_options`.

    Args:
        chat: answers; a model by an engine of its own, see `serve.engine.Engine`.
        examples: a folder of pictures to try, each with its question in a `.txt` file of the same name.
    """
    engine: Backend = Engine(chat, waiting=WAITING_LIMIT) if isinstance(chat, Chat) else chat
    decoder = Decoder()
    page = Page(
        _answerer(engine, decoder, examples),
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


def _answerer(engine: Backend, decoder: Decoder, examples: Path) -> Callable[..., AsyncIterator[str | dict[str, Any]]]:
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

        def begin() -> None:
            messages = conversation(message, history, system, [Path(get_upload_folder()), examples], decoder)
            options = Options(
                int(max_new_tokens),
                float(temperature),
                adapter=adapter or None,
                scope=str(request.session_hash) if request is not None else "",
            )
            begun.append(engine.submit(messages, options, lambda one: loop.call_soon_threadsafe(came.put_nowait, one)))
            if left.is_set():  # meanwhile
                begun[0].cancel()

        try:
            await decoder.apart(begin)
            text = ""
            while not isinstance(piece := await came.get(), End):
                text += piece
                yield text
            if piece.error is not None:
                raise piece.error
            if not text:
                yield refusal("The model ended its answer before the first word. Try other words or another setting.")
        except VLChatError as error:
            yield refusal(str(error))
        finally:
            left.set()
            for ticket in begun:
                ticket.cancel()

    return answer


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


def launch_options() -> dict[str, Any]:
    """What `launch` needs for this page: its looks, its limits, and nothing that leaves this machine."""
    return {
        "theme": theme(),
        "css": CSS,
        "footer_links": [],
        "share": False,
        "show_error": False,
        "max_file_size": UPLOAD_LIMIT,
        "ssr_mode": False,
        "quiet": True,
    }


def launch(
    chat: Chat | Backend, *, host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False,
    hosts: Hosts | None = None,
) -> Page:  # fmt: skip
    """Begins to serve the page, in a thread of its own; `close()` ends it.

    `hosts` are those from which a program's pictures may be fetched; none by default.

    Raises:
        VLChatError: the address cannot be listened on.
    """
    if isinstance(chat, Chat):
        chat.warm_up()
    app = build_app(chat)
    app.decoder.warm_up()
    app.queue(max_size=None)  # the engine's line is bounded
    options = launch_options()
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own page whether it is up, not through a proxy
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost", host]))
    try:
        app.launch(server_name=host, server_port=port, inbrowser=open_browser, prevent_thread_lock=True, **options)
        api = Api(app.engine, app.decoder, hosts or Hosts())
        app.app.router.routes[:0] = api.routes  # before Gradio's, which take every name at the root
    except OSError as error:
        raise VLChatError(f"Cannot listen on {host}, port {port}. Choose another with --host and --port.") from error
    return app


def run(
    chat: Chat | Backend, *, host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False,
    hosts: Hosts | None = None,
) -> int:  # fmt: skip
    """Serves the page until Ctrl-C; see `launch`."""
    app = launch(chat, host=host, port=port, open_browser=open_browser, hosts=hosts)
    print(f"{chat.description.get('name', 'The model')} is ready: http://{host}:{port} (Ctrl-C ends)", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("Stopping.", flush=True)
    finally:
        app.close(verbose=False)
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
