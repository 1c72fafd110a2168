"""The closed-form first connector, against numpy's least squares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from alignments import CONNECTORS, objective, settings, write_backbones
from safetensors.torch import load_file
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast

from train.__main__ import main
from train.capture import inputs_of
from train.config import typed
from train.warm_start import Moments, WarmStartConfig, warm_start
from vlchat.connectors import LinearConnector
from vlchat.errors import ConfigError


@pytest.fixture
def folder(
    tmp_path: Path, tiny_clip: CLIPVisionModel, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return write_backbones(tmp_path, tiny_clip, tiny_llama, tiny_tokenizer)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_solution_is_that_of_least_squares_with_the_penalty_as_rows(intercept: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)) + 3, rng.normal(size=(40, 4)) - 1
    y += x @ rng.normal(size=(6, 4))
    moments = Moments(6, 4)
    for first in range(0, 40, 7):
        moments.add(torch.from_numpy(x[first : first + 7]), torch.from_numpy(y[first : first + 7]))
    weight, bias, explained = moments.ridge(0.3, intercept)
    mean_x, mean_y = (x.mean(0), y.mean(0)) if intercept else (np.zeros(6), np.zeros(4))
    penalty = 0.3 * ((x - mean_x) ** 2).sum() / 6
    rows = np.vstack([x - mean_x, np.sqrt(penalty) * np.eye(6)])
    solution = np.linalg.lstsq(rows, np.vstack([y - mean_y, np.zeros((6, 4))]), rcond=None)[0]
    np.testing.assert_allclose(weight.numpy(), solution.T, atol=1e-10)
    np.testing.assert_allclose(bias.numpy(), mean_y - mean_x @ solution, atol=1e-10)
    error = ((y - x @ weight.numpy().T - bias.numpy()) ** 2).sum() / ((y - mean_y) ** 2).sum()
    assert explained == pytest.approx(1 - error, abs=1e-10)


@pytest.mark.parametrize("connector", CONNECTORS)
def test_every_connector_begins_as_the_regression_says(folder: Path, connector: str) -> None:
    made = objective(folder, connector, warm_start={"rows": 7, "ridge": 0.5})
    before = {name: p.clone() for name, p in made.named_parameters()}
    assert made.warm is not None
    told = warm_start(made, made.warm)
    assert "on 7 rows" in told and made.training
    moved = [name for name, p in made.named_parameters() if not torch.equal(p, before[name])]
    last = next(n.rpartition(".")[0] for n in moved if n.endswith("weight"))
    layer: Any = made.get_submodule(last)
    assert all(name.startswith(f"{last}.") for name in moved) and layer.weight.shape[0] == 64

    made.eval()
    batch = made.shown(made.batch(range(7)))
    table = made.model.get_input_embeddings().weight.detach().double().numpy()
    captions = [
        made.processor.tokenizer(example.answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
        for example in made.examples(range(7))
    ]
    targets = np.stack([table[ids].mean(0) for ids in captions])
    words = np.concatenate([table[ids] for ids in captions])
    with torch.no_grad(), inputs_of(layer) as seen:
        tokens = torch.stack(made.model.get_image_features(batch["pixel_values"]).pooler_output).double().numpy()
    x = seen[0].double().numpy().mean(1)
    mean = x.mean(0) if layer.bias is not None else np.zeros(x.shape[1])
    mean_target = targets.mean(0) if layer.bias is not None else np.zeros(64)
    scatter = (x - mean).T @ (x - mean)
    damped = scatter + 0.5 * np.trace(scatter) / len(scatter) * np.eye(len(scatter))
    solution = np.linalg.solve(damped, (x - mean).T @ (targets - mean_target)).T
    factor = np.linalg.norm(layer.weight.detach()) / np.linalg.norm(solution)
    np.testing.assert_allclose(layer.weight.detach() / factor, solution, atol=1e-4 * np.abs(solution).max())
    # Image tokens vary as the captions' tokens do, around where the regression puts them.
    assert tokens.var((0, 1)).sum() == pytest.approx(words.var(0).sum(), rel=1e-3)
    if layer.bias is not None:
        np.testing.assert_allclose(tokens.mean((0, 1)), mean_target, atol=1e-3)


def test_a_warm_start_says_the_same_twice(folder: Path) -> None:
    weights = []
    for warm in (False, {}, {}):
        made = objective(folder, "linear", warm_start=warm)
        made.begin(7)
        weights.append(made.connector.projection.weight.detach().clone())
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])


def test_by_default_where_it_can_and_on_no_more_rows_than_the_run_sees(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = objective(folder, "linear", warm_start=True)
    made.begin(4)
    assert "Warm start: a ridge regression on 4 rows" in capsys.readouterr().out
    tiled = objective(folder, "mlp", warm_start=True, tiles=2)
    before = {name: p.clone() for name, p in tiled.named_parameters()}
    tiled.begin(4)
    assert "No warm start: " in capsys.readouterr().out
    assert all(torch.equal(p, before[name]) for name, p in tiled.named_parameters()) and tiled.training
    asked = objective(folder, "mlp", warm_start={}, tiles=2)
    with pytest.raises(ConfigError, match="it comes in several: set objective.warm_start=false"):
        asked.begin(4)
    for wrong in ("yes", 3):
        with pytest.raises(ConfigError, match="objective.warm_start"):
            objective(folder, "mlp", warm_start=wrong)


def test_only_a_new_run_is_begun_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"type": "align", **settings(folder, "mlp", warm_start={})}
    config = {
        "run": str(folder / "run"), "data": spec.pop("data"), "objective": spec,
        "loop": {"steps": 3, "batch": 4, "save_every": 1, "keep": 5, "workers": 0},
        "trainable": {"connector|heads": 1e-3},
    }  # fmt: skip
    (folder / "align.yaml").write_text(yaml.safe_dump(config))
    assert main([str(folder / "align.yaml")]) == 0
    assert capsys.readouterr().out.count("Warm start: a ridge regression on 7 rows") == 1
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [load_file(folder / "run" / f"step-{step}" / "training_state" / "trained.safetensors") for step in (1, 3)]
    last = "model.model.connector.layers.1.weight"
    assert (trained[0][last] - trained[1][last]).abs().max() < 0.01 and lines
    for step in (2, 3):
        (folder / "run" / f"step-{step}").rename(folder / f"aside-{step}")
    assert main([str(folder / "align.yaml"), "--resume", "auto"]) == 0
    assert "Warm start" not in capsys.readouterr().out
    again = load_file(folder / "run" / "step-3" / "training_state" / "trained.safetensors")
    assert all(torch.equal(again[name], trained[1][name]) for name in again)


class Normed(LinearConnector):
    """Ends in something else than a linear layer."""

    def forward(self, features: torch.Tensor, *rest: Any) -> torch.Tensor:
        return super().forward(features).tanh()


def test_what_a_regression_cannot_set_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = objective(folder, "mlp")
    made.connector.requires_grad_(False)
    with pytest.raises(ConfigError, match="the last layer of the MLPConnector, and no rule of trainable trains it"):
        warm_start(made, WarmStartConfig())
    monkeypatch.setitem(__import__("vlchat.connectors", fromlist=["CONNECTORS"]).CONNECTORS, "normed", Normed)
    with pytest.raises(ConfigError, match="last linear layer, and Normed does not end in one"):
        warm_start(objective(folder, {"type": "normed"}), WarmStartConfig())
    with pytest.raises(ConfigError, match="with objective.tiles it comes in several"):
        warm_start(objective(folder, "mlp", tiles=2), WarmStartConfig())
    for wrong, message in (({"rows": 1}, "rows is 1; a regression needs 2"), ({"ridge": 0.0}, "must be above 0"),
                           ({"row": 5}, 'Unknown key "row".*Did you mean "rows"')):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            typed(WarmStartConfig, wrong, "objective.warm_start")
