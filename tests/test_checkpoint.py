"""Checkpoints: what is saved is what is loaded, whole or not at all, and never a pickle."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from vlchat import VLChatForConditionalGeneration
from vlchat.checkpoint import add_lora, describe, is_lora, load, merge, save, save_full
from vlchat.errors import CheckpointError, ConfigError, UnsafeCheckpointError


def question(processor: Any, picture: Callable[..., Any]) -> dict[str, torch.Tensor]:
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(5)}, {"type": "text", "text": "What is in the picture?"}],
        }
    ]
    return dict(
        processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
    )


@pytest.fixture
def backbones(tmp_path: Path, tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any) -> dict[str, str]:
    """The two backbones as folders, the tower as one half of a CLIP pair."""
    pair = CLIPModel(CLIPConfig(text_config={"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4,
                                             "num_hidden_layers": 1, "intermediate_size": 32},
                                vision_config=tiny_clip.config.to_dict()))  # fmt: skip
    pair.vision_model.load_state_dict(tiny_clip.state_dict())
    pair.save_pretrained(tmp_path / "clip")
    tiny_llama.save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")
    return {"vision": str(tmp_path / "clip"), "language": str(tmp_path / "llama")}


@pytest.fixture
def tuned(tiny_model: Any) -> Any:
    """A model with an adapter whose updates are not zero."""
    model = add_lora(tiny_model(), r=4, alpha=8)
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "connector" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def trained(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters() if ".connector." in name]


def test_a_whole_model_comes_back_with_the_same_tokens(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, picture: Any
) -> None:
    model = tiny_model()
    save_full(tmp_path / "full", model, tiny_processor, trained_on="nothing yet")
    loaded, processor = load(tmp_path / "full")
    batch = question(tiny_processor, picture)
    again = question(processor, picture)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert torch.equal(model(**batch).logits, loaded(**batch).logits)
    assert torch.equal(
        model.generate(**batch, max_new_tokens=12, do_sample=False),
        loaded.generate(**again, max_new_tokens=12, do_sample=False),
    )
    assert tiny_processor.tokenizer.convert_tokens_to_ids("<|im_end|>") in loaded.generation_config.eos_token_id
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path / "full")) is VLChatForConditionalGeneration


def test_a_run_comes_back_on_its_two_backbones(
    tmp_path: Path, backbones: dict, tuned: Any, tiny_processor: Any, picture: Any
) -> None:
    save(tmp_path / "run", tuned, tiny_processor, base=backbones, trained=trained(tuned), adapter=True, trained_on="x")
    loaded, processor = load(tmp_path / "run")
    batch = question(processor, picture)
    assert is_lora(loaded)
    assert torch.equal(tuned(**batch).logits, loaded(**batch).logits)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"vlchat.json", "config.json", "chat_template.jinja", "trained.safetensors", "adapter"} <= names
    assert "model.safetensors" not in names


def test_a_run_comes_back_on_a_whole_model(
    tmp_path: Path, tiny_model: Any, tuned: Any, tiny_processor: Any, picture: Any
) -> None:
    save_full(tmp_path / "base", merge(tuned), tiny_processor, trained_on="a base")
    base, _ = load(tmp_path / "base")
    again = add_lora(base, r=2, alpha=4)
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    again.eval()
    save(
        tmp_path / "run", again, tiny_processor,
        base={"model": tmp_path / "base"}, trained=trained(again), adapter=True, trained_on="on top",
    )  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "base").rename(tmp_path / "elsewhere" / "base")
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "run")  # the pair moves together
    loaded, processor = load(tmp_path / "elsewhere" / "run")
    batch = question(processor, picture)
    assert torch.equal(again(**batch).logits, loaded(**batch).logits)
    (tmp_path / "elsewhere" / "base").rename(tmp_path / "lost")
    with pytest.raises(CheckpointError, match="trained on top of .*base"):
        load(tmp_path / "elsewhere" / "run")


def test_merged_equals_adapter(
    tmp_path: Path, backbones: dict, tuned: Any, tiny_processor: Any, picture: Any
) -> None:
    save(tmp_path / "run", tuned, tiny_processor, base=backbones, trained=trained(tuned), adapter=True, trained_on="x")
    merged, processor = load(tmp_path / "run", merge=True)
    batch = question(processor, picture)
    assert not is_lora(merged)
    torch.testing.assert_close(merged(**batch).logits, tuned(**batch).logits, rtol=1e-4, atol=1e-4)
    plain, _ = load(tmp_path / "run")
    plain.get_base_model().requires_grad_(False)
    with plain.disable_adapter():
        assert (plain(**batch).logits - tuned(**batch).logits).abs().max() > 0.1


def test_lora_stays_in_the_language_model(tiny_model: Any) -> None:
    model = add_lora(tiny_model())
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names and all(".language_model." in name and "lora_" in name for name in names)


def test_an_adapter_on_an_adapter_is_refused(tuned: Any) -> None:
    with pytest.raises(ConfigError, match="has an adapter, and a second one cannot be trained on top of it"):
        add_lora(tuned, r=2)


def test_lora_targets_that_match_nothing_or_too_much_are_refused(tiny_model: Any) -> None:
    model = tiny_model()
    with pytest.raises(ConfigError, match="outside the language model"):
        add_lora(model, targets=r".*\.q_proj")
    with pytest.raises(ConfigError, match="match no layer"):
        add_lora(model, targets=r".*\.query_proj")
    with pytest.raises(ConfigError, match="not a regular expression"):
        add_lora(model, targets=r"(")


def llava(tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any) -> LlavaForConditionalGeneration:
    config = LlavaConfig(
        vision_config=tiny_clip.config,
        text_config=tiny_llama.config,
        image_token_index=tiny_tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    return LlavaForConditionalGeneration(config).eval()


def test_any_image_text_checkpoint_loads_and_takes_lora(
    tmp_path: Path, tiny_clip: Any, tiny_llama: Any, tiny_processor: Any, picture: Any
) -> None:
    model = llava(tiny_clip, tiny_llama, tiny_processor.tokenizer)
    model.save_pretrained(tmp_path / "llava")
    LlavaProcessor(
        tiny_processor.image_processor,
        tiny_processor.tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tiny_processor.chat_template,
    ).save_pretrained(tmp_path / "llava")
    loaded, processor = load(tmp_path / "llava")
    batch = question(processor, picture)
    assert torch.equal(batch["input_ids"], question(tiny_processor, picture)["input_ids"])
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
    tuned = add_lora(loaded)
    base = {"model": tmp_path / "llava"}
    save(tmp_path / "run", tuned, processor, base=base, trained=[], adapter=True, trained_on="")
    again, _ = load(tmp_path / "run")
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)


def test_missing_and_unexpected_tensors_are_listed(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    save_full(tmp_path / "full", tiny_model(), tiny_processor, trained_on="")
    path = tmp_path / "full" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.surprise"] = tensors.pop("model.connector.layers.0.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    reseal(tmp_path / "full")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "full")
    assert "Missing: model.connector.layers.0.weight" in str(error.value)
    assert "Unexpected: model.surprise" in str(error.value)


def test_a_connector_that_lacks_a_tensor_is_refused(
    tmp_path: Path, backbones: dict, tiny_model: Any, tiny_processor: Any
) -> None:
    model = tiny_model()
    names = trained(model)[1:]
    save(tmp_path / "run", model, tiny_processor, base=backbones, trained=names, adapter=False, trained_on="")
    with pytest.raises(CheckpointError, match=r"Missing: model\.connector\.layers\.0\.weight"):
        load(tmp_path / "run")


def test_an_adapter_that_lacks_a_tensor_is_refused(
    tmp_path: Path, backbones: dict, tuned: Any, tiny_processor: Any
) -> None:
    save(tmp_path / "run", tuned, tiny_processor, base=backbones, trained=trained(tuned), adapter=True, trained_on="")
    path = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})
    reseal(tmp_path / "run")
    with pytest.raises(CheckpointError, match="Missing: base_model.*lora_A"):
        load(tmp_path / "run")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(tmp_path: Path, tiny_model: Any, tiny_processor: Any, damage: str) -> None:
    save_full(tmp_path / "full", tiny_model(), tiny_processor, trained_on="")
    path = tmp_path / "full" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(bytes(data) if damage == "flip" else bytes(data[:-100]))
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load(tmp_path / "full")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter/adapter_model.bin"])
def test_pickles_are_refused_before_they_are_read(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, name: str
) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    save_full(tmp_path / "full", tiny_model(), tiny_processor, trained_on="")
    path = tmp_path / "full" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UnsafeCheckpointError, match=path.name):
        load(tmp_path / "full")
    (tmp_path / "full" / "vlchat.json").unlink()
    (tmp_path / "full" / "model.safetensors").unlink()
    if name != "model.safetensors":
        with pytest.raises(UnsafeCheckpointError, match=path.name):
            load(tmp_path / "full")
    assert not (tmp_path / "sprung").exists()


def test_everything_in_a_checkpoint_is_open_to_the_same_people(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any
) -> None:
    save_full(tmp_path / "runs" / "one" / "step-1", tiny_model(), tiny_processor, trained_on="")
    assert len({path.stat().st_mode for path in (tmp_path / "runs" / "one" / "step-1").iterdir()}) == 1


def test_a_mistyped_run_is_not_looked_for_on_the_hub(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="There is no checkpoint folder at runs/won.$"):
        load("runs/won")
    save_full(tmp_path / "runs" / "one" / "step-1", tiny_model(), tiny_processor, trained_on="")
    with pytest.raises(CheckpointError, match="There is no checkpoint folder at runs/won. runs holds the runs one.$"):
        load("runs/won")


def test_what_is_not_there_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder at"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="can't be loaded"):
        load("nobody/no-such-model")


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    model = tiny_model()
    save_full(tmp_path / "full", model, tiny_processor, trained_on="first")

    def fail(stage: Path) -> None:
        (stage / "half").write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_full(tmp_path / "full", model, tiny_processor, trained_on="second", extra=fail)
    assert describe(tmp_path / "full")["trained_on"] == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    load(tmp_path / "full")


def test_other_peoples_folders_are_left_alone(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="left alone"):
        save_full(tmp_path / "thesis", tiny_model(), tiny_processor, trained_on="")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_stored_in_half_the_space_the_model_is_untouched(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    model = tiny_model()
    save_full(tmp_path / "full", model, tiny_processor, trained_on="", dtype="bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "full" / "model.safetensors").values()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    loaded, _ = load(tmp_path / "full")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}  # small, on a CPU
    stored, _ = load(tmp_path / "full", dtype=torch.bfloat16)
    assert {p.dtype for p in stored.parameters()} == {torch.bfloat16}


def test_describe_needs_no_weights(tmp_path: Path, backbones: dict, tuned: Any, tiny_processor: Any) -> None:
    count = sum(p.numel() for p in tuned.parameters())
    names = trained(tuned)
    save(tmp_path / "run", tuned, tiny_processor, base=backbones, trained=names, adapter=True, trained_on="1 row")
    about = describe(tmp_path / "run")
    assert about["name"] == "run" and about["trained_on"] == "1 row" and about["adapter"]
    assert about["connector"] == {"type": "mlp", "depth": 2} and about["image_tokens"] == 4
    assert about["language"] == "llama" and about["vision"] == "clip_vision_model"
    assert about["parameters"] == count


def test_an_adapter_stays_apart_from_a_whole_model(tmp_path: Path, tuned: Any, tiny_processor: Any) -> None:
    with pytest.raises(CheckpointError, match="merge"):
        save_full(tmp_path / "full", tuned, tiny_processor, trained_on="")
    with pytest.raises(CheckpointError, match="no parameters"):
        save(tmp_path / "r", tuned, tiny_processor, base={"model": None}, trained=["no"], adapter=True, trained_on="")


def reseal(folder: Path) -> None:
    """Writes the present hashes into the manifest, so that only the content is wrong."""
    from vlchat.folders import sha256

    manifest = json.loads((folder / "vlchat.json").read_text())
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    (folder / "vlchat.json").write_text(json.dumps(manifest))


def test_a_device_or_a_type_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='device is "gpu"; use auto, cpu, cuda'):
        load(tmp_path, device="gpu")
    with pytest.raises(ConfigError, match="device is cuda:99, and torch sees"):
        load(tmp_path, device="cuda:99")
    with pytest.raises(ConfigError, match='dtype is "fp16"; use auto, float32'):
        load(tmp_path, dtype="fp16")


def test_what_a_run_learned_is_not_rounded_to_its_base(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    save_full(tmp_path / "base", tiny_model(), tiny_processor, trained_on="", dtype="bfloat16")
    model, processor = load(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.model.connector.parameters():
            parameter.add_(1e-4)  # less than bfloat16 can tell
    base: dict[str, Any] = {"model": tmp_path / "base"}
    save(tmp_path / "run", model, processor, base=base, trained=trained(model), adapter=False, trained_on="")
    learned, read = (dict(one.model.connector.named_parameters()) for one in (model, load(tmp_path / "run")[0]))
    assert all(torch.equal(learned[name], read[name]) for name in learned)
