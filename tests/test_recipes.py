"""The recipes under configs/: each runs as it stands, with tiny backbones and tiny files in the format of its data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tiny_runs import logged
from tiny_tokenizers import byte_level
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from train.__main__ import main
from train.config import RunConfig, load_runs
from vlchat import Chat, runs
from vlchat.lora import PROJECTIONS
from vlchat.towers import clip_image_processor

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PAGE = (CONFIGS.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = ("llava-7b", "llava-13b", "small", "blip2", "qlora-7b")
LAYERS, WIDTH, INNER = 2, 128, 192  # of the tiny language model; bitsandbytes wants blocks of 64
SHORT = ["loop.steps=2", "loop.workers=0", "loop.log_every=1", "loop.sample_every=100", "objective.sample_tokens=2"]
SMALL = [*SHORT, "loop.batch=4"]
PIECES = [*SMALL, "loop.micro_batch=2"]


def write(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def backbones(folder: Path) -> None:
    """Tiny backbones of the families that the recipes name."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    }  # fmt: skip
    CLIPVisionModel(CLIPVisionConfig(**shape, image_size=24, patch_size=12)).save_pretrained(folder / "clip")
    clip_image_processor(24).save_pretrained(folder / "clip")
    SiglipVisionModel(SiglipVisionConfig(**shape, image_size=36, patch_size=12)).save_pretrained(folder / "siglip")
    SiglipImageProcessorPil(size={"height": 36, "width": 36}).save_pretrained(folder / "siglip")
    tokenizer = byte_level()
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2048,
        )
    )  # fmt: skip
    language.save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (40 * number, 90, 200))


def published(place: Path) -> None:
    """The folders and files that docs/recipes.md describes, with a few rows each, as the published files have them."""
    data = place / "data"
    rows: list[dict[str, Any]] = []
    for number in range(6):
        name = f"00{number}/00{number}53.jpg"
        picture(number, (40 + number, 24)).save(write(data / "LLaVA-Pretrain/images" / f"00{number}", name[4:]))
        turns = [
            {"from": "human", "value": "Render a clear and concise summary of the photo.\n<image>"},
            {"from": "gpt", "value": f"{number} cats and one dog"},
        ]
        rows.append({"id": name[4:-4], "image": name, "conversations": turns})
    write(data / "LLaVA-Pretrain", "blip_laion_cc_sbu_558k.json").write_text(json.dumps(rows))
    mixed: list[dict[str, Any]] = []
    for number, folder in enumerate(
        ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K")
    ):
        picture(number, (24, 30)).save(write(data / "llava" / folder, f"{number}.jpg"))
        for question in ("What is it?", "How many cats are there?"):  # two rows of one picture, and of one id
            turns = [
                {"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": "two cats"},
                {"from": "human", "value": "Is it green?"}, {"from": "gpt", "value": "no"},
            ]  # fmt: skip
            mixed.append({"id": f"0000{number}", "image": f"{folder}/{number}.jpg", "conversations": turns})
    said = [{"from": "human", "value": "What is a dog?"}, {"from": "gpt", "value": "one dog"}]
    mixed.append({"id": "wgByO4Y_0", "model": "", "conversations": said})
    write(data / "llava", "llava_v1_5_mix665k.json").write_text(json.dumps(mixed))
    captions = []
    for number in range(6):
        picture(number, (30, 24)).save(write(data / "captions/images", f"{number}.jpg"))
        captions.append(json.dumps({"image": f"{number}.jpg", "caption": f"{number} red circles"}))
    write(data / "captions", "captions.jsonl").write_text("\n".join(captions))
    for name, folder in (
        ("vqav2", "coco"),
        ("coco_captions", "coco"),
        ("ocrvqa", "ocr_vqa"),
        ("okvqa", "coco"),
        ("aokvqa", "coco"),
    ):
        picture(1, (24, 24)).save(write(data / "instruct" / folder, "1.jpg"))
        asked = {"caption": "a red circle"} if "captions" in name else {"question": "Is it red?", "answer": "yes"}
        (data / "instruct" / f"{name}.json").write_text(json.dumps([{"image": "1.jpg", **asked}] * 3))
    (place / "data.json").write_text(json.dumps(rows))
    for row in rows:  # of one's own: beside the file
        picture(1, (24, 24)).save(write((place / row["image"]).parent, Path(row["image"]).name))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny backbones, and the data of all recipes."""
    folder = tmp_path_factory.mktemp("recipes")
    backbones(folder)
    published(folder)
    return folder


@pytest.fixture(scope="module")
def done() -> dict[tuple[str, ...], dict[str, Any]]:
    """What was trained already, by recipe and overrides."""
    return {}


@pytest.fixture
def run(
    place: Path, done: dict[tuple[str, ...], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Trains a recipe where its data lies, once, and gives RUN/about.json."""
    monkeypatch.chdir(place)

    def train(recipe: str, *overrides: str) -> dict[str, Any]:
        if (recipe, *overrides) not in done:
            objective, replaced = one(recipe).objective, []
            if "vision" in objective:
                tower = place / ("siglip" if "siglip" in objective["vision"] else "clip")
                replaced = [f"objective.vision={tower}", f"objective.language={place / 'language'}"]
            assert main([str(CONFIGS / recipe), *replaced, *overrides]) == 0
            (trained,) = load_runs(CONFIGS / recipe, list(overrides))
            done[recipe, *overrides] = json.loads((Path(trained.run) / runs.ABOUT).read_text())
        return done[recipe, *overrides]

    return train


def one(recipe: str) -> RunConfig:
    (config,) = load_runs(CONFIGS / recipe)
    return config


def table(about: dict[str, Any]) -> dict[str, tuple[int, str]]:
    """Rule -> parameters and rate, of what trains."""
    lines = [line.split() for line in about["trainable"][1:]]
    return {" ".join(words[:-3]): (int(words[-2].replace(",", "")), words[-1]) for words in lines}


def answer(folder: str) -> str:
    return Chat.load(folder).ask("data/captions/images/1.jpg", "What is it?", max_new_tokens=3)


def connector(tower: int) -> int:
    return (tower + 1) * WIDTH + (WIDTH + 1) * WIDTH


# Attention is square here, and the feed-forward part has three matrices between WIDTH and INNER.
LINEAR = LAYERS * (4 * (WIDTH + WIDTH) + 3 * (WIDTH + INNER))  # inputs and outputs of all linear layers


def test_llava_trains_what_was_published_at_the_published_rates(run: Callable[..., dict[str, Any]]) -> None:
    about = run("llava-7b/align.yaml", *PIECES)
    assert about["steps"] == 2
    trains = table(about)
    assert trains.pop("connector") == (connector(32), "1.0e-03") and set(trains) == {"(frozen)"}
    rates, lost = (logged(Path("runs/llava-7b/align"), name) for name in ("lr", "loss"))
    # After two steps of two the schedule was asked at 0 and at 0.5: the foot of the warm-up, and the cosine behind it.
    assert rates[2] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * (0.5 - 0.03) / 0.97)), rel=1e-3)
    assert all(map(math.isfinite, lost.values())) and set(lost) == {1, 2}

    about = run("llava-7b/tune.yaml", *PIECES)
    assert about["base"] == {"model": "runs/llava-7b/align/step-2"}
    trains = table(about)
    assert trains.pop("lora_") == (128 * LINEAR, "2.0e-04") and trains.pop("connector") == (connector(32), "2.0e-05")
    assert set(trains) == {"(frozen)"}
    written = json.loads((Path("runs/llava-7b/tune/step-2/adapter") / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["lora_dropout"], written["bias"]) == (128, 256, 0.05, "none")
    assert isinstance(answer("runs/llava-7b/tune"), str)
    processor = Chat.load("runs/llava-7b/tune").processor
    assert processor.image_processor.do_pad and "ASSISTANT:" in processor.chat_template

    trains = table(run("llava-7b/tune-full.yaml", *PIECES))
    vocabulary = processor.tokenizer.get_vocab()
    norms = WIDTH * (2 * LAYERS + 1)
    whole = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER) + norms + 2 * len(vocabulary) * WIDTH
    assert trains["language_model|lm_head|connector"] == (whole + connector(32), "2.0e-05")
    assert isinstance(answer("runs/llava-7b/tune-full"), str)


@pytest.mark.parametrize("stage", ["align", "tune", "tune-full"])
def test_llavas_recipes_say_what_its_scripts_say(stage: str) -> None:
    config = one(f"llava-7b/{stage}.yaml")
    assert (config.optim.name, config.optim.weight_decay, config.optim.betas) == ("adamw", 0.0, [0.9, 0.999])
    assert (config.optim.warmup, config.optim.floor, config.optim.clip) == (0.03, 0.0, 1.0)
    assert (config.loop.epochs, config.loop.steps, config.loop.precision) == (1.0, None, "bf16")
    assert (config.loop.batch, config.objective["max_length"]) == (256 if stage == "align" else 128, 2048)
    if stage == "align":
        objective = config.objective
        assert objective["connector"] == {"type": "mlp", "depth": 2} and (objective["itg"], objective["itc"]) == (1, 0)
        assert objective["vision"] == "openai/clip-vit-large-patch14-336"
        assert (objective["vision_feature_layer"], objective["vision_feature_select_strategy"]) == (-2, "patch")


@pytest.mark.parametrize("stage", ["align", "tune", "tune-full"])
def test_13b_is_7b_on_another_language_model(stage: str) -> None:
    """So that what is shown of 7B, on tiny models, is shown of 13B."""
    smaller, larger = (yaml.safe_load((CONFIGS / f"llava-{size}/{stage}.yaml").read_text()) for size in ("7b", "13b"))
    assert json.loads(json.dumps(smaller).replace("7b", "13b")) == larger


def test_the_small_model_runs_and_its_larger_sister_with_lora(run: Callable[..., dict[str, Any]]) -> None:
    assert set(table(run("small/align.yaml", *PIECES))) == {"connector", "(frozen)"}
    assert set(table(run("small/tune.yaml", *PIECES))) == {"language_model|lm_head|connector", "(frozen)"}
    assert isinstance(answer("runs/small/tune"), str)
    told = (CONFIGS / "small/tune.yaml").read_text().replace("\n# ", " ")
    lora = re.findall(r'(objective\.lora|trainable)="({.*?})"', told)
    about = run("small/tune.yaml", *PIECES, *(f"{key}={value}" for key, value in lora), "run=runs/small/lora")
    assert len(lora) == 2 and table(about)["lora_"] == (64 * LINEAR, "2.0e-04")


def test_blip2_learns_three_terms_alike_and_then_to_answer(run: Callable[..., dict[str, Any]]) -> None:
    narrow = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_instruction_tokens": 64}
    about = run("blip2/align.yaml", *SMALL, *(f"objective.connector.{key}={value}" for key, value in narrow.items()))
    assert {rule: rate for rule, (_, rate) in table(about).items() if rate != "-"} == {"connector|heads": "1.0e-04"}
    metrics = runs.lines(Path("runs/blip2/align") / runs.METRICS)[-1]
    assert {"itc", "itm", "itg_qformer", "itg"} <= set(metrics)
    objective = one("blip2/align.yaml").objective
    assert (objective["itc"]["weight"], objective["itm"], objective["itg_qformer"]) == (1, 1, 1)
    assert objective["connector"]["num_query_tokens"] == 32
    about = run("blip2/tune.yaml", *PIECES)
    assert {rule: rate for rule, (_, rate) in table(about).items() if rate != "-"} == {"connector": "1.0e-05"}
    loaded = Chat.load("runs/blip2/tune")
    assert loaded.processor.instruction_length == 64 and loaded.model.model.connector.uses_instructions
    assert isinstance(answer("runs/blip2/tune"), str)


def test_instructblips_sets_are_drawn_by_the_square_root_of_their_rows() -> None:
    text = (CONFIGS / "blip2/tune.yaml").read_text()
    found = re.findall(r"weight: ([\d.]+)} *# ([\d.]+)([kM])", text)
    sizes = {"k": 1e3, "M": 1e6}
    drawn = [
        float(weight) * float(rows) * sizes[unit] / math.sqrt(float(rows) * sizes[unit]) for weight, rows, unit in found
    ]
    assert len(found) == 5 and max(drawn) / min(drawn) < 1.1


def test_qlora_runs_on_a_quantized_base(run: Callable[..., dict[str, Any]]) -> None:
    pytest.importorskip("bitsandbytes")
    run("llava-7b/align.yaml", *PIECES)
    about = run("qlora-7b/tune.yaml", *SMALL, "objective.model=runs/llava-7b/align", "heldout.share=0.3")
    trains = table(about)
    assert trains["lora_"] == (64 * LINEAR, "2.0e-04") and trains["connector|projector"] == (connector(32), "2.0e-05")
    assert isinstance(answer("runs/qlora-7b/tune"), str)


def test_qloras_sum_is_right_and_fits_12_gb() -> None:
    text = (CONFIGS / "qlora-7b/tune.yaml").read_text()
    parts = [float(amount) for amount in re.findall(r"^# .*  ([\d.]+) GB$", text, re.M)]
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=0.05) and parts[-1] < 12e9 * 0.9 / 1e9
    layers, hidden, inner, rank = 32, 4096, 11008, 64
    linear = layers * (4 * hidden**2 + 3 * hidden * inner)
    lora = layers * rank * (4 * 2 * hidden + 3 * (hidden + inner))
    assert f"{linear / 1e9:.2f} billion" in text and parts[0] == pytest.approx(linear * 4.127 / 8 / 1e9, abs=0.05)
    assert f"{lora / 1e6:.0f} million" in text and parts[2] == pytest.approx(lora * 16 / 1e9, abs=0.05)
    assert len(PROJECTIONS) >= 7


@pytest.mark.parametrize(
    "recipe", sorted(str(path.relative_to(CONFIGS)) for name in RECIPES for path in (CONFIGS / name).iterdir())
)
def test_the_page_tells_of_each_recipe_and_where_its_data_lies(recipe: str) -> None:
    assert f"`{recipe}`" in PAGE
    for source in one(recipe).data:
        if source["path"] != "data.json":  # one's own
            assert f"`{source['path']}`" in PAGE and f"`{source['images']}`" in PAGE
    assert Path(one(recipe).run) == Path("runs") / Path(recipe).with_suffix("")
