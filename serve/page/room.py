"""The training room: data, a plan and a run of one's own, by `vlchat`'s commands; see `serve.trainings`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context
from gradio.events import Dependency

from serve.page import room_html
from serve.page.words import label, language_of, told
from serve.processes import shown
from serve.run_view import Run, view
from serve.trainings import Checked, Settings, Trainings
from vlchat.errors import VLChatError

CSS = (Path(__file__).parent / "room.css").read_text(encoding="utf-8")
_EVERY = 2.0  # seconds between two looks at a run that is under way
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_QUIET: dict[str, Any] = {**_PRIVATE, "show_progress": "hidden"}


@dataclass(frozen=True)
class Room:
    """What the rest of the page may listen to.

    Attributes:
        added: a run was loaded beside the base: chain with `.success` what shows it in a picker.
    """

    added: Dependency


def training_room(trainings: Trainings, add: Callable[[str, Path], object]) -> Room:
    """Builds it into the Blocks that is being built.

    Args:
        trainings: does the work.
        add: loads a run's folder beside the base, under a name; raises VLChatError where it can't.
    """
    return _Builder(trainings, add).build()


class _Builder:
    def __init__(self, trainings: Trainings, add: Callable[[str, Path], object]) -> None:
        self.trainings, self.add = trainings, add

    def build(self) -> Room:
        with gr.Column(elem_id="training-room"):
            gr.Markdown(label("room.intro"))
            self._build_data()
            self._build_new_run()
            self._build_runs()
        return self._wire()

    # -- what stands there

    def _build_data(self) -> None:
        gr.Markdown(label("room.data"))
        gr.Markdown(label("room.limits"))
        self.files = gr.File(label=label("room.files"), file_count="multiple", height=200, elem_id="room-files")
        with gr.Row():
            self.folder = gr.UploadButton(label("room.folder"), file_count="directory", elem_id="room-folder")
            self.check = gr.Button(label("room.check"), variant="primary", elem_id="room-check")
        self.report = gr.HTML(elem_id="room-report", padding=False)
        self.check_command = _command("room.check_command", "room-check-command")
        self.checked = gr.State(None)

    def _build_new_run(self) -> None:
        gr.Markdown(label("room.run"))
        self.name = gr.Textbox(label=label("room.name"), info=label("room.name_info"), elem_id="room-name")
        self.what = gr.Radio(list(self.trainings.choices), label=label("room.what"), elem_id="room-what")
        with gr.Row():
            whole: dict[str, Any] = {"precision": 0, "minimum": 1}
            self.steps = gr.Number(
                150, label=label("room.steps"), info=label("room.steps_info"), elem_id="room-steps", **whole
            )
            self.aside = gr.Number(
                1, label=label("room.aside"), info=label("room.aside_info"), elem_id="room-aside", **whole
            )
        self.leave_out = gr.Checkbox(False, label=label("room.leave_out"), visible=False, elem_id="room-leave-out")
        with gr.Row():
            self.plan = gr.Button(label("room.plan"), elem_id="room-plan")
            self.start = gr.Button(label("room.start"), variant="primary", elem_id="room-start")
        self.planned = gr.HTML(elem_id="room-planned", padding=False)
        self.plan_command = _command("room.plan_command", "room-plan-command")
        self.train_command = _command("room.train_command", "room-train-command")

    def _build_runs(self) -> None:
        gr.Markdown(label("room.runs_part"))
        self.table = gr.HTML(elem_id="room-runs", padding=False)
        self.picked = gr.Dropdown([], label=label("room.picked"), visible=False, elem_id="room-picked")
        with gr.Column(visible=False, elem_id="room-view") as self.view:
            self.progress = gr.HTML(elem_id="room-progress", padding=False)
            self.curve = gr.HTML(elem_id="room-curve", padding=False)
            self.samples = gr.HTML(elem_id="room-samples", padding=False)
            with gr.Row():
                self.stop = gr.Button(label("room.stop"), variant="stop", elem_id="room-stop")
                self.resume = gr.Button(label("room.resume"), elem_id="room-resume")
                self.chat = gr.Button(label("room.chat"), variant="primary", elem_id="room-chat")
            self.said = gr.HTML(elem_id="room-said", padding=False)
            self.run_command = _command("room.train_command", "room-run-command")
            self.chat_command = _command("room.chat_command", "room-chat-command")
            self.output = gr.Textbox(
                label=label("room.output"), lines=6, max_lines=12, interactive=False, autoscroll=True,
                buttons=["copy"], elem_id="room-output", elem_classes="room-command",
            )  # fmt: skip
        self.timer = gr.Timer(_EVERY, active=False)

    # -- what it does

    def _wire(self) -> Room:
        seen = [
            self.table, self.view, self.progress, self.curve, self.samples, self.stop, self.resume,
            self.chat, self.run_command, self.chat_command, self.output, self.timer,
        ]  # fmt: skip
        picks = [self.picked, *seen]
        fields = [self.checked, self.name, self.what, self.steps, self.aside, self.leave_out]
        page = Context.root_block
        assert page is not None, "a training room is built inside of gr.Blocks"
        page.load(self._open, None, [self.what, *picks], **_QUIET)
        self.timer.tick(self._look, self.picked, seen, **_QUIET)
        self.picked.input(self._pick, self.picked, [self.said, *seen], **_QUIET)
        self.folder.upload(_together, [self.files, self.folder], self.files, **_QUIET)
        self.check.click(
            self._check, [self.files, self.what, self.name],
            [self.report, self.check_command, self.checked, self.name, self.steps, self.aside, self.leave_out],
            **_PRIVATE,
        )  # fmt: skip
        self.what.input(self._suggest, [self.checked, self.what], [self.steps, self.aside], **_QUIET)
        self.plan.click(self._plan, fields, [self.planned, self.plan_command, self.train_command], **_PRIVATE)
        self.start.click(self._start, fields, [self.planned, self.train_command, *picks], **_QUIET)
        self.stop.click(self._stop, self.picked, [self.said, *seen], **_QUIET)
        self.resume.click(self._resume, self.picked, [self.said, *seen], **_QUIET)
        return Room(self.chat.click(self._add, self.picked, self.said, **_PRIVATE))

    def _open(self, request: gr.Request) -> list[Any]:
        language = language_of(request)
        choices = [(told(f"room.{name}", language), name) for name in self.trainings.choices]
        return [gr.Radio(choices, value=choices[0][1]), *self._pick_newest(language)]

    def _check(self, files: list[str] | None, what: str, name: str, request: gr.Request) -> list[Any]:
        language = language_of(request)
        try:
            checked = self.trainings.check(files or [])
        except VLChatError as error:
            return [room_html.problem(error, language), _filled(""), None, *[gr.skip()] * 4]
        steps, aside = self.trainings.suggested(checked, what)
        bad = bool(checked.report["bad_rows"])
        return [
            room_html.report(checked, language),
            _filled(checked.command),
            checked,
            name or checked.upload.folder.name,
            steps,
            aside,
            gr.Checkbox(False, visible=bad),
        ]

    def _suggest(self, checked: Checked | None, what: str) -> Any:
        return gr.skip() if checked is None else self.trainings.suggested(checked, what)

    def _plan(
        self, checked: Checked | None, name: str, what: str, steps: float | None, aside: float | None, leave_out: bool,
        request: gr.Request,
    ) -> list[Any]:  # fmt: skip
        language = language_of(request)
        try:
            settings = _settings(checked, what, steps, aside, leave_out, language)
            outcome = self.trainings.plan(name.strip(), settings)
            begins = self.trainings.command(name.strip(), settings)
        except VLChatError as error:
            return [room_html.problem(error, language), _filled(""), _filled("")]
        return [
            room_html.plan(outcome, language), _filled(outcome.command), _filled(begins),
        ]  # fmt: skip

    def _start(
        self, checked: Checked | None, name: str, what: str, steps: float | None, aside: float | None, leave_out: bool,
        request: gr.Request,
    ) -> list[Any]:  # fmt: skip
        language = language_of(request)
        try:
            settings = _settings(checked, what, steps, aside, leave_out, language)
            run = self.trainings.start(name.strip(), settings)
        except VLChatError as error:
            return [room_html.problem(error, language), _filled(""), *[gr.skip()] * 13]
        begun = room_html.notice(told("room.begun", language, name=run.name))
        return [begun, _filled(""), *self._pick_newest(language, run)]

    def _stop(self, name: str, request: gr.Request) -> list[Any]:
        return self._after(name, "room.stopping", self.trainings.stop, language_of(request))

    def _resume(self, name: str, request: gr.Request) -> list[Any]:
        return self._after(name, "room.resumed", self.trainings.resume, language_of(request))

    def _after(self, name: str, done: str, act: Callable[[str], object], language: str) -> list[Any]:
        try:
            act(name)
            said = room_html.notice(told(done, language, name=name))
        except VLChatError as error:
            said = room_html.problem(error, language)
        return [said, *self._seen(name, language)]

    def _add(self, name: str, request: gr.Request) -> str:
        language = language_of(request)
        try:
            self.add(name, self.trainings.run(name).folder)
        except VLChatError as error:
            return room_html.problem(error, language)
        return room_html.notice(told("room.added", language, name=name))

    # -- what is seen of a run

    def _pick_newest(self, language: str, run: Run | None = None) -> list[Any]:
        """The runs to pick from, and what is seen of one: of the one under way, by default, or the newest."""
        found = self.trainings.listed()
        name = run.name if run else next((one.name for one in found if one.under_way), found[0].name if found else None)
        picked = gr.Dropdown([one.name for one in found], value=name, visible=bool(found))
        return [picked, *self._seen(name, language)]

    def _look(self, name: str | None, request: gr.Request) -> list[Any]:
        return self._seen(name, language_of(request))

    def _pick(self, name: str | None, request: gr.Request) -> list[Any]:
        return ["", *self._seen(name, language_of(request))]

    def _seen(self, name: str | None, language: str) -> list[Any]:
        found = self.trainings.listed()
        run = next((one for one in found if one.name == name), None)
        table = room_html.runs_table(found, language)
        timer = gr.Timer(active=any(one.under_way for one in found))
        if run is None:
            return [table, gr.Column(visible=False), *[gr.skip()] * 9, timer]
        now = view(run)
        return [
            table,
            gr.Column(visible=True),
            room_html.progress(now, language),
            room_html.curve(now, language),
            room_html.samples(now, language),
            gr.Button(interactive=run.under_way and run.ours),
            gr.Button(interactive=run.resumable),
            gr.Button(interactive=run.saved),
            _filled(self.trainings.line(run.name)),
            _filled(shown(["chat", "--model", str(run.folder)]) if run.saved else ""),
            now.output,
            timer,
        ]


def _command(key: str, elem_id: str) -> gr.Textbox:
    """A command of the terminal, to copy."""
    return gr.Textbox(
        label=label(key), lines=1, max_lines=12, interactive=False, visible=False, buttons=["copy"], elem_id=elem_id,
        elem_classes="room-command",
    )  # fmt: skip


def _filled(command: str) -> gr.Textbox:
    return gr.Textbox(command, visible=bool(command))


def _together(files: list[str] | None, folder: Sequence[str] | None) -> list[str]:
    return list(dict.fromkeys([*(files or []), *(folder or [])]))


def _settings(
    checked: Checked | None, what: str, steps: float | None, aside: float | None, leave_out: bool, language: str
) -> Settings:
    """What the fields say.

    Raises:
        VLChatError: they don't say enough.
    """
    if checked is None:
        raise VLChatError(told("room.check_first", language))
    if steps is None or aside is None:
        raise VLChatError(told("room.whole_numbers", language))
    bad = int(checked.report["bad_rows"])
    if bad and not leave_out:
        raise VLChatError(told("room.has_bad", language, bad=f"{bad:,}"))
    return Settings(checked.upload.data, what, int(steps), int(aside), bad)
