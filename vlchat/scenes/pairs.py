"""Questions about two things in one picture: where one lies from the other, and how they compare."""

from random import Random

from vlchat.scenes.vocabulary import plural
from vlchat.scenes.wording import Speaker, Turn, count_of, number_of, pair_of, sentence
from vlchat.scenes.world import Scene, Thing

SIDES = {"to the left of": "to the right of", "to the right of": "to the left of", "above": "below", "below": "above"}


def _side(one: Thing, two: Thing, rng: Random, *, sole: bool) -> str | None:
    """A side on which `one` clearly lies from `two`; with `sole`, only where the other axis does not compete."""
    across, down = two.x - one.x, two.y - one.y
    options = []
    if abs(across) > 0.14 and (not sole or abs(across) > 2 * abs(down)):
        options.append("to the left of" if across > 0 else "to the right of")
    if abs(down) > 0.14 and (not sole or abs(down) > 2 * abs(across)):
        options.append("above" if down > 0 else "below")
    return rng.choice(options) if options else None


def verdict(form: str, question: str, truth: str, holds: bool) -> Turn:
    """A yes or no that needs facts. They come before it: a small model cannot weigh what it has not said yet."""
    fact = "yes" if holds else "no"
    return Turn(form, question, sentence(f"{truth}, so {fact}"), fact)


def _relation(scene: Scene, say: Speaker, form: str) -> Turn | None:
    pair = pair_of(scene, say.rng)
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
        return verdict(form, question, truth, holds)
    first, second = (side, opposite) if say.rng.random() < 0.5 else (opposite, side)
    shorter = {"to the left of": "to the left", "to the right of": "to the right"}
    question = say.ask(form, the=name, other=other, side=shorter.get(first, first), opposite=second)
    return Turn(
        form,
        question,
        sentence(truth),
        side.split()[-2] if " " in side else side,
        tuple(word for word in ("left", "right", "above", "below") if word not in side),
    )


def relation(scene: Scene, say: Speaker) -> Turn | None:
    return _relation(scene, say, "relation")


def relation_or(scene: Scene, say: Speaker) -> Turn | None:
    return _relation(scene, say, "relation_or")


def relation_where(scene: Scene, say: Speaker) -> Turn | None:
    return _relation(scene, say, "relation_where")


def compare_size(scene: Scene, say: Speaker) -> Turn | None:
    plain = Scene(tuple(thing for thing in scene.things if not thing.is_text), scene.background, scene.texture, 0)
    pair = pair_of(plain, say.rng)
    if pair is None:
        return None
    one, name, two, other = pair
    if one.size == two.size or any(size in name + other for size in ("small", "medium", "large")):
        return None
    first, second = (name, other) if one.width > two.width else (other, name)
    return Turn(
        "compare_size",
        say.ask("compare_size", the=name, other=other),
        sentence(f"{first} is bigger"),
        f"{first} is bigger",
        (f"{second} is bigger",),
    )


def compare_colour(scene: Scene, say: Speaker) -> Turn | None:
    for _ in range(6):  # look for a pair of one colour half of the time
        pair = pair_of(scene, say.rng, colours=False)
        if pair and pair[0].colour and pair[2].colour:
            if pair[0].colour == pair[2].colour or say.rng.random() < 0.4:
                break
    else:
        return None
    one, name, two, other = pair
    question = say.ask("compare_colour", the=name, other=other)
    truth = f"{name} is {one.colour} and {other} is {two.colour}"
    return verdict("compare_colour", question, truth, one.colour == two.colour)


def compare_count(scene: Scene, say: Speaker) -> Turn | None:
    nouns = sorted({thing.name for thing in scene.things if not thing.is_text})
    if len(nouns) < 2:
        return None
    one, two = say.rng.sample(nouns, 2)
    first, second = count_of(one, scene), count_of(two, scene)
    if first == second and say.rng.random() < 0.6:
        return None
    if say.rng.random() < 0.5 and first > second or first < second and say.rng.random() < 0.25:
        one, two, first, second = two, one, second, first
    verb = "is" if first == 1 else "are"
    question = say.ask("compare_count", many=plural(one), others=plural(two))
    truth = f"there {verb} {number_of(first, one)} and {number_of(second, two)}"
    return verdict("compare_count", question, truth, first > second)
