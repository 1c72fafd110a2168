"""Connectors, against transformers' own modules with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Blip2QFormerModel,
    Idefics3Config,
    IdeficsConfig,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    LlavaConfig,
)
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from vlchat.connectors import (
    CONNECTORS,
    DownsampleConnector,
    GatedConnector,
    MLPConnector,
    QFormerConnector,
    build_connector,
)
from vlchat.connectors.attention import CrossAttention
from vlchat.connectors.queries import sine_positions
from vlchat.errors import ConfigError

SMALL: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"depth": 3},
    "downsample": {"factor": 2},
    "qformer": {"num_query_tokens": 5, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "resampler": {"num_query_tokens": 4, "num_attention_heads": 2},
    "perceiver": {"num_query_tokens": 5, "depth": 2, "num_attention_heads": 2, "head_dim": 8},
    "gated": {"widths": [8, 4], "num_attention_heads": 2, "head_dim": 8},
}


@pytest.mark.parametrize("name", CONNECTORS)
def test_every_connector_gives_the_tokens_it_promises(name: str) -> None:
    connector = build_connector({"type": name, **SMALL[name]}, 12, 20).eval()
    features = torch.randn(3, 9, 12)
    output = connector(features)
    assert output.shape == (3, connector.num_tokens(9), 20)
    torch.testing.assert_close(connector(features[1:2]), output[1:2])  # one picture does not see another
    output.sum().backward()
    unused = [n for n, p in connector.named_parameters() if p.grad is None]
    assert not unused


@pytest.mark.parametrize("name", CONNECTORS)
def test_half_precision_features_meet_a_full_precision_connector(name: str) -> None:
    connector = build_connector({"type": name, **SMALL[name]}, 12, 20)
    assert connector(torch.randn(1, 9, 12, dtype=torch.bfloat16)).dtype == torch.float32


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


@pytest.mark.parametrize(("factor", "side"), [(2, 4), (3, 6)])
def test_downsample_is_the_pixel_shuffle_of_idefics3(factor: int, side: int) -> None:
    config = Idefics3Config(
        vision_config={"hidden_size": 12, "num_attention_heads": 2},
        text_config={"model_type": "llama", "hidden_size": 20, "num_attention_heads": 2},
        scale_factor=factor,
    )
    reference = Idefics3Connector(config)
    connector = DownsampleConnector(12, 20, factor=factor, depth=1, norm=False)
    connector.mlp.layers[0].weight.data = reference.modality_projection.proj.weight.data
    torch.nn.init.zeros_(connector.mlp.layers[0].bias)
    features = torch.randn(2, side * side, 12)
    torch.testing.assert_close(connector(features), reference(features))


def test_downsample_pads_with_zeros_below_and_to_the_right() -> None:
    connector = DownsampleConnector(1, 4, depth=1, norm=False)
    torch.nn.init.eye_(connector.mlp.layers[0].weight)
    torch.nn.init.zeros_(connector.mlp.layers[0].bias)
    blocks = connector(torch.arange(1.0, 10.0).view(1, 9, 1))[0].tolist()
    assert blocks == [[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]


def attention_of(attention: CrossAttention, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Any:
    """torch's own multi-head attention with the same weights."""
    layers = (attention.query, attention.key, attention.value)
    return torch.nn.functional.multi_head_attention_forward(
        queries.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1),
        queries.shape[-1], attention.heads, None,
        torch.cat([layer.bias for layer in layers]) if attention.query.bias is not None else None,
        None, None, False, 0.0, attention.output.weight, attention.output.bias, use_separate_proj_weight=True,
        q_proj_weight=attention.query.weight, k_proj_weight=attention.key.weight, v_proj_weight=attention.value.weight,
    )[0].transpose(0, 1)  # fmt: skip


def test_sine_positions_are_those_of_mae() -> None:
    table = sine_positions(3, 3, 20)
    for row in range(3):
        for column in range(3):
            angles = [place / 10000 ** (index / 5) for place in (column, row) for index in range(5)]
            expected = [wave(angle) for half in (angles[:5], angles[5:]) for wave in (np.sin, np.cos) for angle in half]
            np.testing.assert_allclose(table[3 * row + column], expected, atol=1e-12)
    # A finer grid over the same picture: its middle is the coarser grid's middle.
    torch.testing.assert_close(sine_positions(9, 3, 20)[40], sine_positions(3, 3, 20)[4])


@pytest.mark.parametrize("side", [2, 3])
def test_the_resampler_is_qwen_vls_formula(side: int) -> None:
    connector = build_connector({"type": "resampler", **SMALL["resampler"]}, 12, 20).double().eval()
    for norm in (connector.query_norm, connector.key_norm, connector.output_norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    features = torch.randn(2, side * side, 12, dtype=torch.float64)

    def norm(layer: torch.nn.LayerNorm, values: torch.Tensor) -> torch.Tensor:
        middle = values - values.mean(-1, keepdim=True)
        return middle / (middle.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    values = norm(connector.key_norm, features @ connector.key_projection.weight.T)
    queries = norm(connector.query_norm, connector.query_tokens) + sine_positions(2, 2, 20)
    keys = values + sine_positions(side, 2, 20)
    read = attention_of(connector.attention, queries.expand(2, -1, -1), keys, values)
    expected = norm(connector.output_norm, read) @ connector.projection.weight.T
    torch.testing.assert_close(connector(features), expected)
    moved = connector(features.flip(1))
    assert not torch.allclose(moved, expected, atol=1e-3)  # where a patch is matters


def test_the_perceiver_is_that_of_idefics() -> None:
    connector = build_connector({"type": "perceiver", **SMALL["perceiver"]}, 12, 20).eval()
    config = IdeficsConfig(vision_config={"embed_dim": 12}, perceiver_config={"qk_layer_norms_perceiver": False})
    reference = IdeficsPerceiverResampler(config, 12, 2, 2, 8, 5).eval()
    names = {
        "query_tokens": "latents", "layers.": "blocks.", ".feature_norm": ".0.context_layer_norm",
        ".latent_norm": ".0.latents_layer_norm", ".attention.query": ".0.q_proj", ".attention.key": ".0.k_proj",
        ".attention.value": ".0.v_proj", ".attention.output": ".0.output_proj", ".feed_forward.0": ".1.ln",
        ".feed_forward.1": ".1.fc", ".feed_forward.3": ".1.c_proj", "output_norm": "layer_norm",
    }  # fmt: skip
    weights = {}
    for key, value in connector.state_dict().items():
        if not key.startswith("projection"):
            torch.nn.init.normal_(value, std=0.3)
            for mine, theirs in names.items():
                key = key.replace(mine, theirs)
            weights[key] = value
    reference.load_state_dict(weights)
    features = torch.randn(3, 7, 12)
    torch.testing.assert_close(connector(features), connector.projection(reference(features)))


def test_gated_fusion_is_flamingos_formula_and_starts_from_the_first_tower() -> None:
    connector = GatedConnector(12, 20, [8, 4], num_attention_heads=2, head_dim=4).double().eval()
    features = torch.randn(2, 9, 12, dtype=torch.float64)
    first, second = features[..., :8], features[..., 8:]
    torch.testing.assert_close(connector(features), connector.mlp(first))
    torch.nn.init.constant_(connector.attention_gate, 0.7)
    torch.nn.init.constant_(connector.feed_forward_gate, -0.4)
    x = torch.nn.functional.layer_norm(first, (8,), connector.norm.weight, connector.norm.bias)
    tokens = first + np.tanh(0.7) * attention_of(connector.attention, x, second, second)
    ln, up, _, down = connector.feed_forward
    hidden = torch.nn.functional.layer_norm(tokens, (8,), ln.weight, ln.bias) @ up.weight.T
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    tokens = tokens + np.tanh(-0.4) * (hidden @ down.weight.T)
    torch.testing.assert_close(connector(features), connector.mlp(tokens))


def test_wrong_connectors_are_refused_with_the_right_name() -> None:
    with pytest.raises(ConfigError, match='Did you mean "qformer"'):
        build_connector({"type": "qfromer"}, 4, 4)
    with pytest.raises(ConfigError, match='Did you mean "depth"'):
        build_connector({"type": "mlp", "dept": 2}, 4, 4)
    with pytest.raises(ConfigError, match="at least 1"):
        build_connector({"type": "mlp", "depth": 0}, 4, 4)
    with pytest.raises(ConfigError, match="lacks widths"):
        build_connector({"type": "gated"}, 4, 4)
    with pytest.raises(ConfigError, match="add up to the width of the tower's features, 4"):
        build_connector({"type": "gated", "widths": [2, 3]}, 4, 4)
    with pytest.raises(ConfigError, match="square number"):
        build_connector({"type": "resampler", "num_query_tokens": 10}, 4, 4)
    with pytest.raises(ConfigError, match="divide by 4 and by its 3 attention heads"):
        build_connector({"type": "resampler", "num_query_tokens": 9, "num_attention_heads": 3}, 4, 4)
    with pytest.raises(ConfigError, match="at least 2"):
        build_connector({"type": "downsample", "factor": 1}, 4, 4)
    with pytest.raises(ConfigError, match="square grid of patches, and this tower gives 5 features"):
        build_connector({"type": "downsample"}, 4, 4).num_tokens(5)
    with pytest.raises(ConfigError, match="text_vocab_size"):
        qformer()(torch.randn(1, 7, 12), torch.ones(1, 2, dtype=torch.long))
