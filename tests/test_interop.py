"""Published checkpoints in and out: the same logits as transformers' own classes, the same names on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from published import MAKERS, ROWS, batch_for, instructblip, llava_next, ours_from
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

from vlchat import VLChatForConditionalGeneration, checkpoint, interop
from vlchat.chat import Chat
from vlchat.cli import main
from vlchat.errors import CheckpointError


@pytest.fixture(params=MAKERS)
def published(request: Any, tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """The folder of a small random checkpoint of a family, as transformers writes it."""
    torch.manual_seed(5)
    model, processor = MAKERS[request.param](tiny_tokenizer)
    folder = tmp_path / request.param
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def theirs(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def test_an_imported_model_gives_the_same_logits(published: Path) -> None:
    reference, their_processor = theirs(published)
    model, processor = interop.convert(*theirs(published))
    assert isinstance(model, VLChatForConditionalGeneration)
    batch = batch_for(reference, their_processor, ROWS, 4)
    with torch.no_grad():
        expected = reference(**batch).logits
        found = model(**ours_from(batch)).logits
    assert (found - expected).abs().max() <= 1e-5
    assert expected.std() > 0.1, "the comparison says nothing about constant logits"
    # decoding with kept keys and values, batch and single
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.generation_config.eos_token_id = None
    reference.generation_config = model.generation_config
    assert torch.equal(
        model.generate(**ours_from(batch), **options)[:, -8:], reference.generate(**batch, **options)[:, -8:]
    )
    cache = DynamicCache(config=model.config.get_text_config())
    first = {name: value[:, :-2] if name in ("input_ids", "attention_mask") else value for name, value in batch.items()}
    with torch.no_grad():
        model(**ours_from(first), past_key_values=cache, use_cache=True)
        rest = model(batch["input_ids"][:, -2:], attention_mask=batch["attention_mask"], past_key_values=cache).logits
    assert (rest - expected[:, -2:]).abs().max() <= 1e-5


def test_an_imported_model_is_saved_and_asked(published: Path, tmp_path: Path, picture: Any) -> None:
    model, processor = interop.convert(*theirs(published))
    question = "What is in the picture?"
    answer = Chat(model, processor).ask(picture(), question, max_new_tokens=8)
    checkpoint.save_full(tmp_path / "saved", model, processor, trained_on="nothing")
    chat = Chat.load(tmp_path / "saved")
    assert chat.ask(picture(), question, max_new_tokens=8) == answer
    together = chat.batch(
        [[{"role": "user", "content": [*({"type": "image", "image": picture(n)} for n in range(count)),
                                       {"type": "text", "text": question}]}] for count in (1, 0, 2)],
        max_new_tokens=8,
    )  # fmt: skip
    assert together[0] == answer


@pytest.mark.parametrize("family", ["llava", "llava_siglip", "llava_next"])
def test_an_imported_processor_gives_the_same_ids(family: str, tmp_path: Path, picture: Any) -> None:
    """With tokenizers that add a start token, and put a space before the first word of a text."""
    FAMILIES[family](tmp_path)
    model, processor = theirs(tmp_path)
    _, ours = interop.convert(*theirs(tmp_path))
    ours.save_pretrained(tmp_path / "ours")
    ours = AutoProcessor.from_pretrained(tmp_path / "ours")
    shown, words = {"type": "image", "image": picture()}, {"type": "text", "text": "What is it?"}
    conversations = [
        [{"role": "user", "content": [shown, words]}],
        [{"role": "user", "content": [words]}],
        [
            {"role": "user", "content": [shown, words]},
            {"role": "assistant", "content": [{"type": "text", "text": "Two cats."}]},
            {"role": "user", "content": [words]},
        ],
    ]
    for turns in conversations:
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
        expected = processor.apply_chat_template(turns, **options)["input_ids"]
        assert torch.equal(ours.apply_chat_template(turns, **options)["input_ids"], expected)
        assert expected[0, 0] == processor.tokenizer.bos_token_id


@pytest.mark.parametrize(("family", "said"), [("blip-2", "Question: Is it? Answer:"), ("instructblip", "Is it?")])
def test_a_blip_is_asked_as_its_own_processor_asks_it(family: str, said: str, tmp_path: Path, picture: Any) -> None:
    FAMILIES[family](tmp_path)
    _, processor = theirs(tmp_path)
    _, ours = interop.convert(*theirs(tmp_path))
    expected = processor(images=picture(), text=said, return_tensors="pt")["input_ids"]
    turns = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "Is it?"}]}]
    found = ours.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    assert torch.equal(found["input_ids"], expected)


def test_llava_next_sees_the_same_tiles(tmp_path: Path, tiny_tokenizer: Any, picture: Any) -> None:
    torch.manual_seed(5)
    model, processor = llava_next(tiny_tokenizer)
    model.save_pretrained(tmp_path / "next")
    processor.save_pretrained(tmp_path / "next")
    reference, their_processor = theirs(tmp_path / "next")
    ours, our_processor = interop.convert(*theirs(tmp_path / "next"))
    sizes = [[(60, 50), (24, 24)], [], [(24, 100)]]
    asked = [
        [{"role": "user", "content": [*({"type": "image", "image": picture(1, size)} for size in some),
                                      {"type": "text", "text": "What is in the picture?"}]}]
        for some in sizes
    ]  # fmt: skip
    options: dict[str, Any] = {
        "tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True,
        "processor_kwargs": {"padding": True, "padding_side": "left"},
    }  # fmt: skip
    expected = their_processor.apply_chat_template(asked, **options)
    found = our_processor.apply_chat_template(asked, **options)
    assert torch.equal(found["input_ids"], expected["input_ids"])
    with torch.no_grad():
        assert (ours(**found).logits - reference(**expected).logits).abs().max() <= 1e-5
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "next"), str(out), "--dtype", "float32", "--check"]) == 0
    again, _ = theirs(out)
    with torch.no_grad():
        assert torch.equal(again(**expected).logits, reference(**expected).logits)
    with pytest.raises(CheckpointError, match="in tiles.*The layout vlchat and llava_next can"):
        interop.must_hold("llava", ours, our_processor)


@pytest.mark.parametrize("family", ["blip-2", "instructblip"])
def test_an_adapter_made_elsewhere_fits_a_blip(family: str, tmp_path: Path, picture: Any) -> None:
    """It knows the layers by the names of transformers' class, which ours does not have."""
    base, place = tmp_path / "base", tmp_path / "adapter"
    FAMILIES[family](base)
    model, _ = theirs(base)
    tuned = checkpoint.add_lora(model, r=4)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            parameter.normal_(std=0.3) if "lora_" in name else None
    tuned.save_pretrained(place)
    settings = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(base)
    (place / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    answer = Chat.load(place).ask(picture(), "What is it?", max_new_tokens=8)
    assert answer != Chat.load(base).ask(picture(), "What is it?", max_new_tokens=8)
    assert main(["import", str(place), str(tmp_path / "ours"), "--dtype", "float32"]) == 0
    assert Chat.load(tmp_path / "ours").ask(picture(), "What is it?", max_new_tokens=8) == answer


def test_instructblip_hears_the_question_as_its_own_processor_says_it(
    tmp_path: Path, tiny_tokenizer: Any, picture: Any
) -> None:
    reference, their_processor = instructblip(tiny_tokenizer, "llama")
    _, processor = interop.convert(*instructblip(tiny_tokenizer, "llama"))
    processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    words = "How many cats are there?"
    expected = their_processor(picture(), words, return_tensors="pt")
    asked = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": words}]}]
    found = processor.apply_chat_template(
        asked, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert torch.equal(found["instruction_input_ids"], expected["qformer_input_ids"])
    assert found["instruction_input_ids"][0, 0] == 2, "[CLS]"
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"])
    assert found["input_ids"][0, :4].tolist() == [reference.config.image_token_id] * 4
