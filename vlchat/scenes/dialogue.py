"""Questions that need more than one look: follow-ups, two pictures, and small talk."""

from vlchat.scenes.language import what
from vlchat.scenes.vocabulary import article
from vlchat.scenes.wording import Speaker, Turn, count_of, facts, join, named, present_noun, reference
from vlchat.scenes.world import Scene

TALK = {
    "talk_can": "I can look at your pictures and tell you what is in them, count things, name colors, say where things "
    "are, read short words and compare two pictures.",
    "talk_who": "I am a small chat model that can see. I look at pictures and answer questions about them.",
    "talk_hello": "Hello! Show me a picture and ask me about it.",
    "talk_thanks": "You are welcome! Ask me more if you like.",
    "talk_bye": "Goodbye! Come back with a picture any time.",
    "talk_none": "I don't see a picture. Please add one and ask again.",
}


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


TWO_PICTURES: tuple[str, ...] = ("two_which", "two_count", "two_both", "two_one")


def two_pictures(one: Scene, two: Scene, say: Speaker, form: str) -> Turn | None:
    """A question about two pictures shown in one conversation."""
    nth = say.rng.random() < 0.5
    here, there = (one, two) if nth else (two, one)
    ordinal, other = ("first", "second") if nth else ("second", "first")
    if form == "two_one":
        return Turn(
            form,
            say.ask(form, nth=ordinal),
            f"The {ordinal} picture shows {join([named(t) for t in here.things])}.",
            facts(here.things),
        )
    if form == "two_count":
        if len(here.things) <= len(there.things):
            return None
        return Turn(form, say.ask(form), f"The {ordinal} picture has more things.", ordinal, (other,))
    noun = present_noun(here, say.rng)
    if noun is None:
        return None
    both = count_of(noun, there) > 0
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
