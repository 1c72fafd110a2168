"""The scene map as a language model reads it: one embedding a cell, in the words of the model itself.

A cell's embedding is the sum of its words' embeddings over the root of their number. Where its thing lies is said
twice: in words (`top left`) and in amounts, the word `below` weighed by how far down the centre is, `above` by the
rest, `right` and `left` likewise, so that "is it above?" is a difference of two cells.
"""

from random import Random
from typing import Any

import torch

from vlchat.scenes.maps import READ_FIELDS, scene_map
from vlchat.scenes.world import GRID, Scene

IMAGE_TOKENS = GRID * GRID
_WORD_TOKENS = 10  # tokens of a cell's words, at most
_SIDES = ("above", "below", "left", "right")
_BLANK = -100

Cells = list[tuple[list[int], tuple[float, float, float, float]]]


class MapReader:
    """Scene maps in the tokens of one tokenizer.

    Args:
        tokenizer: the language model's.
        word_dropout: share of a cell's words left out in training, since no tower sees everything.
        noise: standard deviation of the noise on embeddings in training, in units of their own.
        place_noise: standard deviation of the noise on coordinates in training, in sides of the picture.
    """

    def __init__(
        self, tokenizer: Any, word_dropout: float = 0.0, noise: float = 0.0, place_noise: float = 0.02
    ) -> None:
        self.tokenizer, self.word_dropout, self.noise, self.place_noise = tokenizer, word_dropout, noise, place_noise
        self._known: dict[str, list[int]] = {}

    def cells(self, scene: Scene, rng: Random | None = None) -> Cells:
        """Word tokens and side amounts of each cell; with `rng`, as training meets them."""
        found = []
        for cell in scene_map(scene):
            words = [token for word in cell.words(READ_FIELDS).split(" ") for token in self._tokens(word)]
            x, y = cell.at or (0.0, 0.0)
            there = float(cell.at is not None)
            if rng is not None:
                words = [token for token in words if rng.random() >= self.word_dropout] or words
                there *= rng.random() >= self.word_dropout
                x, y = x + rng.gauss(0, self.place_noise), y + rng.gauss(0, self.place_noise)
            found.append((words[:_WORD_TOKENS], (there * (1 - y), there * y, there * (1 - x), there * x)))
        return found

    def tensors(self, maps: list[Cells]) -> dict[str, torch.Tensor]:
        """cell_words (maps, cells, word tokens), padded with -100, and cell_sides (maps, cells, 4)."""
        words = [[tokens + [_BLANK] * (_WORD_TOKENS - len(tokens)) for tokens, _ in cells] for cells in maps]
        sides = [[amounts for _, amounts in cells] for cells in maps]
        return {
            "cell_words": torch.tensor(words, dtype=torch.long).reshape(-1, IMAGE_TOKENS, _WORD_TOKENS),
            "cell_sides": torch.tensor(sides, dtype=torch.float32).reshape(-1, IMAGE_TOKENS, len(_SIDES)),
        }

    def embed(self, table: Any, words: torch.Tensor, sides: torch.Tensor, *, noisy: bool = False) -> torch.Tensor:
        """(maps, cells, hidden) from the token embeddings of the language model."""
        present = torch.ne(words, _BLANK).unsqueeze(-1)
        amounts = torch.stack(
            [table(torch.tensor(self._tokens(side), device=words.device)).sum(0) for side in _SIDES]
        )  # (4, hidden)
        total = (table(words.clamp(min=0)) * present).sum(2) + sides.to(amounts.dtype) @ amounts
        cells = total / present.sum(2).clamp(min=1).sqrt()
        if noisy:
            cells = cells + torch.randn_like(cells) * self.noise * cells.detach().std()
        return cells

    def _tokens(self, word: str) -> list[int]:
        if word not in self._known:
            self._known[word] = self.tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        return self._known[word]
