"""Damaged and misnamed checkpoints of others: each is refused, and the message names what is wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import llava
from safetensors.torch import load_file, save_file

from vlchat import VLChatForConditionalGeneration, checkpoint
from vlchat.cli import main
from vlchat.errors import CheckpointError, UnsafeCheckpointError

Tensors = dict[str, torch.Tensor]
PROJECTOR = "multi_modal_projector.linear_1.weight"


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    model, processor = llava(tiny_tokenizer, "clip", "llama")
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    return tmp_path / "llava"


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def wrapped(tensors: Tensors) -> Tensors:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def without_projector(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "multi_modal_projector" not in name}


def with_more(tensors: Tensors) -> Tensors:
    return {**tensors, "image_newline": torch.zeros(32)}


def narrower(tensors: Tensors) -> Tensors:
    return {**tensors, PROJECTOR: tensors[PROJECTOR][:, :8].contiguous()}


def overflown(tensors: Tensors) -> Tensors:
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    return {**halves, PROJECTOR: halves[PROJECTOR] * 1e6}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrapped, ["Missing: lm_head.weight", 'begin with "module."']),
        (without_projector, ["Missing: model.multi_modal_projector.linear_1.bias", "linear_2.weight"]),
        (with_more, ["Unexpected: ", "image_newline"]),
        (narrower, ["Of another shape: model.multi_modal_projector.linear_1.weight (32, 8) for (32, 32)"]),
        (overflown, ["not finite", "model.multi_modal_projector.linear_1.weight", "float16"]),
    ],
)
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_weights_that_do_not_fit_are_listed(
    folder: Path, change: Callable[[Tensors], Tensors], said: list[str], quantize: str | None
) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder, quantize=quantize)
    for words in said:
        assert words in str(caught.value)


def test_a_language_model_that_is_no_number_is_found_behind_its_quantization(folder: Path) -> None:
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: {**tensors, name: tensors[name] * float("nan")})
    for quantize in ("nf4", "int8"):
        with pytest.raises(CheckpointError, match=r"not finite.*layers\.0\.mlp\.up_proj"):
            checkpoint.load(folder, quantize=quantize)


def test_tables_that_older_releases_stored_are_no_fault(folder: Path) -> None:
    table = {"vision_tower.embeddings.position_ids": torch.arange(5)[None]}
    before = checkpoint.load(folder)[0].state_dict()
    rewrite(folder, lambda tensors: {**tensors, **table})
    after = checkpoint.load(folder)[0].state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_a_truncated_file_is_named(folder: Path, capsys: Any) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="can't be loaded"):
        checkpoint.load(folder)
    assert main(["chat", "--model", str(folder), "tests/none.png", "What is it?"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_an_index_names_safetensors_beside_it_only(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    names = list(load_file(tmp_path / "elsewhere.safetensors"))
    index = folder / "model.safetensors.index.json"
    for place, error, said in (
        ("../elsewhere.safetensors", UnsafeCheckpointError, "beside it only"),
        (str(tmp_path / "elsewhere.safetensors"), UnsafeCheckpointError, "beside it only"),
        ("model.bin", UnsafeCheckpointError, "beside it only"),
        ("model-00001-of-00002.safetensors", CheckpointError, "which is not there"),
    ):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, place)}), encoding="utf-8")
        with pytest.raises(error, match=said):
            checkpoint.load(folder)
    index.write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no index"):
        checkpoint.load(folder)


def test_a_configuration_of_a_far_larger_model_takes_no_memory(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"] = None  # which stands for a Llama of 7 B
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="one of the two belongs to another model"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"model_type": "llava", "vision_config": 3}),
        ("tokenizer.json", {}),
        ("tokenizer_config.json", []),
        ("processor_config.json", []),
    ],
)
def test_a_broken_file_is_a_sentence(folder: Path, file: str, content: Any) -> None:
    (folder / file).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match="can't be loaded|holds no|has no"):
        checkpoint.load(folder)


def test_an_adapter_that_is_no_number_is_refused(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    model = tiny_model({"type": "mlp"})
    checkpoint.save_full(base, model, tiny_processor, trained_on="")
    tuned = checkpoint.add_lora(model, r=2)
    with torch.no_grad():
        next(value for name, value in tuned.named_parameters() if "lora_A" in name).fill_(float("nan"))
    checkpoint.save(run, tuned, tiny_processor, base={"model": base}, trained=[], adapter=True, trained_on="")
    with pytest.raises(CheckpointError, match="not finite numbers.*lora_A"):
        checkpoint.load(run)


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("run-by-a-pickle"),))


def test_a_pickle_is_refused_and_not_run(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Malice()}))
    with pytest.raises(UnsafeCheckpointError, match="pytorch_model.bin"):
        checkpoint.load(folder)
    assert not Path("run-by-a-pickle").exists()


@pytest.mark.parametrize("what", ["code", "objects"])
def test_a_projector_file_is_read_as_tensors_only(
    what: str, tmp_path: Path, monkeypatch: Any, tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.0.weight": Malice() if what == "code" else "words"}, path)
    with pytest.raises(UnsafeCheckpointError, match="mm_projector.bin"):
        VLChatForConditionalGeneration.from_backbones(
            tiny_clip, tiny_llama, {"type": "mlp"}, tokenizer=tiny_tokenizer, connector_from=path
        )
    assert not Path("run-by-a-pickle").exists()
