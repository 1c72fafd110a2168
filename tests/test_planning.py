"""A plan says what a run really holds and does, without reading a weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import config_of

from train.config import RunConfig, construct, load_runs
from train.loop import precision_of
from train.objectives import OBJECTIVES
from train.optim import optimizer as optimizer_of
from train.optim import parameter_groups
from train.planning.changes import changed, cheapest
from train.planning.command import foresee, main, weights_on_disk, worth_planning
from train.planning.plan import plan
from train.planning.step import micro_batch
from train.planning.target import GPUS, Target, target
from train.planning.trace import Watcher
from train.terms import loss_of
from vlchat.errors import ConfigError

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


def test_the_peak_is_what_a_step_really_holds_at_once(config: Callable[..., RunConfig]) -> None:
    run = config()
    planned = plan(run, MACHINE).step
    objective, optimizer = really(run)
    seen = Watcher(set())
    for tensor in (*objective.parameters(), *objective.buffers()):
        seen.hold(tensor, "weights")
    for value in (value for state in optimizer.state.values() for value in state.values()):
        seen.hold(value, "optimizer state")
    for parameter in objective.parameters():
        parameter.grad = None
    seen.restart()
    batch = objective.batch(micro_batch(objective, run.loop.batch)[0])
    batch.pop("ids")
    with seen:
        loss_of(objective(batch), objective.counts(batch)).backward()
    assert abs(sum(planned.at_peak.values()) / seen.peak - 1) < 0.01


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
    run = config("loop.batch=8")
    file, told = str(tmp_path / "run.yaml"), tmp_path / "plan.json"
    room = round(plan(run, MACHINE).peak * 0.8)  # of what the run itself takes
    found = replace(plan(run, MACHINE), target=replace(MACHINE, memory=room))
    ways = cheapest(found, 1)
    assert not found.fits and ways[0].keys[0].startswith("loop.micro_batch=") and ways[0].plan.fits
    assert main([file, "--rate", "1", "--price", "2", "--json", str(told)]) == 0
    plain = json.loads(told.read_text())
    assert plain["fits"] and plain["steps"] == run.loop.steps and plain["price"] > 0
    assert main([file, "--rate", "1", "--memory", "0.001"]) == 1  # less than Python takes: nothing makes it fit
    assert "DOES NOT FIT" in (out := capsys.readouterr().out) and "No change" in out


def test_a_plan_needs_no_weights_and_no_data(config: Callable[..., RunConfig], model: Path, data: Path) -> None:
    run = config("loop.steps=null")
    before = plan(run, MACHINE)
    for file in model.glob("*.safetensors"):
        file.unlink()
    assert plan(run, MACHINE).step.held == before.step.held
    data.unlink()
    assumed = plan(run, MACHINE)
    assert assumed.step.lengths is not None and assumed.step.lengths.assumed and assumed.step.steps is None


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--gpu h1000 is not known. Did you mean"):
        target("h1000")
    with pytest.raises(ConfigError, match="--memory is 0"):
        target(memory=0)
    with pytest.raises(ConfigError, match="Name a configuration"):
        main([])
    assert target("RTX 4090") == target("rtx4090")
    assert target("h100").memory == GPUS["h100"][0] * 2**30 and target("h100", rate=300).rate == 300e12


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
