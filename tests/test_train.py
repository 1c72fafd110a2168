"""Every stage on tiny models: what trains and what does not, resume, and folders that load."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPModel

from train.__main__ import main
from train.checkpoint import saved
from train.config import LoopConfig, OptimConfig, RunConfig
from train.loop import fit
from train.optim import optimizer, parameter_groups, schedule
from train.tune import TuneObjective
from vlchat import checkpoint
from vlchat.errors import CheckpointError, ConfigError, VLChatError
from vlchat.export import export
from vlchat.folders import sha256

ROOT = Path(__file__).parent.parent
fonts = importlib.import_module("vlchat.scenes.draw")._font_files()
pytestmark = pytest.mark.skipif("NotoColorEmoji.ttf" not in fonts, reason="Noto Color Emoji is not installed")

VISION = {"image_size": 96, "patch_size": 12, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 32}  # fmt: skip
LANGUAGE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": True}  # fmt: skip
LOOP = {"steps": 4, "batch": 4, "log_every": 1, "sample_every": 100, "save_every": 2, "workers": 0}


def run(folder: Path, name: str, objective: dict, data: list | None = None, extra: list[str] | None = None,
        **keys: object) -> Path:  # fmt: skip
    config = {"run": str(folder / name), "objective": objective, "loop": LOOP, "trainable": {".*": 1e-2}, **keys}
    if data is not None:
        config["data"] = data
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main([str(file), *(extra or [])]) == 0
    return folder / name / "step-4"


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All four stages, each on the one before, as the embedded model's recipe does."""
    folder = tmp_path_factory.mktemp("stages")
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tower = run(folder, "tower", {"type": "clip", "vision": VISION, "text": text, "projection": 16, "vocabulary": 500})
    lm = run(folder, "lm", {"type": "language", "model": LANGUAGE, "vocabulary": 500}, optim={"name": "muon"})
    align = run(
        folder,
        "align",
        {
            "type": "align",
            "vision": str(tower.parent),
            "language": str(lm.parent),
            "connector": {"type": "mlp", "depth": 2, "hidden_size": 24, "norm": True},
            "attention": "eager",
            "cells": 1.0,
            "sample_tokens": 3,
        },  # fmt: skip
        data=[{"type": "scenes", "ask": "captions", "rows": 50}],
        trainable={"connector|heads": 1e-2},
    )
    tune = run(
        folder,
        "tune",
        {
            "type": "tune",
            "model": str(align.parent),
            "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
            "cells": 0.5,
            "sample_tokens": 3,
        },
        data=[{"type": "scenes", "ask": "chat", "rows": 50, "turns": 2}],
        trainable={"lora_": 1e-2, "connector": 1e-2},
    )
    return {"tower": tower, "lm": lm, "align": align, "tune": tune}


def test_the_tower_is_untouched_and_the_connector_learns(stages: dict[str, Path]) -> None:
    tower = CLIPModel.from_pretrained(stages["tower"]).vision_model.state_dict()
    aligned, _ = checkpoint.load(stages["align"])
    tuned, _ = checkpoint.load(stages["tune"], merge=True)
    for model in (aligned, tuned):
        found = model.model.vision_tower.state_dict()
        assert found.keys() == tower.keys()
        assert all(torch.equal(found[name], tower[name]) for name in tower)
    one, two = aligned.model.connector.state_dict(), tuned.model.connector.state_dict()
    assert not any(torch.equal(one[name], two[name]) for name in one)


def test_the_language_model_is_untouched_by_stage_1_and_moved_by_stage_2(stages: dict[str, Path]) -> None:
    language = AutoModelForCausalLM.from_pretrained(stages["lm"]).model.state_dict()
    aligned, _ = checkpoint.load(stages["align"])
    tuned, _ = checkpoint.load(stages["tune"], merge=True)
    assert all(
        torch.equal(tensor, language[name]) for name, tensor in aligned.model.language_model.state_dict().items()
    )
    moved = tuned.model.language_model.state_dict()
    assert not torch.equal(moved["layers.0.self_attn.q_proj.weight"], language["layers.0.self_attn.q_proj.weight"])


def test_the_loss_of_scene_maps_is_what_the_image_tokens_lack_of_them(stages: dict[str, Path]) -> None:
    objective = TuneObjective([{"type": "scenes", "ask": "chat", "rows": 50}], str(stages["tune"]), cells=1.0)
    batch = objective.batch(range(8))
    words, sides = batch["cell_words"], batch["cell_sides"]
    assert len(words) == len(batch["pixel_values"])
    target = objective.reader.embed(objective.model.get_input_embeddings(), words, sides).flatten(0, 1)
    assert objective.cells_loss(target, words, sides).item() == 0
    torch.manual_seed(0)
    noisy = target + torch.randn_like(target) * objective.map_variance**0.5
    share = objective.cells_loss(noisy, words, sides) / objective.cell_weights(sides).sum()
    assert share.item() == pytest.approx(1, abs=0.05)
    with pytest.raises(ConfigError, match="one image token for each of the 64 cells.*give 32"):
        objective.cells_loss(target[::2], words, sides)


def test_every_save_point_answers_about_a_picture_by_its_path_alone(stages: dict[str, Path]) -> None:
    for name in ("align", "tune"):
        model, processor = checkpoint.load(stages[name].parent / "step-2")
        content = [
            {"type": "image", "image": Image.new("RGB", (30, 20), "red")},
            {"type": "text", "text": "What is this?"},
        ]
        inputs = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True,
                                               return_tensors="pt", add_generation_prompt=True)  # fmt: skip
        of_run = checkpoint.describe(stages[name].parent)
        assert of_run["path"] == str(stages[name])
        assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_an_adapter_answers_in_a_process_that_says_nothing_else(stages: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "vlchat.cli", "chat", "--model", str(stages["tune"]), "--max-new-tokens", "3"]
    done = subprocess.run([*command, "What is this?"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exported_run_is_whole_and_says_the_same(stages: dict[str, Path], tmp_path: Path) -> None:
    out = export(str(stages["tune"]), tmp_path / "whole", dtype="float32", name="tiny")
    (out / "README.md").write_text("A card that a second export keeps.")
    assert export(str(stages["tune"]), out, dtype="float32", name="tiny", overwrite=True) == out
    assert (out / "README.md").read_text() == "A card that a second export keeps."
    (out / "README.md").write_text("A card that people may edit: the model loads all the same.")
    assert str(tmp_path.parent) not in (out / "config.json").read_text()
    about = checkpoint.describe(out)
    assert about["name"] == "tiny" and about["base"] is None and "drawn by vlchat" in about["trained_on"]
    merged, processor = checkpoint.load(stages["tune"], merge=True)
    whole, _ = checkpoint.load(out)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "What is this?"}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(whole(**inputs).logits, merged(**inputs).logits)
    with pytest.raises(CheckpointError, match='dtype is "int3"'):
        export(str(stages["tune"]), tmp_path / "other", dtype="int3")


def _other_texts(_: object) -> list[str]:
    rng = Random(1)
    return ["".join(rng.choices("abcdefgh", k=6)) for _ in range(200)]


def test_a_resumed_run_ends_with_the_same_bits(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_of = {"tower": "tower", "lm": "language"}
    for name in ("tower", "lm", "tune"):
        whole = stages[name]
        config = yaml.safe_load((whole.parent.parent / f"{name}.yaml").read_text())
        config["run"] = str(tmp_path / name)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config))
        assert main([str(file)]) == 0
        # Go back to step 2, as if the machine had stopped there.
        (tmp_path / name / "step-4").rename(tmp_path / f"{name}-unbroken")
        with monkeypatch.context() as later:
            if name != "tune":  # the texts of the tokenizer change with the world, as in a later release
                later.setattr(f"train.{stage_of[name]}._texts", _other_texts)
            assert main([str(file), "--resume", "auto", "loop.keep=3"]) == 0
        for part in ("trained", "optimizer"):
            one = load_file(tmp_path / f"{name}-unbroken" / "training_state" / f"{part}.safetensors")
            two = load_file(tmp_path / name / "step-4" / "training_state" / f"{part}.safetensors")
            assert one.keys() == two.keys()
            assert all(torch.equal(one[key], two[key]) for key in one), (name, part)


def test_what_is_frozen_stays_as_it_is_in_memory(stages: dict[str, Path], tmp_path: Path) -> None:
    objective = TuneObjective(
        [{"type": "scenes", "ask": "chat", "rows": 8}], str(stages["align"]), lora={"r": 2}, sample_tokens=1
    )
    before = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    loop = LoopConfig(steps=2, batch=2, workers=0)
    fit(objective, RunConfig(str(tmp_path / "run"), {}, trainable={"lora_|connector": 1e-2}, loop=loop), 2)
    moved = {name for name, tensor in objective.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any("lora_" in name for name in moved) and any("connector" in name for name in moved)
    assert not [name for name in moved if "lora_" not in name and "connector" not in name]


def test_starting_anew_leaves_nothing_of_the_old_run(stages: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(stages["tune"].parent, tmp_path / "tune")
    config = [str(stages["tune"].parent.parent / "tune.yaml"), f"run={tmp_path / 'tune'}", "loop.save_every=1"]
    assert main([*config, "--overwrite", "loop.steps=2"]) == 0
    assert [folder.name for folder in saved(tmp_path / "tune")] == ["step-1", "step-2"]
    assert len((tmp_path / "tune" / "metrics.jsonl").read_text().splitlines()) == 2
    with pytest.raises(CheckpointError, match="has checkpoints after step 1: step-2. Add run=OTHER/FOLDER"):
        main([*config, "--resume", str(tmp_path / "tune" / "step-1")])
    shutil.copytree(tmp_path / "tune" / "step-1", tmp_path / "tune" / "step-9-good")
    assert checkpoint.describe(tmp_path / "tune")["path"] == str(tmp_path / "tune" / "step-2")
    assert checkpoint.describe(tmp_path / "tune")["name"] == "tune"
    with pytest.raises(ConfigError, match="objective.model lies in .*tune, where this run is to write"):
        main([*config, "--overwrite", f"objective.model={tmp_path / 'tune'}", "objective.lora=null"])


def test_a_run_of_other_sizes_is_not_resumed_and_keeps_its_configuration(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(stages["tune"].parent, tmp_path / "tune")
    before = (tmp_path / "tune" / "run.json").read_text()
    config = [str(stages["tune"].parent.parent / "tune.yaml"), f"run={tmp_path / 'tune'}", "--resume", "auto"]
    with pytest.raises(CheckpointError, match=r"step-4: model\..*lora_A.* has the shape \(4, 32\); this run's is \(2"):
        main([*config, "objective.lora.r=2", "loop.steps=6"])
    assert (tmp_path / "tune" / "run.json").read_text() == before


def test_a_base_that_has_changed_is_refused(stages: dict[str, Path], tmp_path: Path) -> None:
    for name in ("align", "tune"):
        shutil.copytree(stages[name].parent, tmp_path / name)
    tune = tmp_path / "tune" / "step-4"
    for name in ("tower", "lm"):
        shutil.copytree(stages[name].parent, tmp_path / name)
    checkpoint.load(tune)
    again = [str(stages["align"].parent.parent / "align.yaml"), "--overwrite", f"run={tmp_path / 'align'}", "seed=1"]
    assert main(again) == 0
    with pytest.raises(CheckpointError, match="tune.step-4 was trained on top of .*align.step-4, whose weights have"):
        checkpoint.load(tune)


def test_a_tower_begins_with_the_weights_of_an_earlier_run(stages: dict[str, Path], tmp_path: Path) -> None:
    config = yaml.safe_load((stages["tower"].parent.parent / "tower.yaml").read_text())["objective"]
    config["start"] = str(stages["tower"].parent)
    still = run(tmp_path, "still", config, trainable={"logit_scale": 1e-9})
    one, two = (CLIPModel.from_pretrained(folder).vision_model.state_dict() for folder in (stages["tower"], still))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (still / "tokenizer.json").read_text() == (stages["tower"] / "tokenizer.json").read_text()
    with pytest.raises(ConfigError, match=r"objective.start: .*step-4 is another model.*first difference: model\."):
        run(tmp_path, "wider", config | {"projection": 24})
    (still / "training_state" / "trained.safetensors").unlink()
    with pytest.raises(ConfigError, match="objective.start: .*step-4 has no training_state/trained.safetensors"):
        run(tmp_path, "bare", config | {"start": str(still)})
    with pytest.raises(CheckpointError, match="nowhere has no tokenizer.json"):
        run(tmp_path, "nowhere", config | {"start": str(tmp_path / "nowhere")})


def test_the_runs_of_a_file_train_in_turn_and_go_on_where_they_stopped(
    stages: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = yaml.safe_load((stages["tower"].parent.parent / "tower.yaml").read_text())
    first["run"] = str(tmp_path / "first")
    second = {**first, "run": str(tmp_path / "second"), "trainable": {"logit_scale": 1e-9}}
    second["objective"] = first["objective"] | {"start": first["run"]}
    file = tmp_path / "both.yaml"
    file.write_text(yaml.safe_dump_all([first, second]))
    assert main([str(file), "loop.steps=2"]) == 0
    one, two = (CLIPModel.from_pretrained(tmp_path / name / "step-2").state_dict() for name in ("first", "second"))
    assert all(torch.equal(one[name], two[name]) for name in one if name != "logit_scale")
    with pytest.raises(ConfigError, match="has 2 runs: say --resume auto"):
        main([str(file), "--resume", str(tmp_path / "first" / "step-2")])
    shutil.rmtree(tmp_path / "second")  # as if the machine had stopped in between
    capsys.readouterr()
    assert main([str(file), "--resume", "auto", "loop.steps=2"]) == 0
    assert "It has made all its steps" in capsys.readouterr().out
    assert (tmp_path / "second" / "step-2").is_dir()
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(ConfigError, match="second already holds checkpoints"):
        main([str(file), "loop.steps=2"])
    assert not (tmp_path / "first").exists(), "refused before the first run"


def test_a_run_stopped_by_ctrl_c_says_how_to_go_on(stages: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(stages["tune"].parent, tmp_path / "tune")
    config = [str(stages["tune"].parent.parent / "tune.yaml"), f"run={tmp_path / 'tune'}", "loop.steps=90000"]
    command = [sys.executable, "-m", "vlchat.cli", "train", *config, "--resume", "auto", "loop.save_every=90000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    log = tmp_path / "tune" / "metrics.jsonl"
    before = len(log.read_text().splitlines())
    while len(log.read_text().splitlines()) < before + 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    last = saved(tmp_path / "tune")[-1]
    assert last.name != "step-4", "the run saved before it stopped"
    assert told.splitlines()[-1] == f"Stopped by SIGINT; --resume auto goes on from {last}."


def test_few_rows_are_told_to_be_few_steps(
    stages: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = {**LOOP, "steps": None, "epochs": 2}
    scenes = [{"type": "scenes", "ask": "chat", "rows": 8}]
    run(tmp_path, "few", {"type": "tune", "model": str(stages["align"])}, data=scenes, loop=loop)
    told = capsys.readouterr().out
    assert "2 epochs of 8 rows, 4 rows a step: 4 steps." in told and "So few steps teach little" in told


def test_a_resumed_optimizer_goes_by_the_names_of_parameters(stages: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(stages["tower"].parent, tmp_path / "tower")
    file = tmp_path / "tower" / "step-4" / "training_state" / "optimizer.safetensors"
    save_file({f"{i}.exp_avg": tensor for i, tensor in enumerate(load_file(file).values())}, file)
    manifest = json.loads((tmp_path / "tower" / "step-4" / "vlchat.json").read_text())
    manifest["files"]["training_state/optimizer.safetensors"] = sha256(file)
    (tmp_path / "tower" / "step-4" / "vlchat.json").write_text(json.dumps(manifest))
    config = str(stages["tower"].parent.parent / "tower.yaml")
    with pytest.raises(CheckpointError, match="step-4 cannot be resumed: its optimizer state names .0.exp_avg."):
        main([config, "--resume", "auto", f"run={tmp_path / 'tower'}", "loop.steps=6"])


def test_a_run_that_has_had_its_minutes_is_left_as_it_is(
    stages: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(stages["tune"].parent.parent / "tune.yaml")
    before = (stages["tune"].parent / "metrics.jsonl").read_text()
    assert main([config, "--resume", "auto", "loop.minutes=0.0001", "loop.steps=9"]) == 0
    assert "raise loop.minutes to go on" in capsys.readouterr().out
    assert (stages["tune"].parent / "metrics.jsonl").read_text() == before


def test_metrics_and_the_resolved_configuration_lie_beside_the_weights(stages: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (stages["align"].parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert {"itg", "itc", "cells", "lr", "rows_per_second"} <= lines[0].keys()
    assert json.loads((stages["align"] / "run.json").read_text())["loop"]["batch"] == 4


def test_a_run_that_exists_is_never_overwritten_unasked(stages: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="already holds checkpoints.*--resume auto"):
        main([str(stages["tower"].parent.parent / "tower.yaml")])


def test_mistakes_are_sentences(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = {"type": "tune", "model": str(stages["align"]), "lora": {"r": 2}}
    with pytest.raises(VLChatError, match="nowhere.json"):
        run(tmp_path, "a", tune, data=[{"path": "nowhere.json"}])
    with pytest.raises(ConfigError, match='Unknown key "formatt" in data.0.*Did you mean "format"'):
        run(tmp_path, "b", tune, data=[{"path": "x.json", "formatt": "llava"}])
    rows = tmp_path / "rows.json"
    rows.write_text('[{"image": "a.png", "question": "What?", "answer": "That."}]')
    with pytest.raises(ConfigError, match='Unknown format "lava".*Did you mean "llava"'):
        run(tmp_path, "e", tune, data=[{"path": str(rows), "format": "lava"}])
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="has no scene map.*Set objective.cells=0"):
        run(tmp_path, "h", {**tune, "cells": 1.0}, data=[{"path": str(rows)}])
    with monkeypatch.context() as nowhere, pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        nowhere.setenv("PATH", str(tmp_path))
        run(tmp_path, "g", {"type": "language", "model": LANGUAGE, "compile": True})
    with pytest.raises(ConfigError, match='objective.attention is "flash"; use one of eager, sdpa'):
        run(tmp_path, "f", {**tune, "attention": "flash"}, data=[{"path": str(rows)}])
    with pytest.raises(ConfigError, match='Unknown key "rank" in objective.lora; known: r, alpha'):
        run(tmp_path, "i", {**tune, "lora": {"rank": 2}}, data=[{"type": "scenes", "ask": "chat", "rows": 8}])
    with pytest.raises(ConfigError, match='loop.precision is "fp8"; use no, bf16, fp16'):
        scenes = [{"type": "scenes", "ask": "chat", "rows": 8}]
        run(tmp_path, "j", tune, data=scenes, loop={**LOOP, "precision": "fp8"})
    with pytest.raises(ConfigError, match='optim.name is "adam"; use "adamw" or "muon"'):
        run(tmp_path, "d", tune, data=[{"type": "scenes", "ask": "chat", "rows": 8}], optim={"name": "adam"})
    with pytest.raises(ConfigError, match='trainable: "conector" matches no parameter'):
        run(tmp_path, "c", tune, data=[{"type": "scenes", "ask": "chat", "rows": 8}], trainable={"conector": 1e-3})


def test_mistakes_in_the_parts_of_an_objective_are_sentences(stages: dict[str, Path], tmp_path: Path) -> None:
    scenes = [{"type": "scenes", "ask": "chat", "rows": 8}]
    tune = {"type": "tune", "model": str(stages["align"])}
    clip = {"type": "clip", "vision": VISION, "text": {"hidden_size": 32}}
    align = {"type": "align", "vision": str(stages["tower"]), "language": str(stages["lm"]), "connector": {}}
    for message, objective, data, keys in [
        (r'trainable: "\*" is not a regular expression', tune, scenes, {"trainable": {"*": 1e-3}}),
        (r"objective \(clip\) takes no data", clip, scenes, {}),
        ('Unknown key "patch_sise" in objective.vision', {**clip, "vision": {"patch_sise": 8}}, None, {}),
        (
            "objective.model.vocab_size follows from the tokenizer",
            {"type": "language", "model": {**LANGUAGE, "vocab_size": 9}},
            None,
            {},
        ),
        ("loop.steps is missing: clip draws its rows", clip, None, {"loop": {"batch": 2}}),
        ("data: names no source", tune, None, {}),
        ("objective.lora must be dict or null, not 8", {**tune, "lora": 8}, scenes, {}),
        ("data.0: limit must be int or null, not 'ten'", tune, [{"path": "a.json", "limit": "ten"}], {}),
        ("data.0.rows must be int, not 'ten'", tune, [{**scenes[0], "rows": "ten"}], {}),
        ("tokenizer .*nowhere can't be loaded", {**align, "language": str(tmp_path / "nowhere")}, scenes, {}),
    ]:
        with pytest.raises(VLChatError, match=message):
            run(tmp_path, "wrong", objective, data=data, **keys)  # type: ignore[arg-type]


def test_an_instruction_aware_q_former_learns_to_read_the_question(stages: dict[str, Path], tmp_path: Path) -> None:
    words = len(AutoTokenizer.from_pretrained(stages["lm"]))
    qformer = {"type": "qformer", "hidden_size": 32, "num_query_tokens": 4, "num_hidden_layers": 2,
               "num_attention_heads": 2, "intermediate_size": 32, "text_vocab_size": words}  # fmt: skip
    objective = {"type": "align", "vision": str(stages["tower"]), "language": str(stages["lm"]), "connector": qformer,
                 "instruction_length": 12, "sample_tokens": 2}  # fmt: skip
    scenes = [{"type": "scenes", "ask": "captions", "rows": 50}]
    aligned = run(tmp_path, "aware", objective, data=scenes, trainable={"connector|heads": 1e-2})
    for name in ("step-2", "step-4"):
        model, processor = checkpoint.load(aligned.parent / name)
        assert processor.instruction_length == 12
        table = model.get_parameter("model.connector.embeddings.word_embeddings.weight")
        if name == "step-2":
            early = table.clone()
    assert not torch.equal(early, table)


def test_what_trains_is_lifted_to_float32() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)}).bfloat16()
    parameter_groups(model, {"a": 1e-3}, OptimConfig())
    assert (model["a"].weight.dtype, model["b"].weight.dtype) == (torch.float32, torch.bfloat16)


def test_a_part_trains_in_float32_inside_a_model_of_bfloat16(stages: dict[str, Path], tmp_path: Path) -> None:
    objective = TuneObjective([{"type": "scenes", "ask": "chat", "rows": 8}], str(stages["align"]), sample_tokens=1)
    objective.model.bfloat16()
    config = RunConfig(str(tmp_path / "run"), {}, trainable={"q_proj": 1e-3}, loop=LoopConfig(batch=2, workers=0))
    checkpoint.load(fit(objective, config, 1))
    stored = load_file(tmp_path / "run" / "step-1" / "trained.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32} and all("q_proj" in name for name in stored)


def test_muon_moves_hidden_matrices_and_adamw_the_rest_as_torch_does() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 4), "up": torch.nn.Linear(4, 6)}) for _ in "ab")
    theirs.load_state_dict(ours.state_dict())
    config = OptimConfig(name="muon", weight_decay=0.1)
    together = optimizer(parameter_groups(ours, {".*": 1e-2}, config)[0], config)
    muon = torch.optim.Muon([theirs["up"].weight], 1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [{"params": [theirs["embed"].weight]}, {"params": [theirs["up"].bias], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(rest, 1e-2, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(3):
        words = torch.tensor([step, step + 1])
        for model, parts in ((ours, [together]), (theirs, [muon, adamw])):
            model["up"](model["embed"](words)).square().sum().backward()
            for part in parts:
                part.step()
                part.zero_grad()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)


def test_first_matching_rule_wins_and_the_rest_is_frozen() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2), "c": torch.nn.Linear(2, 2)})
    groups, table = parameter_groups(model, {"^a.weight": 1.0, "^a|^b": 0.5}, OptimConfig(weight_decay=0.1))
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (1.0, 0.1, 1),
        (0.5, 0.0, 2),
        (0.5, 0.1, 1),
    ]
    assert not any(parameter.requires_grad for parameter in model["c"].parameters())
    assert "(frozen)" in table and "1.0e+00" in table


def test_the_schedule_warms_up_and_ends_at_the_floor() -> None:
    share = schedule(OptimConfig(warmup=0.1, floor=0.02))
    assert share(0.05) == pytest.approx(0.5) and share(0.1) == pytest.approx(1.0) and share(1.0) == pytest.approx(0.02)
    assert share(0.55) == pytest.approx(0.02 + 0.98 * 0.5)
