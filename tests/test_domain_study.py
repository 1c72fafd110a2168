"""The domain study's rows and tables: parts that share nothing, drawn boxes whose statements are true as told."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import box_sentences  # noqa: E402
import boxes  # noqa: E402
import domain_arms  # noqa: E402
import domain_data  # noqa: E402
import domain_tables  # noqa: E402

from train.config import OptimConfig  # noqa: E402
from train.objectives import OBJECTIVES  # noqa: E402

COLOURS = {(0, 0, 0): "black", (255, 255, 0): "yellow", (0, 153, 255): "blue"}
QUANTITIES = {
    "a": lambda n: n >= 1, "no": lambda n: n == 0, "one": lambda n: n == 1, "1": lambda n: n == 1,
    "exactly one": lambda n: n == 1, "at least one": lambda n: n >= 1, "at least 1": lambda n: n >= 1,
    "two": lambda n: n == 2, "2": lambda n: n == 2, "exactly two": lambda n: n == 2, "at least two": lambda n: n >= 2,
}  # fmt: skip
SENTENCE = re.compile(
    rf"there (?:is|are) ({'|'.join(QUANTITIES)}) towers? (?:with|having|which has|that has|that have) "
    r"an? (black|yellow|blue) block at (?:the )?(top|base|bottom)\.?",
    re.I,
)


def towers(picture: Image.Image) -> list[list[str]]:
    """The colours of each tower's blocks from its base, as the pixels have them."""
    found = []
    for centre in (50, 200, 350):
        column = [COLOURS.get(picture.getpixel((centre, 90 - 21 * storey))) for storey in range(5)]  # type: ignore[arg-type]
        found.append([colour for colour in itertools.takewhile(bool, column) if colour])
    return found


def judged(sentence: str, picture: Image.Image) -> bool | None:
    """Whether a sentence about tops and bases is true of a picture, by words and pixels alone; None for others."""
    match = SENTENCE.fullmatch(sentence.strip())
    if match is None:
        return None
    quantity, colour, place = (part.lower() for part in match.groups())
    ends = [tower[-1 if place == "top" else 0] for tower in towers(picture) if tower]
    return QUANTITIES[quantity](ends.count(colour))


def test_statements_are_true_of_the_pixels_as_told() -> None:
    seen: Counter[tuple[str, bool]] = Counter()
    for number in range(1200):
        rng = Random(number)
        world = boxes.sample_world(rng)
        want = rng.random() < 0.5
        said = box_sentences.statement(rng, world, want)
        if said is None or not world.towers or (truth := judged(said, world.picture())) is None:
            continue
        assert truth == want, said
        seen[said.lower().split(" tower")[0], want] += 1
    assert sum(seen.values()) > 60 and len(seen) > 10


def test_people_mean_the_same_by_these_words(shared_data: Path) -> None:
    """In NLVR itself, so that a sentence about drawn boxes is true in the sense of NLVR's writers."""
    folder = shared_data / "nlvr"
    right = Counter()  # type: ignore[var-annotated]
    for line in (folder / "dev_messages.jsonl").read_text().splitlines():
        row = json.loads(line)
        sentence = row["messages"][0]["content"].split("True or false: ")[1]
        if SENTENCE.fullmatch(sentence.strip()):
            with Image.open(folder / row["images"][0]) as picture:
                truth = judged(sentence, picture.convert("RGB"))
            right[truth == (row["messages"][1]["content"] == "true")] += 1
    assert right[True] > 400 and right[False] <= 0.02 * right.total()


T = boxes.Thing
SCENE = boxes.World(
    (
        (T("circle", "black", 10, 0, 40), T("square", "yellow", 30, 40, 70)),
        (T("triangle", "blue", 20, 80, 80), T("square", "blue", 20, 30, 30), T("circle", "blue", 10, 50, 60)),
        (T("square", "black", 20, 20, 0),),
    ),
    towers=False,
)


TRUE = """There is a yellow square touching the base; there are two black items touching the side;
    There is exactly one box with 3 items; There is a box with only blue items; All blue items are in the same box;
    There is a blue triangle closely touching the corner; There are exactly two boxes with a black item on top"""
FALSE = "There are 3 black items; All black items are in the same box; There is a box with 4 items"


def test_what_is_said_of_a_scene_worked_by_hand() -> None:
    told: dict[bool, set[str]] = {True: set(), False: set()}
    for number, want in itertools.product(range(8000), (True, False)):
        if said := box_sentences.statement(Random(number), SCENE, want):
            told[want].add(domain_data.plain(said))
    for truth, sentences in ((True, TRUE), (False, FALSE)):
        for sentence in map(domain_data.plain, sentences.split(";")):
            assert sentence in told[truth] and sentence not in told[not truth], sentence


def test_no_sentence_is_both_true_and_false() -> None:
    for seed in range(4):
        world = boxes.sample_world(Random(seed))
        told = [
            {
                domain_data.plain(said)
                for number in range(2000)
                if (said := box_sentences.statement(Random(number), world, want))
            }
            for want in (True, False)
        ]
        assert len(told[0]) > 200 and not told[0] & told[1]


def test_no_form_of_statement_gives_its_truth_away() -> None:
    """The same forms for true and for false: the words before the noun say little."""
    share: dict[str, Counter[bool]] = {}
    for number in range(4000):
        rng = Random(number)
        world = boxes.sample_world(rng)
        want = rng.random() < 0.5
        if said := box_sentences.statement(rng, world, want):
            share.setdefault(" ".join(said.lower().split()[:3]), Counter())[want] += 1
    common = {form: count for form, count in share.items() if count.total() > 100}
    assert len(common) > 8
    for form, count in common.items():
        assert 0.3 < count[True] / count.total() < 0.7, form


def test_a_picture_shows_its_boxes_and_nothing_overlaps() -> None:
    for number in range(200):
        world = boxes.sample_world(Random(number))
        picture = world.picture()
        assert picture.size == (400, 100)
        for left, box in zip(boxes.LEFTS, world.boxes, strict=True):
            for thing in box:
                centre = (left + thing.x + thing.size // 2, thing.y + thing.size // 2 + thing.size // 4)
                assert COLOURS[picture.getpixel(centre)] == thing.colour  # type: ignore[index]
            for one, other in itertools.combinations(box, 2):
                assert boxes._apart(one, other)
        assert picture.getpixel((120, 50)) == (128, 128, 128)


def nlvr(folder: Path) -> Path:
    """Forty sentences in NLVR's format, two of them the same in other letters."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for sentence in range(40):
        text = f"There are {sentence} blue items" if sentence else "there are  39 blue items."
        for permutation in range(2):
            name = f"images/dev-{sentence}-0-{permutation}.png"
            boxes.sample_world(Random(sentence)).picture().save(folder / name)
            lines.append(json.dumps({
                "id": f"nlvr-dev-{sentence}-0-{permutation}", "sentence_id": str(sentence), "images": [name],
                "messages": [{"role": "user", "content": f"<image>\nTrue or false: {text}"},
                             {"role": "assistant", "content": "true" if sentence % 2 else "false"}],
            }))  # fmt: skip
    (folder / "dev_messages.jsonl").write_text("\n".join(lines))
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def test_nlvr_is_split_by_sentence(tmp_path: Path) -> None:
    out = tmp_path / "out"
    domain_data.write_nlvr(nlvr(tmp_path / "nlvr"), out)
    parts = {name: read(out / f"{name}.jsonl") for name in ("fit", "choose", "test")}
    said = {name: {row["sentence"] for row in rows} for name, rows in parts.items()}
    assert all(said.values()) and not any(a & b for a, b in itertools.combinations(said.values(), 2))
    assert sum(map(len, parts.values())) == 80 and len(set().union(*said.values())) == 39
    shares = [{row["id"] for row in read(out / f"train-{share}.jsonl")} for share in (10, 30, 100)]
    assert shares[0] <= shares[1] < shares[2] == {row["id"] for name in ("fit", "choose") for row in parts[name]}
    row, cut = parts["test"][0], read(out / "test-boxes.jsonl")[0]
    assert cut["messages"][0]["content"].startswith("<image><image><image>\nTrue or false: ")
    with Image.open(out / row["images"][0]) as whole:
        for left, name in zip(boxes.LEFTS, cut["images"], strict=True):
            with Image.open(out / name) as box:
                assert box.tobytes() == whole.crop((left, 0, left + 100, 100)).tobytes()
        with Image.open(out / read(out / "test-square.jsonl")[0]["images"][0]) as square:
            assert square.size == (200, 200) and square.crop((0, 100, 100, 200)).tobytes() == box.tobytes()


def test_slake_is_split_by_picture(tmp_path: Path) -> None:
    folder = tmp_path / "slake"
    (folder / "images").mkdir(parents=True)
    rows = [
        {"id": f"{picture}-{number}", "image": f"{picture}.jpg", "conversations": [
            {"from": "human", "value": f"<image>\nWhat is {number}?"}, {"from": "gpt", "value": str(number)}]}
        for picture in range(30) for number in range(5)
    ]  # fmt: skip
    (folder / "train_llava.json").write_text(json.dumps(rows))
    (folder / "validation_llava.json").write_text(json.dumps(rows[:5]))
    out = tmp_path / "out"
    domain_data.write_slake(folder, out)
    fit, choose = read(out / "fit.json"), read(out / "choose.json")
    assert not {row["image"] for row in fit} & {row["image"] for row in choose} and len(fit) + len(choose) == 150
    shares = [{row["id"] for row in read(out / f"train-{share}.json")} for share in domain_data.SHARES]
    assert shares[0] < shares[1] < shares[2] == {row["id"] for row in rows}
    assert [len({name.split("-")[0] for name in share}) * 5 for share in shares] == list(map(len, shares))


def test_no_drawn_statement_says_a_sentence_that_is_kept_for_testing(tmp_path: Path) -> None:
    def statements(rows: list[dict[str, Any]]) -> set[str]:
        texts = [message["content"] for row in rows for message in row["messages"] if message["role"] == "user"]
        return {domain_data.plain(text.split("True or false: ")[1]) for text in texts if "True or false: " in text}

    domain_data.write_synthetic(tmp_path / "all", (), rows=60)
    found = statements(read(tmp_path / "all" / "drawn-boxes.jsonl"))
    forbidden = set(sorted(found)[::2])
    domain_data.write_synthetic(tmp_path / "some", forbidden, rows=60)
    rows = read(tmp_path / "some" / "drawn-boxes.jsonl")
    assert len(rows) == 60 and not statements(rows) & forbidden and statements(rows) & found
    assert all(row["messages"] and len(row["images"]) == 3 for row in rows)


def test_the_arms_can_be_configured() -> None:
    for arms in domain_arms.ARMS.values():
        for arm in arms.values():
            OptimConfig(**arm.optim)
            assert arm.before is None or arm.before in domain_arms.BEFORE
            assert arm.rows in domain_data.SHARES and arm.form in ("", "boxes", "square")
    for before in domain_arms.BEFORE.values():
        OptimConfig(**before.optim)
        known = inspect.signature(OBJECTIVES[before.objective["type"]]).parameters
        assert before.objective.keys() - {"type"} <= known.keys()


def test_tables_show_means_intervals_and_controls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.jsonl"
    monkeypatch.setattr(domain_tables, "RESULTS", file)
    one = {"set": "slake", "part": "test", "share": 1.0, "steps": 10, "rows_a_step": 32, "train_seconds": 60,
           "none": "0000", "floor": "1000"}  # fmt: skip
    lines = [
        {**one, "arm": arm, "seed": seed, "right": right, "shuffled": shuffled}
        for arm, seed, right, shuffled in (
            ("in company", 0, "1100", "1000"), ("in company", 1, "1000", "0000"), ("made", 0, "1111", "1000"),
            ("made", 1, "1110", "1100"),
        )
    ]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "slake").mkdir()
    (tmp_path / "slake" / "test.json").write_text(json.dumps([{"image": name} for name in "aabb"]))
    table = domain_tables.tables(tmp_path)
    made, base = (
        next(line for line in table.splitlines() if line.startswith(f"| {arm} ")) for arm in ("made", "in company")
    )
    assert table.index(made) < table.index(base)  # the better one first
    assert "| 87.5 % | ± 158.8 |" in made and "| 37.5 % | 0.0 % | +50.0" in made
    assert "| 37.5 % |" in base and "| question-only floor | 25.0 % |" in table and "about 73 %" in table
    assert domain_tables.tables(tmp_path, share=0.5) == ""
