"""A plan says what a run really holds and does, without reading a weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import config_of

from train.batches import Plan
from train.config import RunConfig, construct, load_runs
from train.grouping import Budget
from train.heldout import hold_out
from train.loop import precision_of
from train.objectives import OBJECTIVES
from train.optim import optimizer as optimizer_of
from train.optim import parameter_groups
from train.planning.changes import changed, cheapest, fewer_at_once
from train.planning.command import foresee, main, weights_on_disk, worth_planning
from train.planning.plan import plan
from train.planning.report import changes, table
from train.planning.rows import Row, pieces
from train.planning.step import drawn, split
from train.planning.target import Target, target
from train.planning.trace import Watcher
from train.terms import loss_of
from vlchat.errors import ConfigError, VLChatError
from vlchat.starting.machines import GPUS

MACHINE = Target("a test", "cpu", 2**34, 0, 1e12, 1e10)


@pytest.fixture
def config(tmp_path: Path, model: Path, data: Path) -> Callable[..., RunConfig]:
    """A factory: a tiny run of stage 2 with these `key=value` changes."""

    def make(*keys: str) -> RunConfig:
        file = tmp_path / "run.yaml"
        file.write_text(json.dumps(config_of(tmp_path / "run", model, data)))
        return load_runs(file, list(keys))[0]

    return make


def really(config: RunConfig) -> tuple[Any, Any]:
    """The objective and the optimizer of a run after one step."""
    objective: Any = construct(OBJECTIVES, config.objective, "objective", seed=0, data=config.data)
    groups, _ = parameter_groups(objective, config.trainable or objective.default_trainable(), config.optim)
    optimizer = optimizer_of(groups, config.optim)
    batch = objective.batch(range(4))
    batch.pop("ids")
    objective.train()
    half = precision_of(config.loop.precision, objective) == "bf16"
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        terms = objective(batch)
    loss_of(terms, objective.counts(batch)).backward()
    optimizer.step()
    return objective, optimizer


@pytest.mark.parametrize(
    "keys",
    [
        ["objective.lora=null", "trainable=null"],
        ["objective.lora={r: 4}"],
        ["objective.quantize=nf4"],
        ["objective.quantize=int8"],
        ["objective.packing=true", "objective.checkpointing=true", "optim.name=muon"],
    ],
    ids=["full", "lora", "nf4", "int8", "packed muon"],
)
def test_parameters_gradients_and_optimizer_are_those_of_the_run(
    config: Callable[..., RunConfig], keys: list[str]
) -> None:
    run = config(*keys)
    planned = plan(run, MACHINE).step
    objective, optimizer = really(run)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    assert sum(some for _, some in planned.parameters.values()) == sum(one.numel() for one in trained)
    lora = [one for name, one in objective.named_parameters() if "lora_" in name]
    assert planned.held.get("adapters", 0) == sum(one.nbytes for one in lora)
    assert planned.held["gradients"] == sum(one.grad.nbytes for one in trained)
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    assert planned.held["optimizer state"] == sum(value.nbytes for value in state if isinstance(value, torch.Tensor))
    plain = [one for name, one in objective.named_parameters() if one.is_floating_point() and "lora_" not in name]
    buffers = sum(buffer.nbytes for buffer in objective.buffers())
    assert planned.held["weights"] == sum(one.nbytes for one in plain) + buffers
    coded = [one for one in objective.parameters() if not one.is_floating_point()]
    assert planned.held.get("quantized weights", 0) >= sum(one.nbytes for one in coded)


@pytest.mark.parametrize(
    "keys",
    [[], ["objective.checkpointing=1"], ["objective.checkpointing=true"], ["loop.batch=8", "loop.micro_tokens=192"]],
    ids=["plain", "one layer again", "all again", "tokens at once"],
)
def test_the_peak_is_what_a_step_really_holds_at_once(config: Callable[..., RunConfig], keys: list[str]) -> None:
    run = config(*keys)
    planned = plan(run, MACHINE).step
    objective, optimizer = really(run)
    seen = Watcher(set())
    for tensor in (*objective.parameters(), *objective.buffers()):
        seen.hold(tensor, "weights")
    for value in (value for state in optimizer.state.values() for value in state.values()):
        seen.hold(value, "optimizer state")
    found = drawn(objective, split(objective, run))
    for parameter in (one for one in objective.parameters() if one.grad is not None):
        if found.pieces.count == 1:
            parameter.grad = None
        else:  # of earlier micro-batches
            seen.hold(parameter.grad, "gradients")
    seen.restart()
    found.batch.pop("ids")
    with seen:
        loss_of(objective(found.batch), objective.counts(found.batch)).backward()
    assert (found.pieces.count > 1) == ("micro_tokens" in str(keys))
    assert abs(sum(planned.at_peak.values()) / seen.peak - 1) < 0.01
    share = found.pieces.share * found.pieces.count
    assert planned.flops == pytest.approx(seen.costs.flops * share, rel=1e-6)


def test_fewer_layers_that_compute_again_are_less_work(config: Callable[..., RunConfig]) -> None:
    none, one, both = (plan(config(f"objective.checkpointing={n}"), MACHINE).step for n in ("false", "1", "true"))
    assert both.layers == 2 and none.flops < one.flops < both.flops
    assert one.flops - none.flops == pytest.approx(both.flops - one.flops)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [None, 700])
def test_a_steps_pieces_are_those_of_the_run(packed: bool, tokens: int | None) -> None:
    lengths = [40 * (number % 12 + 1) for number in range(48)]
    rows = [Row(number, length, 4, 1) for number, length in enumerate(lengths)]
    shape = Plan(16, 4, tokens=tokens)
    budget = Budget(4, tokens, packed, 32)
    found = pieces(rows, shape, budget, by_length=True)
    cost = budget.cost
    largest = cost([lengths[position] for position in found.positions])
    assert largest <= (tokens or 4 * 480) and (packed or tokens or largest == 4 * 480)

    class Lengths:
        multiple = 32

        def __call__(self, positions: Sequence[int]) -> list[int]:
            return [lengths[row * 7 % 48] for row in positions]

    run = [
        [cost([lengths[row % 48] for row in piece]) for piece in shape.micro_batches_by_length(
            step, Lengths(), packed)]
        for step in range(30)
    ]  # fmt: skip
    assert found.count >= max(map(len, run)) - 1
    as_they_come = pieces(rows, replace(shape, tokens=None), budget, by_length=False)
    work = found.share * found.count * largest
    if not packed:  # rows of a length are padded less
        most = cost([lengths[position] for position in as_they_come.positions])
        assert work < 0.9 * as_they_come.share * as_they_come.count * most
    else:
        assert work == pytest.approx(16 * sum(lengths) / 48, rel=0.1)


def test_known_features_save_the_tower_from_the_second_pass_on(
    config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    cached = f"objective.feature_cache={{path: {folder}, gib: 1}}"

    def flops(*keys: str) -> float:
        return plan(config("objective.packing=false", *keys), MACHINE).step.flops

    without, first = flops(), flops(cached, "loop.steps=4")  # each row comes once
    often, always = flops(cached, "loop.steps=8"), flops(cached, "loop.steps=1000000")
    assert always < often < first <= without  # a picture that a step shows twice is encoded once
    assert often == pytest.approx((first + always) / 2, rel=1e-3)
    assert flops(cached.replace("gib: 1}", "gib: 0.000001}"), "loop.steps=1000000") == first  # found again: none
    assert not folder.exists()
    run = config(cached, "objective.packing=false")
    objective, _ = really(run)  # a step without features
    found = drawn(objective, split(objective, run)).pieces
    objective.prepare("no", torch.device("cpu"))
    counted = []
    for _ in range(2):
        seen = Watcher(set())
        batch = objective.batch(found.positions)
        with seen:
            loss_of(objective(batch), objective.counts(batch)).backward()
        counted.append(seen.costs.flops * found.share * found.count)
    assert [first, always] == pytest.approx(counted, rel=1e-5)
    stored = [file.stat().st_size for file in folder.rglob("*.features")]
    planned = plan(run, MACHINE).step.feature_cache
    assert planned is not None and planned <= 16 * max(stored) and max(stored) - planned / 16 < 200  # besides a header


def test_rows_that_a_run_shortens_or_leaves_out_or_cannot_read(
    config: Callable[..., RunConfig], data: Path, tmp_path: Path
) -> None:
    rows = json.loads(data.read_text())
    turns = [{"from": who, "value": "one dog and two cats " * 8} for who in ("human", "gpt") * 4]
    (tmp_path / "data/long.json").write_text(json.dumps([*rows[:6], {"id": "long", "conversations": turns}]))
    path = f"data.0.path={tmp_path / 'data/long.json'}"
    short = config(path, "objective.max_length=200", "objective.too_long=shorten")
    dropped = config(path, "objective.max_length=200")
    found, other = plan(short, MACHINE).step.lengths, plan(dropped, MACHINE).step.lengths
    assert found is not None and other is not None
    assert (found.left_out, other.left_out, found.count, other.count) == (0, 1, 7, 6)
    assert other.tokens[2] < found.tokens[2] <= 200
    for number in range(7):
        picture = data.parent / f"square-{number}.png"
        picture.write_bytes(picture.read_bytes()[:60])  # its size can still be read
    left = plan(config("loop.micro_batch=1"), MACHINE).step
    assert left.lengths is not None and left.lengths.count < 16


def test_steps_and_tokens_are_those_of_the_run(config: Callable[..., RunConfig]) -> None:
    run = config("loop.steps=null", "loop.epochs=3", "objective.packing=false")
    planned = plan(run, MACHINE).step
    objective: Any = construct(OBJECTIVES, run.objective, "objective", seed=0, data=run.data)
    assert planned.steps == objective.steps(3, run.loop.batch) and planned.rows == len(objective.mixture)
    batch = objective.batch(range(len(objective.mixture)))
    lengths = sorted(batch["attention_mask"].sum(1).tolist())
    assert planned.lengths is not None
    assert planned.lengths.tokens == (lengths[len(lengths) // 2], lengths[-1], lengths[-1])
    assert planned.lengths.image_tokens == (4, 4, 4)


@pytest.mark.parametrize("held", ["heldout.rows=4", "heldout.share=0.25"])
def test_rows_held_out_are_not_trained_on(config: Callable[..., RunConfig], held: str) -> None:
    run = config("loop.steps=null", "loop.epochs=3", held)
    objective: Any = construct(OBJECTIVES, run.objective, "objective", seed=0, data=run.data)
    hold_out(objective, run)
    planned = plan(run, MACHINE).step
    assert (planned.rows, planned.steps) == (len(objective.mixture), objective.steps(3, run.loop.batch))
    with pytest.raises(ConfigError, match="asks for 16 rows"):
        plan(config("heldout.rows=16"), MACHINE)


def test_what_saves_memory_saves_it_in_the_plan(config: Callable[..., RunConfig]) -> None:
    run = config("objective.lora=null", "trainable=null")
    whole = plan(run, MACHINE)
    assert plan(changed(run, ["loop.micro_batch=1"]), MACHINE).peak < whole.peak
    again = plan(changed(run, ["objective.checkpointing=true"]), MACHINE)
    assert again.step.flops > whole.step.flops  # what is computed again
    shared = plan(run, MACHINE, ranks=2, sharded=True)
    assert shared.at_peak["optimizer state"] == whole.at_peak["optimizer state"] // 2


def test_a_sharded_run_is_foreseen_as_one(config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    run = config("loop.batch=8", "objective.lora=null", "trainable={'language_model|lm_head|connector': 1e-3}")
    found = plan(run, MACHINE, 8, sharded=True)
    between = replace(MACHINE, memory=round(found.peak * 1.05))
    assert replace(found, target=between, shard=()).clearly_too_large
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert foresee(run, 8, between)[1] is None


def test_a_run_that_does_not_fit_is_told_what_would(
    config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(config("loop.batch=8", "loop.micro_tokens=400"), MACHINE)
    file, told = str(tmp_path / "run.yaml"), tmp_path / "plan.json"
    found = replace(found, target=replace(MACHINE, memory=round(found.peak * 0.85)))
    (key,) = next(fewer_at_once(found))
    assert not found.fits and key.startswith("loop.micro_tokens=")
    run = config("loop.batch=8", key)
    assert plan(run, found.target).peak < found.peak
    assert main([file, "--rate", "1", "--price", "2", "--json", str(told)]) == 0
    plain = json.loads(told.read_text())
    assert plain["fits"] and plain["steps"] == run.loop.steps and plain["price"] > 0
    assert main([file, "--rate", "1", "--memory", "0.001"]) == 1  # less than Python takes: nothing makes it fit
    assert "DOES NOT FIT" in (out := capsys.readouterr().out) and "No change" in out


def test_each_change_makes_it_fit_and_the_cheapest_comes_first(config: Callable[..., RunConfig]) -> None:
    keys = ["loop.batch=8", "objective.lora=null", "trainable=null"]
    run = config(*keys)
    machine = replace(MACHINE, memory=round(plan(run, MACHINE).peak * 0.7))
    found = plan(run, machine)
    ways = cheapest(found)
    assert not found.fits and len(ways) == 3
    again = [plan(config(*keys, *way.keys), machine) for way in ways]
    assert all(one.fits for one in again) and [one.peak for one in again] == [way.plan.peak for way in ways]
    per_row = [one.seconds_a_step / one.config.loop.batch for one in again]
    assert per_row == sorted(per_row)
    first, *lines = changes(
        [replace(ways[0], keys=("objective.lora={r: 16, alpha: 32}", "x" * 60)), *ways]
    ).splitlines()
    assert {line.index("%") for line in lines} == {first.index("time") + 3}  # one column, however long the keys


def test_a_gpu_without_bfloat16_is_named(config: Callable[..., RunConfig]) -> None:
    found = plan(config("loop.precision=bf16"), target(gpu="t4"))
    assert "t4 does not compute in bfloat16: set loop.precision=fp16" in table(found)
    assert "bfloat16:" not in table(replace(found, target=target(gpu="l4")))


def test_a_plan_needs_no_weights_and_no_data(config: Callable[..., RunConfig], model: Path, data: Path) -> None:
    run = config("loop.steps=null")
    before = plan(run, MACHINE)
    for file in model.glob("*.safetensors"):
        file.unlink()
    assert plan(run, MACHINE).step.held == before.step.held
    data.unlink()
    assumed = plan(run, MACHINE)
    assert assumed.step.lengths is not None and assumed.step.lengths.assumed and assumed.step.steps is None


def test_mistakes_are_sentences(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config()
    file = str(tmp_path / "run.yaml")
    with pytest.raises(VLChatError, match='no GPU "h1000" in the list. Did you mean'):
        target("h1000")
    for number in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--memory is .*; it must be a number above 0"):
            target(memory=number)
        with pytest.raises(ConfigError, match="--rate is"):
            target("t4", rate=number)
    with pytest.raises(ConfigError, match="Name a configuration"):
        main([])
    with pytest.raises(ConfigError, match="--price is nan"):
        main([file, "--gpu", "t4", "--price", "nan"])
    with pytest.raises(ConfigError, match='loop.precision is "bf61"; use no, bf16, fp16'):
        main([file, "--gpu", "t4", "loop.precision=bf61"])
    with pytest.raises(ConfigError, match="micro_batch and loop.micro_tokens both say"):
        main([file, "--gpu", "t4", "loop.micro_batch=2", "loop.micro_tokens=200"])
    assert target("RTX 4090") == target("rtx4090")
    assert target("h100").memory == GPUS["h100"].memory * 2**30 and target("h100", rate=300).rate == 300e12


def test_only_runs_with_weights_are_planned_before_they_load(model: Path, tmp_path: Path) -> None:
    stored = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    assert weights_on_disk({"type": "tune", "model": str(model)}) == stored
    assert weights_on_disk({"type": "tune", "model": "someone/something"}) is None
    assert weights_on_disk({"type": "language", "model": {}}) == 0


def test_training_is_told_the_plan_and_stopped_only_where_it_clearly_cannot_fit(
    config: Callable[..., RunConfig],
) -> None:
    run = config("loop.batch=8")
    found = plan(run, MACHINE)
    told, problem = foresee(run, 1, MACHINE)
    assert told is not None and told.startswith("Planned: ") and problem is None
    nearly = replace(MACHINE, memory=round(found.peak / 1.05))  # a plan may be wrong by so much
    assert foresee(run, 1, nearly)[1] is None
    told, problem = foresee(run, 1, replace(MACHINE, memory=round(found.peak / 1.2)))
    assert told is None and problem is not None and "loop.micro_batch=" in problem and "--anyway" in problem
    assert not worth_planning(run)  # its weights are loaded sooner than it is planned
