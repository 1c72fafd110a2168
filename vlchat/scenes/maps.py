"""The scene map: what each of GRID x GRID cells shows, in words. The tower learns it, the language model reads it.

A cell's words are size, colour and name of the thing on it, row and column of that thing's centre (`rowa` ... `rowh`,
`cola` ... `colh`), so that two cells of one thing agree and two equal things differ, and `here` in the one cell that
holds the centre, so that things can be counted. Cells of text have its characters one by one, too: the one under the
cell and the first four. Words and numbers share them, so each is met far more often than any word. The language model
reads the place in words of its answers instead (`top left`), and the centre's coordinates.
"""

from dataclasses import dataclass, replace
from random import Random

from vlchat.scenes.vocabulary import COLOURS, NUMBERS, PICTOGRAMS, SHAPES, WORDS, article
from vlchat.scenes.world import GRID, Scene, Thing

_LETTERS = "abcdefgh"
_ORDER = ("first", "second", "third", "fourth")
LETTER_FIELDS = ("letter", *_ORDER)
"""The fields that only cells of text have."""
FIELDS = ("size", "colour", "name", "row", "column", "centre", *LETTER_FIELDS)
READ_FIELDS = ("size", "colour", "name", "place", "centre")
"""The fields whose words the language model reads."""
_SIZES = ("", "small", "medium", "large", "word", "number")  # text has its kind in place of a size
TEXT_CODE = _SIZES.index("word")
"""Codes of the field `size` from here on are those of text."""
_COLOURS = ("", *COLOURS)
_NAMES = ("background", *SHAPES, *PICTOGRAMS, *(f"word {w}" for w in WORDS), *(f"number {n}" for n in NUMBERS))
_CHARACTERS = sorted(set("".join((*WORDS, *NUMBERS))))
FIELD_WORDS: dict[str, tuple[str, ...]] = {
    "size": _SIZES,
    "colour": _COLOURS,
    "name": _NAMES,
    "row": ("", *(f"row{letter}" for letter in _LETTERS)),
    "column": ("", *(f"col{letter}" for letter in _LETTERS)),
    "centre": ("", "here"),
    **{field: ("", *(f"{field} {character}" for character in _CHARACTERS)) for field in LETTER_FIELDS},
}
"""All words of a field, at the places that `Cell.codes` counts."""
_CODES = {field: {word: code for code, word in enumerate(words)} for field, words in FIELD_WORDS.items()}


@dataclass(frozen=True)
class Cell:
    """A cell's words by field, empty where a field does not apply."""

    size: str
    colour: str
    name: str
    row: str
    column: str
    centre: str = ""
    place: str = ""
    at: tuple[float, float] | None = None  # x and y of the thing's centre, 0 to 1
    letter: str = ""
    first: str = ""
    second: str = ""
    third: str = ""
    fourth: str = ""

    def words(self, fields: tuple[str, ...] = FIELDS) -> str:
        """The words of these fields, such as `small red circle rowc cole`."""
        return " ".join(word for field in fields if (word := getattr(self, field)))

    def codes(self) -> list[int]:
        """The place of each field's word in FIELD_WORDS."""
        kind = self.name.split(" ")[0] if self.name.startswith(("word ", "number ")) else self.size
        return [_CODES[field][kind if field == "size" else getattr(self, field)] for field in FIELDS]


def cell_of(thing: Thing | None, scene: Scene) -> Cell:
    if thing is None:
        return Cell("", scene.background, "background", "", "")
    row, column = (_LETTERS[min(int(value * GRID), GRID - 1)] for value in (thing.y, thing.x))
    text = thing.name if thing.is_text else ""
    return Cell(
        "" if thing.is_text else thing.size,
        thing.colour or "",
        thing.noun,
        f"row{row}",
        f"col{column}",
        place=thing.place,
        at=(thing.x, thing.y),
        **{field: f"{field} {character}" for field, character in zip(_ORDER, text, strict=False)},
    )


def _letter(thing: Thing, column: int) -> str:
    """The character of a text in the middle of a column of cells; its characters are taken as equally wide."""
    along = ((column + 0.5) / GRID - thing.x) / thing.width + 0.5
    return f"letter {thing.name[int(along * len(thing.name))]}" if 0 <= along < 1 else ""


def scene_map(scene: Scene) -> list[Cell]:
    """GRID * GRID cells, row by row."""
    known = {thing: cell_of(thing, scene) for thing in (None, *scene.things)}
    cells = [
        replace(known[thing], letter=_letter(thing, index % GRID)) if thing and thing.is_text else known[thing]
        for index, thing in enumerate(scene.cells())
    ]
    for thing in scene.things:
        row, column = (min(int(value * GRID), GRID - 1) for value in (thing.y, thing.x))
        letter = _letter(thing, column) if thing.is_text else ""
        cells[row * GRID + column] = replace(known[thing], centre="here", letter=letter)
    return cells


def prose(scene: Scene, rng: Random) -> str:
    """The whole scene as a written description, for a language model without eyes; things in any order."""
    things = rng.sample(scene.things, len(scene.things))
    parts = [
        f"{article(thing.phrase())} at the {thing.place} {cell.row} {cell.column}"
        for thing in things
        for cell in [cell_of(thing, scene)]
    ]
    return f"On a {scene.background} background there is {', '.join(parts)}."


def alt_text(scene: Scene, rng: Random) -> str:
    """A caption as the web would have it: any order, some details left out."""
    things = rng.sample(scene.things, min(len(scene.things), 4))
    sizes, places = rng.random() < 0.5, rng.random() < 0.6
    parts = [article(thing.phrase(size=sizes)) + (f" at the {thing.place}" if places else "") for thing in things]
    return " and ".join(parts) + (f" on {scene.background}" if rng.random() < 0.25 else "")
