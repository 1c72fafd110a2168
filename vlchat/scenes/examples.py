"""Draws the example pictures of the chat page: `python -m vlchat.scenes.examples`."""

from pathlib import Path

from vlchat.scenes.draw import draw
from vlchat.scenes.world import Scene, Thing

FOLDER = Path(__file__).parent.parent / "assets" / "examples"


def _shape(name: str, colour: str, size: str, x: float, y: float, side: float) -> Thing:
    return Thing("shape", name, colour, size, x, y, side, side, 0.5)


def _pictogram(name: str, size: str, x: float, y: float, side: float) -> Thing:
    return Thing("pictogram", name, None, size, x, y, side, side, 0.7)


_CAT = (_pictogram("cat", "large", 0.27, 0.3, 0.4), _shape("star", "blue", "medium", 0.78, 0.25, 0.27))
_APPLES = tuple(_pictogram("apple", "medium", x, y, 0.27) for x, y in ((0.2, 0.3), (0.75, 0.25), (0.5, 0.72)))
EXAMPLES: dict[str, tuple[str, Scene]] = {
    "cat-and-shapes": (
        "Where is the cat?",
        Scene((*_CAT, _shape("circle", "red", "medium", 0.7, 0.75, 0.28)), "white", "plain", 1),
    ),
    "three-apples": (
        "How many apples are there?",
        Scene((*_APPLES, _shape("square", "purple", "small", 0.14, 0.8, 0.18)), "cyan", "gradient", 2),
    ),
    "word": (
        "What does the word say?",
        Scene(
            (
                Thing("word", "open", "white", "medium", 0.5, 0.3, 0.62, 0.22, 0.1),
                _pictogram("key", "medium", 0.5, 0.72, 0.28),
            ),
            "blue",
            "plain",
            3,
        ),
    ),
    "owl": ("What is this?", Scene((_pictogram("owl", "large", 0.5, 0.5, 0.7),), "yellow", "plain", 4)),
}  # fmt: skip

if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (question, scene) in EXAMPLES.items():
        draw(scene, 384, 384).save(FOLDER / f"{name}.png", optimize=True)
        (FOLDER / f"{name}.txt").write_text(question + "\n")
