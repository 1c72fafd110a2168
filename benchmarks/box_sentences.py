"""Statements about drawn boxes (`boxes`): true or false by computation, not by people.

A statement is put together from parts: a quantifier, a noun, what is said of it. The parts are those of NLVR's
sentences, of which whoever wrote this had read all, those that are kept for testing too; `domain_data` leaves out every
statement that says word for word what such a sentence says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

from boxes import COLOURS, MOST, SHAPES, SIZES, Box, Thing, World

_FORMS_TRIED, _TRIES = 4, 12
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")

# What is said: a noun's words (singular, plural), and how many of it a world has.
Noun = tuple[str, str, Callable[[World], int]]
# One try at a sentence that is true, or false, as wanted: its words (none where the world has no such) and its truth.
Form = Callable[[Random, World, bool], tuple[str, bool]]
_QUANTIFIERS = {"a": 6, "plain": 6, "exactly": 5, "only": 1, "at least": 5, "no": 1}  # and how often


def statement(rng: Random, world: World, want: bool) -> str | None:
    """A sentence whose truth in this world is `want`, or None where no such one was drawn."""
    for _ in range(_FORMS_TRIED):
        form = rng.choice(_FORMS_OF_TOWERS if world.towers else _FORMS_OF_ITEMS)
        for _ in range(_TRIES):  # of one form as many true as false ones, so that its words tell nothing
            text, truth = form(rng, world, want)
            if text and truth == want:
                text = text[0].lower() + text[1:] if rng.random() < 0.35 else text
                return text + ("." if rng.random() < 0.5 else "")
    return None


def how_many(rng: Random, world: World) -> tuple[str, str]:
    """A question for a number, and its answer in a word."""
    _, plural, count = (_tower_noun if world.towers else _item_noun)(rng)
    return f"How many {plural} are there?", _WORDS[count(world)] if count(world) < len(_WORDS) else str(count(world))


def description(world: World, number: int) -> tuple[str, str]:
    """A question for the things of one box, and the answer: a tower from its base, items from the top."""
    box = world.boxes[number]
    asked = f"What is in the {('left', 'middle', 'right')[number]} box?"
    if world.towers:
        return asked, f"A tower: {', '.join(block.colour for block in box)}."
    names = {pixels: name for name, pixels in SIZES.items()}
    told = []
    for thing in sorted(box, key=lambda thing: (thing.y, thing.x)):
        wall = " touching the wall" if thing.touches("any") else ""
        told.append(f"{names[thing.size]} {thing.colour} {thing.shape}{wall}")
    return asked, f"{_WORDS[len(box)]}: {', '.join(told)}."


def _counted(rng: Random, kind: str, noun: Noun, world: World, want: bool) -> tuple[str, bool]:
    """There is, or are, so many of it. "One" and "two" by themselves mean exactly so many, as NLVR's writers do."""
    singular, plural, count = noun
    found = count(world)
    if kind == "a":
        return f"There is {_article(singular)} {singular}", found >= 1
    if kind == "no":
        return f"There is no {singular}", found == 0
    # Numbers near the right one, or true sentences would have small numbers and false ones large ones.
    number = found if want else found + rng.choice((-1, 1, 1) if kind != "at least" else (1, 1, 2))
    if kind == "at least" and want:
        number -= rng.choice((0, 0, 1))
    if not 1 <= number <= MOST:
        return "", False
    spelled = rng.choice((_WORDS[number], str(number)))
    how = "" if kind == "plain" else f"{kind} "
    verb, name = ("is", singular) if number == 1 else ("are", plural)
    return f"There {verb} {how}{spelled} {name}", found >= number if kind == "at least" else found == number


def _each_counted(noun: Callable[[Random], Noun]) -> list[Form]:
    """A form for each quantifier, by its share, so that none of them tells whether a sentence is true."""

    def form(kind: str) -> Form:
        return lambda rng, world, want: _counted(rng, kind, noun(rng), world, want)

    return [form(kind) for kind, share in _QUANTIFIERS.items() for _ in range(share)]


def _article(word: str) -> str:
    return "an" if word[0] in "aeio" else "a"


# Towers.

Kind = tuple[str, Callable[[Box], bool]]  # words behind "with", and whether a box is such


def _tower_kind(rng: Random) -> Kind:
    colour, other = rng.choice(list(COLOURS)), rng.choice(list(COLOURS))
    number = rng.randint(1, MOST)
    blocks = "block" if number == 1 else "blocks"
    spelled = rng.choice((_WORDS[number], str(number)))
    how, holds = _compared(rng)
    kinds: list[Kind] = [
        (f"a {colour} block at the top", lambda box: box[-1].colour == colour),
        (f"a {colour} block at the {rng.choice(('base', 'bottom'))}", lambda box: box[0].colour == colour),
        (f"a {colour} block {rng.choice(('over', 'on', 'on top of', 'above'))} a {other} block",
         lambda box: any(high.colour == colour and low.colour == other for low, high in pairwise(box))),
        (f"{how}{spelled} {blocks}", lambda box: holds(len(box), number)),
        (f"{how}{spelled} {colour} {blocks}", lambda box: holds(_of(box, colour), number)),
        (f"a {colour} block", lambda box: _of(box, colour) > 0),
        (f"only {colour} blocks", lambda box: _of(box, colour) == len(box)),
        ("blocks of only one color", lambda box: len({block.colour for block in box}) == 1),
        (f"blocks of all {rng.choice(('three', '3'))} colors", lambda box: len({block.colour for block in box}) == 3),
        (f"a {colour} block and a {other} block", lambda box: bool(_of(box, colour) and _of(box, other))),
    ]  # fmt: skip
    words, holds_of = rng.choices(kinds, (6, 6, 4, 4, 3, 2, 1, 1, 1, int(colour != other)))[0]
    return words, holds_of


def _compared(rng: Random) -> tuple[str, Callable[[int, int], bool]]:
    forms: list[tuple[str, Callable[[int, int], bool]]] = [
        ("", lambda a, b: a == b), ("exactly ", lambda a, b: a == b), ("only ", lambda a, b: a == b),
        ("at least ", lambda a, b: a >= b), ("more than ", lambda a, b: a > b),
    ]  # fmt: skip
    return rng.choices(forms, (3, 3, 2, 3, 1))[0]


def _of(box: Box, colour: str) -> int:
    return sum(thing.colour == colour for thing in box)


def _tower_noun(rng: Random) -> Noun:
    words, holds = _tower_kind(rng)
    if rng.random() < 0.25:
        (more, also), first = _tower_kind(rng), holds
        if more != words:
            words, holds = f"{words} {rng.choice(('and', 'having'))} {more}", lambda box: first(box) and also(box)
    one, many = rng.choice((("with", "with"), ("with", "with"), ("that has", "that have"), ("having", "having")))
    return f"tower {one} {words}", f"towers {many} {words}", lambda world: sum(map(holds, world.boxes))


def _block_noun(rng: Random) -> Noun:
    colour, other = rng.choice(list(COLOURS)), rng.choice(list(COLOURS))
    least = rng.randint(1, 3)
    tower = "a tower" + (f" with at least {_WORDS[least]} {'block' if least == 1 else 'blocks'}" if least > 1 else "")
    place, at = rng.choice((("top", -1), ("base", 0)))
    nouns: list[tuple[str, Callable[[Box], int]]] = [
        ("", lambda box: _of(box, colour)),
        (f" as the {place} of {tower}", lambda box: int(box[at].colour == colour and len(box) >= least)),
        (f" {rng.choice(('on', 'over', 'above'))} a {other} block",
         lambda box: sum(high.colour == colour and low.colour == other for low, high in pairwise(box))),
    ]  # fmt: skip
    words, count = rng.choices(nouns, (2, 3, 2))[0]
    return f"{colour} block{words}", f"{colour} blocks{words}", lambda world: sum(map(count, world.boxes))


def _the_tower(rng: Random, world: World, want: bool) -> tuple[str, bool]:
    number, colour = rng.randint(1, MOST), rng.choice(list(COLOURS))
    such = [box for box in world.boxes if len(box) == number]
    place, at = rng.choice((("top", -1), ("base", 0)))
    if len(such) != 1:
        return "", False
    blocks = f"{_WORDS[number]} {'block' if number == 1 else 'blocks'}"
    text = rng.choice((
        f"The tower with {blocks} has a {colour} block at the {place}",
        f"The {place} of the {blocks} tower is {colour}",
    ))  # fmt: skip
    return text, such[0][at].colour == colour


def _of_the_towers(rng: Random, world: World, want: bool) -> tuple[str, bool]:
    words, holds = _tower_kind(rng)
    number = rng.choice((1, 2, 3))
    found = sum(map(holds, world.boxes))
    if number == 3:
        return f"All {rng.choice(('', '3 ', 'three '))}towers have {words}", found == 3
    have = "has" if number == 1 else "have"
    return f"{_WORDS[number].capitalize()} of the three towers {have} {words}", found == number


def _alike(rng: Random, world: World, want: bool) -> tuple[str, bool]:
    what, of = rng.choice((
        ("the same height", len), ("the same base color", lambda box: box[0].colour),
        ("the same top color", lambda box: box[-1].colour),
    ))  # fmt: skip
    values = [of(box) for box in world.boxes]
    return f"There are at least two towers with {what}", len(set(values)) < 3


_FORMS_OF_TOWERS: Sequence[Form] = (
    *_each_counted(_tower_noun) * 2, *_each_counted(_block_noun), *(_the_tower, _of_the_towers, _alike) * 5,
)  # fmt: skip


# Scattered items.

ItemKind = tuple[str, Callable[[Thing], bool]]
_ITEMS = ("item", "object", "item")


def _what(rng: Random) -> tuple[str, Callable[[Thing], bool]]:
    """Words such as "small blue circle", and whether a thing is one."""
    size = rng.choice(list(SIZES)) if rng.random() < 0.08 else None
    colour = rng.choice(list(COLOURS)) if rng.random() < 0.8 else None
    shape = rng.choice(SHAPES) if rng.random() < 0.6 or not colour else None
    words = " ".join(word for word in (size, colour, shape or rng.choice(_ITEMS)) if word)

    def holds(thing: Thing) -> bool:
        return (
            (size is None or thing.size == SIZES[size])
            and colour in (None, thing.colour)
            and (shape in (None, thing.shape))
        )

    return words, holds


def _where(rng: Random) -> tuple[str, Callable[[Thing], bool]]:
    any_wall, near = rng.choice(("edge", "wall", "side")), rng.choice(("", "closely "))
    wall = rng.choice(("left", "right", "top", "bottom", "bottom"))
    base = rng.choice((f"the {wall} of a box", f"the {wall} wall of a box")) if wall != "bottom" or near else "the base"
    places: list[tuple[str, Callable[[Thing], bool]]] = [
        ("", lambda thing: True),
        (f"{near}touching the {any_wall}", lambda thing: thing.touches("any")),
        (f"not touching {rng.choice(('any', 'the'))} {any_wall}", lambda thing: not thing.touches("any")),
        (f"{near}touching {base}", lambda thing: thing.touches(wall)),
        (f"{near}touching {rng.choice(('a', 'the'))} corner", lambda thing: thing.touches("corner")),
    ]
    return rng.choices(places, (5, 4, 3, 3, 1))[0]


def _item_noun(rng: Random) -> Noun:
    what, is_such = _what(rng)
    where, is_there = _where(rng)
    head, _, last = what.rpartition(" ")
    plural = f"{head} {last}s".strip()
    return (
        f"{what} {where}".strip(), f"{plural} {where}".strip(),
        lambda world: sum(is_such(thing) and is_there(thing) for box in world.boxes for thing in box),
    )  # fmt: skip


def _box_kind(rng: Random) -> tuple[str, Callable[[Box], bool]]:
    colour, other = rng.sample(list(COLOURS), 2)
    number = rng.randint(1, 6)
    how, compared = _compared(rng)
    what, is_such = _what(rng)
    also, is_also = _what(rng)
    where, is_there = _where(rng)
    few = rng.randint(1, 3)
    s = "" if few == 1 else "s"
    items = rng.choice(("item", "object")) + ("" if number == 1 else "s")
    kinds: list[tuple[str, Callable[[Box], bool]]] = [
        (f"{how}{rng.choice((_WORDS[number], str(number)))} {items}", lambda box: compared(len(box), number)),
        (f"{how}{rng.choice((_WORDS[few], str(few)))} {what}{s} {where}".strip(),
         lambda box: compared(sum(is_such(t) and is_there(t) for t in box), few)),
        (f"{_article(what)} {what} {where}".strip(), lambda box: any(is_such(t) and is_there(t) for t in box)),
        (f"{_article(what)} {what} and {_article(also)} {also}",
         lambda box: any(a is not b and is_such(a) and is_also(b) for a in box for b in box)),
        (f"no {what}", lambda box: not any(map(is_such, box))),
        (f"items of only {colour} and {other} color", lambda box: {t.colour for t in box} == {colour, other}),
        (f"only {colour} items", lambda box: {t.colour for t in box} == {colour}),
        ("items of only one color", lambda box: len({t.colour for t in box}) == 1),
        (f"all {rng.choice(('3 ', 'three '))}{rng.choice(('', 'different '))}colors",
         lambda box: len({t.colour for t in box}) == 3),
        (f"{_article(colour)} {colour} item on top", lambda box: min(box, key=lambda t: t.y).colour == colour),
    ]  # fmt: skip
    return rng.choices(kinds, (4, 4, 3, 3, 1, 2, 2, 1, 1, 2))[0]


def _box_noun(rng: Random) -> Noun:
    words, holds = _box_kind(rng)
    if rng.random() < 0.2:
        (more, also), first = _box_kind(rng), holds
        if more != words:
            words, holds = f"{words} and {more}", lambda box: first(box) and also(box)
    return f"box with {words}", f"boxes with {words}", lambda world: sum(map(holds, world.boxes))


def _of_the_boxes(rng: Random, world: World, want: bool) -> tuple[str, bool]:
    words, holds = _box_kind(rng)
    found = sum(map(holds, world.boxes))
    grey = rng.choice(("box", "box", "grey box"))
    if rng.random() < 0.5:
        return f"Each {grey} {rng.choice(('has', 'contains'))} {words}", found == 3
    return f"One of the {grey}{rng.choice(('', 'es'))} has {words}", found == 1


def _all_items(rng: Random, world: World, want: bool) -> tuple[str, bool]:
    what, is_such = _what(rng)
    such = [(number, thing) for number, box in enumerate(world.boxes) for thing in box if is_such(thing)]
    if not such:
        return "", False
    if rng.random() < 0.4:
        return f"All {what}s are in the same box", len({number for number, _ in such}) == 1
    where, is_there = _where(rng)
    if not where:
        return "", False
    if rng.random() < 0.5:
        return f"All {what}s are {where}", all(is_there(thing) for _, thing in such)
    return f"None of the {what}s are {where}", not any(is_there(thing) for _, thing in such)


_FORMS_OF_ITEMS: Sequence[Form] = (
    *_each_counted(_item_noun), *_each_counted(_box_noun), *(_of_the_boxes, _all_items) * 3,
)  # fmt: skip
