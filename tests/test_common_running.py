"""What transformers' common tests ask of running a model: attention, outputs, training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import CONNECTORS, LANGUAGES, gradients, inputs_for, labels_for, tiny

from vlchat import VLChatForConditionalGeneration

EVERY_CONNECTOR = pytest.mark.parametrize("connector", list(CONNECTORS))
EVERY_LANGUAGE = pytest.mark.parametrize("language", list(LANGUAGES))
# Renamed in 5.23, where the old name still works; releases before it know no other.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


# Attention


@pytest.mark.parametrize("side", ["left", "right"])
@EVERY_LANGUAGE
@EVERY_CONNECTOR
def test_sdpa_equals_eager(connector: str, language: str, side: str) -> None:
    model = tiny(connector, language)
    batch = inputs_for(model, rows=3, side=side)
    kept = batch["attention_mask"].bool()
    logits = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        parts = {m.config._attn_implementation for m in model.modules() if hasattr(m, "set_attn_implementation")}
        assert parts == {attention}
        logits[attention] = model(**batch).logits[kept]
    torch.testing.assert_close(logits["sdpa"], logits["eager"], rtol=1e-4, atol=1e-4)
    assert not torch.equal(logits["sdpa"], logits["eager"])  # two ways of computing, indeed


def test_attention_of_each_part(tmp_path: Path) -> None:
    tiny("qformer").save_pretrained(tmp_path)
    chosen = {"vision_config": "eager", "text_config": "sdpa"}
    model = VLChatForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=chosen)
    assert model.model.vision_tower.config._attn_implementation == "eager"
    assert model.model.language_model.config._attn_implementation == "sdpa"
    model.set_attn_implementation({"vision_config": "sdpa", "text_config": "eager"})
    assert model.model.vision_tower.config._attn_implementation == "sdpa"
    assert model.model.language_model.config._attn_implementation == "eager"
    # It is a matter of the machine, and stays out of the file.
    model.save_pretrained(tmp_path / "again")
    assert "attn_implementation" not in (tmp_path / "again" / "config.json").read_text()


@pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention is compiled where it runs")
def test_flex_attention_equals_eager() -> None:
    model = tiny("mlp", "qwen2", hidden_size=64)  # it wants heads of 16 or more
    batch = inputs_for(model)
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(**batch).logits[kept]
        model.set_attn_implementation({"text_config": "flex_attention"})
        torch.testing.assert_close(model(**batch).logits[kept], expected, rtol=1e-4, atol=1e-4)


# Outputs


@EVERY_CONNECTOR
@EVERY_LANGUAGE
def test_tuples_and_named_outputs_are_the_same(connector: str, language: str) -> None:
    model = tiny(connector, language)
    model.set_attn_implementation("eager")
    batch = inputs_for(model)
    options = {"labels": labels_for(batch), "output_hidden_states": True, "output_attentions": True}
    named = model(**batch, **options)
    plain = model(**batch, **options, return_dict=False)
    assert isinstance(plain, tuple) and len(plain) == len(named.to_tuple())
    for mine, theirs in zip(plain, named.to_tuple(), strict=True):
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, theirs)
        elif isinstance(mine, tuple):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert plain[0] is not None and torch.equal(plain[0], named.loss) and torch.equal(plain[1], named.logits)
    text = model.config.text_config
    assert len(named.hidden_states) == text.num_hidden_layers + 1 and len(named.attentions) == text.num_hidden_layers
    rows, length = batch["input_ids"].shape
    assert named.hidden_states[-1].shape == (rows, length, 32)
    assert named.attentions[0].shape == (rows, text.num_attention_heads, length, length)
    assert named.image_hidden_states.shape == (rows * model.config.image_seq_length, 32)
    bare = model.model(**batch)
    torch.testing.assert_close(model.lm_head(bare.last_hidden_state), named.logits)
    assert torch.equal(model.model(**batch, return_dict=False)[0], bare.last_hidden_state)


def test_outputs_asked_for_in_the_config() -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    batch = inputs_for(model)
    assert model(**batch).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(**batch), tuple)
    model.config.return_dict = True
    assert model(**batch, use_cache=False).past_key_values is None
    assert model(**batch, use_cache=True).past_key_values.get_seq_length() == batch["input_ids"].shape[1]
    for part in (model.config, model.config.text_config):
        part.output_hidden_states = part.output_attentions = True
    output = model(**batch)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2


@EVERY_CONNECTOR
def test_image_features_as_transformers_returns_them(connector: str) -> None:
    model = tiny(connector)
    batch = inputs_for(model)
    asked = (batch["pixel_values"], batch.get("instruction_input_ids"), batch.get("instruction_attention_mask"))
    output = model.get_image_features(*asked)
    tokens = model.config.image_seq_length
    assert [tuple(one.shape) for one in output.pooler_output] == [(tokens, 32)] * 2
    assert output.last_hidden_state.shape == (2, 5, 24)  # the tower's own: four patches and the class token
    with_states = model.get_image_features(*asked, output_hidden_states=True)
    assert [tuple(state.shape) for state in with_states.hidden_states] == [(2, 5, 24)] * 4
    assert torch.equal(torch.stack(with_states.pooler_output), torch.stack(output.pooler_output))
    plain = model.get_image_features(*asked, return_dict=False)
    assert isinstance(plain, tuple) and torch.equal(plain[0], output.last_hidden_state)
    assert torch.equal(torch.stack(plain[1]), torch.stack(output.pooler_output))


def test_the_towers_states_are_not_copied() -> None:
    """In bfloat16 a copy in another order of memory gives other bits than transformers' Llava has."""
    model = tiny()
    model.config.vision_feature_select_strategy, model.config.image_seq_length = "full", 5
    places: dict[str, int] = {}

    def note(name: str, tensor: torch.Tensor) -> None:
        places[name] = tensor.data_ptr()

    model.model.vision_tower.encoder.layers[-1].register_forward_pre_hook(lambda _, inputs: note("state", inputs[0]))
    model.model.connector.register_forward_pre_hook(lambda _, inputs: note("features", inputs[0]))
    model(**inputs_for(model))
    assert places["features"] == places["state"]


@EVERY_CONNECTOR
@EVERY_LANGUAGE
def test_a_batch_equals_its_rows(connector: str, language: str) -> None:
    model = tiny(connector, language)
    batch = inputs_for(model, rows=3, side="right")
    with torch.no_grad():
        together = model(**batch, output_hidden_states=True)
        for row in range(3):
            length = int(batch["attention_mask"][row].sum())
            single = {name: value[row : row + 1] for name, value in batch.items()}
            for name in ("input_ids", "attention_mask"):
                single[name] = single[name][:, :length]
            alone = model(**single, output_hidden_states=True)
            torch.testing.assert_close(together.logits[row, :length], alone.logits[0], rtol=1e-4, atol=1e-4)
            for mine, theirs in zip(together.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(mine[row, :length], theirs[0], rtol=1e-4, atol=1e-4)


def test_the_same_twice() -> None:
    model = tiny("qformer")
    batch = inputs_for(model)
    assert torch.equal(model(**batch).logits, model(**batch).logits)


# Training


@EVERY_CONNECTOR
@EVERY_LANGUAGE
def test_everything_that_is_open_learns(connector: str, language: str) -> None:
    model = tiny(connector, language).train()
    _, got = gradients(model, inputs_for(model))
    # The last layer of the tower and its last norm lie behind the features that are taken.
    layers = model.config.vision_config.num_hidden_layers
    unused = (f"vision_tower.encoder.layers.{layers - 1}.", "post_layernorm")
    for name, gradient in got.items():
        if any(part in name for part in unused):
            assert gradient is None, name
        else:
            assert gradient is not None and torch.isfinite(gradient).all(), name
    for part in ("vision_tower", "connector", "language_model"):
        assert any(g is not None and g.abs().sum() > 0 for name, g in got.items() if f".{part}." in name), part


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("frozen", ["nothing", "tower", "backbones"])
@pytest.mark.parametrize(
    ("connector", "language"), [("mlp", "llama"), ("qformer", "gemma3_text"), ("instructed", "opt"), ("mlp", "gpt2")]
)
def test_gradient_checkpointing_changes_nothing(connector: str, language: str, frozen: str, reentrant: bool) -> None:
    model = tiny(connector, language).train()
    batch = inputs_for(model)
    if frozen != "nothing":
        model.model.vision_tower.requires_grad_(False)
    if frozen == "backbones":
        model.model.language_model.requires_grad_(False)
        model.lm_head.requires_grad_(False)
    loss, expected = gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    if frozen == "backbones":
        model.enable_input_require_grads()  # as every trainer does for frozen backbones
    backward: list[int] = []
    model.model.vision_tower.encoder.layers[0].mlp.register_full_backward_hook(lambda *_: backward.append(1))
    checkpointed, got = gradients(model, batch)
    torch.testing.assert_close(checkpointed, loss)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        if gradient is None:
            assert got[name] is None, name
        else:
            torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert bool(backward) == (frozen == "nothing")
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    torch.testing.assert_close(gradients(model, batch)[0], loss)


@EVERY_CONNECTOR
def test_a_training_step_lowers_the_loss(connector: str) -> None:
    model = tiny(connector, "opt").train()
    batch = inputs_for(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        losses.append(gradients(model, batch)[0].item())
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
