"""The drawn world: honest questions, held-back phrasings, scoring that can fail."""

import importlib
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from vlchat.errors import VLChatError
from vlchat.scenes import KINDS, conversation, correct, questions
from vlchat.scenes.maps import FIELD_WORDS, FIELDS, READ_FIELDS, scene_map
from vlchat.scenes.pairs import relation_where
from vlchat.scenes.phrasings import HELD, SEEN
from vlchat.scenes.rows import ask_about, generator, states, two_scenes
from vlchat.scenes.vocabulary import COLOURS, PICTOGRAMS, SHAPES, article, plural
from vlchat.scenes.wording import Speaker, Turn
from vlchat.scenes.world import GRID, Scene, Thing, reading_order, sample_scene

draw_module = importlib.import_module("vlchat.scenes.draw")
needs_font = pytest.mark.skipif(
    "NotoColorEmoji.ttf" not in draw_module._font_files(), reason="Noto Color Emoji is not installed"
)


def test_the_world_is_as_large_as_promised() -> None:
    assert len(PICTOGRAMS) >= 150 and len(set(PICTOGRAMS.values())) == len(PICTOGRAMS)
    assert len(SHAPES) >= 8 and len(COLOURS) == 12
    counts = Counter(len(sample_scene(Random(seed)).things) for seed in range(600))
    assert set(counts) == {1, 2, 3, 4, 5, 6}


def test_each_kind_has_twelve_phrasings_and_half_are_held_back() -> None:
    seen = {phrase for phrases in SEEN.values() for phrase in phrases}
    for form in SEEN:
        assert len(SEEN[form]) == len(HELD[form]) >= 6
        assert not seen & set(HELD[form])


def test_held_phrasings_never_reach_training() -> None:
    asked = {turn.question.lower().rstrip("?.!") for index in range(1500) for turn in conversation(0, index).turns}
    plain = {phrase.lower().rstrip("?.!") for phrases in HELD.values() for phrase in phrases if "{" not in phrase}
    assert not asked & plain


def test_things_do_not_overlap_and_stay_inside() -> None:
    for seed in range(300):
        things = sample_scene(Random(seed)).things
        for number, one in enumerate(things):
            assert one.width / 2 <= one.x <= 1 - one.width / 2 and one.height / 2 <= one.y <= 1 - one.height / 2
            for two in things[number + 1 :]:
                assert (
                    abs(one.x - two.x) > (one.width + two.width) / 2
                    or abs(one.y - two.y) > (one.height + two.height) / 2
                )


@pytest.mark.parametrize("kind", KINDS)
def test_right_answers_are_right_and_others_are_not(kind: str) -> None:
    turns = [ask_about(kind, generator("check", 0, index), held=index % 2 == 1).turns[-1] for index in range(80)]
    assert all(states(turn, turn.answer) for turn in turns)
    # Answers to other questions are wrong unless they happen to state the same fact.
    crossed = [
        states(one, two.answer)
        for one, two in zip(turns, turns[1:], strict=False)
        if one.fact != two.fact and one.form == two.form
    ]
    assert not any(crossed)
    assert not any(states(turn, "") for turn in turns)


def test_present_and_absent_things_are_asked_equally_often() -> None:
    answers = Counter(ask_about("yesno", generator("balance", 0, index), False).turns[-1].fact for index in range(600))
    assert 0.42 < answers["yes"] / 600 < 0.58


def test_scoring_is_free_in_wording_but_not_in_facts() -> None:
    caption = Turn("caption", "", "", ("cat", "red circle", "word sun"))
    assert states(caption, 'A red circle, then the word "sun" and a cat.')
    assert not states(caption, "A blue circle, the word sun and a cat.")
    assert not states(caption, "A red circle and a cat and the word sun and a cat.")
    assert states(Turn("count", "", "", "three"), "There are 3 of them.")
    assert not states(Turn("count", "", "", "three"), "There are two or three.")
    assert states(Turn("where", "", "", "top left"), "It is in the top left.")
    assert not states(Turn("where", "", "", "top"), "It is in the top left.")
    assert states(Turn("compare_size", "", "", "the cat is bigger", ("the dog is bigger",)), "The cat is bigger.")
    assert not states(Turn("what", "", "", ("bear",)), "This is a teddy bear.")
    below = Turn("relation", "", "", "no")
    assert states(below, "No, the cat is above the dog.") and states(below, "The cat is above the dog, so no.")
    assert not states(below, "The cat is above the dog, so yes.") and not states(below, "Yes, so no.")
    assert not states(Turn("relation", "", "", "yes"), "Yes, so no.")
    blue = Turn("colour", "", "", "blue")
    assert states(blue, "It is blue.") and not states(blue, "It is red or green or blue.")


def test_relations_agree_with_the_coordinates() -> None:
    left = Thing("shape", "circle", "red", "small", 0.2, 0.5, 0.18, 0.18)
    scene = Scene((left, replace(left, name="square", x=0.8)), "white", "plain", 0)
    turn = relation_where(scene, Speaker(Random(0)))
    assert turn is not None
    first = turn.answer.lower().split(" is ")[0]
    assert turn.fact == ("left" if first == "the circle" else "right")


def test_the_map_names_what_lies_under_a_cell() -> None:
    thing = Thing("shape", "circle", "red", "large", 0.25, 0.75, 0.4, 0.4)
    cells = scene_map(Scene((thing,), "white", "plain", 0))
    assert len(cells) == GRID * GRID
    assert cells[6 * GRID + 2].words() == "large red circle rowg colc here"
    assert cells[5 * GRID + 2].words() == "large red circle rowg colc"
    assert sum(cell.centre == "here" for cell in cells) == 1
    assert cells[0].words() == "white background"
    assert cells[6 * GRID + 2].words(READ_FIELDS) == "large red circle bottom left here"


def test_the_map_spells_text() -> None:
    word = Thing("word", "tree", "red", "medium", 0.5, 0.55, 0.6, 0.2)
    cells = scene_map(Scene((word,), "white", "plain", 0))[4 * GRID : 5 * GRID]
    spelled = "first t second r third e fourth e"
    for index, letter in ((2, "letter t"), (3, "letter r"), (4, "here letter e"), (5, "letter e")):
        assert cells[index].words() == f"red word tree rowe cole {letter} {spelled}"
    assert cells[1].letter == "", "its middle lies beside the word"
    assert "letter" not in cells[3].words(READ_FIELDS)
    assert FIELD_WORDS["third"][cells[3].codes()[FIELDS.index("third")]] == "third e"


def test_scenes_of_mostly_text_come_where_they_are_asked_for() -> None:
    def share(texts: float) -> float:
        scenes = [sample_scene(Random(seed), texts=texts) for seed in range(300)]
        return sum(any(thing.is_text for thing in scene.things) for scene in scenes) / len(scenes)

    assert share(0.0) < 0.4 < 0.75 < share(1.0)
    assert sample_scene(Random(4)) == sample_scene(Random(4), texts=0.0)


def test_rows_depend_on_seed_and_index_alone() -> None:
    assert conversation(3, 5) == conversation(3, 5)
    assert conversation(3, 5) != conversation(3, 6) and conversation(3, 5) != conversation(4, 5)


def test_every_training_conversation_asks_something() -> None:
    assert all(conversation(0, index, turns=1).turns for index in range(400))


def test_things_are_in_reading_order() -> None:
    for index in range(200):
        for scene in (sample_scene(Random(index)), *two_scenes(Random(index))):
            assert list(scene.things) == sorted(scene.things, key=reading_order)


def test_a_training_conversation_says_nothing_twice() -> None:
    for index in range(60):
        answers = [turn.answer for turn in conversation(0, index, turns=8).turns if not turn.form.startswith("talk")]
        follow_ups = len(answers) - len(set(answers))
        assert follow_ups <= 2, answers  # the first half of a follow-up may repeat


def test_english() -> None:
    assert [plural(word) for word in ("cherry", "fox", "knife", "teddy bear", "sheep", "key")] == [
        "cherries",
        "foxes",
        "knives",
        "teddy bears",
        "sheep",
        "keys",
    ]
    assert [article(word) for word in ("owl", "unicorn", "hourglass", "red circle")] == [
        "an owl",
        "a unicorn",
        "an hourglass",
        "a red circle",
    ]


@needs_font
def test_the_drawing_shows_the_thing_where_the_scene_says() -> None:
    thing = Thing("shape", "circle", "red", "large", 0.25, 0.75, 0.4, 0.4)
    pixels = np.asarray(draw_module.draw(Scene((thing,), "white", "plain", 1), 200, 100)).astype(int)
    redness = pixels[..., 0] - pixels[..., 1]
    rows, columns = np.nonzero(redness > 100)
    assert abs(rows.mean() - 75) < 2 and abs(columns.mean() - 50) < 2
    assert abs(len(rows) - 3.1416 * 20 * 40) < 200


@needs_font
def test_questions_are_reproducible_and_score_their_own_answers() -> None:
    one, two = (list(questions(26, seed=1, phrasings="held")) for _ in range(2))
    assert [q.id for q in one] == [q.id for q in two]
    assert all(
        a.tobytes() == b.tobytes()
        for p, q in zip(one, two, strict=True)
        for a, b in zip(p.images, q.images, strict=True)
    )
    assert all(correct(q, q.answer) for q in one)
    assert [q.kind for q in one[:13]] == list(KINDS)
    assert all(q.messages[-1]["role"] == "user" for q in one)


@needs_font
def test_every_pictogram_is_in_the_font() -> None:
    pictures = {name: draw_module._pictogram(name) for name in PICTOGRAMS}
    assert all(min(picture.size) > 60 for picture in pictures.values())
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)


def test_bad_arguments_are_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VLChatError, match='use "seen" or "held"'):
        next(questions(1, 0, phrasings="both"))
    monkeypatch.setattr(draw_module, "_font_files", lambda: {})
    draw_module._pictogram.cache_clear()
    with pytest.raises(VLChatError, match="NotoColorEmoji.ttf is not installed.*apt-get install"):
        draw_module._pictogram("cat")
