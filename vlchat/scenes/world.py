"""Scenes: what is where. A scene is a pure function of its random generator; drawing and language come after."""

from dataclasses import dataclass
from random import Random

from vlchat.scenes.vocabulary import COLOURS, NUMBERS, PICTOGRAMS, SHAPES, SIZES, WORDS

GRID = 8
"""Rows and columns of the scene map; equals the embedded tower's patch grid (96 px in patches of 12)."""

_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "middle", "right")


@dataclass(frozen=True)
class Thing:
    """One drawn object. Coordinates and sides are shares of the picture's side; (0, 0) is the top left corner."""

    kind: str  # "pictogram" | "shape" | "word" | "number"
    name: str
    colour: str | None  # None for pictograms, which bring their own colours
    size: str
    x: float
    y: float
    width: float
    height: float
    style: float = 0.0  # picks font, tint and turn when it is drawn

    @property
    def noun(self) -> str:
        """`circle`, `cat`, `word sun`, `number 7`."""
        return f"{self.kind} {self.name}" if self.is_text else self.name

    @property
    def is_text(self) -> bool:
        return self.kind in ("word", "number")

    def phrase(self, *, size: bool = True, colour: bool = True) -> str:
        """`small red circle`; text is `red word sun` and has no size."""
        words = [self.size] if size and not self.is_text else []
        if colour and self.colour:
            words.append(self.colour)
        return " ".join([*words, self.noun])

    @property
    def place(self) -> str:
        """One of nine places: `top left`, `top`, ..., `center`, ..., `bottom right`."""
        row, column = _ROWS[min(int(self.y * 3), 2)], _COLUMNS[min(int(self.x * 3), 2)]
        if row == column == "middle":
            return "center"
        return " ".join(word for word in (row, column) if word != "middle")

    @property
    def place_is_clear(self) -> bool:
        """Whether the centre lies far enough from the borders between the nine places for a person to agree."""
        return all(abs(value - border) > 0.045 for value in (self.x, self.y) for border in (1 / 3, 2 / 3))


@dataclass(frozen=True)
class Scene:
    """A background and one to six things that do not overlap, in reading order (top to bottom, then left to right)."""

    things: tuple[Thing, ...]
    background: str
    texture: str  # "plain" | "gradient" | "noise"
    seed: int  # for the drawing's own noise

    def cells(self) -> list[Thing | None]:
        """The thing that covers each cell of the GRID x GRID map, row by row; None where only background is."""
        side = 1 / GRID
        cells: list[Thing | None] = [None] * (GRID * GRID)
        covers = [0.22] * (GRID * GRID)  # a thing must cover about a quarter of a cell to name it
        for thing in self.things:
            columns = [_overlap(column * side, side, thing.x, thing.width) for column in range(GRID)]
            for row in range(GRID):
                down = _overlap(row * side, side, thing.y, thing.height)
                if down == 0.0:
                    continue
                for place, across in enumerate(columns, start=row * GRID):
                    if across * down > covers[place]:
                        cells[place], covers[place] = thing, across * down
        return cells


def _overlap(start: float, side: float, centre: float, extent: float) -> float:
    low, high = max(start, centre - extent / 2), min(start + side, centre + extent / 2)
    return max(0.0, high - low) / side


def reading_order(thing: Thing) -> tuple[int, float]:
    """Sorts the things of a scene by rows of a third of its height, each from the left."""
    return int(thing.y * 3), thing.x


def _identity(rng: Random, text_share: float, palette: list[str]) -> tuple[str, str, str | None]:
    draw = rng.random()
    if draw < text_share:
        kind = "word" if rng.random() < 0.55 else "number"
        return kind, rng.choice(WORDS if kind == "word" else NUMBERS), rng.choice(palette)
    if draw < text_share + (1 - text_share) * 0.5:
        return "pictogram", rng.choice(list(PICTOGRAMS)), None
    return "shape", rng.choice(SHAPES), rng.choice(palette)


def _extent(kind: str, name: str, side: float) -> tuple[float, float]:
    if kind in ("word", "number"):
        return side * (0.35 + 0.62 * len(name)), side
    return side, side


def _distance(a: str, b: str) -> float:
    return sum((p - q) ** 2 for p, q in zip(COLOURS[a], COLOURS[b], strict=True)) ** 0.5


_MUCH_TEXT = 0.7


def sample_scene(rng: Random, count: int | None = None, texts: float = 0.0) -> Scene:
    """Draw a scene: `count` things (1 to 6, weighted to few when None), repeated kinds on purpose, no overlaps.

    `texts` is the share of scenes in which most things are a word or a number; by themselves those are rare.
    """
    if count is None:
        count = rng.choices((1, 2, 3, 4, 5, 6), (20, 24, 22, 16, 10, 8))[0]
    repeat = rng.choice((0.0, 0.0, 0.35, 0.6))  # some scenes repeat a kind, so that there is something to count
    text_share = rng.choice((0.0, 0.1, 0.25))
    if texts and rng.random() < texts:
        text_share = _MUCH_TEXT
    palette = rng.sample(list(COLOURS), 2) if rng.random() < 0.3 else list(COLOURS)  # shared colours, to compare
    placed: list[Thing] = []
    identities: list[tuple[str, str, str | None]] = []
    tries = 0
    while len(placed) < count and tries < 60:
        tries += 1
        if identities and rng.random() < repeat:
            kind, name, colour = rng.choice(identities)
            if kind == "shape" and rng.random() < 0.6:
                colour = rng.choice(palette)
        else:
            kind, name, colour = _identity(rng, text_share, palette)
        if kind in ("word", "number") and any(thing.kind == kind for thing in placed):
            continue  # one word and one number at most, so that "the word" is clear
        if kind in ("word", "number"):
            size, side = "medium", rng.uniform(0.15, 0.24) if count > 1 else rng.uniform(0.18, 0.3)
        else:
            sizes = ("small", "medium", "large") if count < 5 else ("small", "small", "medium")
            size = rng.choice(sizes)
            side = rng.uniform(*SIZES[size])
            if count == 1 and rng.random() < 0.5:
                size, side = "large", rng.uniform(0.45, 0.88)
        width, height = _extent(kind, name, side)
        if width > 0.94:
            continue
        for _ in range(12):
            x = rng.uniform(width / 2 + 0.01, 0.99 - width / 2)
            y = rng.uniform(height / 2 + 0.01, 0.99 - height / 2)
            if all(
                abs(x - o.x) > (width + o.width) / 2 + 0.025 or abs(y - o.y) > (height + o.height) / 2 + 0.025
                for o in placed
            ):
                placed.append(Thing(kind, name, colour, size, x, y, width, height, rng.random()))
                identities.append((kind, name, colour))
                break
    used = {thing.colour for thing in placed if thing.colour}
    choices = [name for name in COLOURS if all(_distance(name, other) > 150 for other in used)]
    if "white" in choices and rng.random() < 0.3:  # what people upload is often on white
        choices = ["white"]
    background = rng.choice(choices or ["white" if "white" not in used else "black"])
    if background in used:  # every colour is near a used one: draw anew rather than unseen
        return sample_scene(rng, count, texts)
    texture = rng.choice(("plain", "plain", "gradient", "noise"))
    placed.sort(key=reading_order)
    return Scene(tuple(placed), background, texture, rng.getrandbits(32))
