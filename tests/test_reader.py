"""The scene map as a language model reads it."""

import math
from random import Random

import torch

from train.reader import MapReader
from train.tokenizer import train_tokenizer
from vlchat.scenes.world import GRID, Scene, Thing

SCENE = Scene((Thing("shape", "circle", "red", "large", 0.25, 0.75, 0.4, 0.4),), "white", "plain", 0)
TOKENIZER = train_tokenizer([" large red circle top bottom left right above below white background here"] * 50, 400)


def test_a_cell_is_the_sum_of_its_words_with_the_sides_weighed() -> None:
    table = torch.nn.Embedding(len(TOKENIZER), 16)
    reader = MapReader(TOKENIZER)
    batch = reader.tensors([reader.cells(SCENE)])
    found = reader.embed(table, batch["cell_words"], batch["cell_sides"])
    assert found.shape == (1, GRID * GRID, 16)

    def word(text: str) -> torch.Tensor:
        return table.weight[TOKENIZER(" " + text, add_special_tokens=False)["input_ids"]].sum(0)

    words = "large red circle bottom left".split(" ")
    number = sum(len(TOKENIZER(" " + text, add_special_tokens=False)["input_ids"]) for text in words)
    sides = 0.25 * word("above") + 0.75 * word("below") + 0.75 * word("left") + 0.25 * word("right")
    right = (sum(word(text) for text in words) + sides) / math.sqrt(number)
    torch.testing.assert_close(found[0, 5 * GRID + 2], right)
    words = ["white", "background"]
    number = sum(len(TOKENIZER(" " + text, add_special_tokens=False)["input_ids"]) for text in words)
    torch.testing.assert_close(found[0, 0], (word("white") + word("background")) / math.sqrt(number))


def test_training_meets_maps_that_lack_words() -> None:
    whole = MapReader(TOKENIZER).cells(SCENE)
    worn = MapReader(TOKENIZER, word_dropout=0.5).cells(SCENE, Random(0))
    assert 0.3 < sum(len(words) for words, _ in worn) / sum(len(words) for words, _ in whole) < 0.8
    assert {sum(sides) > 0 for words, sides in worn if words != worn[0][0]} == {True, False}
    assert all(words for words, _ in worn), "a cell never falls silent"
