"""Conversations about scenes for training, and questions with answers for testing, by (split, seed, index) alone."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import Image

from vlchat.errors import VLChatError
from vlchat.scenes.dialogue import TWO_PICTURES, follow_up, talk, two_pictures
from vlchat.scenes.draw import draw
from vlchat.scenes.language import KINDS, ONE_PICTURE, detail, sides
from vlchat.scenes.phrasings import HELD, PREFIXES
from vlchat.scenes.vocabulary import COLOURS, COUNT_WORDS, PICTOGRAMS, SHAPES, SIZES, plural
from vlchat.scenes.wording import Speaker, Turn
from vlchat.scenes.world import Scene, reading_order, sample_scene

TRAIN_WEIGHTS = {  # few scenes allow reading, naming by place or comparing: those are drawn more often
    "caption": 0.8,
    "what": 2.5,
    "yesno": 1.0,
    "count": 1.6,
    "colour": 1.2,
    "where": 1.2,
    "relation": 3.0,
    "read": 3.5,
    "compare": 3.0,
    "missing": 0.9,
}


@dataclass(frozen=True)
class Conversation:
    """Scenes shown at the start of a conversation, and the turns about them."""

    scenes: tuple[Scene, ...]
    turns: tuple[Turn, ...]

    def messages(self, pictures: list[Any] | None = None) -> list[dict[str, Any]]:
        """Chat messages with content parts; `pictures` (default: drawn here) stand before the first question."""
        shown = [draw(scene) for scene in self.scenes] if pictures is None else pictures
        messages: list[dict[str, Any]] = []
        for turn in self.turns:
            parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in shown]
            shown = []
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": turn.question}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return messages


def generator(split: str, seed: int, index: int) -> Random:
    """The random generator of one row; rows of different splits, seeds or indices share nothing."""
    return Random(f"vlchat-scenes/{split}/{seed}/{index}")


_MEANT = set(" ".join((*PICTOGRAMS, *SHAPES, *COLOURS, *SIZES, *COUNT_WORDS)).split())
_MEANT |= {plural(word) for word in _MEANT} | set("left right above below top bottom center first second both".split())
_MEANT |= set("word number text bigger where color colour many more no background".split())


def _slip(question: str, rng: Random) -> str:
    """Leaves out or mistypes one word that does not carry the question's meaning."""
    words = question.split(" ")
    places = [place for place, word in enumerate(words[1:], 1) if word.lower().rstrip("?.,!") not in _MEANT]
    if len(words) < 4 or not places:
        return question
    place = rng.choice(places)
    word = words[place]
    if rng.random() < 0.4 or len(word) < 3:
        end = word[-1] if word[-1] in "?.,!" else ""
        words[place - 1] += end
        del words[place]
    else:
        at = rng.randrange(len(word.rstrip("?.,!")) - 1)
        words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def _roughen(question: str, rng: Random) -> str:
    """How people really type: a greeting before, no capital, no question mark, a word left out or mistyped."""
    rough = _slip(question, rng) if rng.random() < 0.3 else question
    prefix = rng.choice(PREFIXES)
    if prefix.endswith((", ", "And ", "So ", ": ")):
        rough = rough[0].lower() + rough[1:]
    rough = prefix + rough
    if rng.random() < 0.12:
        rough = rough.lower()
    if rng.random() < 0.12:
        rough = rough.rstrip("?.")
    return question if _bare(rough) in _HELD_BARE else rough


def _bare(question: str) -> str:
    return question.lower().rstrip("?.!")


_HELD_BARE = {_bare(phrase) for phrases in HELD.values() for phrase in phrases if "{" not in phrase}


def conversation(seed: int, index: int, *, split: str = "train", turns: int = 5, texts: float = 0.0) -> Conversation:
    """One training conversation of about `turns` questions, in seen phrasings only; `texts` as in `sample_scene`."""
    rng = generator(split, seed, index)
    say = Speaker(rng)
    asked: list[Turn] = []
    draw_kind = rng.random()
    if draw_kind < 0.04:  # no picture at all
        scenes: tuple[Scene, ...] = ()
        asked = [talk(say, picture=False) for _ in range(rng.randint(1, 3))]
        turns = 0
    elif draw_kind < 0.20:
        scenes = two_scenes(rng)
    else:
        scenes = (sample_scene(rng, texts=texts),)
    for attempt in itertools.count():
        if len(asked) >= turns or (asked and attempt >= 4 * turns):
            break
        fresh = _turns(scenes, say)
        if all(turn.answer not in {known.answer for known in asked} for turn in fresh[-1:]):  # nothing twice
            asked += fresh
    turned = tuple(Turn(turn.form, _roughen(turn.question, rng), turn.answer, turn.fact) for turn in asked)
    return Conversation(scenes, turned)


def _turns(scenes: tuple[Scene, ...], say: Speaker) -> list[Turn]:
    """The next turns of a training conversation; none where the kind that was drawn does not fit the scenes."""
    if len(scenes) == 2:
        turn = two_pictures(*scenes, say, say.rng.choice(TWO_PICTURES))
        return [turn] if turn else []
    draw_turn = say.rng.random()
    if draw_turn < 0.06:
        return follow_up(scenes[0], say) or []
    if draw_turn < 0.085:
        return [talk(say, picture=True)]
    if draw_turn < 0.16:
        return [detail(scenes[0], say)]
    if draw_turn < 0.22:
        turn = sides(scenes[0], say)
        return [turn] if turn else []
    kind = say.rng.choices(list(TRAIN_WEIGHTS), list(TRAIN_WEIGHTS.values()))[0]
    turn = say.rng.choice(ONE_PICTURE[kind])(scenes[0], say)
    return [turn] if turn else []


def two_scenes(rng: Random) -> tuple[Scene, Scene]:
    """Two scenes of one to three things; half of the time the second repeats a thing of the first."""
    one = sample_scene(rng, rng.randint(1, 3))
    two = sample_scene(rng, rng.randint(1, 3))
    if rng.random() < 0.5:
        kept = rng.choice(one.things)
        if not kept.is_text and kept.colour != two.background:
            clear = tuple(
                t
                for t in two.things
                if abs(t.x - kept.x) > (t.width + kept.width) / 2 + 0.02
                or abs(t.y - kept.y) > (t.height + kept.height) / 2 + 0.02
            )
            two = Scene(tuple(sorted((*clear, kept), key=reading_order)), two.background, two.texture, two.seed)
    return one, two


@dataclass(frozen=True)
class SceneQuestion:
    """A question about drawn pictures with its right answer. `messages` end in the user's turn."""

    id: str
    images: list[Image.Image]
    messages: list[dict[str, Any]]
    answer: str
    accepted: list[str]
    kind: str
    turn: Turn
    scenes: tuple[Scene, ...]


def ask_about(kind: str, rng: Random, held: bool) -> Conversation:
    """A conversation that ends in a question of this kind, about a fresh scene."""
    say = Speaker(rng, held)
    while True:
        if kind == "two":
            scenes: tuple[Scene, ...] = two_scenes(rng)
            turn = two_pictures(scenes[0], scenes[1], say, rng.choice(TWO_PICTURES))
            turns = [turn] if turn else None
        elif kind == "talk":
            scenes = (sample_scene(rng),) if rng.random() < 0.5 else ()
            turns = [talk(say, picture=bool(scenes))]
        else:
            scenes = (sample_scene(rng),)
            if kind == "turns":
                turns = follow_up(scenes[0], say)
            else:
                turn = rng.choice(ONE_PICTURE[kind])(scenes[0], say)
                turns = [turn] if turn else None
        if turns:
            return Conversation(scenes, tuple(turns))


def questions(count: int, seed: int, *, split: str = "test", phrasings: str = "seen") -> Iterator[SceneQuestion]:
    """`count` questions on scenes of their own, the kinds in turn. `phrasings` is "seen" or "held".

    Raises VLChatError for another `phrasings`, or when the fonts for drawing are missing.
    """
    if phrasings not in ("seen", "held"):
        raise VLChatError(f'phrasings is "{phrasings}"; use "seen" or "held".')
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        shown = ask_about(kind, generator(f"{split}-{phrasings}", seed, index), phrasings == "held")
        pictures = [draw(scene) for scene in shown.scenes]
        last = shown.turns[-1]
        yield SceneQuestion(
            f"{split}-{phrasings}-{seed}-{index}",
            pictures,
            shown.messages(pictures)[:-1],
            last.answer,
            [last.answer],
            kind,
            last,
            shown.scenes,
        )


_TEXT = r"(?:word|number) \w+"
_NOUNS = "|".join(sorted((*PICTOGRAMS, *SHAPES), key=len, reverse=True))  # longest first: teddy bear before bear
_THING = re.compile(rf"\b(?:{_TEXT}|(?:(?:{'|'.join(COLOURS)}) )?(?:{_NOUNS}))\b")
_COLOUR = re.compile(rf"\b(?:{_TEXT}|{'|'.join(COLOURS)})\b")
_COUNT = re.compile(rf"\b(?:{'|'.join(COUNT_WORDS)}|no|\d)\b")
_PLACE = re.compile(r"\b(?:(?:top|bottom) (?:left|right)|top|bottom|left|right|center)\b")
YES_NO = ("yesno", "relation", "compare_colour", "compare_count", "two_both")
LISTS = ("caption", "what", "place_what", "two_one", "detail")


def correct(question: SceneQuestion, reply: str) -> bool:
    """Whether the reply states the fact that was asked for and no other in its place; wording is free.

    Of a question for yes or no only the verdict counts, not the reasons given for it.
    """
    return states(question.turn, reply)


def states(turn: Turn, reply: str) -> bool:
    """`correct` for a turn: one rule per form of question."""
    text = re.sub(
        r"[\"“”.,!?:;()]", " ", reply.lower().replace("colour", "color").replace("’", "'").replace("grey", "gray")
    )
    text = " ".join(text.split())
    form, fact = turn.form, turn.fact
    if form in LISTS:
        return tuple(sorted(_THING.findall(text))) == fact
    assert isinstance(fact, str)
    if form in YES_NO:
        words_said = text.split(" ")  # the verdict opens the reply or, after its reasons, closes it
        return {words_said[0], words_said[-1]} & {"yes", "no"} == {fact}
    if form in ("count", "count_all"):
        said = [COUNT_WORDS[int(n)] if n.isdigit() else "zero" if n == "no" else n for n in _COUNT.findall(text)]
        return bool(said) and said[0] == fact and len(set(said)) == 1
    if form in ("colour", "background", "turn_colour"):
        said = [word for word in _COLOUR.findall(text) if word in COLOURS]
        return set(said) == {fact}
    if form in ("where", "turn_where"):
        return (_PLACE.findall(text.replace("centre", "center")) or [""])[-1] == fact
    if form == "read":
        return fact in text.split(" ")[-1:]
    if form.startswith("talk"):
        return text == " ".join(re.sub(r"[.,!?]", " ", fact.lower()).split())
    words = f" {text} "
    return f" {fact} " in words and not any(f" {wrong} " in words for wrong in turn.distractors)
