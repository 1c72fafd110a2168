"""How a question and its answer are put into words, and how a thing is named so that it is clear which is meant."""

from dataclasses import dataclass
from random import Random

from vlchat.scenes.phrasings import HELD, SEEN
from vlchat.scenes.vocabulary import COLOURS, COUNT_WORDS, PICTOGRAMS, SHAPES, article, plural
from vlchat.scenes.world import Scene, Thing


@dataclass(frozen=True)
class Turn:
    """One question with its answer. `fact` is what a right reply must state; see `scenes.rows.states`."""

    form: str  # a key of the phrasings
    question: str
    answer: str
    fact: str | tuple[str, ...]
    distractors: tuple[str, ...] = ()  # facts that a right reply must not state


@dataclass(frozen=True)
class Speaker:
    """Chooses phrasings: the seen ones, or those held back for testing."""

    rng: Random
    held: bool = False

    def ask(self, form: str, **slots: str) -> str:
        slots |= {"The": slots["the"][0].upper() + slots["the"][1:]} if "the" in slots else {}
        return self.rng.choice((HELD if self.held else SEEN)[form]).format(**slots)


def reference(thing: Thing, scene: Scene, *, colour: bool = True) -> str | None:
    """The shortest `the ...` that fits this thing alone, or None. Without `colour`, the colour is not given away."""
    if thing.is_text:
        return f"the {thing.kind}"  # at most one word and one number in a scene
    options = [thing.name]
    if colour and thing.colour:
        options.append(f"{thing.colour} {thing.name}")
    options.append(f"{thing.size} {thing.name}")
    for option in options:
        if sum(fits(option, other) for other in scene.things) == 1:
            return f"the {option}"
    return None


def fits(words: str, thing: Thing) -> bool:
    return words in (thing.name, f"{thing.colour} {thing.name}", f"{thing.size} {thing.name}")


def number_of(count: int, noun: str) -> str:
    return f"{COUNT_WORDS[count] if count else 'no'} {noun if count == 1 else plural(noun)}"


def join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def named(thing: Thing) -> str:
    """`a red circle`, `a cat`, `the word sun`: what a thing is, without its size."""
    return f"the {thing.noun}" if thing.is_text else article(thing.phrase(size=False))


def facts(things: tuple[Thing, ...] | list[Thing]) -> tuple[str, ...]:
    return tuple(sorted(thing.noun if thing.is_text else thing.phrase(size=False) for thing in things))


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def unseen(noun: str) -> str:
    return "I don't see any text in the picture." if noun == "text" else f"I don't see {article(noun)} in the picture."


def count_of(noun: str, scene: Scene) -> int:
    return sum(noun in (thing.name, thing.phrase(size=False)) for thing in scene.things if not thing.is_text)


def present_noun(scene: Scene, rng: Random) -> str | None:
    things = [thing for thing in scene.things if not thing.is_text]
    if not things:
        return None
    thing = rng.choice(things)
    return thing.phrase(size=False, colour=rng.random() < 0.6)


def absent_noun(scene: Scene, rng: Random) -> str:
    """A thing that is not there; half of the time one that shares shape or colour with something that is."""
    present = {thing.phrase(size=False) for thing in scene.things} | {thing.name for thing in scene.things}
    shapes = [thing for thing in scene.things if thing.kind == "shape"]
    while True:
        if shapes and rng.random() < 0.6:
            near = rng.choice(shapes)
            noun = (
                f"{rng.choice(list(COLOURS))} {near.name}"
                if rng.random() < 0.5
                else f"{near.colour} {rng.choice(SHAPES)}"
            )
        elif rng.random() < 0.3:
            noun = rng.choice(SHAPES)
        else:
            noun = rng.choice(list(PICTOGRAMS))
        if noun not in present:
            return noun


def pair_of(scene: Scene, rng: Random, *, colours: bool = True) -> tuple[Thing, str, Thing, str] | None:
    named = [(thing, name) for thing in scene.things if (name := reference(thing, scene, colour=colours))]
    if len(named) < 2:
        return None
    (one, one_name), (two, two_name) = rng.sample(named, 2)
    return one, one_name, two, two_name
