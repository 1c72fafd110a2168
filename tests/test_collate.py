"""Batches: labels are exactly the assistant's words, with our processor and with transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlchat.data import Collator, Example, Source, SourceConfig, TooLongError, load_source, to_example
from vlchat.errors import ConfigError, DataError, EmptySupervisionError

Picture = Callable[..., Image.Image]


def example(
    name: str, turns: list[tuple[str, str]], pictures: Sequence[Any] = (), system: str | None = None
) -> Example:
    messages = [m for ask, reply in turns for m in (
        {"role": "user", "content": ask}, {"role": "assistant", "content": reply})]  # fmt: skip
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return to_example({"messages": messages, "images": list(pictures)}, name)


def said(processor: Any, labels: torch.Tensor) -> list[str]:
    """The text of each unbroken run of supervised tokens, control tokens left out."""
    runs: list[list[int]] = [[]]
    for label in labels.tolist():
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    return [processor.tokenizer.decode(run, skip_special_tokens=True).strip() for run in runs if run]


@pytest.mark.parametrize("template", ["chatml", "llama3", "vicuna", "plain"])
def test_labels_are_the_assistants_words(tiny_tokenizer: Any, picture: Picture, template: str) -> None:
    from vlchat import VLChatProcessor
    from vlchat.towers import clip_image_processor

    processor = VLChatProcessor.from_backbones(clip_image_processor(24), tiny_tokenizer, 4, template)
    batch = Collator(processor)(
        [
            example("one", [("<image>\nWhat is it?", "A red circle.")], [picture(0)]),
            example("many", [("<image> and <image>?", "Two cats."), ("How many?", "2")], [picture(1), picture(2)]),
            example("none", [("Is <image2> green?", "No: it says <image> here.")]),
        ]
    )
    assert [said(processor, row) for row in batch["labels"]] == [
        ["A red circle."],
        ["Two cats.", "2"],
        ["No: it says <image> here."],
    ]
    supervised = batch["labels"] != -100
    assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])
    assert not (supervised & ~batch["attention_mask"].bool()).any()
    assert batch["pixel_values"].shape == (3, 3, 24, 24)
    assert (batch["input_ids"] == processor.image_token_id).sum(dim=1).tolist() == [4, 8, 0]
    assert batch["attention_mask"][:, 0].all(), "rows must be padded on the right"
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}


def test_text_only_batches_have_no_pixels(tiny_processor: Any) -> None:
    rows = [example("t", [("How many?", "2")], system="Be brief.")]
    assert set(Collator(tiny_processor)(rows)) == {"input_ids", "attention_mask", "labels"}


def test_a_batch_equals_its_rows_one_by_one(tiny_processor: Any, picture: Picture) -> None:
    rows = [example("a", [("<image>\nWhat?", "A dog.")], [picture(0)]), example("b", [("Is it?", "no")])]
    collator = Collator(tiny_processor)
    batch = collator(rows)
    for number, row in enumerate(rows):
        alone = collator([row])
        length = alone["input_ids"].shape[1]
        for key in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(batch[key][number, :length], alone[key][0])
        assert not batch["attention_mask"][number, length:].any()


def test_the_loss_of_a_real_model_ignores_what_is_not_supervised(
    tiny_model: Any, tiny_processor: Any, picture: Picture
) -> None:
    batch = Collator(tiny_processor)([example("a", [("<image>\nWhat?", "A dog.")], [picture(0)])])
    model = tiny_model().eval()
    with torch.no_grad():
        output = model(**batch)
    kept = batch["labels"][:, 1:] != -100
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1][kept], batch["labels"][:, 1:][kept])
    torch.testing.assert_close(output.loss, expected)


def test_transformers_own_processor_works_too(tiny_tokenizer: Any, picture: Picture) -> None:
    from transformers import LlavaProcessor

    from vlchat.processor import TEMPLATES
    from vlchat.towers import clip_image_processor

    processor = LlavaProcessor(
        image_processor=clip_image_processor(24),
        tokenizer=tiny_tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(TEMPLATES / "chatml.jinja").read_text(),
    )
    batch = Collator(processor)(
        [
            example("one", [("<image>\nWhat is it?", "A red circle.")], [picture(0)]),
            example("two", [("<image>\nHow many?", "Two cats."), ("Sure?", "no")], [picture(1)]),
        ]
    )
    assert [said(processor, row) for row in batch["labels"]] == [["A red circle."], ["Two cats.", "no"]]
    assert (batch["input_ids"] == tiny_tokenizer.convert_tokens_to_ids("<image>")).sum(dim=1).tolist() == [4, 4]
    row = example("three", [("<image>\nIs it </s> or <image2>?", "It is <image>.")], [picture(1)])
    batch = Collator(processor)([row])
    assert [said(processor, row) for row in batch["labels"]] == [["It is <image>."]]
    assert (batch["input_ids"] == tiny_tokenizer.convert_tokens_to_ids("<image>")).sum().item() == 4


def test_a_template_that_changes_the_answer_is_named(tiny_processor: Any) -> None:
    tiny_processor.chat_template = "{% for m in messages %}{{ m['content'][0]['text'] | length }}{% endfor %}"
    with pytest.raises(DataError, match="row-1.*changes what the assistant said"):
        Collator(tiny_processor)([example("row-1", [("a", "b")])])


def test_a_foreign_template_that_drops_the_answer_is_refused(tiny_tokenizer: Any) -> None:
    from transformers import LlavaProcessor

    from vlchat.towers import clip_image_processor

    plain = "{% for m in messages if m['role'] == 'user' %}{{ m['content'][0]['text'] }}{% endfor %}"
    processor = LlavaProcessor(clip_image_processor(24), tiny_tokenizer, patch_size=12, chat_template=plain)
    with pytest.raises(DataError, match='Row "row-1".*changes what the assistant said'):
        Collator(processor)([example("row-1", [("a", "b")])])


def test_rows_without_anything_to_learn_are_refused(tiny_processor: Any) -> None:  # torture row 54
    silent = to_example({"messages": [{"role": "user", "content": "Is it?"}]}, "silent")
    for row in (example("blank", [("Is it?", "  ")]), silent):
        with pytest.raises(EmptySupervisionError, match=f'Row "{row.id}"'):
            Collator(tiny_processor)([example("good", [("a", "b")]), row])


def test_long_rows_are_refused_with_both_numbers_and_never_cut(tiny_processor: Any, picture: Picture) -> None:  # row 55
    short = example("short", [("a", "b")])
    long = example("long", [("<image>\n" + "What is it? " * 40, "A red circle.")], [picture(0)])
    length = Collator(tiny_processor)([long])["input_ids"].shape[1]
    assert Collator(tiny_processor, max_length=length)([short, long])["input_ids"].shape[1] == length
    with pytest.raises(TooLongError, match=f'Row "long": needs {length} of {length - 1} tokens; 4 of them are image'):
        Collator(tiny_processor, max_length=length - 1)([short, long])


def test_the_row_at_fault_is_named(tiny_tokenizer: Any, picture: Picture, tmp_path: Path) -> None:
    from vlchat import VLChatProcessor
    from vlchat.towers import clip_image_processor

    (tmp_path / "bad.png").write_bytes(b"not a picture")
    processor = VLChatProcessor.from_backbones(clip_image_processor(24), tiny_tokenizer, 4, "chatml")
    good = example("good", [("a", "b")])
    unreadable = example("unreadable", [("<image>", "b")], [str(tmp_path / "bad.png")])
    with pytest.raises(DataError, match='Row "unreadable": .*bad.png'):
        Collator(processor)([good, unreadable])
    marked = "{% for m in messages %}{% generation %}{{ m['content'][0]['text'] }}{% endgeneration %}{% endfor %}"
    processor.chat_template = "{{ raise_exception('roles must alternate') if messages|length > 2 }}" + marked
    twice = example("twice", [("a", "b"), ("c", "d")])
    with pytest.raises(DataError, match='Row "twice": .*roles must alternate'):
        Collator(processor)([good, twice])


def test_other_peoples_rows_collate(tiny_processor: Any, shared_data: Path) -> None:
    for path in ("slake/validation_llava.json", "nlvr/dev_messages.jsonl", "twemoji/captions.jsonl"):
        source = load_source(SourceConfig(str(shared_data / path)))
        picked = [source[index] for index in (0, len(source) // 2, len(source) - 1)]
        batch = Collator(tiny_processor)(picked)
        assert [said(tiny_processor, row) for row in batch["labels"]] == [[row.answer] for row in picked]


def test_rows_that_cannot_be_used_are_left_out_and_told(tiny_processor: Any, picture: Picture, tmp_path: Path) -> None:
    picture(0, (64, 64)).save(tmp_path / "torn.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "torn.jpg").read_bytes()[:900])  # its header is whole
    rows = [
        example("good", [("<image>\nWhat?", "A dog.")], [picture(1)]),
        example("torn", [("<image>\nWhat?", "A dog.")], [str(tmp_path / "torn.jpg")]),
        example("silent", [("Is it?", " ")]),
        example("fine", [("Is it?", "no")]),
    ]
    collator = Collator(tiny_processor)
    found = collator.collate(rows)
    assert found.kept == [0, 3] and found.notes == []
    assert [(fault.id, fault.field, fault.kind) for fault in found.bad] == [
        ("torn", "image", "damaged_file"),
        ("silent", "answer", "no_answer"),
    ]
    assert found.bad[0].reason.count("torn.jpg") == 1
    expected = collator([rows[0], rows[3]])
    assert found.batch is not None and set(found.batch) == set(expected)
    assert all(torch.equal(found.batch[name], expected[name]) for name in expected)
    nothing = collator.collate(rows[1:3])
    assert nothing.batch is None and nothing.kept == [] and len(nothing.bad) == 2


def test_the_row_that_the_processor_refuses_is_left_out(tiny_processor: Any) -> None:
    marked = "{% for m in messages %}{% generation %}{{ m['content'][0]['text'] }}{% endgeneration %}{% endfor %}"
    tiny_processor.chat_template = "{{ raise_exception('roles must alternate') if messages|length > 2 }}" + marked
    rows = [example("one", [("a", "b")]), example("twice", [("a", "b"), ("c", "d")]), example("last", [("e", "f")])]
    found = Collator(tiny_processor).collate(rows)
    assert found.kept == [0, 2] and [(fault.id, fault.kind) for fault in found.bad] == [("twice", "template_refuses")]
    assert found.batch is not None and found.batch["input_ids"].shape[0] == 2


def test_a_row_of_a_source_is_named_with_source_number_and_id(tiny_processor: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    rows = [{"id": "x", "image": "a.png", "question": "?", "answer": "a"}, {"question": "?", "answer": " "}]
    source = Source(rows, name="rows.json", roots=[tmp_path])
    with pytest.raises(DataError, match=r'^rows.json: row 1 \(id "x"\): The picture .*a.png" is empty'):
        Collator(tiny_processor)([source[0]])
    with pytest.raises(EmptySupervisionError, match=r"^rows.json: row 2: no token to learn from"):
        Collator(tiny_processor)([source[1]])
    told = Collator(tiny_processor).collate([source[0], source[1]]).bad
    assert [(fault.source, fault.row, fault.id) for fault in told] == [("rows.json", 1, "x"), ("rows.json", 2, "#2")]


def test_an_unknown_choice_for_long_rows_is_refused(tiny_processor: Any) -> None:
    with pytest.raises(ConfigError, match='too_long is "droop".*Did you mean "drop"'):
        Collator(tiny_processor, too_long="droop")
