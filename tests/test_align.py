"""Stage 1 with every connector, text side and objective, on tiny backbones."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from alignments import CAPTIONS, CONNECTORS, QFORMER, objective, settings, step, write_backbones
from processes import together
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from train.__main__ import main
from train.contrastive import similarity
from train.ranks import alone
from train.terms import add
from vlchat import checkpoint, connectors
from vlchat.errors import CheckpointError, ConfigError, DataError
from vlchat.heads.qformer_text import QFormerText

BLIP2 = {"itc": {"weight": 1.0, "smoothing": 0.1}, "itm": 1.0, "itg": 1.0, "itg_qformer": 1.0}


@pytest.fixture
def folder(
    tmp_path: Path, tiny_clip: CLIPVisionModel, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return write_backbones(tmp_path, tiny_clip, tiny_llama, tiny_tokenizer)


def caption_of(name: str) -> str:
    return CAPTIONS[int(re.search(r"row-(\d+)", name).group(1))]  # type: ignore[union-attr]


def test_every_connector_is_tried() -> None:
    assert CONNECTORS.keys() == connectors.CONNECTORS.keys()


@pytest.mark.parametrize("connector", CONNECTORS)
@pytest.mark.parametrize("loss", ["infonce", "sigmoid", "triplet"])
def test_every_connector_trains_by_every_objective_that_it_has(folder: Path, connector: str, loss: str) -> None:
    own = {"itm": 1.0, "itg_qformer": 1.0} if connector == "qformer" else {}
    made = objective(folder, connector, itc={"weight": 1.0, "loss": loss}, **own)
    batch = made.batch(range(5))
    terms = step(made, batch)
    counts = made.counts(batch)
    assert counts.keys() == {"itg", "itc", *own} == {name for name, term in terms.items() if term.weight}
    for name, count in counts.items():
        assert terms[name].count == count and terms[name].total.isfinite() and terms[name].total.dtype == torch.float32
    learns = {name for name, p in made.named_parameters() if p.grad is not None and bool(p.grad.any())}
    silent = {name for name, p in made.named_parameters() if p.requires_grad} - learns
    # A softmax doesn't change when all keys' biases do; closed gates keep what lies behind them from learning at first.
    assert not {name for name in silent if "key" not in name and connector != "gated"}


def test_a_projectors_terms_are_the_formulas(folder: Path) -> None:
    made = objective(folder, "mlp", itc=1.0).eval()
    batch = made.batch([6, 0, 3])
    with torch.no_grad():
        terms = made(batch)
        model, tokenizer = made.model, made.processor.tokenizer
        images, words, likelihood = [], [], 0.0
        for row in range(3):
            picture = model.get_image_features(batch["pixel_values"][row : row + 1]).pooler_output[0]
            images.append(made.heads["image_projection"](picture.mean(0)).double().numpy())
            ids = tokenizer(caption_of(batch["ids"][row]), return_tensors="pt")["input_ids"]
            states = model.model.language_model(input_ids=ids).last_hidden_state[0]
            words.append(made.heads["text_projection"](states.mean(0)).double().numpy())
            mask = batch["attention_mask"][row].bool()
            logits = model(
                input_ids=batch["input_ids"][row][mask][None], pixel_values=batch["pixel_values"][row : row + 1]
            ).logits[0, :-1].double()
            labels = batch["labels"][row][mask][1:]
            chosen = logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
            likelihood -= float(chosen[labels != -100].sum())
    unit = [np.stack(side) / np.linalg.norm(np.stack(side), axis=1, keepdims=True) for side in (images, words)]
    logits = unit[0] @ unit[1].T / 0.07
    expected = sum(
        np.log(np.exp(logits[i]).sum()) + np.log(np.exp(logits[:, i]).sum()) - 2 * logits[i, i] for i in range(3)
    ) / 2
    assert terms["itc"].total.item() == pytest.approx(expected, rel=1e-5)
    assert terms["itg"].total.item() == pytest.approx(likelihood, rel=1e-5)
    assert terms["itg"].count == int((batch["labels"] != -100).sum())


def test_a_qformers_terms_are_those_of_its_parts(folder: Path) -> None:
    made = objective(folder, "qformer", **BLIP2).eval()
    batch = made.batch([5, 1, 2, 4])
    text = made.heads["qformer_text"]
    assert isinstance(text, QFormerText)
    ids, mask = batch["qformer_input_ids"], batch["qformer_attention_mask"]
    with torch.no_grad():
        terms = made(batch)
        tower = made.model.model.vision_tower(batch["pixel_values"], output_hidden_states=True)
        features = tower.hidden_states[-2][:, 1:]
        image = torch.nn.functional.normalize(made.heads["image_projection"](made.connector.read(features)), dim=-1)
        words = torch.nn.functional.normalize(made.heads["text_projection"](text(ids, mask)), dim=-1)
        logits = (similarity(image, words) / 0.07).double().numpy()  # the largest of the queries
        targets = np.eye(4) * 0.9 + 0.1 / 4
        expected = sum(
            -(targets * (s - np.log(np.exp(s).sum(1, keepdims=True)))).sum() for s in (logits, logits.T)
        ) / 2
        assert terms["itc"].total.item() == pytest.approx(expected, rel=1e-5)
        assert terms["itg_qformer"].total.item() == pytest.approx(text.writing_loss(features, ids, mask)[0].item())
        # Matching: the wrong ones are read off the draws, each question is asked by itself.
        drawn = []
        matching: Any = made.heads["matching"]
        for side, table in (("text", logits), ("image", logits.T)):
            shares = matching._shares(side, batch["positions"])
            chosen = []
            for row in range(4):
                order = sorted((c for c in range(4) if c != row), key=[5, 1, 2, 4].__getitem__)
                weights = np.exp(table[row, order])
                reached = np.cumsum(weights) / weights.sum()
                chosen.append(order[int((reached <= shares[row].item()).sum())])
            drawn.append(chosen)
        asked = [(row, row, 1) for row in range(4)]
        asked += [(drawn[1][row], row, 0) for row in range(4)] + [(row, drawn[0][row], 0) for row in range(4)]
        total, right = 0.0, 0
        for picture, caption, label in asked:
            states = text.match(features[picture][None], ids[caption][None], mask[caption][None])
            found = made.heads["matching"].head(states).double().mean(1)[0]
            total -= found.log_softmax(-1)[label].item()
            right += int(found.argmax()) == label
    assert terms["itm"].count == 12 and terms["itm"].total.item() == pytest.approx(total, rel=1e-5)
    assert terms["matched"].total.item() == right


Cases = dict[str, tuple[dict[str, Any], dict[str, Any]]]


def _shares(folder: str, cases: Cases, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Losses and gradients of this process's rows of a batch of five, in float64: what differs is no rounding."""
    found: dict[str, torch.Tensor] = {}
    for case, (connector, options) in cases.items():
        made = objective(Path(folder), connector, itg_share=0.6, **options).double()
        whole = add(made.counts(made.batch([position])) for position in range(5))
        batch = made.batch(range(rank * 5 // ranks, (rank + 1) * 5 // ranks))
        batch["pixel_values"] = batch["pixel_values"].double()
        terms = step(made, batch, whole)
        found |= {f"{case}/{name}": term.total.detach() / whole.get(name, 5) for name, term in terms.items()}
        found |= {f"{case}/{name}.grad": p.grad for name, p in made.named_parameters() if p.grad is not None}
        for _ in range(rank + 1):  # of held-out rows, processes look at different numbers
            with torch.no_grad(), alone():
                held = made.eval()(batch)
        assert held["itc"].count == len(batch["ids"])
    return found


def test_two_processes_give_the_losses_and_gradients_of_one(folder: Path) -> None:
    words = len(AutoTokenizer.from_pretrained(folder / "language"))
    kinds = {"qformer": QFORMER, "instructed": {**QFORMER, "text_vocab_size": words}, "mlp": CONNECTORS["mlp"]}
    cases = {
        f"{name}-{form}": (kind, {**(BLIP2 if name != "mlp" else {}), "itc": {"form": form, "smoothing": 0.1}})
        for name, kind in kinds.items()
        for form in ("local", "full")
    }
    work = partial(_shares, str(folder), cases)
    one, two = work(0, 1), together(work, 2, folder)
    assert one.keys() == two[0].keys() | two[1].keys()
    assert {"qformer-local/itm", "instructed-full/itg_qformer", "mlp-full/itc", "mlp-local/itg"} <= one.keys()
    for name, expected in one.items():
        found = sum(rank[name] for rank in two if name in rank)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6, msg=lambda told, name=name: f"{name}: {told}")


@torch.no_grad()
def test_the_instruction_reaches_the_language_model_and_not_the_contrast(folder: Path) -> None:
    words = len(AutoTokenizer.from_pretrained(folder / "language"))
    made = objective(folder, {**QFORMER, "text_vocab_size": words}, itc=1.0).eval()
    batch = made.batch(range(4))
    before = made(batch)
    after = made({**batch, "instruction_input_ids": batch["instruction_input_ids"].flip(1)})
    assert torch.equal(before["itc"].total, after["itc"].total)
    assert not torch.equal(before["itg"].total, after["itg"].total)


def test_a_share_of_the_rows_enters_the_language_model_however_they_are_split(folder: Path) -> None:
    made = objective(folder, "linear", itg_share=0.4, itc=0.0)
    told = [position for position in range(20) if made.counts(made.batch([position]))["itg"]]
    assert told == [2, 4, 7, 9, 12, 14, 17, 19]
    alone = made.batch([0])
    assert step(made, alone, {"itg": 10.0})["itg"].total.item() == 0
    assert sum(made.counts(made.batch([p]))["itg"] for p in range(10)) == made.counts(made.batch(range(10)))["itg"]


@pytest.mark.parametrize("kind", ["clip", "siglip", "bert"])
def test_any_text_tower_is_a_text_side(folder: Path, tiny_tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    torch.manual_seed(0)
    end = tiny_tokenizer.eos_token_id
    sizes = {"vocab_size": len(tiny_tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "max_position_embeddings": 12}  # fmt: skip
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
              "image_size": 24, "patch_size": 12}  # fmt: skip
    words = {**sizes, "eos_token_id": end, "pad_token_id": 0, "bos_token_id": 1}
    if kind == "clip":  # pools at its end token, which its tokenizer writes
        tower: Any = CLIPModel(CLIPConfig(text_config=words, vision_config=vision))
        tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
        )
    elif kind == "siglip":
        tower = SiglipModel(SiglipConfig(text_config={**words, "projection_size": 16}, vision_config=vision))
    else:
        tower = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    tower.save_pretrained(folder / "text")
    tiny_tokenizer.save_pretrained(folder / "text")
    made = objective(folder, "mlp", text=str(folder / "text"), itc=1.0)
    batch = made.batch(range(4))
    assert "caption_input_ids" not in batch
    step(made, batch)
    reader: Any = made.text_side
    assert not any(name.startswith("model.model.text") for name, _ in made.named_parameters())
    ids = tiny_tokenizer(caption_of(batch["ids"][0]))["input_ids"]
    plain = tower.eval() if kind == "bert" else tower.eval().text_model
    with torch.no_grad():
        if kind == "siglip":
            expected = plain(torch.tensor([ids + [tiny_tokenizer.pad_token_id] * (12 - len(ids))])).pooler_output
        else:
            out = plain(input_ids=torch.tensor([ids]))
            expected = out.pooler_output if kind == "clip" else out.last_hidden_state.mean(1)
        found = reader(batch["tower_input_ids"], batch["tower_attention_mask"])
    torch.testing.assert_close(found[:1], expected)
    with pytest.raises(DataError, match=r'row 3: its caption has \d+ tokens and the text tower .*text reads at most'):
        reader.tokens(["xyz " * 20], ["row 3"])


def test_the_language_model_may_be_a_qformers_text_side(folder: Path) -> None:
    made = objective(folder, "qformer", text="language", itc=1.0)
    assert made.qformer_text is None
    assert step(made, made.batch(range(3)))["itc"].total.isfinite()


@pytest.mark.parametrize("connector", ["qformer", "mlp"])
def test_terms_are_summed_in_float32_under_autocast(folder: Path, connector: str) -> None:
    made = objective(folder, connector, **(BLIP2 if connector == "qformer" else {}))
    batch = made.batch(range(4))
    with torch.autocast("cpu", torch.bfloat16):
        terms = step(made, batch)
    alone = made(batch)
    for name, term in terms.items():
        assert term.total.dtype == torch.float32
        if term.weight:
            torch.testing.assert_close(term.total, alone[name].total, rtol=0.05, atol=0)


def test_what_only_stage_1_needs_is_resumed_and_not_part_of_the_model(folder: Path) -> None:
    config = {
        "run": str(folder / "run"), "objective": {"type": "align", **settings(folder, "qformer", **BLIP2)},
        "loop": {"steps": 4, "batch": 4, "save_every": 2, "workers": 0}, "trainable": {"connector|heads": 1e-2},
    }  # fmt: skip
    config["data"] = config["objective"].pop("data")
    (folder / "align.yaml").write_text(yaml.safe_dump(config))
    assert main([str(folder / "align.yaml")]) == 0
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"itc", "itm", "itg", "itg_qformer", "matched", "image_to_text"} <= lines[0].keys()
    model, _ = checkpoint.load(folder / "run")
    assert not [name for name in model.state_dict() if "heads" in name or "intermediate.dense" in name]
    unbroken = (folder / "run" / "step-4" / "training_state" / "trained.safetensors").read_bytes()
    (folder / "run" / "step-4").rename(folder / "aside")
    assert main([str(folder / "align.yaml"), "--resume", "auto"]) == 0
    assert (folder / "run" / "step-4" / "training_state" / "trained.safetensors").read_bytes() == unbroken


@pytest.mark.parametrize(
    ("connector", "options", "message"),
    [
        ("mlp", {"itm": 1.0}, "objective.itm needs a text half that sees the picture.*type=qformer, or"),
        ("linear", {"itg_qformer": 1.0}, "objective.itg_qformer needs a text half"),
        ("qformer", {"itm": 1.0, "itc": 0.0}, "draws its hard negatives by the similarities.*give itc a weight"),
        ("mlp", {"itc": 0, "itg": 0.0}, "Nothing to learn from"),
        ("mlp", {"itc": -1.0}, "objective.itc has the weight -1; it must be 0 or more"),
        ("mlp", {"itg": math.nan}, "objective.itg has the weight nan; it must be 0 or more"),
        ("mlp", {"itc": {"loss": "triplet", "margin": math.nan}}, "objective.itc.margin is nan; it must be at least 0"),
        ("mlp", {"itg_share": math.nan}, "objective.itg_share must be from 0 to 1, not nan"),
        ("mlp", {"itg_share": -1.0}, "objective.itg_share must be from 0 to 1, not -1"),
        ("mlp", {"projection": -1}, "objective.projection must be at least 1, not -1"),
        ("mlp", {"sample_tokens": 0}, "objective.sample_tokens must be at least 1, not 0"),
        ("mlp", {"max_length": -1}, "objective.max_length must be at least 1, not -1"),
        ("mlp", {"itc": {"loss": "clip"}}, 'objective.itc.loss is "clip"; use infonce or sigmoid or triplet'),
        ("qformer", {"attention": "flex_attention"}, 'attention is "flex_attention", which knows no masks.*use sdpa'),
        ("mlp", {"text": "nowhere/at-all"}, "The text tower nowhere/at-all can't be loaded"),
    ],
)
def test_what_does_not_go_together_is_told(
    folder: Path, connector: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        objective(folder, connector, **options)


def test_a_vision_model_is_no_text_side(folder: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.save_pretrained(folder / "tower")
    with pytest.raises(ConfigError, match="objective.text: .*tower holds a CLIPVisionModel, which reads no text"):
        objective(folder, "mlp", text=str(folder / "tower"))


def test_heads_that_no_rule_trains_are_told(folder: Path) -> None:
    made = objective(folder, "mlp")
    made.heads["text_projection"].requires_grad_(False)
    with pytest.raises(ConfigError, match='trains heads.text_projection.weight.*Write, for example.*"connector|heads"'):
        made(made.batch(range(3)))


def test_a_batch_of_one_is_refused_where_rows_are_compared(folder: Path) -> None:
    made = objective(folder, "mlp")
    assert made.whole_batch
    with pytest.raises(ConfigError, match="loop.batch to 2 or more, or objective.itc=0"):
        made(made.batch([0]))
    alone = objective(folder, "mlp", itc=0.0)
    assert not alone.whole_batch
    assert alone(alone.batch([0])).keys() == {"itg"}


@pytest.mark.parametrize("loss", ["infonce", "triplet"])
def test_rows_that_cannot_be_compared_are_left_out_and_a_step_with_one_row_is_passed_over(
    folder: Path, loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of seven rows one has no picture and one a damaged one: in batches of two some rows stand alone."""
    rows = json.loads((folder / "rows.json").read_text())
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    rows[2] = {"id": "words", "messages": turns}
    (folder / "rows.json").write_text(json.dumps(rows))
    content = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(content[:-30])
    own = settings(folder, "qformer", itc={"weight": 1.0, "loss": loss}, itm=1.0)
    data = own.pop("data")
    tree = {
        "run": str(folder / "run"), "objective": {"type": "align", **own}, "data": data, "max_bad": 2,
        "loop": {"steps": 14, "batch": 2, "workers": 0, "log_every": 1, "save_every": 14, "sample_every": 100},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    assert main([str(folder / "run.yaml")]) == 0
    logged = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < sum("loss" in line for line in logged) < 14
    listed = [json.loads(line) for line in (folder / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(line["row"] for line in listed) == [1, 3]
    assert "has 0 pictures. Stage 1 aligns pairs of one picture" in capsys.readouterr().out
    with pytest.raises(DataError, match="2 bad rows of 7, and max_bad allows 1"):
        main([str(folder / "run.yaml"), "--overwrite", "max_bad=1"])
