"""Embedders, against transformers' own forward passes and stage 1's training step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignments import CAPTIONS, objective, settings, write_backbones
from pairs_of_towers import SIZES, TEXTS, pictures, write_pair
from PIL import Image
from transformers import CLIPVisionModel, LlamaForCausalLM, PreTrainedTokenizerFast

from train import training_state
from train.__main__ import main
from vlchat.errors import CheckpointError, ConfigError
from vlchat.evaluate.embedders import open_embedder, similarity
from vlchat.evaluate.embedders.base import identity_of
from vlchat.evaluate.embedders.blip2 import Blip2Embedder
from vlchat.evaluate.embedders.pairs import PairEmbedder
from vlchat.evaluate.embedders.stage1 import StageOneEmbedder
from vlchat.towers import clip_image_processor


def pixels(shown: list[Image.Image], size: int = 24) -> torch.Tensor:
    return clip_image_processor(size)(shown, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("kind", ["clip", "siglip", "align"])
def test_a_pairs_logits_are_those_of_transformers(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    model = write_pair(tmp_path, kind, tiny_tokenizer)
    embedder = open_embedder(tmp_path)
    assert isinstance(embedder, PairEmbedder) and embedder.scale is not None
    images, texts = embedder.images(pictures()), embedder.texts(TEXTS)
    assert images.dtype == texts.dtype == np.float32
    assert np.linalg.norm(images, axis=-1) == pytest.approx(1.0, abs=1e-5)
    options: dict[str, Any] = {"padding": True}
    if kind == "siglip":
        options = {"padding": "max_length", "max_length": 12}
    tokens = tiny_tokenizer(TEXTS, return_tensors="pt", **options)
    given = {"input_ids": tokens["input_ids"]}
    if kind != "siglip":  # whose padding is read
        given["attention_mask"] = tokens["attention_mask"]
    with torch.no_grad():
        expected = model(pixel_values=pixels(pictures(), SIZES.get(kind, 24)), **given).logits_per_image.numpy()
    assert np.ptp(expected) > 0.1  # the pairs differ
    ours = embedder.scale * similarity(images, texts) + (embedder.bias or 0.0)
    assert ours == pytest.approx(expected, abs=2e-4, rel=2e-4)
    assert (embedder.bias is None) == (kind != "siglip")


def test_a_text_beyond_the_last_position_is_cut_off_and_counted(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_pair(tmp_path, "clip", tiny_tokenizer)
    embedder = open_embedder(tmp_path)
    assert embedder is not None
    assert np.isfinite(embedder.texts(["a cat", "xyz " * 30])).all()
    assert embedder.cut == 1


def test_blip2s_contrast_and_matching_are_those_of_transformers(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = write_pair(tmp_path, "blip2", tiny_tokenizer)
    embedder = open_embedder(tmp_path)
    assert isinstance(embedder, Blip2Embedder) and embedder.scale is None
    tokens = tiny_tokenizer(TEXTS, padding=True, return_tensors="pt")
    given = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        expected = model(pixel_values=pixels(pictures()), **given).logits_per_image.numpy()
    images = embedder.images(pictures())
    assert images.shape == (3, 3, 8)  # three queries a picture
    assert np.ptp(expected) > 0.1
    assert similarity(images, embedder.texts(TEXTS)) == pytest.approx(expected, abs=1e-5)
    for number, picture in enumerate(pictures()):
        with torch.no_grad():
            shown = pixels(pictures())[number : number + 1].expand(len(TEXTS), -1, -1, -1)
            logits = model(pixel_values=shown, **given, use_image_text_matching_head=True).logits_per_image.numpy()
        assert embedder.match(picture, TEXTS) == pytest.approx(logits, abs=1e-5)


def test_the_identity_changes_with_the_weights_alone(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = write_pair(tmp_path / "one", "clip", tiny_tokenizer)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    with torch.no_grad():
        model.text_projection.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "one")
    changed, first, again = (open_embedder(tmp_path / name) for name in ("one", "copy", "copy"))
    assert first is not None and again is not None and changed is not None
    assert first.identity == again.identity != changed.identity
    assert identity_of([("a", torch.tensor(1.0))]) != identity_of([("b", torch.tensor(1.0))])


def trained(folder: Path, connector: str | dict[str, Any], **options: Any) -> dict[str, Any]:
    """A stage-1 run of two steps in FOLDER/run; its settings."""
    made = settings(folder, connector, **options)
    config = {
        "run": str(folder / "run"), "objective": {"type": "align", **made}, "data": made["data"],
        "loop": {"steps": 2, "batch": 7, "save_every": 2, "workers": 0}, "trainable": {"connector|heads": 1e-2},
    }  # fmt: skip
    config["objective"] = {name: value for name, value in config["objective"].items() if name != "data"}
    (folder / "align.yaml").write_text(json.dumps(config))
    assert main([str(folder / "align.yaml")]) == 0
    return made


@pytest.fixture
def folder(
    tmp_path: Path, tiny_clip: CLIPVisionModel, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Path:
    return write_backbones(tmp_path, tiny_clip, tiny_llama, tiny_tokenizer)


@pytest.mark.parametrize(
    ("connector", "options"),
    [
        ("mlp", {"itc": 1.0}),
        ("mlp", {"itc": {"weight": 1.0, "loss": "sigmoid"}}),
        ("mlp", {"itc": {"weight": 1.0, "loss": "triplet"}, "tiles": [[24, 48]]}),
        ("resampler", {"itc": 1.0}),
        ("qformer", {"itc": 1.0, "itm": 1.0}),
        ("qformer", {"itc": 1.0, "text": "language"}),
        ("qformer", {"itc": 1.0, "itm": 1.0, "instructed": True}),
        ("mlp", {"itc": 1.0, "text": "clip"}),
    ],
    ids=["mlp", "sigmoid", "tiles", "resampler", "qformer", "language", "instructed", "text tower"],
)
def test_stage_one_compares_as_its_training_step_did(
    folder: Path, connector: str, options: dict[str, Any], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    options = dict(options)
    if options.pop("instructed", False):
        shape: Any = settings(folder, connector)["connector"] | {"text_vocab_size": len(tiny_tokenizer)}
    else:
        shape = connector
    if options.get("text") == "clip":
        write_pair(folder / "clip", "clip", tiny_tokenizer)
        options["text"] = str(folder / "clip")
    made = trained(folder, shape, **options)
    again = objective(folder, made["connector"], **options)
    training_state._read_trained(folder / "run" / "step-2" / "training_state", again)
    again.eval()
    batch = again.batch(range(7))
    order = [int(name.split("row-")[1].rstrip('")')) for name in batch["ids"]]
    compared: list[tuple[torch.Tensor, torch.Tensor]] = []
    again.heads["contrast"].register_forward_pre_hook(lambda _, given: compared.append(given))
    judged: list[torch.Tensor] = []
    if "matching" in again.heads:
        head: Any = again.heads["matching"]
        head.head.register_forward_hook(lambda _, given, found: judged.append(found.float().mean(1)))
    with torch.no_grad():
        again({key: value for key, value in batch.items() if key != "ids"})

    embedder = open_embedder(folder / "run")
    assert isinstance(embedder, StageOneEmbedder) and embedder.matches == bool(judged)
    shown = [Image.open(folder / f"{number}.png") for number in order]
    image, text = (side.numpy() for side in compared[0])
    images, texts = embedder.images(shown), embedder.texts([CAPTIONS[number] for number in order])
    assert images == pytest.approx(image if image.ndim == 3 else image[:, None], abs=2e-5)
    assert texts == pytest.approx(text, abs=2e-5)
    assert embedder.scale == pytest.approx(again.heads["contrast"].scale.item(), rel=1e-6)
    assert (embedder.bias is None) == (again.heads["contrast"].logit_bias is None)
    for row, number in enumerate(order if judged else ()):
        found = embedder.match(shown[row], [CAPTIONS[number]])
        assert found[0] == pytest.approx(judged[0][row].numpy(), abs=2e-5)


def test_a_run_that_cannot_compare_says_why(folder: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    trained(folder, "mlp", itc=0, itg=1.0)
    with pytest.raises(CheckpointError, match="learnt no contrast.*objective.itc is 0"):
        open_embedder(folder / "run")
    shutil.rmtree(folder / "run")
    trained(folder, "mlp", itc=1.0)
    step = folder / "run" / "step-2"
    shutil.rmtree(step / "training_state")
    manifest = json.loads((step / "vlchat.json").read_text())
    manifest["files"] = {name: found for name, found in manifest["files"].items() if "training_state" not in name}
    (step / "vlchat.json").write_text(json.dumps(manifest))  # as a published copy is
    with pytest.raises(CheckpointError, match="kept there alone.*Name the folder of the run itself"):
        open_embedder(step)


def test_models_that_only_chat_have_no_embedder(folder: Path, tmp_path: Path) -> None:
    assert open_embedder(None) is None
    assert open_embedder(folder / "language") is None
    with pytest.raises(CheckpointError, match="There is no checkpoint folder"):
        open_embedder(tmp_path / "nothing")
    with pytest.raises(ConfigError, match='dtype is "float31"; use auto, float32.*Did you mean'):
        open_embedder(folder / "tower", dtype="float31")


def test_a_pair_that_was_cut_short_is_refused(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    from safetensors.torch import load_file, save_file

    write_pair(tmp_path, "clip", tiny_tokenizer)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "text_projection.weight"}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(CheckpointError, match="lacks tensors: text_projection.weight"):
        open_embedder(tmp_path)
