"""Questions and answers about scenes. A maker returns a Turn, or None where the scene does not allow its question."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from vlchat.scenes.phrasings import HELD, SEEN
from vlchat.scenes.vocabulary import COLOURS, COUNT_WORDS, PICTOGRAMS, SHAPES, article, plural
from vlchat.scenes.world import Scene, Thing

SIDES = {"to the left of": "to the right of", "to the right of": "to the left of", "above": "below", "below": "above"}
TALK = {
    "talk_can": "I can look at your pictures and tell you what is in them, count things, name colors, say where things "
    "are, read short words and compare two pictures.",
    "talk_who": "I am a small chat model that can see. I look at pictures and answer questions about them.",
    "talk_hello": "Hello! Show me a picture and ask me about it.",
    "talk_thanks": "You are welcome! Ask me more if you like.",
    "talk_bye": "Goodbye! Come back with a picture any time.",
    "talk_none": "I don't see a picture. Please add one and ask again.",
}


@dataclass(frozen=True)
class Turn:
    """One question with its answer. `fact` is what a right reply must state; see `scenes.questions.correct`."""

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
        if sum(_fits(option, other) for other in scene.things) == 1:
            return f"the {option}"
    return None


def _fits(words: str, thing: Thing) -> bool:
    return words in (thing.name, f"{thing.colour} {thing.name}", f"{thing.size} {thing.name}")


def _number(count: int, noun: str) -> str:
    return f"{COUNT_WORDS[count] if count else 'no'} {noun if count == 1 else plural(noun)}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _named(thing: Thing) -> str:
    """`a red circle`, `a cat`, `the word sun`: what a thing is, without its size."""
    return f"the {thing.noun}" if thing.is_text else article(thing.phrase(size=False))


def _facts(things: tuple[Thing, ...] | list[Thing]) -> tuple[str, ...]:
    return tuple(sorted(thing.noun if thing.is_text else thing.phrase(size=False) for thing in things))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def caption(scene: Scene, say: Speaker) -> Turn:
    parts = [f"{_named(thing)} at the {thing.place}" for thing in scene.things]
    return Turn("caption", say.ask("caption"), f"I see {_join(parts)}.", _facts(scene.things))


def detail(scene: Scene, say: Speaker) -> Turn:
    """A caption with sizes, the colours of text and the background: what the stage-1 connector learns from."""
    parts = [f"{article(thing.phrase())} at the {thing.place}" for thing in scene.things]
    question = say.rng.choice(("Describe every detail.", "Describe the picture in detail.", "Tell me all the details."))
    return Turn(
        "detail", question, f"On a {scene.background} background there is {_join(parts)}.", _facts(scene.things)
    )


def what(scene: Scene, say: Speaker) -> Turn | None:
    if len(scene.things) != 1:
        return None
    return Turn("what", say.ask("what"), f"This is {_named(scene.things[0])}.", _facts(scene.things))


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
        f"At the {thing.place} is {_named(thing)}.",
        _facts([thing]),
    )


def _absent_noun(scene: Scene, rng: Random) -> str:
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


def _present_noun(scene: Scene, rng: Random) -> str | None:
    things = [thing for thing in scene.things if not thing.is_text]
    if not things:
        return None
    thing = rng.choice(things)
    return thing.phrase(size=False, colour=rng.random() < 0.6)


def yesno(scene: Scene, say: Speaker) -> Turn | None:
    present = say.rng.random() < 0.5
    noun = _present_noun(scene, say.rng) if present else _absent_noun(scene, say.rng)
    if noun is None:
        return None
    answer = f"Yes, there is {article(noun)}." if present else f"No, there is no {noun}."
    return Turn("yesno", say.ask("yesno", a=article(noun)), answer, "yes" if present else "no")


def count_all(scene: Scene, say: Speaker) -> Turn:
    count = len(scene.things)
    answer = f"There {'is' if count == 1 else 'are'} {_number(count, 'thing')}."
    return Turn("count_all", say.ask("count_all"), answer, COUNT_WORDS[count])


def _count_of(noun: str, scene: Scene) -> int:
    return sum(noun in (thing.name, thing.phrase(size=False)) for thing in scene.things if not thing.is_text)


def count(scene: Scene, say: Speaker) -> Turn | None:
    repeated = [
        noun
        for thing in scene.things
        for noun in {thing.name, thing.phrase(size=False)}
        if not thing.is_text and _count_of(noun, scene) > 1
    ]
    draw = say.rng.random()
    noun: str | None
    if repeated and draw < 0.7:
        noun = say.rng.choice(sorted(repeated))
    else:
        noun = _present_noun(scene, say.rng) if draw < 0.9 else _absent_noun(scene, say.rng)
    if noun is None:
        return None
    number = _count_of(noun, scene)
    answer = f"There {'is' if number == 1 else 'are'} {_number(number, noun)}."
    return Turn("count", say.ask("count", many=plural(noun)), answer, COUNT_WORDS[number])


def colour(scene: Scene, say: Speaker) -> Turn | None:
    options = [
        (thing, name) for thing in scene.things if thing.colour and (name := reference(thing, scene, colour=False))
    ]
    if not options:
        return None
    thing, name = say.rng.choice(options)
    assert thing.colour is not None
    return Turn("colour", say.ask("colour", the=name), _sentence(f"{name} is {thing.colour}"), thing.colour)


def background(scene: Scene, say: Speaker) -> Turn:
    return Turn("background", say.ask("background"), f"The background is {scene.background}.", scene.background)


def where(scene: Scene, say: Speaker) -> Turn | None:
    options = [(thing, name) for thing in scene.things if thing.place_is_clear and (name := reference(thing, scene))]
    if not options:
        return None
    thing, name = say.rng.choice(options)
    return Turn("where", say.ask("where", the=name), _sentence(f"{name} is at the {thing.place}"), thing.place)


def _pair(scene: Scene, rng: Random, *, colours: bool = True) -> tuple[Thing, str, Thing, str] | None:
    named = [(thing, name) for thing in scene.things if (name := reference(thing, scene, colour=colours))]
    if len(named) < 2:
        return None
    (one, one_name), (two, two_name) = rng.sample(named, 2)
    return one, one_name, two, two_name


def _side(one: Thing, two: Thing, rng: Random, *, sole: bool) -> str | None:
    """A side on which `one` clearly lies from `two`; with `sole`, only where the other axis does not compete."""
    across, down = two.x - one.x, two.y - one.y
    options = []
    if abs(across) > 0.14 and (not sole or abs(across) > 2 * abs(down)):
        options.append("to the left of" if across > 0 else "to the right of")
    if abs(down) > 0.14 and (not sole or abs(down) > 2 * abs(across)):
        options.append("above" if down > 0 else "below")
    return rng.choice(options) if options else None


def _relation(scene: Scene, say: Speaker, form: str) -> Turn | None:
    pair = _pair(scene, say.rng)
    if pair is None:
        return None
    one, name, two, other = pair
    side = _side(one, two, say.rng, sole=form == "relation_where")
    if side is None:
        return None
    opposite = SIDES[side]
    truth = f"{name} is {side} {other}"
    if form == "relation":
        holds = say.rng.random() < 0.5
        question = say.ask(form, the=name, other=other, side=side if holds else opposite)
        return Turn(form, question, f"{'Yes' if holds else 'No'}, {truth}.", "yes" if holds else "no")
    first, second = (side, opposite) if say.rng.random() < 0.5 else (opposite, side)
    shorter = {"to the left of": "to the left", "to the right of": "to the right"}
    question = say.ask(form, the=name, other=other, side=shorter.get(first, first), opposite=second)
    return Turn(
        form,
        question,
        _sentence(truth),
        side.split()[-2] if " " in side else side,
        tuple(word for word in ("left", "right", "above", "below") if word not in side),
    )


def relation(scene: Scene, say: Speaker) -> Turn | None:
    return _relation(scene, say, "relation")


def relation_or(scene: Scene, say: Speaker) -> Turn | None:
    return _relation(scene, say, "relation_or")


def relation_where(scene: Scene, say: Speaker) -> Turn | None:
    return _relation(scene, say, "relation_where")


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


def compare_size(scene: Scene, say: Speaker) -> Turn | None:
    plain = Scene(tuple(thing for thing in scene.things if not thing.is_text), scene.background, scene.texture, 0)
    pair = _pair(plain, say.rng)
    if pair is None:
        return None
    one, name, two, other = pair
    if one.size == two.size or any(size in name + other for size in ("small", "medium", "large")):
        return None
    first, second = (name, other) if one.width > two.width else (other, name)
    return Turn(
        "compare_size",
        say.ask("compare_size", the=name, other=other),
        _sentence(f"{first} is bigger"),
        f"{first} is bigger",
        (f"{second} is bigger",),
    )


def compare_colour(scene: Scene, say: Speaker) -> Turn | None:
    for _ in range(6):  # look for a pair of one colour half of the time
        pair = _pair(scene, say.rng, colours=False)
        if pair and pair[0].colour and pair[2].colour:
            if pair[0].colour == pair[2].colour or say.rng.random() < 0.4:
                break
    else:
        return None
    one, name, two, other = pair
    same = one.colour == two.colour
    answer = f"Yes, both are {one.colour}." if same else f"No, {name} is {one.colour} and {other} is {two.colour}."
    return Turn("compare_colour", say.ask("compare_colour", the=name, other=other), answer, "yes" if same else "no")


def compare_count(scene: Scene, say: Speaker) -> Turn | None:
    nouns = sorted({thing.name for thing in scene.things if not thing.is_text})
    if len(nouns) < 2:
        return None
    one, two = say.rng.sample(nouns, 2)
    first, second = _count_of(one, scene), _count_of(two, scene)
    if first == second and say.rng.random() < 0.6:
        return None
    if say.rng.random() < 0.5 and first > second or first < second and say.rng.random() < 0.25:
        one, two, first, second = two, one, second, first
    verb = "is" if first == 1 else "are"
    answer = f"{'Yes' if first > second else 'No'}, there {verb} {_number(first, one)} and {_number(second, two)}."
    return Turn(
        "compare_count",
        say.ask("compare_count", many=plural(one), others=plural(two)),
        answer,
        "yes" if first > second else "no",
    )


def missing_colour(scene: Scene, say: Speaker) -> Turn | None:
    names = [
        name
        for name in (*SHAPES, "word", "number")
        if name not in {thing.kind if thing.is_text else thing.name for thing in scene.things}
    ]
    name = say.rng.choice(names)
    return Turn("missing_colour", say.ask("missing_colour", the=f"the {name}"), _unseen(name), "don't see")


def missing_where(scene: Scene, say: Speaker) -> Turn | None:
    noun = _absent_noun(scene, say.rng)
    return Turn("missing_where", say.ask("missing_where", the=f"the {noun}"), _unseen(noun), "don't see")


def missing_text(scene: Scene, say: Speaker) -> Turn | None:
    kinds = {thing.kind for thing in scene.things}
    options = [kind for kind in ("word", "number") if kind not in kinds]
    if len(options) == 2:
        options.append("text")
    if not options:
        return None
    noun = say.rng.choice(options)
    return Turn("missing_text", say.ask("missing_text", text=noun), _unseen(noun), "don't see")


def _unseen(noun: str) -> str:
    return "I don't see any text in the picture." if noun == "text" else f"I don't see {article(noun)} in the picture."


def talk(say: Speaker, *, picture: bool) -> Turn:
    form = say.rng.choice([form for form in TALK if not (picture and form == "talk_none")])
    return Turn(form, say.ask(form), TALK[form], TALK[form])


def follow_up(scene: Scene, say: Speaker) -> list[Turn] | None:
    """Two turns about one picture; the second says `it`."""
    thing = say.rng.choice(scene.things)
    name = reference(thing, scene)
    if name is None or thing.is_text:
        return None
    if len(scene.things) == 1:
        first = what(scene, say)
    else:
        first = Turn(
            "yesno",
            say.ask("yesno", a=article(name.removeprefix("the "))),
            f"Yes, there is {article(name.removeprefix('the '))}.",
            "yes",
        )
    assert first is not None
    if thing.colour and thing.colour not in name and (len(scene.things) > 1) and say.rng.random() < 0.5:
        return [first, Turn("turn_colour", say.ask("turn_colour"), f"It is {thing.colour}.", thing.colour)]
    if not thing.place_is_clear:
        return None
    return [first, Turn("turn_where", say.ask("turn_where"), f"It is at the {thing.place}.", thing.place)]


def two_pictures(one: Scene, two: Scene, say: Speaker, form: str) -> Turn | None:
    """A question about two pictures shown in one conversation."""
    nth = say.rng.random() < 0.5
    here, there = (one, two) if nth else (two, one)
    ordinal, other = ("first", "second") if nth else ("second", "first")
    if form == "two_one":
        return Turn(
            form,
            say.ask(form, nth=ordinal),
            f"The {ordinal} picture shows {_join([_named(t) for t in here.things])}.",
            _facts(here.things),
        )
    if form == "two_count":
        if len(here.things) <= len(there.things):
            return None
        return Turn(form, say.ask(form), f"The {ordinal} picture has more things.", ordinal, (other,))
    noun = _present_noun(here, say.rng)
    if noun is None:
        return None
    both = _count_of(noun, there) > 0
    if form == "two_both":
        if not both and say.rng.random() < 0.6:
            return None
        answer = (
            f"Yes, both pictures show {article(noun)}."
            if both
            else f"No, only the {ordinal} picture shows {article(noun)}."
        )
        return Turn(form, say.ask(form, a=article(noun)), answer, "yes" if both else "no")
    if both:
        return None
    return Turn(form, say.ask(form, a=article(noun)), f"The {ordinal} picture has {article(noun)}.", ordinal, (other,))


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
TWO_PICTURES: tuple[str, ...] = ("two_which", "two_count", "two_both", "two_one")
KINDS: tuple[str, ...] = (*ONE_PICTURE, "turns", "two", "talk")
"""Kinds of question, as `vlchat eval --task scenes` reports them."""
