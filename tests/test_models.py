"""The catalogue: its memory figures, its short names, its table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, OPTConfig, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModel

from vlchat.cli import main
from vlchat.errors import CheckpointError, ConfigError
from vlchat.models import MODELS, NF4, hint, resolve, table

# What transformers builds for the language models of some entries.
LANGUAGE = {
    "llava-1.5-7b": LlamaConfig(),
    "llava-next-mistral-7b": MistralConfig(),
    "qwen2-vl-7b": Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
    ),
    "qwen3-vl-4b": Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128,
    ),
    "gemma3-4b": Gemma3TextConfig(
        hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256,
    ),
    "blip2-opt-2.7b": OPTConfig(
        hidden_size=2560, ffn_dim=10240, num_hidden_layers=32, num_attention_heads=32, word_embed_proj_dim=2560
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_shape_counts_what_nf4_quantizes(name: str) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(LANGUAGE[name])
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    (entry,) = [entry for entry in MODELS if entry.name == name]
    assert entry.language.linear == linear


def test_nf4_takes_as_many_bytes_as_bitsandbytes_stores() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(512, 512)
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    stored = packed.numel() * packed.element_size() + state.absmax.numel() * state.absmax.element_size()
    stored += state.state2.absmax.numel() * state.state2.absmax.element_size()
    assert stored / weight.numel() == pytest.approx(NF4, rel=1e-3)


def test_nf4_shrinks_the_language_model_alone() -> None:
    for entry in MODELS:
        assert 0 < entry.language.linear / 1e9 < entry.parameters, entry.name
        assert entry.bf16 * NF4 / 2 < entry.nf4 < entry.bf16, entry.name


def test_every_short_name_is_one_model() -> None:
    names = [entry.name for entry in MODELS]
    assert len({*names}) == len(names) and all("/" not in name and name == name.lower() for name in names)
    assert all(entry.id is None or entry.id.count("/") == 1 for entry in MODELS)
    assert resolve("mini") is None and resolve(None) is None
    assert resolve("Qwen3-VL-2B") == "Qwen/Qwen3-VL-2B-Instruct"
    assert resolve("runs/x") == "runs/x" and resolve(Path("mini")) == Path("mini")


def test_a_near_miss_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'Did you mean "qwen3-vl-2b"' in hint("qwen3vl-2b") and hint("elephant") == ""
    assert main(["chat", "--model", "smolvlm-256", "two cats"]) == 2
    assert 'no checkpoint folder at smolvlm-256. Did you mean "smolvlm-256m" (see vlchat models)?' in (
        capsys.readouterr().err
    )


def test_the_table_fits_a_terminal_and_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    told = capsys.readouterr().out
    assert told.strip() == table() and max(map(len, told.splitlines())) <= 120
    for entry in MODELS:
        assert entry.name in told and (entry.id is None or entry.id in told) and entry.licence in told
    assert "llava-1.5-7b" in told and "14.1 GB   4.5 GB" in told


def test_attention_reaches_every_part(tmp_path: Path) -> None:
    from vlchat.checkpoint import load

    assert load(None, attn="eager")[0].model.vision_tower.config._attn_implementation == "eager"
    assert load(None, attn="eager")[0].model.language_model.config._attn_implementation == "eager"
    assert load(None)[0].model.language_model.config._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match='attn is "flash"; use one of eager, sdpa'):
        load(None, attn="flash")
    with pytest.raises(ConfigError, match="flash_attention_2 runs on a GPU only"):
        load(None, attn="flash_attention_2", device="cpu")
    with pytest.raises(CheckpointError, match="--revision v2 names a version on the Hub, and the embedded model is"):
        load(None, revision="v2")
    with pytest.raises(CheckpointError, match="--revision v2 names a version on the Hub, and .* is here"):
        load(tmp_path, revision="v2")
