"""The Q-Former's text half, against transformers' BLIP-2, a float64 formula, and by perturbation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    PreTrainedTokenizerFast,
)

from train.contrastive import similarity
from vlchat.connectors import QFormerConnector
from vlchat.errors import ConfigError, DataError
from vlchat.heads.qformer_text import QFormerText

QUERIES = 3
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def spread(module: torch.nn.Module) -> None:
    """Weights so large that comparisons are not decided by rounding."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if "LayerNorm" not in name else 0.1))
            if name.endswith(("LayerNorm.weight", "layernorm.weight")):
                parameter.add_(1.0)


@pytest.fixture(params=["plain", "instructed"])
def text(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast) -> QFormerText:
    torch.manual_seed(4)
    connector = QFormerConnector(
        12, 20, num_query_tokens=QUERIES, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        text_vocab_size=len(tiny_tokenizer) if request.param == "instructed" else None, max_instruction_tokens=24,
    ).eval()  # fmt: skip
    made = QFormerText(connector, tiny_tokenizer).eval()
    spread(connector)
    spread(made)
    return made


@pytest.fixture
def batch(text: QFormerText) -> dict[str, torch.Tensor]:
    torch.manual_seed(6)
    ids = torch.randint(0, text.words, (2, 6))
    ids[:, 0], ids[0, 5], ids[1, 3] = text.words, text.words + 2, text.words + 2
    return {"features": torch.randn(2, 4, 12), "input_ids": ids, "attention_mask": MASK}


def reference(text: QFormerText) -> Blip2ForImageTextRetrieval:
    """transformers' BLIP-2 for retrieval with the same weights; its vocabulary ends with our three marks."""
    qformer = Blip2QFormerConfig(
        vocab_size=text.words + 3, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        encoder_hidden_size=12, max_position_embeddings=24, use_qformer_text_input=True,
    )  # fmt: skip
    vision = Blip2VisionConfig(
        hidden_size=12, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=24, patch_size=12
    )
    config = Blip2Config(
        vision_config=vision.to_dict(), qformer_config=qformer.to_dict(), num_query_tokens=QUERIES,
        image_text_hidden_size=8, image_token_index=None,
    )  # fmt: skip
    model = Blip2ForImageTextRetrieval(config).eval()
    spread(model)
    connector = text._connector[0]
    with torch.no_grad():
        model.query_tokens.copy_(connector.query_tokens)
        words = text.embeddings.word_embeddings.weight
        model.embeddings.word_embeddings.weight.copy_(torch.cat([words, text.mark_embeddings.weight]))
        model.embeddings.position_embeddings.weight.copy_(text.embeddings.position_embeddings.weight)
    model.qformer.layernorm.load_state_dict(connector.qformer.layernorm.state_dict())
    model.qformer.encoder.load_state_dict(text.encoder.state_dict())
    return model


def test_contrast_and_matching_are_those_of_transformers_blip2(
    text: QFormerText, batch: dict[str, torch.Tensor]
) -> None:
    model = reference(text)
    features = batch.pop("features")
    model.vision_model.forward = lambda **_: (features,)  # type: ignore[method-assign]  # the tower is not what is compared
    pixels = torch.zeros(2, 3, 24, 24)
    with torch.no_grad():
        contrast = model(pixels, **batch, use_image_text_matching_head=False, return_dict=False)
        image = torch.nn.functional.normalize(model.vision_projection(text._connector[0].read(features)), dim=-1)
        words = torch.nn.functional.normalize(model.text_projection(text(**batch)), dim=-1)
        torch.testing.assert_close(similarity(image, words), contrast[0], atol=1e-5, rtol=1e-5)
        matching = model(pixels, **batch, use_image_text_matching_head=True, return_dict=False)
        ours = model.itm_head(text.match(features, **batch)).mean(1)
        torch.testing.assert_close(ours, matching[0], atol=1e-5, rtol=1e-5)


def test_writing_is_the_formula_of_the_paper(text: QFormerText, batch: dict[str, torch.Tensor]) -> None:
    """Post-norm BERT layers (arXiv 1810.04805) in float64, token by token, with BLIP-2's multimodal causal mask."""
    w = {name: value.double().numpy() for name, value in text.state_dict().items()}
    shared = {name: value.double().numpy() for name, value in text._connector[0].state_dict().items()}
    words = text.embeddings.word_embeddings.weight.detach().double().numpy()
    table = np.concatenate([words, w["mark_embeddings.weight"]])
    places = text.embeddings.position_embeddings.weight.detach().double().numpy()

    def linear(x: Any, name: str) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Any, weight: Any, bias: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * weight + bias

    def gelu(x: Any) -> Any:
        return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()

    def attend(x: Any, others: list[Any], name: str) -> Any:
        """x (hidden,) reads `others`, a list of (hidden,)."""
        seen = np.stack(others)
        query = linear(x, f"{name}.attention.query").reshape(2, 8)
        key, value = (linear(seen, f"{name}.attention.{part}").reshape(-1, 2, 8) for part in ("key", "value"))
        score = np.einsum("hd,nhd->hn", query, key) / np.sqrt(8)
        share = np.exp(score) / np.exp(score).sum(1, keepdims=True)
        return closed(x, np.einsum("hn,nhd->hd", share, value).reshape(16), f"{name}.output")

    def closed(x: Any, change: Any, name: str) -> Any:
        return norm(linear(change, f"{name}.dense") + x, w[f"{name}.LayerNorm.weight"], w[f"{name}.LayerNorm.bias"])

    total, count = 0.0, 0
    for row in range(2):
        length = int(MASK[row].sum())
        ids = [text.words + 1, *batch["input_ids"][row, 1:length].tolist()]
        states = [*shared["query_tokens"][0], *(table[ids] + places[:length])]
        states = [norm(x, shared["qformer.layernorm.weight"], shared["qformer.layernorm.bias"]) for x in states]
        patches = list(batch["features"][row].double().numpy())
        for number in range(3):
            layer = f"encoder.layer.{number}"
            read = [
                attend(x, states[:QUERIES] if i < QUERIES else states[: i + 1], f"{layer}.attention")
                for i, x in enumerate(states)
            ]
            if number % 2 == 0:
                read[:QUERIES] = [attend(x, patches, f"{layer}.crossattention") for x in read[:QUERIES]]
            states = []
            for i, x in enumerate(read):
                side = "_query" if i < QUERIES else ""
                states.append(closed(x, gelu(linear(x, f"{layer}.intermediate{side}.dense")), f"{layer}.output{side}"))
        for i, target in enumerate(ids[1:]):
            hidden = gelu(linear(states[QUERIES + i], "transform.0"))
            logits = table @ norm(hidden, w["transform.2.weight"], w["transform.2.bias"]) + w["bias"]
            total += np.log(np.exp(logits).sum()) - logits[target]
            count += 1
    ours, counted = text.writing_loss(**batch)
    assert counted == count == 8
    assert ours.item() == pytest.approx(total, rel=1e-6)


def _changed(batch: dict[str, torch.Tensor], place: int) -> dict[str, torch.Tensor]:
    ids = batch["input_ids"].clone()
    ids[:, place] = (ids[:, place] + 1) % 50
    return {**batch, "input_ids": ids}


def _write(text: QFormerText, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return text.write(batch["features"], batch["input_ids"])


@torch.no_grad()
def test_a_changed_token_changes_no_query_and_nothing_before_it(
    text: QFormerText, batch: dict[str, torch.Tensor]
) -> None:
    queries, states = _write(text, batch)
    torch.testing.assert_close(queries, text._connector[0].read(batch["features"]))
    for place in range(1, 4):
        other_queries, other_states = _write(text, _changed(batch, place))
        assert torch.equal(other_queries, queries)
        assert torch.equal(other_states[:, :place], states[:, :place])
        after = (other_states[:, place:] - states[:, place:]).abs().amax(-1)
        assert bool((after[0] > 1e-4).all()) and bool((after[1, : 4 - place] > 1e-4).all())


@torch.no_grad()
def test_the_text_that_is_written_sees_the_picture_and_padding_changes_nothing(
    text: QFormerText, batch: dict[str, torch.Tensor]
) -> None:
    _, states = _write(text, batch)
    _, elsewhere = _write(text, {**batch, "features": batch["features"].flip(0)})
    assert bool(((elsewhere - states).abs().amax(-1) > 1e-4).all())
    for place in (4, 5):
        other = _changed(batch, place)
        torch.testing.assert_close(_write(text, other)[1][1, :4], states[1, :4])
        matched = text.match(**other)
        assert torch.equal(matched[1], text.match(**batch)[1])
        assert not torch.equal(matched[0], text.match(**batch)[0])
    total, count = text.writing_loss(**batch)
    alone = [text.writing_loss(batch["features"][i:][:1], batch["input_ids"][i:, :n][:1], MASK[i:, :n][:1])
             for i, n in ((0, 6), (1, 4))]  # fmt: skip
    torch.testing.assert_close(alone[0][0] + alone[1][0], total)
    assert (alone[0][1], alone[1][1], count) == (5, 3, 8)


@torch.no_grad()
def test_the_contrasts_text_sees_no_query_and_matching_sees_everything(
    text: QFormerText, batch: dict[str, torch.Tensor]
) -> None:
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    read, matched = text(**texts), text.match(**batch)
    text._connector[0].query_tokens.mul_(-2)
    assert torch.equal(text(**texts), read)
    assert not torch.equal(text.match(**batch), matched)
    text._connector[0].query_tokens.div_(-2)
    for place in range(1, 4):  # the last token reaches the first query, and the contrast's first state
        other = _changed(batch, place)
        assert bool(((text.match(**other) - matched).abs().amax(-1) > 1e-5).all())
        assert bool(((text(other["input_ids"], MASK) - read).abs().amax(-1) > 1e-5).all())


def test_what_is_shared_is_shared_and_the_rest_is_the_texts_own(text: QFormerText) -> None:
    connector = text._connector[0]
    shared = {id(parameter) for parameter in connector.parameters()}
    own = sorted(name for name, parameter in text.named_parameters() if id(parameter) not in shared)
    if connector.uses_instructions:
        assert own == ["bias", "mark_embeddings.weight", "transform.0.bias", "transform.0.weight", "transform.2.bias",
                       "transform.2.weight"]  # fmt: skip
    else:
        assert sum(".intermediate." in name or ".output.dense" in name for name in own) == 3 * 4
        assert "own_embeddings.word_embeddings.weight" in own
        assert not [name for name in own if "attention" in name or "_query" in name]


def test_gradients_reach_every_part(text: QFormerText, batch: dict[str, torch.Tensor]) -> None:
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    total, _ = text.writing_loss(**batch)
    (total + text.match(**batch).sum() + text(**texts).sum()).backward()
    assert not [name for name, parameter in text.named_parameters() if parameter.grad is None]


def test_tokens_are_marked_and_never_cut(text: QFormerText) -> None:
    made = text.tokens(["a red circle", "cats"], ["1", "2"])
    ids, mask = made["qformer_input_ids"], made["qformer_attention_mask"]
    assert ids[:, 0].tolist() == [text.words] * 2
    for row, words in zip(ids, ("a red circle", "cats"), strict=True):
        end = row.tolist().index(text.words + 2)
        assert text._tokenizer.decode(row[1:end]) == words
    assert mask.sum(1).tolist() == [row.tolist().index(text.words + 2) + 1 for row in ids]
    with pytest.raises(DataError, match=r'row 7: its caption has \d+ tokens and the Q-Former reads at most 24'):
        text.tokens(["fine", "xyz " * 30], ["row 6", "row 7"])


def test_an_instructed_qformer_with_fewer_words_than_the_tokenizer_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    connector = QFormerConnector(12, 20, 2, 16, 1, 2, text_vocab_size=100)
    text = QFormerText(connector, tiny_tokenizer)
    words = len(tiny_tokenizer)
    with pytest.raises(ConfigError, match=f"text_vocab_size is 100.*has {words} tokens. Set it to {words}"):
        text.tokens(["The blue square"], ["1"])
