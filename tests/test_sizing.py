"""The table of docs/serving.md that says how many conversations fit, against what real caches hold."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

TEXT = (Path(__file__).parent.parent / "docs" / "serving.md").read_text(encoding="utf-8")
TOKENS = 1024


def test_the_bytes_of_keys_and_values_are_those_of_a_cache() -> None:
    table = TEXT.partition("| language model | layers |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == 3
    for row in table:
        layers, heads, size, kib, mib, fits = (int(cell.replace(",", "")) for cell in row.split("|")[2:8])
        # One layer of the true shape: all others hold as much.
        config = LlamaConfig(
            hidden_size=32 * size, num_attention_heads=32, num_key_value_heads=heads, head_dim=size,
            num_hidden_layers=1, intermediate_size=8, vocab_size=8,
        )  # fmt: skip
        with torch.device("meta"):
            model, words = LlamaModel(config).bfloat16(), torch.zeros(1, 3, 32 * size, dtype=torch.bfloat16)
        cache = DynamicCache()
        model(inputs_embeds=words, past_key_values=cache, use_cache=True)
        held = sum(states.nbytes for layer in cache.layers for states in (layer.keys, layer.values)) / 3 * layers
        assert (kib * 2**10, mib * 2**20) == (held, held * TOKENS), row
        assert fits == 40 * 2**30 // (held * TOKENS), row
