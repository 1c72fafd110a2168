"""A drawn world of three boxes, in the manner of NLVR's pictures (Suhr et al. 2017), drawn from nothing.

Pictures are 400 x 100 pixels: three grey boxes of 100 x 100, each with a tower of blocks or with scattered items.
`box_sentences` says what is true of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

SIDE = 100  # of a box, in pixels
LEFTS = (0, 150, 300)  # where the boxes begin
COLOURS = {"black": (0, 0, 0), "yellow": (255, 255, 0), "blue": (0, 153, 255)}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 10, "medium": 20, "large": 30}
_BLOCK, _STOREY, _BLOCK_LEFT, _LOWEST = 20, 21, 40, 80  # of towers, in pixels
MOST = 4  # blocks of a tower


@dataclass(frozen=True)
class Thing:
    """An item or a block; `x` and `y` are its left and upper edge in its box, in pixels."""

    shape: str
    colour: str
    size: int
    x: int
    y: int

    def touches(self, wall: str) -> bool:
        """Whether it lies at a wall: left, right, top, bottom, any of them, or at two that meet (corner)."""
        at = {
            "left": self.x == 0, "right": self.x + self.size == SIDE,
            "top": self.y == 0, "bottom": self.y + self.size == SIDE,
        }  # fmt: skip
        if wall == "corner":
            return (at["left"] or at["right"]) and (at["top"] or at["bottom"])
        return any(at.values()) if wall == "any" else at[wall]


Box = tuple[Thing, ...]


@dataclass(frozen=True)
class World:
    """Three boxes. Those of towers hold blocks, the lowest first."""

    boxes: tuple[Box, Box, Box]
    towers: bool

    def picture(self) -> Image.Image:
        """400 x 100 pixels, drawn at four times the size and scaled down."""
        times = 4
        picture = Image.new("RGB", (4 * SIDE * times, SIDE * times), (128, 128, 128))
        canvas = ImageDraw.Draw(picture)
        for left, box in zip(LEFTS, self.boxes, strict=True):
            canvas.rectangle((left * times, 0, (left + SIDE) * times - 1, SIDE * times - 1), (211, 211, 211))
            for thing in box:
                x, y, size = (left + thing.x) * times, thing.y * times, thing.size * times
                colour, corners = COLOURS[thing.colour], (x, y, x + size - 1, y + size - 1)
                if thing.shape == "circle":
                    canvas.ellipse(corners, colour)
                elif thing.shape == "square":
                    canvas.rectangle(corners, colour)
                else:
                    canvas.polygon([(x + size // 2, y), (x, y + size - 1), (x + size - 1, y + size - 1)], colour)
        return picture.resize((4 * SIDE, SIDE), Image.Resampling.BOX)


def sample_world(rng: Random) -> World:
    """Three towers of one to four blocks, or three boxes of one to eight items that do not overlap."""
    towers = rng.random() < 0.5
    one, two, three = (_tower(rng) if towers else _scattered(rng) for _ in range(3))
    return World((one, two, three), towers)


def _tower(rng: Random) -> Box:
    colours = rng.choice((list(COLOURS), list(COLOURS), rng.sample(list(COLOURS), 2)))
    return tuple(
        Thing("square", rng.choice(colours), _BLOCK, _BLOCK_LEFT, _LOWEST - _STOREY * storey)
        for storey in range(rng.randint(1, MOST))
    )


def _scattered(rng: Random) -> Box:
    wanted = rng.choices(range(1, 9), (6, 6, 6, 5, 4, 3, 2, 2))[0]
    colours = rng.choice((list(COLOURS), list(COLOURS), rng.sample(list(COLOURS), 2), rng.sample(list(COLOURS), 1)))
    placed: list[Thing] = []
    for _ in range(80):
        if len(placed) == wanted:
            break
        size = rng.choice(list(SIZES.values()))
        free, far = rng.randint(4, SIDE - size - 4), rng.randint(4, SIDE - size - 4)
        walls = rng.random()
        x = rng.choice((0, SIDE - size)) if walls < 0.12 else free
        y = (SIDE - size if rng.random() < 0.7 else 0) if 0.06 < walls < 0.25 else far
        thing = Thing(rng.choice(SHAPES), rng.choice(colours), size, x, y)
        if all(_apart(thing, other) for other in placed):
            placed.append(thing)
    return tuple(placed)


def _apart(one: Thing, other: Thing) -> bool:
    return (
        one.x + one.size < other.x or other.x + other.size < one.x
        or one.y + one.size < other.y or other.y + other.size < one.y
    )  # fmt: skip
