"""Connectors, against transformers' own modules with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Blip2QFormerModel, InstructBlipQFormerConfig, InstructBlipQFormerModel, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vlchat.connectors import CONNECTORS, MLPConnector, QFormerConnector, build_connector
from vlchat.errors import ConfigError

SMALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"depth": 3},
    "qformer": {"num_query_tokens": 5, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
}


@pytest.mark.parametrize("name", CONNECTORS)
def test_every_connector_gives_the_tokens_it_promises(name: str) -> None:
    connector = build_connector({"type": name, **SMALL[name]}, 12, 20).eval()
    features = torch.randn(3, 7, 12)
    output = connector(features)
    assert output.shape == (3, connector.num_tokens(7), 20)
    torch.testing.assert_close(connector(features[1:2]), output[1:2])  # one picture does not see another
    output.sum().backward()
    unused = [n for n, p in connector.named_parameters() if p.grad is None]
    assert not unused


@pytest.mark.parametrize("name", CONNECTORS)
def test_half_precision_features_meet_a_full_precision_connector(name: str) -> None:
    connector = build_connector({"type": name, **SMALL[name]}, 12, 20)
    assert connector(torch.randn(1, 7, 12, dtype=torch.bfloat16)).dtype == torch.float32


def test_mlp_of_depth_two_is_llavas_projector() -> None:
    config = LlavaConfig(vision_config={"model_type": "clip_vision_model", "hidden_size": 12},
                         text_config={"model_type": "llama", "hidden_size": 20, "num_attention_heads": 2})  # fmt: skip
    reference = LlavaMultiModalProjector(config)
    connector = MLPConnector(12, 20, depth=2)
    for mine, theirs in zip(connector.layers, (reference.linear_1, reference.linear_2), strict=True):
        mine.load_state_dict(theirs.state_dict())
    features = torch.randn(2, 9, 12)
    assert torch.equal(connector(features), reference(features))


def test_a_wide_mlp_with_a_norm_is_torchs_own_layers() -> None:
    connector = MLPConnector(12, 20, hidden_size=30, norm=True)
    reference = torch.nn.Sequential(
        torch.nn.LayerNorm(12), torch.nn.Linear(12, 30), torch.nn.GELU(), torch.nn.Linear(30, 20)
    )
    reference[0].load_state_dict({"weight": torch.rand(12), "bias": torch.rand(12)})
    connector.norm.load_state_dict(reference[0].state_dict())
    for mine, theirs in zip(connector.layers, (reference[1], reference[3]), strict=True):
        mine.load_state_dict(theirs.state_dict())
    features = torch.randn(2, 9, 12)
    assert torch.equal(connector(features), reference(features))


def qformer(**options: Any) -> QFormerConnector:
    torch.manual_seed(4)
    return QFormerConnector(
        12, 20, num_query_tokens=5, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, **options
    ).eval()


def test_qformer_is_blip2s_with_the_same_weights() -> None:
    connector = qformer()
    reference = Blip2QFormerModel(connector.qformer.config).eval()
    reference.load_state_dict(connector.qformer.state_dict())
    features = torch.randn(3, 7, 12)
    expected = reference(
        query_embeds=connector.query_tokens.expand(3, -1, -1),
        encoder_hidden_states=features,
        encoder_attention_mask=torch.ones(3, 7, dtype=torch.long),
    ).last_hidden_state
    torch.testing.assert_close(connector(features), connector.projection(expected))


def test_instruction_aware_qformer_is_instructblips_with_the_same_weights() -> None:
    connector = qformer(text_vocab_size=50, max_instruction_tokens=10)
    config = connector.qformer.config
    reference = InstructBlipQFormerModel(
        InstructBlipQFormerConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
            encoder_hidden_size=12, max_position_embeddings=10, cross_attention_frequency=2, pad_token_id=None,
            layer_norm_eps=config.layer_norm_eps,
        )
    ).eval()  # fmt: skip
    weights = {
        key: value
        for key, value in connector.qformer.state_dict().items()
        if not key.startswith("layernorm")
    }
    weights |= {f"embeddings.{key}": value for key, value in connector.embeddings.state_dict().items()}
    weights |= {f"embeddings.layernorm.{k}": v for k, v in connector.qformer.layernorm.state_dict().items()}
    reference.load_state_dict(weights)
    features = torch.randn(2, 7, 12)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = reference(
        input_ids=ids,
        attention_mask=torch.cat([torch.ones(2, 5, dtype=torch.long), mask], dim=1),
        query_embeds=connector.query_tokens.expand(2, -1, -1),
        encoder_hidden_states=features,
        encoder_attention_mask=torch.ones(2, 7, dtype=torch.long),
    ).last_hidden_state[:, :5]
    actual = connector(features, ids, mask)
    torch.testing.assert_close(actual, connector.projection(expected))
    assert not torch.allclose(actual, connector(features), atol=1e-3)  # the text is read
    torch.testing.assert_close(actual[1:], connector(features[1:], ids[1:, :2], mask[1:, :2]))  # padding is not


def test_wrong_connectors_are_refused_with_the_right_name() -> None:
    with pytest.raises(ConfigError, match='Did you mean "qformer"'):
        build_connector({"type": "qfromer"}, 4, 4)
    with pytest.raises(ConfigError, match='Did you mean "depth"'):
        build_connector({"type": "mlp", "dept": 2}, 4, 4)
    with pytest.raises(ConfigError, match="at least 1"):
        build_connector({"type": "mlp", "depth": 0}, 4, 4)
    with pytest.raises(ConfigError, match="text_vocab_size"):
        qformer()(torch.randn(1, 7, 12), torch.ones(1, 2, dtype=torch.long))
