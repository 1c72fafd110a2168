"""Questions and answers about one picture. A maker returns a Turn, or None where the scene does not allow it."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from vlchat.scenes.pairs import compare_colour, compare_count, compare_size, relation, relation_or, relation_where
from vlchat.scenes.vocabulary import COUNT_WORDS, SHAPES, article, plural
from vlchat.scenes.wording import (
    Speaker,
    Turn,
    absent_noun,
    count_of,
    facts,
    join,
    named,
    number_of,
    present_noun,
    reference,
    sentence,
    unseen,
)
from vlchat.scenes.world import Scene


def caption(scene: Scene, say: Speaker) -> Turn:
    parts = [f"{named(thing)} at the {thing.place}" for thing in scene.things]
    return Turn("caption", say.ask("caption"), f"I see {join(parts)}.", facts(scene.things))


def detail(scene: Scene, say: Speaker) -> Turn:
    """A caption with sizes, the colours of text and the background: what the stage-1 connector learns from."""
    parts = [f"{article(thing.phrase())} at the {thing.place}" for thing in scene.things]
    question = say.rng.choice(("Describe every detail.", "Describe the picture in detail.", "Tell me all the details."))
    return Turn("detail", question, f"On a {scene.background} background there is {join(parts)}.", facts(scene.things))


def sides(scene: Scene, say: Speaker) -> Turn | None:
    """How each thing lies from the one before it, in reading order: what relations are learnt from."""
    named_things = [(thing, name) for thing in scene.things if (name := reference(thing, scene))]
    parts = []
    for (one, name), (two, other) in pairwise(named_things):
        across, down = two.x - one.x, two.y - one.y
        if abs(across) > 1.3 * abs(down):
            side = "to the right" if across > 0 else "to the left"
        elif abs(down) > 1.3 * abs(across):
            side = "below" if down > 0 else "above"
        else:
            continue
        parts.append(f"from {name} {other} is {side}")
    if not parts:
        return None
    question = say.rng.choice(("How do the things lie?", "Tell me how the things lie.", "Where do the things lie?"))
    return Turn("sides", question, f"Seen {join(parts)}.", ", ".join(parts))


def what(scene: Scene, say: Speaker) -> Turn | None:
    if len(scene.things) != 1:
        return None
    return Turn("what", say.ask("what"), f"This is {named(scene.things[0])}.", facts(scene.things))


def place_what(scene: Scene, say: Speaker) -> Turn | None:
    places = Counter(thing.place for thing in scene.things)
    options = [
        thing
        for thing in scene.things
        if thing.place_is_clear
        and places[thing.place] == 1
        and all(other is thing or other.place_is_clear for other in scene.things)
    ]
    if not options or len(scene.things) < 2:
        return None
    thing = say.rng.choice(options)
    return Turn(
        "place_what",
        say.ask("place_what", place=thing.place),
        f"At the {thing.place} is {named(thing)}.",
        facts([thing]),
    )


def yesno(scene: Scene, say: Speaker) -> Turn | None:
    present = say.rng.random() < 0.5
    noun = present_noun(scene, say.rng) if present else absent_noun(scene, say.rng)
    if noun is None:
        return None
    answer = f"Yes, there is {article(noun)}." if present else f"No, there is no {noun}."
    return Turn("yesno", say.ask("yesno", a=article(noun)), answer, "yes" if present else "no")


def count_all(scene: Scene, say: Speaker) -> Turn:
    count = len(scene.things)
    answer = f"There {'is' if count == 1 else 'are'} {number_of(count, 'thing')}."
    return Turn("count_all", say.ask("count_all"), answer, COUNT_WORDS[count])


def count(scene: Scene, say: Speaker) -> Turn | None:
    repeated = [
        noun
        for thing in scene.things
        for noun in {thing.name, thing.phrase(size=False)}
        if not thing.is_text and count_of(noun, scene) > 1
    ]
    draw = say.rng.random()
    noun: str | None
    if repeated and draw < 0.7:
        noun = say.rng.choice(sorted(repeated))
    else:
        noun = present_noun(scene, say.rng) if draw < 0.9 else absent_noun(scene, say.rng)
    if noun is None:
        return None
    number = count_of(noun, scene)
    answer = f"There {'is' if number == 1 else 'are'} {number_of(number, noun)}."
    return Turn("count", say.ask("count", many=plural(noun)), answer, COUNT_WORDS[number])


def colour(scene: Scene, say: Speaker) -> Turn | None:
    options = [
        (thing, name) for thing in scene.things if thing.colour and (name := reference(thing, scene, colour=False))
    ]
    if not options:
        return None
    thing, name = say.rng.choice(options)
    assert thing.colour is not None
    return Turn("colour", say.ask("colour", the=name), sentence(f"{name} is {thing.colour}"), thing.colour)


def background(scene: Scene, say: Speaker) -> Turn:
    return Turn("background", say.ask("background"), f"The background is {scene.background}.", scene.background)


def where(scene: Scene, say: Speaker) -> Turn | None:
    options = [(thing, name) for thing in scene.things if thing.place_is_clear and (name := reference(thing, scene))]
    if not options:
        return None
    thing, name = say.rng.choice(options)
    return Turn("where", say.ask("where", the=name), sentence(f"{name} is at the {thing.place}"), thing.place)


def read(scene: Scene, say: Speaker) -> Turn | None:
    texts = [thing for thing in scene.things if thing.is_text]
    if not texts:
        return None
    thing = say.rng.choice(texts)
    noun = "text" if len(texts) == 1 and say.rng.random() < 0.5 else thing.kind
    question = say.ask("read", text=noun)
    if len(texts) > 1 and noun not in question:
        return None
    return Turn("read", question, f"The {thing.kind} is {thing.name}.", thing.name)


def missing_colour(scene: Scene, say: Speaker) -> Turn | None:
    names = [
        name
        for name in (*SHAPES, "word", "number")
        if name not in {thing.kind if thing.is_text else thing.name for thing in scene.things}
    ]
    name = say.rng.choice(names)
    return Turn("missing_colour", say.ask("missing_colour", the=f"the {name}"), unseen(name), "don't see")


def missing_where(scene: Scene, say: Speaker) -> Turn | None:
    noun = absent_noun(scene, say.rng)
    return Turn("missing_where", say.ask("missing_where", the=f"the {noun}"), unseen(noun), "don't see")


def missing_text(scene: Scene, say: Speaker) -> Turn | None:
    kinds = {thing.kind for thing in scene.things}
    options = [kind for kind in ("word", "number") if kind not in kinds]
    if len(options) == 2:
        options.append("text")
    if not options:
        return None
    noun = say.rng.choice(options)
    return Turn("missing_text", say.ask("missing_text", text=noun), unseen(noun), "don't see")


Maker = Callable[[Scene, Speaker], Turn | None]


ONE_PICTURE: dict[str, tuple[Maker, ...]] = {
    "caption": (caption,),
    "what": (what, place_what),
    "yesno": (yesno,),
    "count": (count_all, count),
    "colour": (colour, background),
    "where": (where,),
    "relation": (relation, relation_or, relation_where),
    "read": (read,),
    "compare": (compare_size, compare_colour, compare_count),
    "missing": (missing_colour, missing_where, missing_text),
}


KINDS: tuple[str, ...] = (*ONE_PICTURE, "turns", "two", "talk")
