"""Token budgets are exact, and what is too long is shortened without cutting an answer or a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlchat.data import Collator, Source, SourceConfig, check, load_source
from vlchat.data.collate import decode_images
from vlchat.data.formats import text_of, to_example
from vlchat.data.lengths import blank, measure, shorten
from vlchat.data.lesson import open_processor, sample

Picture = Callable[..., Image.Image]
SIZES = [(24, 24), (90, 30), (31, 77), (60, 50)]


def example(*turns: tuple[str, str], pictures: tuple[Any, ...] = (), name: str = "x") -> Any:
    messages = [m for ask, reply in turns for m in (
        {"role": "user", "content": ask}, {"role": "assistant", "content": reply})]  # fmt: skip
    return to_example({"messages": messages, "images": list(pictures)}, name)


@pytest.fixture(params=["one piece", "tiles", "transformers"])
def processor(request: pytest.FixtureRequest, tiny_processor: Any, tiny_tokenizer: Any) -> Any:
    """Ours with a fixed number of image tokens, ours whose number follows the shape, and transformers' own."""
    if request.param == "one piece":
        return tiny_processor
    if request.param == "tiles":
        from vlchat import VLChatProcessor
        from vlchat.towers import clip_image_processor
        from vlchat.towers.tiles import grid_pinpoints, tile_image_processor

        tiles = tile_image_processor(clip_image_processor(24), (24, 24), grid_pinpoints(4, (24, 24)))
        return VLChatProcessor.from_backbones(tiles, tiny_tokenizer, 4, "chatml")
    from transformers import LlavaProcessor

    from vlchat.processor import TEMPLATES
    from vlchat.towers import clip_image_processor

    return LlavaProcessor(
        image_processor=clip_image_processor(24),
        tokenizer=tiny_tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(TEMPLATES / "chatml.jinja").read_text(),
    )


def test_a_budget_is_what_the_collator_makes(processor: Any, picture: Picture) -> None:
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    lengths = set()
    for size in SIZES:
        for count in (1, 2):
            shown = [picture(seed, size) for seed in range(count)]
            asked = "<image>" * count + "What is it?"
            row = example((asked, "A red circle."), ("Sure <image2>?", "Yes."), pictures=(*shown,))
            batch = Collator(processor)([row])
            blanks = [{**message, "content": [
                {"type": "image", "image": blank(*size)} if part["type"] == "image" else part
                for part in message["content"]]} for message in row.messages]  # fmt: skip
            for messages in (decode_images(row.messages), blanks):
                tokens = measure(processor, messages)
                assert tokens.ids.tolist() == batch["input_ids"][0].tolist()
                assert tokens.learned.tolist() == (batch["labels"][0] != -100).tolist()
                assert tokens.image_tokens == int((batch["input_ids"] == image).sum())
            lengths.add(tokens.image_tokens // count)
    assert len(lengths) == (len(SIZES) if hasattr(processor.image_processor, "image_grid_pinpoints") else 1)


def test_a_budget_in_words(tiny_processor: Any, picture: Picture) -> None:
    tokens = measure(tiny_processor, example(("<image>Is it?", "no"), pictures=(picture(0),)).messages)
    assert tokens.needs(5) == f"needs {len(tokens)} of 5 tokens; 4 of them are image tokens"
    assert "image" not in measure(tiny_processor, example(("Is it?", "no")).messages).needs(1_000)


CONVERSATION = [
    ("<image>\nWhat is in the picture? " + "Look closely. " * 20, "A red circle."),
    ("And here? <image>", "Two cats and a dog."),
    ("How many cats?", "2"),
    ("Sure?", "Yes, quite sure."),
]


@pytest.mark.parametrize("share", [1.0, 0.95, 0.9, 0.8, 0.6, 0.4, 0.25])
def test_shortened_conversations_fit_and_keep_answers_and_pictures_whole(
    tiny_processor: Any, picture: Picture, share: float
) -> None:
    messages = example(*CONVERSATION, pictures=(picture(0), picture(1))).messages

    def count(some: Any) -> int:
        return len(measure(tiny_processor, some))

    limit = int(share * count(messages))
    found = shorten(messages, limit, count)
    assert found is not None
    kept, told = found
    assert count(kept) <= limit and len(kept) % 2 == 0 and kept[-1]["role"] == "assistant"
    for before, after in zip(messages, kept, strict=False):
        shown = [part["image"] for part in before["content"] if part["type"] == "image"]
        assert [part["image"] for part in after["content"] if part["type"] == "image"] == shown
        if after != before:
            assert after["role"] == "user" and len(kept) == 2 and "cut at its end" in told
            assert text_of(before).startswith(text_of(after)) and text_of(after)
            assert text_of(before)[len(text_of(after))] == " ", "words are kept whole"
    if len(kept) < len(messages):
        assert count(messages[: len(kept) + 2]) > limit, "as many exchanges stay as fit"
        assert f"{(len(messages) - len(kept)) // 2} of 4 exchanges" in told


def test_what_cannot_be_shortened_is_not(tiny_processor: Any, picture: Picture) -> None:
    def count(some: Any) -> int:
        return len(measure(tiny_processor, some))

    answer = example(("What?", "A very long answer. " * 30))
    assert shorten(answer.messages, 40, count) is None
    shown = example(("<image><image>Is it?", "no"), pictures=(picture(0), picture(1)))
    assert shorten(shown.messages, count(shown.messages) - 8, count) is None, "no picture makes room"
    spaceless = example(("多" * 200, "是"))
    kept, _ = shorten(spaceless.messages, 100, count) or ([], "")
    assert 90 < count(kept) <= 100, "a text without spaces is cut between two letters"


def test_a_row_too_long_is_dropped_shortened_or_refused_by_choice(tiny_processor: Any, picture: Picture) -> None:
    short = example(("a", "b"), name="short")
    long = example(*CONVERSATION, pictures=(picture(0), picture(1)), name="long")
    hopeless = example(("What?", "No. " * 200), name="hopeless")
    limit = len(measure(tiny_processor, long.messages)) - 1
    rows = [long, short, hopeless]
    choices = ("refuse", "drop", "shorten")
    found = {choice: Collator(tiny_processor, limit, too_long=choice).collate(rows) for choice in choices}
    said = {choice: [(fault.id, fault.kind) for fault in one.bad] for choice, one in found.items()}
    noted = {choice: [(fault.id, fault.kind) for fault in one.notes] for choice, one in found.items()}
    assert said == {"refuse": [("long", "too_long"), ("hopeless", "too_long")], "drop": [], "shorten": []}
    assert noted == {
        "refuse": [],
        "drop": [("long", "left_out"), ("hopeless", "left_out")],
        "shorten": [("long", "shortened"), ("hopeless", "left_out")],
    }
    assert {choice: one.kept for choice, one in found.items()} == {"refuse": [1], "drop": [1], "shorten": [0, 1]}
    assert f"needs {limit + 1} of {limit} tokens; 8 of them are image tokens" in found["drop"].notes[0].reason
    batch = found["shorten"].batch
    assert batch is not None and batch["input_ids"].shape[1] <= limit
    assert (batch["input_ids"] == tiny_processor.image_token_id).sum(dim=1).tolist() == [8, 0]
    alone = Collator(tiny_processor)([example(*CONVERSATION[:3], pictures=(picture(0), picture(1)))])
    own = batch["attention_mask"][0].bool()
    assert torch.equal(batch["labels"][0][own], alone["labels"][0])
    everything = Collator(tiny_processor, 5, too_long="drop").collate(rows)
    assert everything.batch is None and everything.kept == [] and len(everything.notes) == 3


def test_the_check_counts_tokens_from_sizes_alone(processor: Any, tmp_path: Path, picture: Picture) -> None:
    rows = []
    for number, size in enumerate(SIZES):
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 2 else 1
        picture(number, size).save(tmp_path / f"{number}.jpg", exif=exif)
        words = "What is it? " * (1 + 5 * number)
        rows.append({"id": str(number), "image": f"{number}.jpg", "question": words, "answer": "a red circle"})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = load_source(SourceConfig(str(tmp_path / "rows.json")))
    lengths = [Collator(processor)([source[index]])["input_ids"].shape[1] for index in range(len(rows))]
    limit = sorted(lengths)[1]
    found = check(source, processor=processor, max_length=limit)
    assert [(fault.row, fault.kind) for fault in found.bad] == [
        (row + 1, "too_long") for row, length in enumerate(lengths) if length > limit
    ]
    assert all(f"needs {lengths[fault.row - 1]} of {limit} tokens" in fault.reason for fault in found.bad)
    spread = {histogram.name: histogram for histogram in found.histograms}
    assert sorted(spread["tokens of a row"].values) == sorted(lengths)


def test_rows_that_the_template_refuses_or_leaves_silent_are_told(tiny_processor: Any) -> None:
    said = "{% generation %}{{ messages[1]['content'][0]['text'] }}{% endgeneration %}"
    tiny_processor.chat_template = "{{ raise_exception('roles must alternate') if messages|length > 2 }}a" + said
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2},
    ]
    found = check(Source(rows, name="rows"), processor=tiny_processor)
    assert [(fault.row, fault.kind) for fault in found.bad] == [(2, "template_refuses")]
    tiny_processor.chat_template = "{% generation %}{% endgeneration %}{{ messages[1]['content'][0]['text'] }}"
    found = check(Source(rows[:1], name="rows"), processor=tiny_processor)
    assert [(fault.row, fault.kind) for fault in found.bad] == [(1, "no_supervision")]
    collated = Collator(tiny_processor).collate([Source(rows).example(0)])
    assert collated.batch is None and [fault.kind for fault in collated.bad] == ["no_supervision"]


def test_a_sample_tells_what_is_learned(processor: Any, tmp_path: Path, picture: Picture) -> None:
    picture(0, (90, 30)).save(tmp_path / "a.png")
    row = {"id": 1, "image": "a.png", "question": "What is <image2>?", "answer": "a red\ncircle"}
    source = Source([row], name="rows", roots=[tmp_path])
    shown = sample(source, 0, processor)
    batch = Collator(processor)([source[0]])
    assert (shown.tokens, shown.learned) == (batch["input_ids"].shape[1], int((batch["labels"] != -100).sum()))
    assert "".join(text for text, kind in shown.pieces if kind == "learned").strip() == "a red\ncircle<|im_end|>"
    assert [text for text, kind in shown.pieces if kind == "picture"] == [f"<image> x {shown.image_tokens}"]
    told = "".join(text for text, kind in shown.pieces if kind == "context")
    assert "What is <image2>?" in told and "red" not in told and shown.pictures[0].size == (90, 30)


def test_the_embedded_models_processor_opens_without_its_weights() -> None:
    processor, context = open_processor(None)
    assert context == 2048 and measure(processor, example(("Is it?", "no")).messages).learned.any()


@pytest.mark.parametrize(
    "family", ["llava_next", "qwen2_vl", "blip-2", "instructblip", "blip-2-t5", "gemma3", "paligemma", "internvl"]
)
def test_other_families_processors_count_as_they_train(tmp_path: Path, family: str, picture: Picture) -> None:
    from families import FAMILIES

    from vlchat import checkpoint

    FAMILIES[family](tmp_path)
    _, trained = checkpoint.load(tmp_path)
    row = example(("<image>\nWhat is it?", "A red circle."), pictures=(picture(0, (60, 40)),))
    batch = Collator(trained)([row])
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    processor, _ = open_processor(tmp_path)
    tokens = measure(processor, row.messages)
    assert tokens.ids.tolist() == batch["input_ids"][0].tolist() and tokens.image_tokens
    assert tokens.learned.tolist() == (batch["labels"][0] != -100).tolist()
