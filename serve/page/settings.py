"""How the next answer is written: by whom, with which words before it, how freely."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import gradio as gr

from serve.page.words import label
from serve.tickets import Options
from vlchat.errors import VLChatError

LONGEST_ANSWER = 1024
MOST_BEAMS = 8
# A system prompt goes to the model as it stands, and models follow English ones best.
PRESETS = {
    "": "",
    "short": "Answer in as few words as possible.",
    "detailed": "Describe everything that can be seen, from the whole to its parts, and say where it is.",
    "blind": "You describe pictures to someone who can't see them. Say what matters first, then where things are.",
    "text": "Copy all text in the picture exactly as it is written, line by line, and add nothing.",
    "json": "Answer with JSON alone.",
}


@dataclass(frozen=True)
class Choices:
    """What a visitor has chosen, in the order of the settings' components.

    Attributes:
        adapter: who answers, a name of the backend's; "" is the first.
        beside: who answers too, to be compared; "-" for nobody.
        system: the system prompt.
        temperature, top_p: as of `Chat.stream`.
        longest: tokens of an answer.
        beams: of a search for the likeliest answer; 1 for none.
        seed: of chance; None draws another each time.
    """

    adapter: str = ""
    beside: str = "-"
    system: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    longest: int = 256
    beams: int = 1
    seed: int | None = None

    @classmethod
    def of(cls, values: Sequence[Any]) -> Choices:
        """The values of the components.

        Raises:
            VLChatError: one of them was emptied.
        """
        adapter, beside, system, temperature, top_p, longest, beams, seed = values
        if None in (temperature, top_p, longest, beams):
            raise VLChatError("A number is missing in the settings.")
        return cls(adapter or "", beside or "-", system or "", float(temperature), float(top_p), int(longest),
                   int(beams), None if seed is None else int(seed))  # fmt: skip

    @classmethod
    def kept(cls, settings: Mapping[str, Any], names: Sequence[str]) -> Choices:
        """Those that a conversation was kept with, as far as they are still there to choose."""
        known = {one.name for one in fields(cls)}
        choices = {name: value for name, value in settings.items() if name in known}
        for name, nobody in (("adapter", ""), ("beside", "-")):
            if choices.get(name) not in (nobody, *_values(names)):
                choices.pop(name, None)
        return cls(**choices)

    @property
    def values(self) -> list[Any]:
        return list(asdict(self).values())

    def options(self, adapter: str | None = None) -> Options:
        """For the engine; `adapter` in place of the chosen one."""
        name = self.adapter if adapter is None else adapter
        return Options(self.longest, self.temperature, self.top_p, self.seed, adapter=name or None, beams=self.beams)


def _values(names: Sequence[str]) -> list[str]:
    return ["", *names[1:]]


def who(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names and what `Options.adapter` calls them."""
    return list(zip(names, _values(names), strict=True))


def nobody_or(names: Sequence[str]) -> list[tuple[Any, str]]:
    """As `who`, with nobody before."""
    return [("–", "-"), *who(names)]


def choose_who(names: Sequence[str]) -> tuple[gr.Row, list[gr.Dropdown]]:
    """Who answers, and who beside; in sight only where there is a choice, see `to_choose`."""
    with gr.Row(elem_id="who", visible=False) as row:
        first = gr.Dropdown(who(names), value="", label=label("chat.adapter"), elem_id="adapter", scale=1)
        beside = gr.Dropdown(nobody_or(names), value="-", label=label("chat.beside"), elem_id="beside", scale=1)
    return row, [first, beside]


def to_choose(names: Sequence[str], choices: Choices) -> list[Any]:
    """What `choose_who` shows now, models that were added meanwhile among it."""
    first = gr.update(choices=who(names), value=choices.adapter)
    beside = gr.update(choices=nobody_or(names), value=choices.beside)
    return [gr.update(visible=len(names) > 1), first, beside]


def choose_how() -> list[Any]:
    """The other components of `Choices`, in its order; built within the settings' accordion."""
    with gr.Row():
        preset = gr.Dropdown(
            [(label(f"chat.preset-{name or 'none'}"), name) for name in PRESETS], value="",
            label=label("chat.preset"), elem_id="preset", scale=1,
        )  # fmt: skip
        system = gr.Textbox(
            "", label=label("chat.system"), info=label("chat.system-info"), lines=2, elem_id="system", scale=3
        )
    preset.input(PRESETS.__getitem__, preset, system, queue=False, api_visibility="private")
    with gr.Row():
        temperature = gr.Slider(
            0, 1.5, 0, step=0.1, min_width=260, label=label("chat.temperature"), info=label("chat.temperature-info"),
            elem_id="temperature",
        )  # fmt: skip
        top_p = gr.Slider(
            0.05, 1, 1, step=0.05, min_width=260, label=label("chat.top-p"), info=label("chat.top-p-info"),
            elem_id="top-p",
        )  # fmt: skip
    with gr.Row():
        longest = gr.Slider(
            1, LONGEST_ANSWER, 256, step=1, min_width=260, label=label("chat.longest"), info=label("chat.longest-info"),
            elem_id="longest",
        )  # fmt: skip
        beams = gr.Slider(
            1, MOST_BEAMS, 1, step=1, min_width=260, label=label("chat.beams"), info=label("chat.beams-info"),
            elem_id="beams",
        )  # fmt: skip
        seed = gr.Number(None, precision=0, label=label("chat.seed"), info=label("chat.seed-info"), elem_id="seed")
    return [system, temperature, top_p, longest, beams, seed]


def about(description: Mapping[str, Any]) -> str:
    """One line for people, as HTML: which model answers, how large it is, what it was trained on."""
    facts = [f"<b>{html.escape(str(description.get('name') or 'A model without a name'))}</b>"]
    if parameters := description.get("parameters"):
        facts.append(f"{_count(int(parameters))} parameters")
    if trained_on := description.get("trained_on"):
        facts.append(f"trained on {html.escape(str(trained_on))}")
    return f"<div id='about'>{' · '.join(facts)}</div>"


def _count(parameters: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= size:
            return f"{parameters / size:.1f}{letter}".replace(".0", "")
    return str(parameters)
