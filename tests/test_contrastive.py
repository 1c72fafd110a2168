"""The contrastive losses against float64 formulas written from the papers."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import together

from train import contrastive
from train.config import typed
from train.contrastive import Contrast, ContrastConfig, hits, info_nce, sigmoid, triplet
from vlchat.errors import ConfigError

FORMS = ("local", "full")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
contrast_memory = importlib.import_module("contrast_memory")


def _unit(rows: int, dim: int, seed: int, queries: int = 0) -> torch.Tensor:
    shape = (rows, queries, dim) if queries else (rows, dim)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=-1)


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis=axis, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(axis=axis, keepdims=True))


def _similarities(image: torch.Tensor, text: torch.Tensor) -> np.ndarray:
    """Entry by entry: the dot product of picture i and text j, of several queries the largest."""
    sides = image.numpy() if image.ndim == 3 else image.numpy()[:, None]
    return np.array([[max(float(query @ word) for query in side) for word in text.numpy()] for side in sides])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("queries", [0, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infonce_is_the_formula_of_the_clip_paper(form: str, queries: int, smoothing: float) -> None:
    image, text = _unit(7, 5, 0, queries), _unit(7, 5, 1)
    logits = 14.3 * _similarities(image, text)
    targets = np.eye(7) * (1 - smoothing) + smoothing / 7
    expected = -((targets * _log_softmax(logits, 1)).sum() + (targets * _log_softmax(logits, 0)).sum()) / 2
    total, count = info_nce(image, text, torch.tensor(14.3, dtype=torch.float64), smoothing, form)
    assert count == 7
    assert total.item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("queries", [0, 3])
def test_sigmoid_is_the_formula_of_the_siglip_paper(form: str, queries: int) -> None:
    image, text = _unit(6, 5, 2, queries), _unit(6, 5, 3)
    logits = 10 * _similarities(image, text) - 4
    signs = 2 * np.eye(6) - 1
    expected = np.log(1 + np.exp(-signs * logits)).sum()
    scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-4.0, dtype=torch.float64)
    total, count = sigmoid(image, text, scale, bias, form)
    assert count == 6
    assert total.item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("negatives", ["hardest", "all"])
def test_triplet_is_the_formula_of_the_vse_paper(form: str, negatives: str) -> None:
    image, text = _unit(6, 5, 4), _unit(6, 5, 5)
    s = _similarities(image, text)
    expected = 0.0
    for i in range(6):
        texts = [max(0.0, 0.2 - s[i, i] + s[i, j]) for j in range(6) if j != i]
        images = [max(0.0, 0.2 - s[i, i] + s[j, i]) for j in range(6) if j != i]
        expected += max(texts) + max(images) if negatives == "hardest" else sum(texts) + sum(images)
    total, count = triplet(image, text, 0.2, negatives, form)
    assert count == 6 and expected > 0
    assert total.item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", contrastive.LOSSES)
def test_gradients_are_those_of_finite_differences(form: str, loss: str) -> None:
    contrast = Contrast(ContrastConfig(loss=loss, form=form, smoothing=0.1)).double()

    def total(image: torch.Tensor, text: torch.Tensor, *learned: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(contrast, dict(zip(names, learned, strict=True)), (image, text))[0]

    names = [name for name, _ in contrast.named_parameters()]
    assert names == {"infonce": ["logit_scale"], "sigmoid": ["logit_scale", "logit_bias"], "triplet": []}[loss]
    sides = [_unit(4, 3, 6, queries=2).requires_grad_(), _unit(4, 3, 7).requires_grad_()]
    learned = [parameter.detach().clone().requires_grad_() for parameter in contrast.parameters()]
    assert torch.autograd.gradcheck(total, (*sides, *learned))


@pytest.mark.parametrize("loss", contrastive.LOSSES)
def test_pieces_give_what_one_piece_gives(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contrast = Contrast(ContrastConfig(loss=loss))
    image, text = _unit(7, 5, 8, queries=2).requires_grad_(), _unit(7, 5, 9)
    whole, _ = contrast(image, text)
    gradient = torch.autograd.grad(whole, image)[0]
    monkeypatch.setattr(contrastive, "_PIECE", 30)  # two rows of 7 * 2 similarities
    pieces, _ = contrast(image, text)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces, image)[0], gradient)


def test_similarities_are_computed_in_full_precision_under_autocast() -> None:
    image, text, scale = _unit(6, 32, 10).float(), _unit(6, 32, 11).float(), torch.tensor(100.0)
    alone, _ = info_nce(image, text, scale)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = info_nce(image, text, scale)
    assert inside.dtype == torch.float32 and torch.equal(alone, inside)


def test_the_learned_temperature_begins_as_in_the_papers_and_has_an_end() -> None:
    assert Contrast(ContrastConfig()).scale.item() == pytest.approx(1 / 0.07)
    of_siglip = Contrast(ContrastConfig(loss="sigmoid"))
    assert of_siglip.scale.item() == pytest.approx(10) and of_siglip.logit_bias is not None
    assert of_siglip.logit_bias.item() == -10
    assert of_siglip.logit_scale is not None
    torch.nn.init.constant_(of_siglip.logit_scale, math.log(400))
    assert of_siglip.scale.item() == 100


def test_recall_counts_both_directions() -> None:
    image = torch.eye(3)
    text = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0.9, 0.1]])
    forward, backward, count = hits(image, text)
    assert (int(forward), int(backward), count) == (3, 2, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"loss": "infonec"}, 'objective.itc.loss is "infonec".*Did you mean "infonce"'),
        ({"form": "global"}, "objective.itc.form .*local or full"),
        ({"smoothing": 1.0}, "objective.itc.smoothing is 1.0"),
        ({"temperature": 0.1}, 'Unknown key "temperature" in objective.itc'),
    ],
)
def test_a_wrong_setting_is_told_in_a_sentence(spec: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        typed(ContrastConfig, spec, "objective.itc")


def test_a_batch_of_one_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="one row has too little to tell it from. Set loop.batch to 2 or more"):
        info_nce(_unit(1, 4, 0), _unit(1, 4, 1), torch.tensor(1.0))


def _step(loss: str, form: str, queries: int, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Losses and gradients of this process's share of a batch of nine rows behind trained projections."""
    own = slice(rank * 9 // ranks, (rank + 1) * 9 // ranks)  # 4 rows and 5
    weights = {"image": _unit(5, 5, 20).requires_grad_(), "text": _unit(5, 5, 21).requires_grad_()}
    contrast = Contrast(ContrastConfig(loss=loss, form=form, smoothing=0.1)).double()
    image = torch.nn.functional.normalize(_unit(9, 5, 22, queries)[own] @ weights["image"], dim=-1)
    text = torch.nn.functional.normalize(_unit(9, 5, 23)[own] @ weights["text"], dim=-1)
    total, count = contrast(image, text)
    (total / 9).backward()
    found = {name: weight.grad for name, weight in weights.items()}
    found |= {name: parameter.grad for name, parameter in contrast.named_parameters()}
    counted = dict(zip(("to_text", "to_image", "rows"), hits(image, text), strict=True))
    found |= {name: torch.as_tensor(value, dtype=torch.float64) for name, value in counted.items()}
    return {"loss": total.detach() / 9, "count": torch.tensor(float(count)), **found}


def _all_steps(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    found = {
        f"{loss}-{form}-{queries}/{name}": value
        for loss in contrastive.LOSSES
        for form in FORMS
        for queries in (0, 3)
        for name, value in _step(loss, form, queries, rank, ranks).items()
    }
    for form in FORMS if ranks > 1 else ():
        for queries in (0, 4):
            found[f"peak-{form}-{queries}"] = torch.tensor(contrast_memory.peak("infonce", form, 64, 8, queries))
        with pytest.raises(ConfigError, match="one row a process has too little to tell it from. Set loop.batch to 4"):
            info_nce(_unit(1, 4, 0), _unit(1, 4, 1), torch.tensor(1.0))
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    return together(_all_steps, 2, tmp_path_factory.mktemp("two"))


def test_two_processes_give_the_losses_and_gradients_of_one(two: list[dict[str, torch.Tensor]]) -> None:
    one = _all_steps(0, 1)
    assert len(one) > 90
    for name, expected in one.items():
        torch.testing.assert_close(two[0][name] + two[1][name], expected, atol=1e-12, rtol=1e-12, msg=name)


def test_the_forms_agree(two: list[dict[str, torch.Tensor]]) -> None:
    for name, value in two[0].items():
        if "-local-" in name and not name.startswith("peak"):
            torch.testing.assert_close(value, two[0][name.replace("-local-", "-full-")], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("queries", [0, 4])
def test_the_local_form_needs_at_most_055_of_the_full_forms_memory_on_two_ranks(
    two: list[dict[str, torch.Tensor]], queries: int
) -> None:
    for rank in two:
        assert rank[f"peak-full-{queries}"] >= 4 * 128 * 128 * max(1, queries)
        assert rank[f"peak-local-{queries}"] <= 0.55 * rank[f"peak-full-{queries}"]
