"""The chat page: `build_app` makes it from a `Chat` or a `Backend`, `run` serves it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # some of it is decided while gradio is imported
import gradio as gr  # noqa: E402
from starlette.applications import Starlette  # noqa: E402

import vlchat  # noqa: E402
from serve import gradio_mended  # noqa: E402
from serve.api import Api  # noqa: E402
from serve.assets import assets  # noqa: E402
from serve.decoding import Decoder  # noqa: E402
from serve.engine import Engine  # noqa: E402
from serve.fetching import Hosts  # noqa: E402
from serve.gradio_routes import MOST_SESSIONS, MOST_WAITING, GradioRoutes  # noqa: E402
from serve.guard import failure  # noqa: E402
from serve.logs import Log  # noqa: E402
from serve.page.asking import Asking  # noqa: E402
from serve.page.chat_tab import Conversing, Sidebar, chat_tab  # noqa: E402
from serve.page.feedback import feedback_tab  # noqa: E402
from serve.page.inside import CSS as INSIDE_CSS  # noqa: E402
from serve.page.inside import inside_panel  # noqa: E402
from serve.page.programs import programs  # noqa: E402
from serve.page.room import CSS as ROOM_CSS  # noqa: E402
from serve.page.room import training_room  # noqa: E402
from serve.page.saving import saving  # noqa: E402
from serve.page.talk import Talk  # noqa: E402
from serve.page.words import label, translations  # noqa: E402
from serve.policy import Policy  # noqa: E402
from serve.rates import Rates  # noqa: E402
from serve.schema import complete_routes  # noqa: E402
from serve.server import Server  # noqa: E402
from serve.several import Several  # noqa: E402
from serve.store import Store  # noqa: E402
from serve.theme import CSS, theme  # noqa: E402
from serve.tickets import Backend  # noqa: E402
from serve.trainings import Trainings  # noqa: E402
from vlchat.chat import Chat  # noqa: E402

gradio_mended.mend()
EXAMPLES = Path(vlchat.__file__).parent / "assets" / "examples"
UPLOAD_LIMIT = "32mb"  # the size at which vlchat.images refuses a file
WAITING_LIMIT = 64
QUEUE_LOOK = 0.02  # seconds


class Page(gr.Blocks):
    """The page.

    Attributes:
        engine: answers; it ends with the page.
        decoder: opens pictures; it ends with the page.
        talk: people's conversations; they are written down when it ends.
        listening: takes questions, once the page is launched.
        trainings: what the training room does, if there is one; they end with the page.
    """

    engine: Several
    decoder: Decoder
    talk: Talk
    listening: Server | None = None
    trainings: Trainings | None = None

    def close(self, *args: Any, **kwargs: Any) -> None:
        super().close(*args, **kwargs)
        if self.listening is not None:
            self.listening.close()
        if self.trainings is not None:
            self.trainings.close()
        self.decoder.close()
        self.engine.close()
        self.talk.close()


def build_app(
    chat: Chat | Backend, *, examples: Path = EXAMPLES, rates: Rates | None = None, log: Log | None = None,
    history: Path | None = None, trainings: Trainings | None = None,
) -> Page:  # fmt: skip
    """The page for one model or backend; not yet listening, see `launch`.

    Args:
        chat: answers; a model by an engine of its own, see `serve.engine.Engine`.
        examples: a folder of pictures to try, each with its question in a `.txt` file of the same name.
        rates: what a visitor may ask; all they like, by default.
        log: where it is told what they asked.
        history: the folder where conversations are kept; None keeps none beyond a visit.
        trainings: what the training room does; None is none. They end with the page.

    Raises:
        VLChatError: that folder can't be used.
    """
    engine = Several(Engine(chat, waiting=WAITING_LIMIT) if isinstance(chat, Chat) else chat)
    asking = Asking(engine, Decoder(), rates or Rates(), log or Log())
    talk = Talk(asking, None if history is None else Store(history), examples)
    with Page(title="vlchat", analytics_enabled=False, delete_cache=(600, 3600), fill_height=True) as page:
        page.engine, page.decoder, page.talk = engine, asking.decoder, talk
        with gr.Sidebar(elem_id="sidebar", open=False):
            sidebar = Sidebar(keeps=history is not None)
        gr.HTML("<h1>vlchat</h1>", elem_id="title")
        page.trainings = trainings
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(label("chat.tab"), id="chat", elem_id="chat-tab", scale=1):
                conversing = Conversing(engine, examples)
            if trainings is not None:
                with gr.Tab(label("room.tab"), id="room", elem_id="room-tab"):
                    room = training_room(trainings, lambda name, run: engine.add(name, Engine(Chat.load(run))))
            with gr.Tab(label("feedback.tab"), elem_id="feedback-tab") as feedback:
                feedback_tab(talk, feedback)
        with gr.Sidebar(elem_id="inside-sidebar", open=False, position="right", width=380) as panel:
            inside = inside_panel(talk.inside, talk.told, gr.State(None))
        talking = chat_tab(talk, sidebar, conversing, page, panel, inside)
        if trainings is not None:
            room.added.success(talking.choose_newest, None, [tabs, *talking.picker], api_visibility="private")
        programs(asking, talk.roots, conversing)
    return page


def mount_options() -> dict[str, Any]:
    """What `gr.mount_gradio_app` needs for this page: its looks, its limits, and nothing that leaves this machine."""
    return {
        "theme": theme(),
        "css": "\n".join([CSS, INSIDE_CSS, ROOM_CSS]),
        "footer_links": [],
        "show_error": False,
        "max_file_size": UPLOAD_LIMIT,
        "ssr_mode": False,
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "i18n": translations(),
    }


def launch(
    chat: Chat | Backend, *, host: str = "127.0.0.1", port: int = 7860, hosts: Hosts | None = None,
    policy: Policy | None = None, trainings: Trainings | None = None,
) -> Page:  # fmt: skip
    """Begins to serve the page, in a thread of its own; `close()` ends it.

    `hosts` are those from which a program's pictures may be fetched; none by default.

    Raises:
        VLChatError: the address cannot be listened on, or the folder can't be used.
    """
    if isinstance(chat, Chat):
        chat.warm_up()
    policy = policy or Policy()
    rates = Rates(policy.questions, policy.tokens)
    log = Log(policy.log_format, policy.log_prompts)
    page = build_app(chat, rates=rates, log=log, history=policy.history, trainings=trainings)
    page.decoder.warm_up()
    page.queue(max_size=MOST_WAITING)
    # Gradio would look a thousand times a second whether there is something to do, in the engine's way.
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = QUEUE_LOOK
    page.state_session_capacity = MOST_SESSIONS
    api = Api(page.engine, page.decoder, rates, hosts or Hosts())
    app = Starlette(
        routes=[assets(), *saving(page.talk), *complete_routes(api.routes, list(api.models))],
        exception_handlers={Exception: failure},
    )
    gr.mount_gradio_app(app, page, "/", **mount_options())
    mounted: Any = app.routes[-1]
    page.app = page.server_app = mounted.app
    mounted.app = GradioRoutes(page.app)
    page.listening = Server(app, policy, log, host, port, page.engine.metrics)
    page.listening.start()
    return page


def run(
    chat: Chat | Backend, *, host: str = "127.0.0.1", port: int = 7860, open_browser: bool = False,
    hosts: Hosts | None = None, policy: Policy | None = None, trainings: Trainings | None = None,
) -> int:  # fmt: skip
    """Serves the page until SIGTERM or Ctrl-C, lets running answers end, and returns; see `launch`.

    A second signal ends the process at once.
    """
    policy = policy or Policy()
    app = launch(chat, host=host, port=port, hosts=hosts, policy=policy, trainings=trainings)
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
        if trainings is not None:
            trainings.close(0)
        os._exit(130)  # no thread is waited for
    return 0
