"""Varied pictures: a function of (seed, epoch, row, picture) alone, within the limits that are given."""

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageStat
from tiny_runs import base, squares

from train.tune import TuneObjective
from vlchat.data import Example
from vlchat.data.augment import Augment, drawn
from vlchat.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
ALL = Augment(crop=[0.6, 0.9], flip=0.5, color=0.3, rotate=10.0)
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]


def example(*pictures: Any) -> Example:
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return Example(
        "row-7",
        [
            {"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ],
        {"kept": 1},
    )


def pixels(found: Example) -> list[bytes]:
    return [picture.tobytes() for picture in found.images]


def test_the_same_arguments_give_the_same_pixels_in_any_process(picture: Any, tmp_path: Path) -> None:
    picture(3, (60, 40)).save(tmp_path / "noise.png")
    here = ALL.example(example(tmp_path / "noise.png"), 5, 2, "row")
    assert pixels(here) == pixels(ALL.example(example(tmp_path / "noise.png"), 5, 2, "row"))
    code = (
        "import sys; from vlchat.data.augment import Augment; from vlchat.data import Example\n"
        f"parts = [{{'type': 'image', 'image': {str(tmp_path / 'noise.png')!r}}}]\n"
        "row = Example('other', [{'role': 'user', 'content': parts}])\n"
        f"out = {ALL!r}.example(row, 5, 2, 'row')\n"
        "sys.stdout.write(str(out.images[0].size) + out.images[0].tobytes().hex())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert there.stdout == str(here.images[0].size) + pixels(here)[0].hex()


@pytest.mark.parametrize("other", [(6, 2, "row"), (5, 3, "row"), (5, 2, "wor")])
def test_another_seed_epoch_or_row_gives_others(picture: Any, other: tuple) -> None:
    row = example(picture(3, (60, 40)))
    assert pixels(ALL.example(row, 5, 2, "row")) != pixels(ALL.example(row, *other))


def test_two_pictures_of_a_row_vary_apart_and_all_else_stays(picture: Any) -> None:
    one = picture(3, (60, 40))
    before = one.tobytes()
    row = example(one, one)
    found = ALL.example(row, 0, 0, 0)
    assert pixels(found)[0] != pixels(found)[1]
    assert one.tobytes() == before and row.images[0] is one
    assert (found.id, found.meta, found.answer) == ("row-7", {"kept": 1}, "A cat.")
    assert found.messages[0]["content"][-1] == {"type": "text", "text": "What is it?"}


def test_what_one_setting_draws_does_not_depend_on_the_others(picture: Any) -> None:
    one = picture(1, (50, 50))
    sizes = {
        settings.picture(one, drawn(0, 0, 0)).size
        for settings in (Augment(crop=[0.3, 0.9]), Augment(crop=[0.3, 0.9], flip=1.0, color=0.5, rotate=20))
    }
    assert len(sizes) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_every_mode_becomes_rgb(mode: str) -> None:
    one = Image.new(mode, (40, 30))
    found = ALL.picture(one, Random(0))
    assert found.mode == "RGB" and one.mode == mode


def test_nothing_set_changes_nothing(picture: Any) -> None:
    one = picture(2, (33, 21))
    assert Augment().picture(one, Random(0)).tobytes() == one.tobytes()
    assert not Augment().moves and not Augment(color=0.3).moves and not Augment(crop=[1.0, 1.0]).moves
    assert Augment(flip=0.1).moves and Augment(rotate=1.0).moves and Augment(crop=[0.9, 1.0]).moves


def test_a_cut_keeps_its_share_of_the_area_and_nearly_the_shape() -> None:
    for size in ((400, 300), (90, 700)):
        gradient = Image.fromarray(np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3))
        places = set()
        for number in range(200):
            width, height = Augment(crop=[0.5, 0.8]).picture(gradient, drawn(0, 0, number)).size
            assert 0.49 < width * height / (size[0] * size[1]) < 0.81
            assert 1 / 1.23 < width / height / (size[0] / size[1]) < 1.23
            places.add((width, height))
        assert len(places) > 100
    whole = Augment(crop=[1.0, 1.0]).picture(gradient, Random(0))
    assert whole.tobytes() == gradient.tobytes()


def test_a_cut_shows_a_part_of_the_picture_as_it_was(picture: Any) -> None:
    one = np.asarray(picture(9, (40, 30)))
    found = np.asarray(Augment(crop=[0.4, 0.6]).picture(Image.fromarray(one), drawn(1, 1, 1)))
    height, width = found.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(one, (height, width, 3))
    assert (windows == found).all(axis=(3, 4, 5)).sum() == 1


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (200, 2), (9, 900), (9990, 100)])
def test_small_and_narrow_pictures_survive(size: tuple[int, int]) -> None:
    for number in range(20):
        found = Augment(crop=[0.05, 0.3], rotate=45, flip=0.5, color=1).picture(
            Image.new("RGB", size, "green"), drawn(0, 0, number)
        )
        assert all(1 <= side <= whole for side, whole in zip(found.size, size, strict=True))
        Augment().picture(found, Random(0))  # what comes out can be decoded again, whatever its shape


def test_mirrored_as_often_as_is_said(picture: Any) -> None:
    one = picture(4, (20, 10))
    mirrored = one.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    found = [Augment(flip=0.25).picture(one, drawn(0, 0, number)).tobytes() for number in range(400)]
    assert set(found) == {one.tobytes(), mirrored}
    assert 70 < found.count(mirrored) < 130  # 100 expected, standard deviation 8.7
    assert Augment(flip=1.0).picture(one, Random(0)).tobytes() == mirrored


def test_light_stays_within_its_factor() -> None:
    grey = Image.new("RGB", (10, 10), (100, 100, 100))
    means = [ImageStat.Stat(Augment(color=0.2).picture(grey, drawn(0, 0, n))).mean[0] for n in range(200)]
    assert 79 <= min(means) < 85 and 115 < max(means) <= 121


def test_a_turned_picture_has_the_colour_of_its_edge_in_the_corners() -> None:
    one = Image.new("RGB", (80, 60), (0, 0, 0))
    one.paste((255, 255, 255), (10, 10, 70, 50))  # bright on average, black at the edge
    turned = [np.asarray(Augment(rotate=30.0).picture(one, drawn(0, 0, number))) for number in range(10)]
    assert all((array[corner] == 0).all() for array in turned for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)))
    assert len({array.tobytes() for array in turned}) == 10


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"flp": 0.5}, 'Unknown key "flp" in objective.augment. Did you mean "flip"?'),
        ({"zoom": 0.5}, "known: crop, flip, color, rotate."),
        ({"flip": 1.5}, "augment.flip must be a number from 0 to 1, not 1.5."),
        ({"flip": True}, "augment.flip must be a number from 0 to 1, not True."),
        ({"color": float("nan")}, "augment.color must be a number from 0 to 1, not nan."),
        ({"rotate": 90}, "augment.rotate must be a number from 0 to 45, not 90."),
        ({"rotate": "10"}, "augment.rotate must be a number from 0 to 45, not '10'."),
        ({"crop": 0.8}, r"such as \[0.8, 1.0\], above 0 and at most 1, not 0.8."),
        ({"crop": [0.0, 1.0]}, "augment.crop must be"),
        ({"crop": [0.9, 0.8]}, "augment.crop must be"),
        ({"crop": [0.9, 1.8]}, "augment.crop must be"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augment.of(spec)


def test_null_is_no_augmentation() -> None:
    assert Augment.of(None) is None and Augment.of({}) is None
    assert Augment.of({"crop": [0.8, 1], "flip": 0}) == Augment(crop=[0.8, 1], flip=0)


def test_a_picture_that_cannot_be_read_is_left_to_who_names_its_row(tmp_path: Path, picture: Any) -> None:
    row = example(tmp_path / "gone.png", picture(1))
    found = ALL.example(row, 0, 0, 0)
    assert found.images[0] == tmp_path / "gone.png"
    assert found.images[1].tobytes() == ALL.example(example(picture(2), picture(1)), 0, 0, 0).images[1].tobytes()


def test_a_row_of_a_run_is_varied_by_its_place_and_no_other_way(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any
) -> None:
    model, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "data", 6)
    spec = {"crop": [0.5, 0.8], "color": 0.3}
    plain, varied, again = (
        TuneObjective([{"path": str(data)}], str(model), augment=augment, seed=4) for augment in (None, spec, spec)
    )
    whole = varied.batch(range(8, 16))  # the end of an epoch of twelve rows, and the beginning of the next
    parts = [again.batch(range(12, 16)), again.batch(range(8, 12))]  # in another order, in other pieces
    assert whole["ids"] == parts[1]["ids"] + parts[0]["ids"]
    assert torch.equal(whole["pixel_values"], torch.cat([parts[1]["pixel_values"], parts[0]["pixel_values"]]))
    assert not torch.isclose(whole["pixel_values"], plain.batch(range(8, 16))["pixel_values"]).all()
    epochs = [varied.batch(range(12 * epoch, 12 * epoch + 12)) for epoch in (0, 1)]
    places = [next(n for n, name in enumerate(found["ids"]) if "colour-3" in name) for found in epochs]
    one, two = (found["pixel_values"][place] for found, place in zip(epochs, places, strict=True))
    assert not torch.equal(one, two), "another epoch, another light"
    rows = [varied.mixture[0]]
    assert torch.equal(varied.tensors(rows)["pixel_values"], plain.tensors(rows)["pixel_values"]), "what is looked at"


def test_scene_maps_refuse_what_moves_things(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    model = base(tmp_path, tiny_model, tiny_processor)
    objective = TuneObjective([{"path": str(squares(tmp_path / "data"))}], str(model))
    objective.cells = 1.0
    objective.vary({"color": 0.2})
    with pytest.raises(ConfigError, match="objective.augment: crop, flip and rotate move what the scene maps"):
        objective.vary({"flip": 0.5})
