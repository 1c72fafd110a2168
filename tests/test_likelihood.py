"""The next-token loss on supervised positions alone is the model's own loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from test_foreign import LEARNING, published, rows
from tiny_models import CONNECTORS, LANGUAGES, VOCABULARY, inputs_for, labels_for, tiny

from train import likelihood
from train.likelihood import supervised, token_losses
from vlchat.data import Collator
from vlchat.lora import add_lora

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def some_learnt(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A few tokens of each row are learnt, not all."""
    labels = labels_for(batch)
    labels[:, ::3] = -100
    return batch | {"labels": labels}


def compare(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Value and gradients against the model's own mean times the number of tokens."""
    found = token_losses(model, batch)
    assert found.count == int((batch["labels"][:, 1:] != -100).sum()) == int(supervised(batch["labels"]).sum())
    assert found.total.dtype == torch.float32
    own = model(**batch).loss * found.count
    torch.testing.assert_close(found.total, own, **CLOSE)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours, theirs = (
        torch.autograd.grad(loss, learning.values(), allow_unused=True) for loss in (found.total, own)
    )
    for name, one, two in zip(learning, ours, theirs, strict=True):
        assert (one is None) == (two is None), name
        if one is not None and two is not None:
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * float(two.abs().max() + 1), msg=name)


@pytest.mark.parametrize("language", list(LANGUAGES))
@pytest.mark.parametrize("connector", list(CONNECTORS))
def test_ours_is_the_models_own_loss(connector: str, language: str) -> None:
    changes = {"final_logit_softcapping": 2.0} if language == "gemma3_text" else {}
    model = tiny(connector, language, **changes)
    compare(model, some_learnt(inputs_for(model, rows=3)))


def test_through_an_adapter_that_learns() -> None:
    model = add_lora(tiny(), r=4, dropout=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    compare(model, some_learnt(inputs_for(model, rows=3)))


@pytest.mark.parametrize("name", LEARNING)
def test_other_makers_models_too(name: str, tmp_path: Path, picture: Callable[..., Any]) -> None:
    from test_foreign import BLIPS

    {**FAMILIES, **BLIPS}[name](tmp_path)
    model, processor = published(tmp_path)
    with torch.no_grad():  # so that the loss is no large number that hides a difference
        for parameter in model.get_output_embeddings().parameters():
            parameter.mul_(0.3)
    compare(model, Collator(processor, None, model)(rows(name, picture)))


def test_logits_are_made_of_supervised_positions_only() -> None:
    model = tiny()
    batch = some_learnt(inputs_for(model, rows=3))
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.numel() // VOCABULARY))
    assert [token_losses(model, batch).count] == seen


def test_a_large_vocabulary_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mlp", "qwen2")
    batch = some_learnt(inputs_for(model, rows=3))
    whole = token_losses(model, batch)
    expected = torch.autograd.grad(whole.total, model.lm_head.weight)[0]
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    monkeypatch.setattr(likelihood, "AT_ONCE", 4 * VOCABULARY)
    pieces = token_losses(model, batch)
    torch.testing.assert_close(pieces.total, whole.total, **CLOSE)
    torch.testing.assert_close(
        torch.autograd.grad(pieces.total, model.lm_head.weight)[0], expected, rtol=1e-5, atol=1e-5
    )
    assert max(seen) == 4 and sum(seen) == 2 * whole.count  # once forward, once again on the way back


def test_a_micro_batch_may_hold_nothing_to_learn() -> None:
    model = tiny()
    batch = inputs_for(model)
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["labels"][:, 0] = 5  # a first token follows nothing
    found = token_losses(model, batch)
    assert (found.total.item(), found.count) == (0.0, 0)
    found.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
