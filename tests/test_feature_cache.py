"""Features kept on disk: the same loss, gradients and bits as without, whatever happens to the folder."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from alignments import objective, step, write_backbones
from families import FAMILIES
from PIL import Image
from test_loop import state
from tiny_runs import LOOP, config_of, train
from tuning import opened
from tuning import step as tuning_step

from train.__main__ import main
from train.tune import TuneObjective
from vlchat.data.opening import PICTURES, Opening
from vlchat.errors import ConfigError
from vlchat.feature_cache import FeatureCache, key_of, tensors_digest

CPU = torch.device("cpu")
FULL = "can't be written"


def cache_in(folder: Path, gib: float = 1.0, told: list[str] | None = None, **depends: Any) -> FeatureCache:
    return FeatureCache(folder, gib, depends, (told if told is not None else []).append)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.features"))


# The folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    features = torch.randn(4, 6).to(dtype)
    cache_in(tmp_path).put("ab12", features)
    found = cache_in(tmp_path).get("ab12")
    assert found is not None and found.dtype == dtype and torch.equal(found, features)
    assert cache_in(tmp_path).get("ab13") is None and cache_in(tmp_path, tower="another").get("ab12") is None
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("harm", ["flipped", "cut", "emptied", "another's"])
def test_a_damaged_entry_is_absent_and_written_again(tmp_path: Path, harm: str) -> None:
    cache, features = cache_in(tmp_path), torch.randn(4, 6)
    cache.put("ab12", features)
    (file,) = kept(tmp_path)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    whole = file.read_bytes()
    file.write_bytes({"flipped": bytes(data), "cut": whole[:-3], "emptied": b"", "another's": whole[32:]}[harm])
    assert cache.get("ab12") is None and not file.exists()
    cache.put("ab12", features)
    assert torch.equal(cache.get("ab12"), features)  # type: ignore[arg-type]


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    told: list[str] = []
    features = torch.zeros(64, 64)  # 16 KiB and a little
    cache = cache_in(tmp_path, 100 / 2**20, told)  # 100 KiB
    for number in range(5):
        cache.put(f"{number:02}", features)
        os.utime(cache._file(f"{number:02}"), (number, number))
    assert cache.get("00") is not None  # used just now
    cache.put("05", features)
    cache.put("06", features)
    there = {file.stem for file in kept(tmp_path)}
    assert {"00", "05", "06"} <= there and "01" not in there
    assert sum(file.stat().st_size for file in kept(tmp_path)) <= 100 * 2**10
    assert len(told) == 1 and "longest ago make room" in told[0]
    for _ in range(2):
        cache.put("07", torch.zeros(200, 200))  # larger than all of it
    assert cache.get("07") is None and len(told) == 2 and "the features of one picture take 160," in told[1]


def test_what_a_dead_process_left_half_written_goes(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put("ab12", torch.zeros(2))
    old, new = (kept(tmp_path)[0].parent / f"{name}.partial" for name in ("old", "new"))
    for file, age in ((old, 7200), (new, 60)):
        file.write_bytes(b"half")
        os.utime(file, (time.time() - age,) * 2)
    cache_in(tmp_path).put("ab13", torch.zeros(2))
    assert new.exists() and not old.exists()


def _write_and_read(folder: str, worker: int) -> None:
    cache = cache_in(Path(folder), 200 / 2**20)
    for turn in range(60):
        number = (turn + 7 * worker) % 20
        found = cache.get(f"{number:02}")
        assert found is None or torch.equal(found, torch.full((64, 64), float(number)))
        cache.put(f"{number:02}", torch.full((64, 64), float(number)))


def test_processes_that_write_read_and_make_room_at_once_get_whole_entries(tmp_path: Path) -> None:
    context = get_context("fork")
    workers = [context.Process(target=_write_and_read, args=(str(tmp_path), worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    cache = cache_in(tmp_path)
    found = [cache.get(file.stem) for file in kept(tmp_path)]
    assert found and all(one is not None for one in found) and not list(tmp_path.rglob("*.partial"))


def test_a_disk_that_takes_no_more_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    cache = cache_in(tmp_path, told=told)
    cache.put("aa", torch.zeros(2))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        cache.put("bb", torch.zeros(9000))
        cache.put("cc", torch.zeros(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(told) == 1 and FULL in told[0] and not cache.writes
    assert cache.get("aa") is not None and [file.stem for file in kept(tmp_path)] == ["aa"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be kept in .*file: Not a directory. Name another folder"):
        cache_in(tmp_path / "file")


def test_names_tell_pictures_and_towers_apart(picture: Any, tiny_clip: Any) -> None:
    one = picture(0, (20, 30))
    assert key_of(one) == key_of(one.copy()) != key_of(one.resize((30, 20)))
    assert key_of(one) != key_of(picture(1, (20, 30))) and key_of(b"a") != key_of(b"b")
    before = tensors_digest(tiny_clip)
    with torch.no_grad():
        next(tiny_clip.parameters()).view(-1)[0] += 1e-3
    assert tensors_digest(tiny_clip) != before


def test_the_same_numbers_in_another_palette_or_turned_are_another_picture(tmp_path: Path, tiny_processor: Any) -> None:
    one, other, turned = (Image.new("P", (24, 20), 1) for _ in range(3))
    for image, colour in ((one, [250, 0, 0]), (other, [0, 0, 250]), (turned, [250, 0, 0])):
        image.putpalette([0, 0, 0, *colour])
    turned.getexif()[0x0112] = 6
    opening = Opening(tiny_processor, cache=cache_in(tmp_path))
    keys = opening([opening.open(image) for image in (one, other, turned, one.copy())])[PICTURES]
    assert len(set(keys)) == 3 and keys[0] == keys[3]


# In training


@pytest.fixture
def tune(model: Path, data: Path, tmp_path: Path) -> Callable[..., TuneObjective]:
    """A factory: `tune(cached, **options)`, ready to train."""

    def make(cached: bool, **options: Any) -> TuneObjective:
        torch.manual_seed(4)
        cache = {"path": str(tmp_path / "cache")} if cached else None
        made = TuneObjective([{"path": str(data)}], model=str(model), feature_cache=cache, **options)
        opened(made, "connector", "language_model")
        made.prepare("no", CPU)
        return made.train()

    return make


def equal(one: Any, other: Any) -> None:
    """Terms and gradients, to the bit."""
    assert one[0] == other[0] and one[1].keys() == other[1].keys() and one[1]
    for name, gradient in one[1].items():
        assert torch.equal(gradient, other[1][name]), name


def learning(made: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in made.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("options", [{}, {"packing": True}, {"company": 1}], ids=["plain", "packed", "company"])
def test_loss_and_gradients_are_those_without_to_the_bit(
    tune: Callable[..., TuneObjective], tmp_path: Path, options: dict[str, Any]
) -> None:
    """Rows one by one, so that the tower is given one picture at a time without the cache too."""
    rows = [[row] for row in range(8)]
    plain = tune(False, **options)
    wanted = tuning_step(plain, rows, learning(plain))
    cached = tune(True, **options)
    cold = tuning_step(cached, rows, learning(cached))
    assert kept(tmp_path / "cache")
    warm = tuning_step(cached, rows, learning(cached))
    equal(wanted, cold)
    equal(wanted, warm)
    together = tuning_step(cached, [range(8)], learning(cached))
    for name, gradient in together[1].items():
        torch.testing.assert_close(gradient, wanted[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("connector", ["mlp", "qformer", "gated"])
def test_stage_1_learns_the_same_from_kept_features(
    connector: str, tmp_path: Path, tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    folder = write_backbones(tmp_path, tiny_clip, tiny_llama, tiny_tokenizer)
    found = []
    for cache in (None, {"path": str(tmp_path / "cache")}):
        made = objective(folder, connector, itc=0.0, feature_cache=cache)
        made.prepare("no", CPU)
        for _ in range(2):
            made.zero_grad()
            batch = made.batch([3])
            term = step(made, batch)["itg"].total
            found.append((term, {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}))
    assert "pixel_values" not in batch and batch["known_keys"]
    for term, gradients in found[1:]:
        assert torch.equal(term, found[0][0])
        assert all(torch.equal(gradient, found[0][1][name]) for name, gradient in gradients.items())


def test_a_known_picture_is_not_decoded_and_one_that_is_shown_twice_is_encoded_once(
    tune: Callable[..., TuneObjective], data: Path
) -> None:
    made = tune(True)
    batch = made.batch(range(16))  # two questions about each of eight pictures, which are of four colours
    assert len(batch["pixel_values"]) == len(batch["shown_keys"]) == 4 and len(batch["picture_keys"]) == 16
    assert batch["pixel_values"].dtype == torch.uint8 and not batch["known_keys"]
    wanted = made(batch)["answers"].total
    assert made.features is not None
    for file in data.parent.glob("*.png"):  # under the hash of bytes that nobody could decode
        features = made.features.cache.get(key_of(file.read_bytes()))
        assert features is not None
        file.write_bytes(b"no picture: " + file.read_bytes())
        made.features.cache.put(key_of(file.read_bytes()), features)
    again = made.batch(range(16))
    assert "pixel_values" not in again and len(again["known_features"]) == 4 and not again["faults"]
    assert torch.equal(made(again)["answers"].total, wanted)


def run(
    folder: Path, model: Path, data: Path, cache: Path | None, *extra: str, workers: int = 0
) -> dict[str, torch.Tensor]:
    """Trains and returns what it ends with."""
    config = config_of(folder, model, data, loop=LOOP | {"workers": workers, "micro_batch": 1})
    config["objective"]["feature_cache"] = None if cache is None else {"path": str(cache)}
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps(config))
    assert main([str(file), *extra]) == 0
    return state(folder / "step-4")


def test_a_run_ends_with_the_same_bits_without_with_resumed_and_with_a_damaged_cache(
    tmp_path: Path, model: Path, data: Path
) -> None:
    wanted = run(tmp_path / "without", model, data, None)
    cache = tmp_path / "cache"
    ends = [run(tmp_path / "cold", model, data, cache)]
    for number, file in enumerate(kept(cache)):
        if number % 2:
            file.write_bytes(file.read_bytes()[:-1])
        else:
            file.unlink()
    shutil.rmtree(tmp_path / "cold" / "step-4")
    ends.append(run(tmp_path / "cold", model, data, cache, "--resume", "auto"))
    ends.append(run(tmp_path / "warm", model, data, cache, workers=1))
    for end in ends:
        assert end.keys() == wanted.keys() and all(torch.equal(end[name], wanted[name]) for name in wanted)


def test_what_it_cannot_be_used_for_is_refused_in_a_sentence(tmp_path: Path, model: Path, data: Path) -> None:
    source = [{"path": str(data)}]
    cache: dict[str, Any] = {"path": str(tmp_path / "cache")}
    for options, told in (
        ({"augment": {"flip": 0.5}}, "beside objective.augment, which shows each picture in another way"),
        ({"distill": {"teacher": str(model)}}, "beside objective.distill, whose teacher"),
        ({"feature_cache": {"gib": 0}}, "objective.feature_cache.gib must be above 0, not 0"),
        ({"feature_cache": {"folder": "x"}}, 'Unknown key "folder" in objective.feature_cache'),
    ):
        with pytest.raises(ConfigError, match=told):
            TuneObjective(source, **({"model": str(model), "feature_cache": cache} | options))
    FAMILIES["qwen2_vl"](tmp_path / "other")
    with pytest.raises(ConfigError, match="how a Qwen2VLForConditionalGeneration joins pictures and text"):
        TuneObjective(source, model=str(tmp_path / "other"), feature_cache=cache)
    with pytest.raises(ConfigError, match=r"keeps what a frozen tower makes of pictures, and .* of this tower trains"):
        train(
            tmp_path / "run",
            model,
            data,
            f"objective.feature_cache.path={tmp_path / 'cache'}",
            "trainable={'.*': 1e-3}",
        )
