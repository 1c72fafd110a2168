"""A tower at another resolution, against transformers' own interpolation, and in a run from its base to its export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import tiny
from transformers import AutoConfig, SiglipVisionModel
from tuning import write_base, write_rows

from train.__main__ import main
from train.tune import TuneObjective
from vlchat import VLChatForConditionalGeneration, VLChatProcessor, checkpoint
from vlchat.errors import ConfigError
from vlchat.export import export
from vlchat.resolution import set_image_size
from vlchat.towers import clip_image_processor


def processor_of(model: Any, tokenizer: Any) -> VLChatProcessor:
    side = model.config.vision_config.image_size
    return VLChatProcessor.from_backbones(
        clip_image_processor(side), tokenizer, model.config.image_seq_length, "chatml"
    )


def siglip(tiny_llama: Any, tokenizer: Any) -> VLChatForConditionalGeneration:
    torch.manual_seed(3)
    tower = SiglipVisionModel(AutoConfig.for_model(
        "siglip_vision_model", hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        image_size=24, patch_size=8,
    ))  # fmt: skip
    return VLChatForConditionalGeneration.from_backbones(tower, tiny_llama, {"type": "linear"}, tokenizer=tokenizer)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("patches", [1, 4, 5])
def test_the_tower_sees_what_transformers_interpolates(
    kind: str, patches: int, tiny_model: Callable[..., Any], tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    model = (tiny_model({"type": "mlp"}) if kind == "clip" else siglip(tiny_llama, tiny_tokenizer)).eval()
    side = patches * model.config.vision_config.patch_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    tower = model.model.vision_tower
    with torch.no_grad():
        wanted = tower(pixels, interpolate_pos_encoding=True).last_hidden_state
        set_image_size(model, processor_of(model, tiny_tokenizer), side)
        torch.testing.assert_close(tower(pixels).last_hidden_state, wanted, rtol=1e-5, atol=1e-5)
        assert len(model.get_image_features(pixels).pooler_output[0]) == patches**2


def test_the_same_size_changes_no_bit(tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    model = tiny_model({"type": "mlp"})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    set_image_size(model, processor_of(model, tiny_tokenizer), model.config.vision_config.image_size)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("trainable", [{"connector": 1e-2}, {"vision_tower|connector": 1e-2}], ids=["frozen", "open"])
def test_a_run_is_resumed_loaded_tuned_on_and_exported(
    trainable: dict[str, float], tmp_path: Path, tiny_model: Callable[..., Any], tiny_tokenizer: Any, picture: Any
) -> None:
    base = write_base(tmp_path / "base", tiny_model({"type": "mlp"}), tiny_tokenizer)
    side = 3 * checkpoint.load(base)[0].config.vision_config.patch_size
    data = [{"path": str(write_rows(tmp_path / "data", picture))}]
    config: dict[str, Any] = {
        "run": str(tmp_path / "run"),
        "objective": {"type": "tune", "model": str(base), "sample_tokens": 2, "image_size": side},
        "data": data,
        "trainable": trainable,
        "loop": {"steps": 4, "batch": 4, "workers": 0, "save_every": 2, "sample_every": 4},
    }
    file = tmp_path / "tune.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main([str(file)]) == 0
    (tmp_path / "run" / "step-4").rename(tmp_path / "unbroken")
    assert main([str(file), "--resume", "auto"]) == 0

    folder = tmp_path / "run" / "step-4"
    assert json.loads((folder / "config.json").read_text())["image_seq_length"] == 9
    asked = [{"role": "user", "content": [
        {"type": "image", "image": picture(5, (40, 40))}, {"type": "text", "text": "What is in the picture?"},
    ]}]  # fmt: skip
    out = export(str(folder), tmp_path / "out", dtype="float32")
    logits = []
    for place in (tmp_path / "unbroken", folder, out):
        model, processor = checkpoint.load(place)
        batch = processor.apply_chat_template(asked, tokenize=True, return_dict=True, return_tensors="pt")
        assert batch["pixel_values"].shape[-1] == side
        assert int((batch["input_ids"] == processor.image_token_id).sum()) == 9
        with torch.no_grad():
            logits.append(model(**batch).logits)
    assert torch.equal(logits[0], logits[1])
    torch.testing.assert_close(logits[2], logits[1], rtol=1e-5, atol=1e-5)

    further = TuneObjective(data, model=str(folder))  # keeps the size it finds
    assert further.model.config.image_seq_length == 9
    further.save(tmp_path / "further", lambda stage: None)
    assert checkpoint.load(tmp_path / "further")[0].config.image_seq_length == 9


def test_what_cannot_be_enlarged_is_refused(tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    def refused(model: Any, side: int) -> str:
        with pytest.raises(ConfigError) as error:
            set_image_size(model, processor_of(model, tiny_tokenizer), side)
        return str(error.value)

    patch = tiny_model({"type": "mlp"}).config.vision_config.patch_size
    assert f"image_size is {patch + 1}; it must be a multiple" in refused(tiny_model({"type": "mlp"}), patch + 1)
    assert "multiple" in refused(tiny_model({"type": "mlp"}), 0)
    assert "this model has qformer" in refused(tiny("qformer"), 2 * patch)
    tiled = tiny_model({"type": "mlp"}, tiles=2)
    assert "cuts pictures into tiles" in refused(tiled, 2 * patch)
