"""Exported folders: the published names, the same logits in plain transformers, a check that can fail, a card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import FAMILIES
from published import ROWS, batch_for, blip2, instructblip, llava
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    OPTConfig,
)

from vlchat import checkpoint, interop
from vlchat.chat import Chat
from vlchat.cli import main
from vlchat.errors import CheckpointError
from vlchat.export import export, import_model
from vlchat.towers.composed import MultiscaleTowerConfig

NAMES = Path(__file__).parent / "published_names"


def published_names(file: str) -> set[str]:
    """A published checkpoint's tensors; `{0-31}` in a line of the file stands for each of those numbers."""
    found = set()
    for line in (NAMES / file).read_text(encoding="utf-8").split():
        numbers = re.search(r"\{(\d+)-(\d+)(?:/(\d+))?\}", line)
        if numbers is None:
            found.add(line)
        else:
            first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1)
            found |= {line.replace(numbers[0], str(number)) for number in range(first, last + 1, step)}
    return found


def written_names(folder: Path) -> set[str]:
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names |= set(opened.keys())
    return names


def test_llava_is_written_by_its_published_names(tmp_path: Path, tiny_tokenizer: Any) -> None:
    narrow: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**narrow, num_hidden_layers=24, image_size=24, patch_size=12),
        text_config=LlamaConfig(**narrow, num_hidden_layers=32, vocab_size=len(tiny_tokenizer)),
        image_token_index=tiny_tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    _, processor = llava(tiny_tokenizer, "clip", "llama")
    model, ours = interop.convert(LlavaForConditionalGeneration(config), processor)
    interop.write("llava", model, ours, tmp_path)
    assert written_names(tmp_path) == published_names("llava-1.5-7b-hf.txt")


def test_blip2_is_written_by_its_published_names(tmp_path: Path, tiny_tokenizer: Any) -> None:
    narrow: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**narrow, num_hidden_layers=39, image_size=24, patch_size=12),
        qformer_config=Blip2QFormerConfig(**narrow, num_hidden_layers=12),
        text_config=OPTConfig(
            vocab_size=len(tiny_tokenizer), hidden_size=8, ffn_dim=8, num_hidden_layers=32, num_attention_heads=2,
            word_embed_proj_dim=8,
        ),
        num_query_tokens=4,
        image_token_index=tiny_tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    _, processor = blip2(tiny_tokenizer, "opt")
    model, ours = interop.convert(Blip2ForConditionalGeneration(config), processor)
    interop.write("blip2", model, ours, tmp_path)
    assert written_names(tmp_path) == published_names("blip2-opt-2.7b.txt")


CASES = {
    "llava": (lambda tokenizer: llava(tokenizer, "clip", "llama"), "llava"),
    "llava-siglip": (lambda tokenizer: llava(tokenizer, "siglip", "qwen2", vision_feature_layer=-1), "llava"),
    "blip2-opt": (lambda tokenizer: blip2(tokenizer, "opt"), "blip2"),
    "blip2-llama": (lambda tokenizer: blip2(tokenizer, "llama"), "blip2"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_exported_model_answers_alike_in_plain_transformers(
    case: str, tmp_path: Path, tiny_tokenizer: Any, picture: Any, capsys: Any
) -> None:
    torch.manual_seed(5)
    make, layout = CASES[case]
    model, processor = interop.convert(*make(tiny_tokenizer))
    checkpoint.save_full(tmp_path / "ours", model, processor, trained_on="three drawings")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "ours"), str(out), "--layout", layout, "--dtype", "float32", "--check"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"the same tokens, logits \(largest difference (0|\d.*e-0[5-9])\) and greedy text", said)
    reference = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    theirs = AutoProcessor.from_pretrained(out)
    batch = batch_for(reference, theirs, ROWS, 4)
    with torch.no_grad():
        assert (reference(**batch).logits - model(**batch).logits).abs().max() <= 1e-5
    asked = [{"type": "image", "image": picture()}, {"type": "text", "text": "How many cats?"}]
    if layout == "llava":
        rendered = [
            one.apply_chat_template(
                [{"role": "user", "content": asked}], tokenize=True, return_dict=True, return_tensors="pt",
                add_generation_prompt=True,
            )
            for one in (theirs, processor)
        ]  # fmt: skip
        assert torch.equal(rendered[0]["input_ids"], rendered[1]["input_ids"])
    assert Chat.load(out).ask(picture(), "How many cats?", max_new_tokens=8) == Chat.load(tmp_path / "ours").ask(
        picture(), "How many cats?", max_new_tokens=8
    )
    assert not list(tmp_path.glob(".out*"))


def test_a_published_llava_keeps_its_layout(tmp_path: Path, tiny_tokenizer: Any, capsys: Any) -> None:
    model, processor = llava(tiny_tokenizer, "clip", "llama")
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    assert main(["export", str(tmp_path / "llava"), str(tmp_path / "out"), "--check"]) == 0
    assert "Rounded to bfloat16, the logits move by at most" in capsys.readouterr().out
    assert "vision_tower.vision_model.embeddings.class_embedding" in written_names(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["dtype"], config["text_config"]["dtype"]) == ("llava", "bfloat16", "bfloat16")
    assert str(tmp_path) not in "".join(
        path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir() if path.suffix in (".json", ".md")
    )


@pytest.mark.parametrize(
    ("connector", "options", "layout", "said"),
    [
        ({"type": "qformer", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, {}, "llava",
         "its connector is 'qformer'"),
        ({"type": "mlp", "norm": True}, {}, "llava", "norm off. The layout vlchat can."),
        ({"type": "mlp", "hidden_size": 20}, {}, "llava", "hidden_size"),
        ({"type": "mlp"}, {"vision_feature_select_strategy": "cls"}, "llava", "'cls'"),
        ({"type": "mlp"}, {}, "blip2", "this layout has a Q-Former. The layout vlchat and llava can."),
        ({"type": "qformer", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, {}, "blip2",
         "clip_vision_model"),
        ({"type": "mlp"}, {}, "lava", 'Did you mean "llava"?'),
    ],
)  # fmt: skip
def test_a_layout_that_cannot_hold_the_model_says_why(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: Any, connector: dict, options: dict, layout: str,
    said: str,
) -> None:  # fmt: skip
    checkpoint.save_full(tmp_path / "ours", tiny_model(connector, **options), tiny_processor, trained_on="")
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "out"), "--layout", layout]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_llavas_class_would_compute_otherwise_is_refused(tiny_processor: Any) -> None:
    capped = tiny("mlp", "llama")
    capped.config.text_config.final_logit_softcapping = 30.0
    with pytest.raises(CheckpointError, match="a llama, scales its logits"):
        interop.must_hold("llava", capped, tiny_processor)
    with pytest.raises(CheckpointError, match="embeddings are narrower"):
        interop.must_hold("llava", tiny("mlp", "opt", word_embed_proj_dim=16), tiny_processor)
    composed = tiny("mlp", "llama")
    composed.config.vision_config = MultiscaleTowerConfig(tower_config=composed.config.vision_config)
    with pytest.raises(CheckpointError, match="its tower is a vlchat_multiscale"):
        interop.must_hold("llava", composed, tiny_processor)


def test_a_q_former_that_reads_has_no_published_layout_here(tmp_path: Path, tiny_tokenizer: Any) -> None:
    model, processor = interop.convert(*instructblip(tiny_tokenizer, "llama"))
    with pytest.raises(CheckpointError, match="reads the instruction.*The layout vlchat can"):
        interop.must_hold("blip2", model, processor)


@pytest.mark.parametrize("damage", ["weights", "template", "names"])
def test_a_folder_that_answers_otherwise_is_not_called_done(
    damage: str, tmp_path: Path, tiny_model: Any, tiny_processor: Any, monkeypatch: Any, capsys: Any
) -> None:
    checkpoint.save_full(tmp_path / "ours", tiny_model({"type": "mlp"}), tiny_processor, trained_on="")
    write = interop.write

    def careless(layout: str, model: Any, processor: Any, folder: Path) -> None:
        write(layout, model, processor, folder)
        path = folder / "model.safetensors"
        tensors = load_file(path)
        if damage == "template":
            template = folder / "chat_template.jinja"
            template.write_text("So: " + template.read_text(encoding="utf-8"), encoding="utf-8")
        elif damage == "weights":
            tensors["multi_modal_projector.linear_2.bias"] += 1
        else:
            tensors["projector.linear_2.bias"] = tensors.pop("multi_modal_projector.linear_2.bias")
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(interop, "write", careless)
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "out"), "--layout", "llava", "--check"]) == 2
    said = {"weights": "logits differ by", "template": "reads another prompt", "names": "missing keys"}[damage]
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ours"], "nothing is left of what was written"


def test_float16_that_overflows_is_refused(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    model = tiny_model({"type": "mlp"})
    with torch.no_grad():
        model.model.connector.layers[0].weight.fill_(1e5)
    checkpoint.save_full(tmp_path / "ours", model, tiny_processor, trained_on="")
    with pytest.raises(CheckpointError, match="stored as float16 are not finite numbers.*connector.layers.0.weight"):
        export(str(tmp_path / "ours"), tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_a_stranger_asks(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    tower = tmp_path / "tower"
    model = tiny_model({"type": "mlp"})
    model.model.vision_tower.save_pretrained(tower)
    (tower / "README.md").write_text("---\nlicense: mit\n---\n# A tower\n", encoding="utf-8")
    decoder = tmp_path / "decoder"
    from transformers import LlamaForCausalLM

    language = LlamaForCausalLM(model.config.text_config)
    language.save_pretrained(decoder)
    tiny_processor.tokenizer.save_pretrained(decoder)
    run = tmp_path / "run"
    checkpoint.save(
        run,
        model,
        tiny_processor,
        base={"vision": tower, "language": decoder},
        trained=[name for name, _ in model.named_parameters() if "connector" in name],
        adapter=False,
        trained_on="my drawings",
        extra=lambda stage: (stage / "run.json").write_text(
            json.dumps({"objective": {"type": "align", "vision": str(tower), "itc": 0.2}, "seed": 3})
        ),
    )
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "result.md").write_text("# vqa\n\n71.3 % of 100\n", encoding="utf-8")
    export(str(run), tmp_path / "out", layout="llava", name="drawings-chat", scores=scores)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---")[1])
    assert header["pipeline_tag"] == "image-text-to-text"
    assert text.startswith("---") and "# drawings-chat" in text
    for words in ("| vision | tower | mit |", "| language | decoder | see there |", "my drawings", "itc: 0.2",
                  "### vqa", "71.3 % of 100", 'pipeline("image-text-to-text"'):  # fmt: skip
        assert words in text
    assert str(tmp_path) not in text + (tmp_path / "out" / "run.json").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds no result.md"):
        export(str(run), tmp_path / "other", scores=tmp_path)


@pytest.mark.parametrize("family", ["qwen2_vl", "idefics3", "llava_next"])
def test_a_tuned_model_of_any_family_is_written_merged(
    family: str, tmp_path: Path, picture: Any, capsys: Any
) -> None:
    base, run, out = tmp_path / "base", tmp_path / "run", tmp_path / "out"
    FAMILIES[family](base)
    model, processor = checkpoint.load(base)
    tuned = checkpoint.add_lora(model, r=4)
    torch.manual_seed(6)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    checkpoint.save(run, tuned, processor, base={"model": base}, trained=[], adapter=True, trained_on="answers")
    assert main(["export", str(run), str(out), "--dtype", "float32", "--check"]) == 0
    said = capsys.readouterr().out
    assert "With the adapter merged, the logits move by at most" in said and "in a fresh process" in said
    question = "What is in the picture?"
    expected = Chat.load(run).ask(picture(), question, max_new_tokens=8)
    assert expected != Chat.load(base).ask(picture(), question, max_new_tokens=8)
    assert Chat.load(out).ask(picture(), question, max_new_tokens=8) == expected
    image = tmp_path / "picture.png"
    picture().save(image)
    assert main(["chat", "--compare", str(base), str(run), "--max-new-tokens", "8", str(image), question]) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["vlchat", "llava"])
def test_an_adapter_may_be_kept_apart(
    layout: str, tmp_path: Path, tiny_model: Any, tiny_processor: Any, picture: Any, capsys: Any
) -> None:
    base, run, out = tmp_path / "base", tmp_path / "run", tmp_path / "out"
    model = tiny_model({"type": "mlp"})
    checkpoint.save_full(base, model, tiny_processor, trained_on="")
    assert main(["export", str(base), str(out), "--no-merge"]) == 2
    assert "no adapter to keep apart" in capsys.readouterr().err
    tuned = checkpoint.add_lora(model, r=4)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "connector" in name:
                parameter.normal_(std=0.3)
    trained = [name for name, _ in tuned.named_parameters() if "connector" in name]
    checkpoint.save(run, tuned, tiny_processor, base={"model": base}, trained=trained, adapter=True, trained_on="")
    options = ["--layout", layout, "--dtype", "float32", "--check", "--no-merge"]
    assert main(["export", str(run), str(out), *options]) == 0
    assert str(tmp_path) not in (out / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    question = "What is in the picture?"
    expected = Chat.load(run).ask(picture(), question, max_new_tokens=8)
    assert Chat.load(out).ask(picture(), question, max_new_tokens=8) == expected
    assert checkpoint.describe(out)["adapter"]
    # and in the hands of others: the base as it is, the adapter on top
    from peft import PeftModel

    plain = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    batch = batch_for(plain, tiny_processor, ROWS, 4)
    with torch.no_grad():
        without = plain(**batch).logits
        adapted = PeftModel.from_pretrained(plain, str(out / "adapter"))(**batch).logits
        assert (adapted - checkpoint.load(run)[0](**batch).logits).abs().max() <= 1e-5
    assert (adapted - without).abs().max() > 0.1


def test_a_card_that_people_edited_stays(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    checkpoint.save_full(tmp_path / "ours", tiny_model({"type": "mlp"}), tiny_processor, trained_on="")
    export(str(tmp_path / "ours"), tmp_path / "out", name="mine")
    card = tmp_path / "out" / "README.md"
    assert "Not measured" in card.read_text(encoding="utf-8")
    (tmp_path / "result.md").write_text("# vqa\n\n71.3 %\n", encoding="utf-8")
    export(str(tmp_path / "ours"), tmp_path / "out", name="mine", scores=tmp_path, overwrite=True)
    assert "71.3 %" in card.read_text(encoding="utf-8"), "a card that nobody touched is written anew"
    card.write_text("My words.", encoding="utf-8")
    for _ in range(2):
        export(str(tmp_path / "ours"), tmp_path / "out", overwrite=True)
        assert card.read_text(encoding="utf-8") == "My words."
    with pytest.raises(CheckpointError, match="was edited, so it stays"):
        export(str(tmp_path / "ours"), tmp_path / "out", scores=tmp_path, overwrite=True)


def test_nothing_that_is_needed_is_overwritten(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    model = tiny_model({"type": "mlp"})
    checkpoint.save_full(base, model, tiny_processor, trained_on="")
    for step in (1, 2):
        trained = [name for name, _ in model.named_parameters() if "connector" in name]
        checkpoint.save(
            run / f"step-{step}", model, tiny_processor, base={"model": base}, trained=trained, adapter=False,
            trained_on="",
        )  # fmt: skip
    for out, said in (
        (base, "what the new model is made from"),
        (run / "step-2", "what the new model is made from"),
        (run / "step-1", "taken for a save"),
        (run / "step-9", "taken for a save"),
    ):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with pytest.raises(CheckpointError, match=said):
            export(str(run), out, overwrite=True)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    export(str(run), tmp_path / "out")
    with pytest.raises(CheckpointError, match="say --overwrite"):
        export(str(run), tmp_path / "out")
    export(str(run), tmp_path / "out", overwrite=True)


def test_a_base_of_another_making_that_changed_is_noticed(tmp_path: Path, picture: Any) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    FAMILIES["llava"](base)
    model, processor = checkpoint.load(base)
    tuned = checkpoint.add_lora(model, r=2)
    checkpoint.save(run, tuned, processor, base={"model": base}, trained=[], adapter=True, trained_on="")
    checkpoint.load(run)
    weights = {name: 2 * value for name, value in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="weights have changed since"):
        export(str(run), tmp_path / "out")


def test_what_is_stored_quantized_is_not_rounded_again(tmp_path: Path, tiny_tokenizer: Any) -> None:
    base = tmp_path / "base"
    FAMILIES["llava"](base)
    model, processor = checkpoint.load(base, quantize="nf4")
    model.save_pretrained(tmp_path / "nf4")
    processor.save_pretrained(tmp_path / "nf4")
    checkpoint.load(tmp_path / "nf4")
    for call in (export, import_model):
        with pytest.raises(CheckpointError, match="stored quantized"):
            call(str(tmp_path / "nf4"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="leave --quantize out"):
        checkpoint.load(tmp_path / "nf4", quantize="int8")


def test_a_difference_that_is_no_number_is_a_difference() -> None:
    from vlchat.export.recheck import _difference

    broken = torch.tensor([1.0, float("nan")])
    assert _difference(broken, broken) == float("inf")
    assert _difference(torch.ones(2), torch.ones(3)) == float("inf")


def test_a_temperature_without_sampling_is_written(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """As Vicuna's generation_config.json has it, and many models made from it."""
    for family in ("llava", "blip-2"):
        FAMILIES[family](tmp_path / family)
        settings = tmp_path / family / "generation_config.json"
        settings.write_text('{"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}', encoding="utf-8")
        export(str(tmp_path / family), tmp_path / f"{family}-out")
        import_model(str(tmp_path / family), tmp_path / f"{family}-in")
        written = json.loads((tmp_path / f"{family}-in" / "generation_config.json").read_text(encoding="utf-8"))
        assert written["temperature"] == 0.9 and written["do_sample"]
