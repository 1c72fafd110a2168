"""Stage 2: what trains, and that rows in pieces, packed rows and recomputed activations give the same gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import FAMILIES
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from tuning import opened, same, step, write_base, write_rows

from train.__main__ import main
from train.align import AlignObjective
from train.config import OptimConfig
from train.optim import parameter_groups
from train.tune import TuneObjective
from vlchat import VLChatForConditionalGeneration, checkpoint
from vlchat.errors import ConfigError, VLChatError
from vlchat.export import export
from vlchat.towers import clip_image_processor

ADAPTERS: dict[str, dict | None] = {
    "none": None,
    "lora": {"r": 4, "dropout": 0.0},
    "dora": {"r": 4, "dropout": 0.0, "dora": True},
    "rslora": {"r": 4, "dropout": 0.0, "rslora": True},
}


@pytest.fixture
def data(tmp_path: Path, picture: Any) -> list[dict[str, Any]]:
    return [{"path": str(write_rows(tmp_path / "data", picture))}]


@pytest.fixture
def base(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> str:
    return str(write_base(tmp_path / "base", tiny_model(), tiny_tokenizer))


@pytest.fixture
def wide(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> str:
    """Wide enough for bitsandbytes' blocks."""
    torch.manual_seed(6)
    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    ))  # fmt: skip
    model = VLChatForConditionalGeneration.from_backbones(tiny_clip, llama, {"type": "mlp"}, tokenizer=tiny_tokenizer)
    return str(write_base(tmp_path / "wide", model, tiny_tokenizer))


@pytest.fixture
def tune(base: str, data: list[dict[str, Any]]) -> Callable[..., TuneObjective]:
    """A factory: `tune(**options)`, in training mode, its adapter as if it had learnt something."""

    def make(**options: Any) -> TuneObjective:
        torch.manual_seed(4)
        objective = TuneObjective(data, **{"model": base, **options})
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in objective.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        return objective.train()

    return make


# What is shown, and in which precision it is kept


def test_template_and_pad_are_kept_with_what_is_saved(tune: Callable[..., TuneObjective], tmp_path: Path) -> None:
    plain, changed = tune(), tune(template="vicuna", pad=True, lora={"r": 2})
    assert "ASSISTANT:" not in plain.processor.chat_template and "ASSISTANT:" in changed.processor.chat_template
    assert not getattr(plain.processor.image_processor, "do_pad", False)
    changed.save(tmp_path / "saved", lambda folder: None)
    model, processor = checkpoint.load(tmp_path / "saved")
    assert processor.image_processor.do_pad and processor.chat_template == changed.processor.chat_template
    assert processor.end_token_id in model.generation_config.eos_token_id
    with pytest.raises(ConfigError, match="There is no chat template 'vicunia'.*Did you mean \"vicuna\""):
        tune(template="vicunia")


def test_what_stays_frozen_is_kept_as_asked(tune: Callable[..., TuneObjective]) -> None:
    named = tune(dtype="bfloat16", lora={"r": 2}).named_parameters()
    assert {parameter.dtype for name, parameter in named if "lora_" not in name} == {torch.bfloat16}
    with pytest.raises(ConfigError, match='dtype is "bfloat"; use .*Did you mean "bfloat16"'):
        tune(dtype="bfloat")


# The batch, however it is taken


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_eight_rows_at_once_or_one_by_one_are_one_step(
    adapter: str, packing: bool, tune: Callable[..., TuneObjective]
) -> None:
    objective = tune(lora=ADAPTERS[adapter], packing=packing)
    learning = opened(objective, "lora_", "connector") if adapter == "lora" else opened(objective, "model.model.")
    whole = step(objective, [range(8)], learning)
    same(whole, step(objective, [[row] for row in range(8)], learning))
    same(whole, step(objective, [range(3), range(3, 8)], learning))
    rows = [objective.batch([row])["labels"][0] for row in range(8)]
    assert len({int((row != -100).sum()) for row in rows}) > 2, "rows that count differently"


@pytest.mark.parametrize("adapter", list(ADAPTERS))
def test_packed_is_padded(adapter: str, tune: Callable[..., TuneObjective]) -> None:
    words = ("lora_", "connector") if ADAPTERS[adapter] else ("model.model.",)
    found = []
    for packing in (False, True):
        objective = tune(lora=ADAPTERS[adapter], packing=packing)
        assert len(objective.batch(range(8))["input_ids"]) == (1 if packing else 8)
        found.append(step(objective, [range(8)], opened(objective, *words)))
    same(*found)


def test_rows_are_packed_where_that_is_faster(
    tune: Callable[..., TuneObjective], data: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert tune().packing and not tune(packing=False).packing
    assert tune(attention="eager", packing=True).packing, "a dense mask"
    FAMILIES["qwen2_vl"](tmp_path / "qwen")
    for padding, why in (
        (tune(attention="eager"), "with eager attention packed rows of this model need a mask"),
        (tune(company=1), "Rows are padded, not packed: objective.company"),
        (TuneObjective(data, model=str(tmp_path / "qwen")), "Rows can't be packed for a Qwen2VL"),
    ):
        assert not padding.packing and why in padding.fallbacks[0] and "packing=false" not in padding.fallbacks[0]
    assert tune().fallbacks == tune(packing=False).fallbacks == []
    padded, packed = (step(one, [range(8)], opened(one, "connector")) for one in (tune(packing=False), tune()))
    same(padded, packed)


@pytest.mark.parametrize("name", ["blip-2", "instructblip"])
def test_packed_is_padded_in_imported_models(name: str, tmp_path: Path, picture: Any) -> None:
    FAMILIES[name](tmp_path / "base")
    rows = json.loads(write_rows(tmp_path / "data", picture).read_text())
    (tmp_path / "data" / "one.json").write_text(json.dumps([row for row in rows if len(row["images"]) == 1]))
    found, halves = [], []
    for packing in (False, True):
        data = [{"path": str(tmp_path / "data" / "one.json")}]
        objective = TuneObjective(data, model=str(tmp_path / "base"), packing=packing)
        with torch.no_grad():
            objective.model.lm_head.weight.mul_(0.3)
        found.append(step(objective, [range(4)], opened(objective, "connector", "language_model")))
        with torch.autocast("cpu", torch.bfloat16):
            halves.append(step(objective, [range(4)], opened(objective, "connector"))[0]["answers"])
    same(*found)
    assert halves == pytest.approx([found[0][0]["answers"]] * 2, rel=0.02)


@pytest.mark.parametrize("adapter", list(ADAPTERS))
def test_recomputed_activations_give_the_same_gradients(adapter: str, tune: Callable[..., TuneObjective]) -> None:
    words = ("lora_", "connector") if ADAPTERS[adapter] else ("model.model.",)
    found, alone, passes = [], [], []
    for checkpointing in (False, True):
        objective = tune(lora=ADAPTERS[adapter], checkpointing=checkpointing)
        learning = opened(objective, *words)
        if ADAPTERS[adapter] is None:
            for name, parameter in objective.model.model.vision_tower.named_parameters():
                parameter.requires_grad_(False)
                learning.pop(f"model.model.vision_tower.{name}")
        calls = {"language": 0, "tower": 0}
        inner = objective.model.get_base_model() if objective.adapter else objective.model
        for part, layer in (
            ("language", inner.model.language_model.layers[0]), ("tower", inner.model.vision_tower.encoder.layers[0]),
        ):  # fmt: skip
            layer.self_attn.register_forward_hook(
                lambda *_, part=part, calls=calls: calls.update({part: calls[part] + 1})
            )
        found.append(step(objective, [range(8)], learning))
        passes.append(calls.copy())
        alone.append(step(objective, [[3]], learning))  # a row without a picture: no input of a layer has a gradient
    same(*found)
    same(*alone)
    assert passes == [{"language": 1, "tower": 1}, {"language": 2, "tower": 1}]
    for part in ("connector", "lora_A" if ADAPTERS[adapter] else "q_proj"):
        assert any(part in name and gradient.any() for name, gradient in found[1][1].items())


def test_some_layers_recompute_and_the_rest_keep(tune: Callable[..., TuneObjective]) -> None:
    found, passes = [], []
    for layers in (False, 1, 2, True):
        objective = tune(checkpointing=layers)
        calls = [0, 0]
        for number, layer in enumerate(objective.model.model.language_model.layers):
            layer.self_attn.register_forward_hook(
                lambda *_, number=number, calls=calls: calls.__setitem__(number, calls[number] + 1)
            )
        found.append(step(objective, [range(8)], opened(objective, "connector", "language_model")))
        passes.append(calls)
    assert passes == [[1, 1], [2, 1], [2, 2], [2, 2]]
    for one in found[1:]:
        same(found[0], one)
    for wrong in (0, 3, -1):
        with pytest.raises(ConfigError, match=f"checkpointing is {wrong}, and the language model has 2 layers that"):
            tune(checkpointing=wrong)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "idefics3", "gemma3", "mllama"])
def test_recomputed_activations_of_other_makers_models(name: str, tmp_path: Path, picture: Any) -> None:
    FAMILIES[name](tmp_path / "base")
    rows = json.loads(write_rows(tmp_path / "data", picture).read_text())
    (tmp_path / "data" / "one.json").write_text(json.dumps([row for row in rows if len(row["images"]) == 1]))
    data = [{"path": str(tmp_path / "data" / "one.json")}]
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(4)
        options = {"model": str(tmp_path / "base"), "lora": ADAPTERS["lora"], "checkpointing": checkpointing}
        objective = TuneObjective(data, **options).train()
        torch.manual_seed(5)
        with torch.no_grad():
            for part, parameter in objective.named_parameters():
                if "lora_B" in part:
                    parameter.normal_(std=0.02)
        learning = opened(objective, "lora_", "projector", "connector", "merger")
        whole = step(objective, [range(3)], learning)
        same(whole, step(objective, [[row] for row in range(3)], learning))
        found.append(whole)
    same(*found)
    parts = [part for part, gradient in found[1][1].items() if gradient.any()]
    assert any("lora_A" in part for part in parts) and any("lora_" not in part for part in parts)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_model_learns_on_after_its_sample_answers(
    kind: str, tune: Callable[..., TuneObjective], wide: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")

    def third(sampled: bool) -> dict[str, torch.Tensor]:
        objective = tune(model=wide, quantize=kind, lora=ADAPTERS["lora"], sample_tokens=2, checkpointing=True)
        learning = opened(objective, "lora_", "connector")
        optimizer = torch.optim.SGD(learning.values(), 0.1)
        for number in range(3):
            _, gradients = step(objective, [range(4)], learning)
            optimizer.step()
            if sampled and number < 2:
                objective.eval()
                assert objective.sample()[1]
                objective.train()
        return gradients

    bare = tune(model=wide, quantize=kind)
    parameter_groups(bare, bare.default_trainable(), OptimConfig())
    assert all(parameter.requires_grad == ("connector" in name) for name, parameter in bare.named_parameters())
    without, after = third(False), third(True)
    assert without.keys() == after.keys()
    assert all(gradient.any() and torch.equal(gradient, after[name]) for name, gradient in without.items())


# What trains


def test_what_trains_by_default(tune: Callable[..., TuneObjective]) -> None:
    open_parts = {"dora": ("lora_", "connector"), "none": ("connector", "language_model", "lm_head")}
    for adapter, wanted in open_parts.items():
        objective = tune(lora=ADAPTERS[adapter])
        _, table = parameter_groups(objective, objective.default_trainable(), OptimConfig())
        assert "(frozen)" in table
        for name, parameter in objective.named_parameters():
            assert parameter.requires_grad == any(word in name for word in wanted), name


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "qwen3_vl", "idefics3", "smolvlm", "gemma3",
                                  "internvl", "mllama", "paligemma, template added"])  # fmt: skip
def test_what_trains_by_default_in_other_makers_models(name: str, tmp_path: Path, data: list[dict[str, Any]]) -> None:
    FAMILIES[name](tmp_path / "family")
    for lora in (None, {"r": 2}):
        objective = TuneObjective(data, model=str(tmp_path / "family"), lora=lora)
        parameter_groups(objective, objective.default_trainable(), OptimConfig())
        trains = {part for part, parameter in objective.named_parameters() if parameter.requires_grad}
        tower = [part for part in trains if "vision" in part and "projector" not in part and "merger" not in part]
        apart = [part for part in trains if "lora_" not in part and "language_model" not in part
                 and "text_model" not in part and "lm_head" not in part]  # fmt: skip
        assert apart and not tower, (apart, tower)
        assert any("lora_" in part for part in trains) == (lora is not None)


@pytest.mark.parametrize("text", [None, "llama"], ids=["no text tower", "text tower"])
def test_stage_1_trains_the_connector_and_its_own_heads_by_default(
    text: str | None, tmp_path: Path, data: list[dict[str, Any]], tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    for name, part in {"clip": [tiny_clip, clip_image_processor(24)], "llama": [tiny_llama, tiny_tokenizer]}.items():
        for one in part:
            one.save_pretrained(tmp_path / name)
    objective = AlignObjective(
        str(tmp_path / "clip"), str(tmp_path / "llama"), {"type": "mlp"}, data, template="chatml", itc=1.0,
        text=None if text is None else str(tmp_path / text),
    )  # fmt: skip
    assert any(name.startswith("text_side.") for name, _ in objective.named_parameters()) == (text is not None)
    parameter_groups(objective, objective.default_trainable(), OptimConfig())
    for name, parameter in objective.named_parameters():
        assert parameter.requires_grad == (".connector." in name or name.startswith("heads.")), name
    assert all(parameter.requires_grad for parameter in objective.heads.parameters())


# A run


@pytest.mark.parametrize("quantize", [None, "nf4", "int8"])
@pytest.mark.parametrize("adapter", ["lora", "dora", "rslora"])
def test_a_run_is_saved_resumed_loaded_and_exported(
    adapter: str, quantize: str | None, wide: str, data: list[dict[str, Any]], tmp_path: Path, capsys: Any
) -> None:
    if quantize:
        pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
    config = {
        "run": str(tmp_path / "run"),
        "objective": {"type": "tune", "model": wide, "lora": ADAPTERS[adapter], "sample_tokens": 2, "packing": True,
                      "checkpointing": True, "quantize": quantize},
        "data": data,
        "loop": {"steps": 4, "batch": 4, "micro_batch": 2, "workers": 0, "save_every": 2, "sample_every": 1},
    }  # fmt: skip
    file = tmp_path / "tune.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main([str(file)]) == 0
    assert "lora_" in capsys.readouterr().out
    resolved = json.loads((tmp_path / "run" / "run.json").read_text())["trainable"]
    assert list(resolved) == ["lora_", "connector|projector|merger|language_projection"]
    (tmp_path / "run" / "step-4").rename(tmp_path / "unbroken")
    assert main([str(file), "--resume", "auto"]) == 0
    for part in ("trained", "optimizer"):
        one, two = (
            load_file(folder / "training_state" / f"{part}.safetensors")
            for folder in (tmp_path / "unbroken", tmp_path / "run" / "step-4")
        )
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    settings = json.loads((tmp_path / "run" / "step-4" / "adapter" / "adapter_config.json").read_text())
    assert (settings["use_dora"], settings["use_rslora"]) == (adapter == "dora", adapter == "rslora")

    tuned, processor = checkpoint.load(tmp_path / "run", quantize=quantize)
    before, _ = checkpoint.load(wide, quantize=quantize)
    out = export(str(tmp_path / "run"), tmp_path / "out", dtype="float32")
    merged, _ = checkpoint.load(out)
    batch = processor.apply_chat_template(
        [{"role": "user", "content": "What is in the picture?"}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = tuned(**batch).logits
        difference = (merged(**batch).logits - expected).norm() / expected.norm()
        assert difference < (0.25 if quantize else 1e-5)  # a run on a quantized base is merged into the plain one
        assert not torch.equal(before(**batch).logits, expected)


# Mistakes


def test_mistakes_are_sentences(
    tune: Callable[..., TuneObjective], wide: str, tmp_path: Path, data: list[dict[str, Any]]
) -> None:
    for options, said in [
        ({"lora": {"alfa": 2}}, 'Unknown key "alfa" in objective.lora. Did you mean "alpha"'),
        ({"lora": {"rank": 2}}, 'Unknown key "rank" in objective.lora; known: r, alpha, dropout, targets, dora'),
        ({"lora": {"r": "8"}}, "objective.lora.r must be int, not '8'"),
        ({"lora": {"dora": 1}}, "objective.lora.dora must be bool, not 1"),
        ({"lora": {"r": 0}}, "LoRA with r = 0.* learns nothing"),
        ({"distill": {}}, "objective.distill lacks teacher"),
        ({"distill": {"teacher": "x/y", "temprature": 2}}, 'Unknown key "temprature" in .*Did you mean "temperature"'),
        ({"distill": {"teacher": "x/y", "weight": 0}}, "objective.distill.weight must be above 0, not 0"),
        ({"distill": {"teacher": str(tmp_path / "nowhere")}}, "There is no checkpoint folder at .*nowhere"),
    ]:
        with pytest.raises(VLChatError, match=said):
            tune(**options)
    pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
    objective = tune(model=wide, lora={"r": 2})
    objective.save(tmp_path / "run", lambda stage: None)
    for lora in (None, {"r": 2}):
        with pytest.raises(ConfigError, match="The model has an adapter, and a second one cannot be trained"):
            tune(model=str(tmp_path / "run"), quantize="nf4", lora=lora)
    FAMILIES["qwen2_vl"](tmp_path / "qwen")
    with pytest.raises(ConfigError, match="can't be packed for a Qwen2VL.*Set objective.packing=false"):
        TuneObjective(data, model=str(tmp_path / "qwen"), packing=True)
