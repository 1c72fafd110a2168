"""What lmms-eval's tasks ask, in vlchat's terms: how an answer is made, and what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlchat.errors import ConfigError

LONGEST = 1024  # new tokens where a task does not say, as in most of lmms-eval's own models
_PLACE = "<image>"
_VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi")


@dataclass(frozen=True)
class Decoding:
    """How one answer is made, as a task's `generation_kwargs` say."""

    max_new_tokens: int
    beams: int
    temperature: float
    top_p: float
    until: tuple[str, ...]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Decoding:
        """Reads `max_new_tokens`, `num_beams`, `temperature`, `top_p`, `do_sample` and `until`.

        An answer is drawn where the temperature is above 0 and `do_sample` is not false; `do_sample` alone means a
        temperature of 1. Others (`image_aspect_ratio`, `use_cache`) are not about what is written.

        Raises:
            ConfigError: beams together with a temperature, or several answers to one question.
        """
        sampled = options.get("do_sample")
        temperature = options.get("temperature")
        temperature = (1.0 if sampled else 0.0) if temperature is None else float(temperature)
        beams = int(options.get("num_beams") or 1)
        if sampled is False:
            temperature = 0.0
        if beams > 1 and temperature > 0:
            raise ConfigError(
                f"The task asks for {beams} beams and temperature {temperature}; vlchat searches or draws, not both. "
                "Set num_beams=1 or temperature=0 with --gen_kwargs."
            )
        if (options.get("num_return_sequences") or options.get("n") or 1) != 1:
            raise ConfigError("The task asks for several answers to one question: use lmms-eval's own --repeats.")
        stops = options.get("until") or ()
        return cls(
            int(options.get("max_new_tokens") or options.get("max_gen_toks") or LONGEST),
            beams,
            temperature,
            float(options.get("top_p") or 1.0) if temperature > 0 else 1.0,
            tuple(stop for stop in ([stops] if isinstance(stops, str) else stops) if stop),
        )

    def cut(self, text: str) -> str:
        """The text before the first of `until`, as if writing had stopped there."""
        return text[: min((place for stop in self.until if (place := text.find(stop)) >= 0), default=None)]


def interleaved(text: str, visuals: Sequence[Any], frames: int) -> list[dict[str, Any]]:
    """A message's parts: pictures where the text has an `<image>` for each of them, else all before it."""
    given = [shown(visual, "image", frames) for visual in visuals]
    pieces = text.split(_PLACE)
    if len(pieces) != len(given) + 1:
        pieces = [*[""] * len(given), "".join(pieces).strip() if given else text]
    parts = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
    for several, piece in zip(given, pieces[1:], strict=True):
        parts += several
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts


def shown(visual: Any, kind: str, frames: int) -> list[dict[str, Any]]:
    """A picture, a video or frames, in any form that tasks give them, as parts of a message.

    Raises:
        ConfigError: sound, or something that is none of them.
    """
    if isinstance(visual, Mapping):  # {"type", "url" | "path"}
        kind, visual = str(visual.get("type", "video")), visual.get("url") or visual.get("path")
    if isinstance(visual, list | tuple):
        return [part for one in visual for part in shown(one, "image", frames)]
    if kind == "image" and isinstance(visual, str) and visual.lower().endswith(_VIDEOS):
        kind = "video"  # simple tasks give bare paths
    if kind == "video" and isinstance(visual, str | bytes):
        return [{"type": "video", "video": visual, "frames": frames}]
    if kind == "image" and isinstance(visual, Image.Image | str | bytes):
        return [{"type": "image", "image": visual}]
    raise ConfigError(f"A task shows {kind} as {type(visual).__name__}; vlchat's models see pictures and videos.")


def length(messages: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    parts = [part for message in messages for part in message["content"]]
    return sum(part["type"] != "text" for part in parts), sum(len(part.get("text", "")) for part in parts)


def where(request: Any) -> str:
    return f"Row {request.doc_id} of {request.task_name}"
