"""Distillation: the divergence is Hinton's formula, over rows that teacher and student read in their own ways."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from families import FAMILIES
from safetensors import safe_open
from tokenizers import models
from tuning import opened, same, step, write_base, write_rows

from train import likelihood
from train.__main__ import main
from train.distill import PREFIX, shared_tokens
from train.tune import TuneObjective
from vlchat import VLChatForConditionalGeneration, checkpoint
from vlchat.chat_templates import template_source
from vlchat.errors import ConfigError, DataError

_QFORMER = {"type": "qformer", "num_query_tokens": 3, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "dropout": 0.0}  # fmt: skip
HEAT = 3.0


@pytest.fixture
def data(tmp_path: Path, picture: Any) -> list[dict[str, Any]]:
    return [{"path": str(write_rows(tmp_path / "data", picture))}]


@pytest.fixture
def student(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> str:
    return str(write_base(tmp_path / "student", tiny_model(), tiny_tokenizer))


@pytest.fixture
def teacher(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, tiny_llama: Any) -> str:
    """A model with another number of image tokens, another template, other weights and spare rows of logits."""
    llama = copy.deepcopy(tiny_llama)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    torch.manual_seed(9)
    model = VLChatForConditionalGeneration.from_backbones(tiny_clip, llama, _QFORMER, tokenizer=tiny_tokenizer)
    model.resize_token_embeddings(len(tiny_tokenizer) + 9)
    template = tmp_path / "other.jinja"
    template.write_text(template_source("chatml", tiny_tokenizer).replace("+ '\\n' -}}", "+ ' says: ' -}}", 1))
    return str(write_base(tmp_path / "teacher", model, tiny_tokenizer, template))


@pytest.fixture
def tune(student: str, teacher: str, data: list[dict[str, Any]]) -> Callable[..., TuneObjective]:
    """A factory: `tune(**options)`, in training mode, with a teacher."""

    def make(**options: Any) -> TuneObjective:
        taught = {"teacher": teacher, "temperature": HEAT, "weight": 0.5}
        return TuneObjective(data, **{"model": student, "distill": taught, **options}).train()

    return make


def reference(student: np.ndarray, teacher: np.ndarray, heat: float) -> float:
    """T^2 sum_tokens sum_v p_v (log p_v - log q_v), p and q softened by T (arXiv:1503.02531, section 2), in float64."""
    p, q = (np.exp(one.astype(np.float64) / heat) for one in (teacher, student))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return float(heat**2 * (p * (np.log(p) - np.log(q))).sum())


def parts(batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of a batch is the student's and what the teacher's."""
    theirs = {name.removeprefix(PREFIX): batch[name] for name in batch if name.startswith(PREFIX)}
    mine = {name: value for name, value in batch.items() if not name.startswith(PREFIX)}
    return {name: mine[name] for name in mine if name not in ("ids", "positions")}, theirs


def spoken(model: Any, batch: dict[str, Any], words: int) -> np.ndarray:
    """Logits at the supervised positions from the model's own forward, (tokens, words)."""
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return logits[:, :-1][batch["labels"][:, 1:] != -100][:, :words].numpy()


def test_the_divergence_is_the_papers(tune: Callable[..., TuneObjective]) -> None:
    objective = tune(packing=False)
    taught = objective._teacher[0]
    batch = objective.batch(range(8))
    mine, theirs = parts(batch)
    mine = objective.shown(mine)
    assert mine["input_ids"].shape != theirs["input_ids"].shape
    assert not torch.equal(mine["labels"], theirs["labels"][:, : mine["labels"].shape[1]])
    words = len(objective.processor.tokenizer)
    assert taught.shared.tolist() == list(range(words)) and taught.model.lm_head.out_features == words + 9
    expected = reference(
        spoken(objective.model.eval(), mine, words), spoken(taught.model, theirs, words), HEAT
    )
    terms = objective({name: value for name, value in batch.items() if name != "ids"})
    assert terms["distill"].total.item() == pytest.approx(expected, rel=1e-5)
    assert terms["distill"].weight == 0.5 and terms["distill"].count == terms["answers"].count
    assert objective.counts(batch) == {name: terms[name].count for name in ("answers", "distill")}


def test_a_model_does_not_diverge_from_itself(tune: Callable[..., TuneObjective], student: str) -> None:
    objective = tune(distill={"teacher": student})
    batch = objective.batch(range(8))
    assert abs(objective(batch)["distill"].total.item()) < 1e-4
    assert tune()(tune().batch(range(8)))["distill"].total.item() > 1.0


def test_a_teacher_stored_in_half_precision_says_nearly_the_same(tune: Callable[..., TuneObjective]) -> None:
    objective = tune()
    batch = objective.batch(range(8))
    expected = objective(batch)["distill"].total.item()
    objective._teacher[0].model.bfloat16()
    found = objective(batch)["distill"].total
    assert found.dtype == torch.float32 and found.item() != expected
    assert found.item() == pytest.approx(expected, rel=0.05)


def test_only_the_student_learns_and_the_teacher_is_no_part_of_it(tune: Callable[..., TuneObjective]) -> None:
    objective = tune()
    taught = objective._teacher[0]
    objective.train()
    assert not taught.model.training
    names = dict(objective.named_parameters())
    assert not any(parameter is other for other in taught.model.parameters() for parameter in names.values())
    objective(objective.batch(range(4)))["distill"].total.backward()
    assert all(parameter.grad is None for parameter in taught.model.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in names.values())


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_rows_in_pieces_and_packed_rows_are_one_step(packing: bool, tune: Callable[..., TuneObjective]) -> None:
    options = {"lora": {"r": 4, "dropout": 0.0}}
    torch.manual_seed(1)
    objective = tune(**options, packing=packing)
    learning = opened(objective, "lora_", "connector")
    whole = step(objective, [range(8)], learning)
    same(whole, step(objective, [[row] for row in range(8)], learning))
    torch.manual_seed(1)
    plain = tune(**options, packing=False)
    same(whole, step(plain, [range(8)], opened(plain, "lora_", "connector")))


def test_a_large_vocabulary_is_compared_in_pieces(
    tune: Callable[..., TuneObjective], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = tune()
    learning = opened(objective, "model.model.")
    whole = step(objective, [range(8)], learning)
    taught = objective._teacher[0]
    seen: list[int] = []
    taught.model.lm_head.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    words = objective.model.config.text_config.vocab_size + taught.model.config.text_config.vocab_size
    monkeypatch.setattr(likelihood, "AT_ONCE", 5 * words)
    same(whole, step(objective, [range(8)], learning))
    assert max(seen) == 5 and len(seen) > 4


def test_a_teacher_of_another_maker(tmp_path: Path, data: list[dict[str, Any]]) -> None:
    FAMILIES["llava"](tmp_path / "teacher")
    model, processor = checkpoint.load(tmp_path / "teacher")
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    model.save_pretrained(tmp_path / "student")
    processor.save_pretrained(tmp_path / "student")
    objective = TuneObjective(
        data, model=str(tmp_path / "student"), distill={"teacher": str(tmp_path / "teacher"), "temperature": HEAT}
    )
    batch = objective.batch(range(8))
    mine, theirs = parts(batch)
    words = len(objective.processor.tokenizer)
    expected = reference(
        spoken(objective.model, mine, words), spoken(objective._teacher[0].model, theirs, words), HEAT
    )
    assert objective(batch)["distill"].total.item() == pytest.approx(expected, rel=1e-5)


# A run


def test_a_run_comes_closer_to_its_teacher_and_says_who_that_was(
    student: str, teacher: str, data: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = {
        "run": str(tmp_path / "run"),
        "objective": {"type": "tune", "model": student, "sample_tokens": 1,
                      "distill": {"teacher": teacher, "weight": 50.0}},
        "data": data,
        "trainable": {"language_model|connector": 3e-3},
        "loop": {"steps": 12, "batch": 4, "workers": 1, "log_every": 1, "save_every": 6, "sample_every": 50},
    }  # fmt: skip
    file = tmp_path / "distill.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main([str(file)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = [line["distill"] for line in lines if "distill" in line]
    assert len(seen) == 12 and sum(seen[-4:]) < 0.8 * sum(seen[:4])
    step_12 = tmp_path / "run" / "step-12"
    told = json.loads((step_12 / "vlchat.json").read_text())["teacher"]
    assert told["path"] == teacher and len(told["weights"]) == 64 and told["temperature"] == 2.0
    for stored in (step_12 / "trained.safetensors", step_12 / "training_state" / "trained.safetensors"):
        with safe_open(stored, "pt") as tensors:
            assert not any("teacher" in name or "qformer" in name for name in tensors.keys())  # noqa: SIM118
    assert checkpoint.describe(tmp_path / "run")["trained_on"] == "rows.json, taught by teacher"
    # The teacher may go: what it taught is in the student.
    (tmp_path / "teacher").rename(tmp_path / "gone")
    checkpoint.load(tmp_path / "run")


# Mistakes


def test_a_teacher_with_other_tokens_is_refused(
    tune: Callable[..., TuneObjective], tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    FAMILIES["llava"](tmp_path / "stranger")
    with pytest.raises(ConfigError, match="stranger has another vocabulary than the student: .* is 8 for the student"):
        tune(distill={"teacher": str(tmp_path / "stranger")})
    llama3 = write_base(tmp_path / "llama3", tiny_model(), tiny_tokenizer, "llama3")
    objective = tune(distill={"teacher": str(llama3)})
    said = r'row 1 \(id "row-0"\): its answers .* first \'<\|eot_id\|>\' for \'<\|im_end\|>\' at place'
    with pytest.raises(DataError, match=said):
        objective.batch([0])


def test_added_tokens_may_differ(tiny_tokenizer: Any) -> None:
    one, two = copy.deepcopy(tiny_tokenizer), copy.deepcopy(tiny_tokenizer)
    plain = len(one)
    one.add_tokens(["<mine>", "<both>"], special_tokens=True)
    two.add_tokens(["<theirs>", "<both>"], special_tokens=True)
    assert shared_tokens(one, two, "it").tolist() == [*range(plain), plain + 1]
    shorter = copy.deepcopy(tiny_tokenizer)
    vocabulary = {t: i for t, i in shorter.get_vocab().items() if i < plain - 1}
    shorter.backend_tokenizer.model = models.BPE(vocabulary, [])
    last = tiny_tokenizer.convert_ids_to_tokens(plain - 1)
    with pytest.raises(ConfigError, match=f"{plain - 1} for the student and missing for the teacher"):
        shared_tokens(tiny_tokenizer, shorter, "it")
    assert last not in vocabulary
