"""The rows of a step in pieces by length: each row once, within the budget, balanced, and the same step."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from PIL import Image
from test_tiles import processor_for
from tiny_runs import base, squares, train
from tuning import opened, same, step, write_base, write_rows

from train.batches import Plan, stream
from train.config import LoopConfig
from train.grouping import Budget, grouped
from train.loop import _smaller
from train.opening import fallbacks
from train.row_lengths import RowLengths
from train.sources import open_data
from train.step import TrainingStopped
from train.tune import TuneObjective
from vlchat.data.collate import Collator
from vlchat.errors import ConfigError


def lengths_of(rows: int, seed: int, least: int = 60, most: int = 2000) -> list[int]:
    generator = random.Random(seed)
    return [generator.randint(least, most) for _ in range(rows)]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("budget", [Budget(8, None, False), Budget(64, 4096, False), Budget(64, 4096, True),
                                    Budget(8, None, True), Budget(64, 500, True)])  # fmt: skip
def test_each_row_once_within_the_budget_and_equally_many_pieces(budget: Budget, processes: int) -> None:
    for seed in range(5):
        lengths = lengths_of(64, seed)
        shares = grouped(lengths, budget, processes)
        pieces = [piece for share in shares for piece in share]
        assert sorted(row for piece in pieces for row in piece) == list(range(64))
        assert all(len(piece) == 1 or budget.fits([lengths[row] for row in piece]) for piece in pieces)
        assert len({len(share) for share in shares}) == 1
        assert shares == grouped(lengths, budget, processes), "the same on each process"
        taken = [sum(budget.cost([lengths[row] for row in piece]) for piece in share) for share in shares]
        if budget.tokens != 500:  # there each row is alone
            assert max(taken) < 1.15 * sum(taken) / processes


def test_packed_rows_are_full_and_padded_ones_alike() -> None:
    for seed in range(5):
        lengths = lengths_of(128, seed)
        packed = grouped(lengths, Budget(128, 4096, True), 1)[0]
        assert sum(lengths) >= 0.95 * 4096 * len(packed)
        padded = grouped(lengths, Budget(8, None, False), 1)[0]
        as_they_come = sum(8 * max(lengths[start : start + 8]) for start in range(0, 128, 8))
        cost = sum(len(piece) * max(lengths[row] for row in piece) for piece in padded)
        assert cost < 1.1 * sum(lengths) < 1.5 * sum(lengths) < as_they_come


@pytest.mark.parametrize("packed", [False, True])
def test_the_budget_counts_what_tensors_are_filled_up_with(packed: bool) -> None:
    for seed in range(5):
        lengths = lengths_of(64, seed, 1, 90)
        for piece in grouped(lengths, Budget(64, 500, packed, 32), 2)[0]:
            own = [lengths[row] for row in piece]
            width = sum(own) if packed else max(own)
            assert len(piece) == 1 or -(-width // 32) * 32 * (1 if packed else len(piece)) <= 500


def test_a_row_beyond_the_budget_is_alone_and_rows_may_be_fewer_than_pieces() -> None:
    assert grouped([5000, 10, 20], Budget(3, 4096, True), 1) == [[[0], [2, 1]]]
    assert grouped([30, 10, 20], Budget(3, 4096, True), 3) == [[[0]], [[2]], [[1]]]
    assert sorted(map(len, grouped([5, 5, 5], Budget(1, 8, False), 2))) == [1, 2]
    assert grouped([0, 0], Budget(2, 8, False), 1) == [[[0, 1]]], "rows that can't be used"


@pytest.fixture
def data(tmp_path: Path, picture: Any) -> list[dict[str, Any]]:
    file = write_rows(tmp_path / "data", picture)
    rows = json.loads(file.read_text())
    del rows[5]["messages"][1]  # no answer
    file.write_text(json.dumps(rows))
    return [{"path": str(file)}]


@pytest.fixture
def model(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> str:
    return str(write_base(tmp_path / "base", tiny_model(), tiny_tokenizer))


def test_lengths_are_those_of_the_tensors(data: list[dict[str, Any]], model: str) -> None:
    objective = TuneObjective(data, model=model, packing=False)
    collator = Collator(objective.processor)
    positions = [position for position in range(16) if objective.examples([position])[0].id != "row-5"]
    expected = {p: int(collator(objective.examples([p]))["attention_mask"].sum()) for p in positions}
    assert objective.row_lengths is not None
    found = objective.row_lengths(range(16))
    assert {p: length for p, length in enumerate(found) if length} == expected
    longest = max(expected.values())
    for too_long, left in {"drop": 0, "shorten": longest - 1}.items():
        short = TuneObjective(data, model=model, max_length=longest - 1, too_long=too_long)
        assert short.row_lengths is not None
        assert max(short.row_lengths(range(8))) == (left or max(n for n in expected.values() if n < longest))


def test_lengths_of_tiled_pictures_count_turned_photos_and_videos(
    tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any, picture: Any
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: of another number of tokens than the file as it lies
    picture(0, (90, 30)).save(tmp_path / "turned.jpg", exif=exif)
    picture(1, (60, 50)).save(tmp_path / "flat.png")
    frames = [picture(number, (40, 24)) for number in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    said = {"role": "assistant", "content": "A cat."}
    rows = [
        {"messages": [{"role": "user", "content": "<image><image> What?"}, said], "images": ["turned.jpg", "flat.png"]},
        {"messages": [{"role": "user", "content": [
            {"type": "video", "video": "moving.gif"}, {"type": "image", "image": "flat.png"},
            {"type": "text", "text": "What?"}]}, said]},
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    mixture = open_data([{"path": str(tmp_path / "rows.json")}], 0)
    processor = processor_for(tiny_model(tiles=6), tiny_tokenizer)
    found = RowLengths(mixture, processor, None, False, 32)(range(2))
    collator = Collator(processor)
    assert found == [int(collator([mixture[number]])["attention_mask"].sum()) for number in range(2)]


@pytest.mark.parametrize("packing", [False, True])
def test_rows_taken_by_length_are_the_same_step(packing: bool, data: list[dict[str, Any]], model: str) -> None:
    objective = TuneObjective(data, model=model, packing=packing).train()
    learning = opened(objective, "connector", "language_model")
    positions = [position for position in range(8) if objective.examples([position])[0].id != "row-5"]
    whole = step(objective, [positions], learning)
    for tokens in (40, 200):
        pieces = []
        for rank in range(2):
            plan = Plan.of(8, None, rank, 2, False, tokens, countable=True)
            assert objective.row_lengths is not None
            pieces += plan.micro_batches_by_length(0, objective.row_lengths, packing)
        kept = [[position for position in piece if position in positions] for piece in pieces]
        sizes = [(len(piece), objective.batch(piece)["input_ids"].numel()) for piece in kept if piece]
        assert all(rows == 1 or size <= tokens for rows, size in sizes)
        assert any(rows > 1 for rows, _ in sizes) is (tokens == 200)
        assert sorted(sum(pieces, [])) == list(range(8))
        same(whole, step(objective, [piece for piece in kept if piece], learning))


def test_batches_of_a_run_are_taken_by_length_unless_told_otherwise(data: list[dict[str, Any]], model: str) -> None:
    objective = TuneObjective(data, model=model, packing=False)
    widths = []
    for by_length in (True, False):
        plan = Plan.of(8, 2, 0, 1, False, by_length=by_length)
        (batches,) = stream(objective, plan, 0, 1, 0)
        assert isinstance(batches, list)
        assert sorted(name for batch in batches for name in batch["ids"]) == sorted(
            objective.examples([p])[0].called for p in range(8) if objective.examples([p])[0].id != "row-5"
        )
        widths.append([int((batch["labels"] != -100).sum()) for batch in batches if batch["ids"]])
    assert widths[0] != widths[1]
    together = TuneObjective(data, model=model, company=1)
    assert together.row_lengths is None
    assert "Rows are taken as they come, not by length" in fallbacks(together, Plan.of(8, 2, 0, 1, False))[-1]
    assert not fallbacks(objective, Plan.of(8, 2, 0, 1, False))
    with pytest.raises(ConfigError, match="micro_tokens can't be used, for how many tokens a row has is not known"):
        Plan.of(8, None, 0, 1, False, 100)
    with pytest.raises(ConfigError, match="loop.micro_batch and loop.micro_tokens both say"):
        Plan.of(8, 2, 0, 1, False, 100, countable=True)
    with pytest.raises(ConfigError, match="micro_tokens can't be used, for loop.by_length is false"):
        Plan.of(8, None, 0, 1, False, 100, False, True)
    with pytest.raises(ConfigError, match="for the objective compares the rows of a batch"):
        Plan.of(8, None, 0, 1, True, 100, countable=True)
    with pytest.raises(ConfigError, match="loop.micro_tokens must be at least 1, not 0"):
        LoopConfig(micro_tokens=0)


def test_half_as_many_tokens_where_the_memory_is_full() -> None:
    plan = Plan.of(8, None, 0, 1, False, 101, countable=True)
    assert plan.halved() == Plan(8, 4, 0, 1, 51) and plan.halved().at_once == (51, "tokens", "loop.micro_tokens")
    accelerator = Accelerator(cpu=True)
    for _ in range(5):  # more often than the rows could be halved
        plan = _smaller(plan, False, accelerator)
    assert plan.tokens == 4
    for last, alone in ((plan, True), (Plan.of(8, 1, 0, 1, False), False)):
        with pytest.raises(TrainingStopped, match="too little memory for a single row"):
            _smaller(last, alone, accelerator)


def test_a_run_by_tokens_is_the_run_without_and_goes_on_exactly(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any
) -> None:
    start, data = base(tmp_path, tiny_model, tiny_processor), squares(tmp_path / "squares")
    found = {}
    objective = {"type": "tune", "model": str(start), "lora": {"r": 2, "dropout": 0.0}, "sample_tokens": 2}
    for name, loop in {"whole": {}, "tokens": {"micro_tokens": 60}}.items():
        run = train(tmp_path / name, start, data, objective=objective, loop=loop)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found[name] = [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]
    for one, two in zip(found["whole"], found["tokens"], strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    weights = tmp_path / "tokens" / "step-4" / "training_state" / "trained.safetensors"
    unbroken = weights.read_bytes()
    (tmp_path / "tokens" / "step-4").rename(tmp_path / "gone")
    train(tmp_path / "tokens", start, data, "--resume", "auto", objective=objective, loop={"micro_tokens": 60})
    assert weights.read_bytes() == unbroken
