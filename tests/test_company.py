"""Rows about the same pictures share their tokens: the same loss and gradients as one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import tiny
from tuning import opened, same, write_base

from train.__main__ import main
from train.company import Company
from train.sources import open_data
from train.terms import loss_of
from train.tune import TuneObjective
from vlchat.data.sharing import SEGMENTS, branch_mask, check_sharing, share
from vlchat.errors import ConfigError


@pytest.fixture
def data(tmp_path: Path, picture: Callable[..., Any]) -> list[dict[str, Any]]:
    """Two pictures with four questions each, two rows of a pair of pictures, one without, one with its picture last."""
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    rows = [([f"{number // 4}.png"], f"<image>\nWhat is {number}?", "one " * (1 + number % 3)) for number in range(8)]
    rows += [(["0.png", "2.png"], f"<image><image>\nWhich is {number}?", "the second") for number in range(2)]
    rows += [([], "Hello", "Hello."), (["0.png"], "What is this?\n<image>", "A square.")]
    written = [
        {"id": f"row-{number}", "images": names, "messages": [
            {"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
        for number, (names, asked, told) in enumerate(rows)
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(written))
    return [{"path": str(tmp_path / "rows.json")}]


@pytest.fixture
def base(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> str:
    return str(write_base(tmp_path / "base", tiny_model(), tiny_tokenizer))


def learnt(objective: TuneObjective, batch: dict[str, Any]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The loss of a batch and its gradients."""
    learning = opened(objective, "language_model", "connector", "vision_tower")
    objective.zero_grad()
    counts = objective.counts(batch)
    terms = objective({name: value for name, value in batch.items() if name not in ("ids", "faults")})
    loss_of(terms, counts).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in learning.items() if parameter.grad is not None}
    return {"answers": terms["answers"].total.item() / counts["answers"], "count": counts["answers"]}, gradients


@pytest.mark.parametrize("augment", [None, {"crop": [0.5, 0.9], "color": 0.3}], ids=["as it is", "varied"])
def test_what_is_learnt_in_company_is_what_the_rows_alone_teach(
    augment: dict[str, Any] | None, base: str, data: list[dict[str, Any]]
) -> None:
    together = TuneObjective(data, model=base, company=3, augment=augment).train()
    rows = [row for position in range(12) for row in together.accompanied(position, together.examples([position])[0])]
    assert len(rows) == 8 * 4 + 2 * 2 + 2  # each of the eight with three others, the pair's two with each other
    batch = together.batch(range(12))
    assert not batch["faults"] and len(batch["ids"]) == len(rows)
    assert len(batch["input_ids"]) == 12 and len(batch["pixel_values"]) == 8 + 2 * 2 + 1
    alone = TuneObjective(data, model=base, augment=augment, packing=False).train()
    apart = alone.collated(rows, [0] * len(rows))
    assert len(apart["pixel_values"]) == 8 * 4 + 2 * 2 * 2 + 1
    assert batch["input_ids"].numel() < 0.6 * apart["input_ids"].numel()
    same(learnt(together, batch), learnt(alone, apart))


def test_company_is_drawn_by_seed_epoch_and_row(data: list[dict[str, Any]]) -> None:
    def drawn(seed: int, epoch: int, count: int = 2) -> list[list[str]]:
        mixture = open_data(data, seed)
        mixture.set_epoch(epoch)
        company = Company(mixture, count)
        return [[row.id for row in company.beside(index, epoch, mixture[index])] for index in range(len(mixture))]

    first = drawn(0, 0)
    assert first == drawn(0, 0) != drawn(0, 1)
    pictures = {**{f"row-{number}": number // 4 for number in range(8)}, "row-8": "pair", "row-9": "pair"}
    for ids in first:
        assert len(set(ids)) == len(ids) and len({pictures.get(name, name) for name in ids}) == 1
        assert len(ids) == {"pair": 2}.get(str(pictures.get(ids[0], "")), 3 if ids[0] in pictures else 1)


def test_rows_that_do_not_begin_alike_stay_alone() -> None:
    ids = torch.tensor([[5, 9, 9, 6, 7, 0], [5, 9, 9, 8, 0, 0], [4, 9, 9, 8, 8, 8], [5, 6, 7, 8, 0, 0]])
    there = ids != 0
    batch = {"input_ids": ids, "attention_mask": there.long(), "labels": ids.masked_fill(~there, -100),
             "pixel_values": torch.arange(3.0)[:, None]}  # fmt: skip
    found = share(batch, ["a", "a", "a", "a"], image_token=9, filler=0)
    assert found["input_ids"].tolist() == [[5, 9, 9, 6, 7, 8], [4, 9, 9, 8, 8, 8], [5, 6, 7, 8, 0, 0]]
    assert found["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 0, 0]]
    assert found[SEGMENTS].tolist() == [[0, 0, 0, 1, 1, 2], [1] * 6, [1, 1, 1, 1, -1, -1]]
    assert found["labels"].tolist() == [[-100, 9, 9, -100, 7, -100], [-100, 9, 9, 8, 8, 8], [-100, 6, 7, 8, -100, -100]]
    assert found["pixel_values"].flatten().tolist() == [0.0, 2.0]
    seen = (branch_mask(found[SEGMENTS]) == 0)[0, 0].int().tolist()
    assert seen[4] == [1, 1, 1, 1, 1, 0] and seen[5] == [1, 1, 1, 0, 0, 1]
    assert (branch_mask(found[SEGMENTS]) == 0)[2, 0, 5].tolist() == [False] * 4 + [True, True]


def test_a_run_in_company_is_resumed_with_the_same_bits(base: str, data: list[dict[str, Any]], tmp_path: Path) -> None:
    config = {
        "run": str(tmp_path / "run"),
        "objective": {"type": "tune", "model": base, "company": 2, "sample_tokens": 2},
        "data": data,
        "trainable": {"connector|language_model": 1e-3},
        "loop": {"steps": 6, "batch": 4, "micro_batch": 2, "workers": 1, "save_every": 2, "sample_every": 9},
        "heldout": {"rows": 3, "every": 3, "generate": 1, "tokens": 2},
    }
    file = tmp_path / "tune.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main([str(file)]) == 0
    unbroken = load_file(tmp_path / "run" / "step-6" / "training_state" / "trained.safetensors")
    (tmp_path / "run" / "step-6").rename(tmp_path / "gone")
    assert main([str(file), "--resume", "auto"]) == 0
    again = load_file(tmp_path / "run" / "step-6" / "training_state" / "trained.safetensors")
    assert unbroken.keys() == again.keys() and all(torch.equal(unbroken[name], again[name]) for name in unbroken)


def test_what_cannot_share_is_refused(base: str, data: list[dict[str, Any]], tiny_model: Any) -> None:
    for options, said in [
        ({"company": -1}, "objective.company must be at least 0, not -1"),
        ({"company": 2, "packing": True}, "company can't be used beside objective.packing"),
        ({"company": 2, "distill": {"teacher": base}}, "company can't be used beside objective.distill"),
    ]:
        with pytest.raises(ConfigError, match=said):
            TuneObjective(data, model=base, **options)
    for language in ("llama", "qwen2", "gpt2", "opt"):
        check_sharing(tiny("mlp", language))
    for model, said in [
        (tiny("mlp", "mistral"), "in the mistral language model"),
        (tiny("instructed"), "that a Q-Former reads with each row's question"),
        (tiny_model({"type": "mlp"}, tiles=2), "cut into tiles"),
    ]:
        with pytest.raises(ConfigError, match=said):
            check_sharing(model)
