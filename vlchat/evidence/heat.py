"""Evidence maps: how much each part of a picture adds to the likelihood of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from vlchat.chat import Chat
from vlchat.data.formats import Message
from vlchat.errors import ConfigError, VLChatError, nearest
from vlchat.evidence import signals
from vlchat.evidence.likelihood import Asked, Words, asked, bare, logprobs
from vlchat.evidence.seen import on_grid, seen_pictures

# name -> one signed number for each image token of each picture, or a map of a picture's cells
METHODS: dict[str, Callable[[Chat, Asked, list[Image.Image]], signals.Signals]] = {
    "gradient": signals.gradient,
    "integrated": signals.integrated,
    "attention": signals.attention,
    "occlusion": signals.occlusion,
}


@dataclass(frozen=True)
class Heat:
    """Where in one picture the evidence lies.

    Attributes:
        values: (rows, columns) float32 from 0 to 1, over the whole of `seen`. The strongest place of all pictures of a
            conversation is 1; all are 0 where no picture says anything.
        seen: the picture as the model saw it, after cropping, scaling and padding.
    """

    values: np.ndarray
    seen: Image.Image

    def upsampled(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """The values for each pixel, (height, width), smooth between the places; `size` is (width, height)."""
        width, height = size or self.seen.size
        small = Image.fromarray(np.ascontiguousarray(self.values, dtype=np.float32))
        return np.clip(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)), 0.0, 1.0)

    def overlay(self, size: tuple[int, int] | None = None) -> Image.Image:
        """The picture, its colours only where the evidence lies, the rest pale and grey, and a line around the core.

        The line is where the heat is half of the strongest: white within, dark without, to be seen on any ground.
        """
        shown = self.seen.convert("RGB").resize(size or self.seen.size, Image.Resampling.LANCZOS)
        heat = self.upsampled(shown.size)
        colour = np.asarray(shown, dtype=np.float32)
        pale = np.repeat(colour.mean(axis=2, keepdims=True), 3, axis=2) * 0.45 + 255 * 0.28
        mixed = pale + (colour - pale) * np.sqrt(heat)[..., None]
        inside = Image.fromarray(((heat >= 0.5) * 255).astype(np.uint8))
        wide, core = (np.asarray(inside.filter(ImageFilter.MaxFilter(width))) > 0 for width in (7, 3))
        inner = np.asarray(inside) > 0
        mixed[wide & ~core] = (25, 25, 25)
        mixed[core & ~inner] = (255, 255, 255)
        return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Evidence:
    """Where an answer came from.

    Attributes:
        method: a name of `METHODS`.
        answer: what was explained; `word`: of it this only, or None.
        logprob: the log-likelihood of what was explained, a sum over its tokens.
        maps: one for each picture of the conversation, in reading order.
    """

    method: str
    answer: str
    word: Words | None
    logprob: float
    maps: tuple[Heat, ...]


def evidence(
    chat: Chat,
    messages: Sequence[Message],
    answer: str | None = None,
    *,
    word: Words | None = None,
    method: str = "integrated",
) -> Evidence:
    """Which parts of its pictures an answer came from.

    "integrated" (default): integrated gradients (arXiv:1703.01365) of the answer's log-likelihood by the image tokens
    as they enter the language model, from tokens that are all their mean; the positive part. "gradient": the length of
    gradient x input of each of these tokens, from one pass. Of our models whose image tokens have no places (Q-Former,
    resampler) the patches that enter the connector stand for them in both. "attention": how much the positions that say
    the answer attend to the image tokens, the mean over heads and the later half of the layers. "occlusion": how much
    the log-likelihood falls when a place is covered with the picture's mean colour (arXiv:1311.2901); one pass a place,
    and nothing of a model but its likelihoods.

    Args:
        messages: the conversation up to the user's turn that is answered; pictures as `Chat.stream` takes them.
        answer: the answer to explain, right or wrong; None lets the model answer.
        word: a word or phrase of the answer, or where it begins and ends in it; only its tokens are explained.

    Raises:
        VLChatError: there is no picture, no answer or no such word; or the model gives no map by this method, and why.
    """
    return evidences(chat, [messages], [answer], words=[word], method=method)[0]


def evidences(
    chat: Chat,
    conversations: Sequence[Sequence[Message]],
    answers: Sequence[str | None],
    *,
    words: Sequence[Words | None] | None = None,
    method: str = "integrated",
) -> list[Evidence]:
    """`evidence` of several conversations in one batch. Others who use the model come between two of its passes."""
    if method not in METHODS:
        raise ConfigError(f'method is "{method}"; use {", ".join(METHODS)}{nearest(method, METHODS) or "."}')
    words = [None] * len(conversations) if words is None else words
    missing = [number for number, answer in enumerate(answers) if answer is None]
    told = dict(zip(missing, chat.batch([conversations[number] for number in missing]), strict=True))
    said = [told[number] if answer is None else answer for number, answer in enumerate(answers)]
    lesson = asked(chat, conversations, said, words)
    if not all(lesson.pictures):
        blind = next(number for number, pictures in enumerate(lesson.pictures, start=1) if not pictures)
        raise VLChatError(f"Conversation {blind} has no picture, so there is no evidence map to draw.")
    seen = seen_pictures(
        chat.processor, [picture for pictures in lesson.pictures for picture in pictures], lesson.batch
    )
    found = METHODS[method](chat, lesson, seen)
    scores = found.logprobs
    if scores is None:
        with chat.turn, torch.no_grad():
            scores = logprobs(chat, lesson)[0].tolist()
    model = bare(chat)
    maps = [
        values.numpy() if values.ndim == 2 else on_grid(values, number, found.batch or lesson.batch, model)
        for number, values in enumerate(found.values)
    ]
    result, place = [], 0
    for row, pictures in enumerate(lesson.pictures):
        own = slice(place, place + len(pictures))
        place += len(pictures)
        strengths = [found.strength(values) for values in maps[own]]
        peak = max(float(values.max()) for values in strengths)
        heats = [(values / peak if peak > 0 else values * 0).astype(np.float32) for values in strengths]
        shown = tuple(Heat(values, picture) for values, picture in zip(heats, seen[own], strict=True))
        result.append(Evidence(method, said[row], words[row], float(scores[row]), shown))
    return result
