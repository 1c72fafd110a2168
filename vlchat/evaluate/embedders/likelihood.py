"""Matching by a chat model, which embeds nothing: how likely it holds that a text belongs to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlchat.conversation import ask_messages
from vlchat.data.formats import CAPTION_INSTRUCTION
from vlchat.errors import ConfigError, VLChatError, nearest
from vlchat.evaluate.answerers import Answerer
from vlchat.evaluate.items import Reply, Request

QUESTION = 'Does the picture show: "{}"? Answer yes or no.'
WAYS = ("yes", "caption", "pmi")
_GREY = (128, 128, 128)


class LikelihoodMatcher:
    """Judges pairs by what a chat model holds likely. It has no embeddings: each pair is asked.

    Args:
        answerer: the model.
        by: "yes", the probability of "Yes" against "No" as the answer to `QUESTION` (VQAScore, Lin et al. 2024, arXiv
            2404.01291, which takes "Yes" against all words); "caption", the log-likelihood of the text as the picture's
            description, a token on average; "pmi", by how much the picture raises it, in nats: minus the same given a
            grey picture (Lin et al. 2024, arXiv 2306.01879, with alpha 1).
        batch_size: pairs asked together.

    Raises:
        ConfigError: an unknown way.
    """

    embeds, matches = False, True
    scale: float | None = None
    bias: float | None = None
    cut = 0

    def __init__(self, answerer: Answerer, by: str = "yes", batch_size: int = 16) -> None:
        self.answerer, self.by, self.batch_size = answerer, way(by), batch_size
        self.probable = by == "yes"
        self.identity = f"{answerer.identity} {by}"
        self.description: dict[str, Any] = {**answerer.description, "kind": f"likelihood ({by})"}
        self._blank: dict[str, float] = {}

    def match(self, picture: Image.Image, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder.match`. By "caption" and "pmi" the first logit is 0, so that only the order means something.

        Raises:
            VLChatError: the model gives no likelihoods, or refuses a pair.
        """
        if self.by == "yes":
            requests = [Request(ask_messages(picture, QUESTION.format(text)), ("No", "Yes")) for text in texts]
            return np.array([reply.choices for reply in self._ask(requests)]).reshape(-1, 2)
        scores = np.array(self._captions(picture, texts))
        if self.by == "pmi":
            unknown = list(dict.fromkeys(text for text in texts if text not in self._blank))
            grey = Image.new("RGB", picture.size, _GREY)
            self._blank |= dict(zip(unknown, self._captions(grey, unknown), strict=True))
            scores = scores - [self._blank[text] for text in texts]
        return np.stack([np.zeros(len(texts)), scores], axis=1)

    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """There are no embeddings."""
        raise NotImplementedError

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """There are no embeddings."""
        raise NotImplementedError

    def _captions(self, picture: Image.Image, texts: Sequence[str]) -> list[float]:
        requests = [Request(ask_messages(picture, CAPTION_INSTRUCTION), (text,)) for text in texts]
        replies = self._ask(requests)
        if self.by == "pmi":
            return [reply.choices[0] for reply in replies]
        return [reply.choices[0] / max(1, reply.choice_tokens[0]) for reply in replies]

    def _ask(self, requests: Sequence[Request]) -> list[Reply]:
        replies: list[Reply] = []
        for start in range(0, len(requests), self.batch_size):
            some = requests[start : start + self.batch_size]
            for request, reply in zip(some, self.answerer.answer(some, max_new_tokens=1), strict=True):
                if reply.error is not None:
                    raise VLChatError(reply.error)
                if len(reply.choices) != len(request.choices):
                    raise VLChatError(
                        f"{self.description.get('name', 'The model')} does not say how likely its answers are, and "
                        "matching goes by that. Load the model itself, or take a server that gives log-probabilities."
                    )
                replies.append(reply)
        return replies


def way(by: str) -> str:
    """`by` as it is. Raises ConfigError where it is none of `WAYS`."""
    if by not in WAYS:
        raise ConfigError(f'likelihood is "{by}"; use {", ".join(WAYS)}{nearest(by, WAYS)}')
    return by
