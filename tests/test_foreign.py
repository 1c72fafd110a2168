"""Any published model: loads, chats, learns exactly the assistant's words, and is tuned with LoRA."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BLIPS, FAMILIES
from PIL import Image
from transformers import AutoModelForImageTextToText

from train.config import LoopConfig, OptimConfig, RunConfig
from train.loop import fit
from train.tune import TuneObjective
from vlchat import checkpoint, foreign, prompt
from vlchat.chat import Chat, ask_messages
from vlchat.cli import main
from vlchat.data import Collator, Example, to_example
from vlchat.errors import CheckpointError, ConfigError, DataError, VLChatError
from vlchat.foreign import marks
from vlchat.foreign.pictures_only import load_processor, without_films
from vlchat.quantize import language_model_prefix
from vlchat.reading import reading

Picture = Callable[..., Image.Image]
UNTOLD = ["blip-2", "blip-2-t5", "instructblip", "paligemma"]  # published without a chat template
NEEDS_TORCHVISION = ["mistral3"]  # for pictures, too
LOADED = [name for name in FAMILIES if name not in NEEDS_TORCHVISION]
SPEAKING = [*(name for name in LOADED if name not in UNTOLD), *BLIPS]
LEARNING = [name for name in SPEAKING if name != "blip-2-t5, template added"]
TUNED = [*(name for name in LEARNING if name not in BLIPS), "blip-2", "instructblip"]


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A factory: the folder of a family's tiny checkpoint, made once."""
    root = tmp_path_factory.mktemp("families")

    def make(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            {**FAMILIES, **BLIPS}[name](folder)
        return folder

    return make


def published(folder: Path) -> tuple[Any, Any]:
    """transformers' own class, also of the families that `checkpoint.load` turns into ours."""
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), load_processor(folder)


def one_picture(name: str) -> bool:
    """Whether the family takes exactly one picture with each text."""
    return "blip" in name


def example(name: str, turns: Sequence[tuple[str, str]], pictures: Sequence[Any] = ()) -> Example:
    messages = [message for asked, told in turns for message in (
        {"role": "user", "content": asked}, {"role": "assistant", "content": told})]  # fmt: skip
    return to_example({"messages": messages, "images": list(pictures)}, name)


def rows(name: str, picture: Picture) -> list[Example]:
    """Rows of one, two and no pictures of unlike shapes, or of one each where the family takes no other number."""
    first = example("one", [("<image>\nWhat is it?", "A red circle.")], [picture(1, (60, 30))])
    said = 'no, "one" <image> <|im_end|> </s> dog é'
    if "paligemma" in name:  # which learns one answer a row
        return [
            first,
            example("two", [("<image>\n<image>\nHow many?", 'no, "one" dog')], [picture(2), picture(3, (30, 90))]),
        ]
    if one_picture(name) or name == "mllama":  # which learns from rows with equally many
        return [first, example("two", [("<image>\nHow many?", "Two cats."), ("Sure?", said)], [picture(2)])]
    pictures = [picture(2), picture(3, (30, 90))]
    return [
        first,
        example("two", [("<image>\n<image>\nHow many?", "Two cats."), ("Sure?", said)], pictures),
        example("none", [("Is </s> it green?", "yes.\nIt is.")]),
    ]


def conversations(name: str, picture: Picture) -> list[list[dict[str, Any]]]:
    turns = [{"role": "assistant", "content": "Two cats."}, {"role": "user", "content": "a red circle"}]
    asked = [ask_messages(picture(1), "What is it?"), [*ask_messages(picture(4, (30, 80)), "Is it?"), *turns]]
    if one_picture(name):
        return asked
    asked.append(ask_messages([picture(2), picture(3, (70, 40))], "How many cats are there in the two pictures?"))
    return asked if "paligemma" in name else [*asked, ask_messages(None, "Is it green?")]


@pytest.mark.parametrize("name", LOADED)
def test_every_family_loads_and_its_processor_is_saved_as_it_was(
    name: str, family: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = family(name)
    model, _ = checkpoint.load(folder)
    assert model.dtype == torch.float32
    processor = load_processor(folder)
    processor.save_pretrained(tmp_path)
    for file in ("processor_config.json", "tokenizer_config.json"):
        old, new = (json.loads((place / file).read_text()) for place in (folder, tmp_path))
        assert {key: new.get(key) for key in old} == old
    assert (tmp_path / "chat_template.jinja").exists() == (name in SPEAKING)


def test_a_processor_without_films_keeps_its_name_and_can_be_sent_to_workers(family: Callable[[str], Path]) -> None:
    processor = load_processor(family("qwen2_vl"))
    assert type(processor).__name__ == "Qwen2VLProcessor"
    assert processor.to_dict()["video_processor"]["video_processor_type"] == "Qwen2VLVideoProcessor"
    again = pickle.loads(pickle.dumps(processor))
    assert type(again) is without_films(type(processor).__mro__[1])
    assert again.to_dict() == processor.to_dict() == copy.deepcopy(processor).to_dict()


@pytest.mark.parametrize("name", SPEAKING)
def test_a_batch_of_unlike_conversations_equals_one_by_one(
    name: str, family: Callable[[str], Path], picture: Picture
) -> None:
    chat = Chat(*published(family(name)))
    tokenizer = chat.processor.tokenizer  # which is to write letters only, and no end
    silent = [token for token in range(len(tokenizer)) if not re.search("[a-zA-Z]$", tokenizer.decode([token]))]
    chat.model.generation_config.suppress_tokens = sorted({*silent, *tokenizer.added_tokens_decoder})
    asked = conversations(name, picture)
    alone = [chat.batch([messages], max_new_tokens=8)[0] for messages in asked]
    assert chat.batch(asked, max_new_tokens=8) == alone
    assert ["".join(chat.stream(messages, max_new_tokens=8)).strip() for messages in asked] == alone

    def logits(several: list[list[dict[str, Any]]]) -> torch.Tensor:
        options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
        return chat.model.generate(**chat._inputs(several), **options).logits[0]

    if name == "mllama":
        asked = asked[:2]  # those with equally many pictures, which are answered together
    together = logits(asked)
    torch.testing.assert_close(together, torch.cat([logits([messages]) for messages in asked]), rtol=1e-4, atol=1e-4)
    assert all((row - other).abs().max() > 0.01 for row, other in itertools.pairwise(together)), "nothing was asked"


@pytest.mark.parametrize("name", SPEAKING)
def test_an_answer_is_what_the_familys_own_processor_and_generate_give(
    name: str, family: Callable[[str], Path], picture: Picture
) -> None:
    """Without typed control tokens, nothing stands between a question and transformers."""
    chat = Chat(*published(family(name)))
    for messages in conversations(name, picture):
        content = [{**message, "content": part} for message in messages for part in [message["content"]]]
        for message in content:
            if isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}]
        inputs = chat.processor.apply_chat_template(
            content, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        ours = chat._inputs([messages])
        assert set(ours) <= set(inputs)
        for key in ours:
            torch.testing.assert_close(ours[key], inputs[key])
        out = chat.model.generate(**ours, max_new_tokens=6, do_sample=False)
        expected = chat.processor.tokenizer.decode(
            foreign.new_tokens(out, ours["input_ids"])[0], skip_special_tokens=True
        )
        assert chat.batch([messages], max_new_tokens=6) == [expected.strip()]


@pytest.mark.parametrize("name", SPEAKING)
def test_control_tokens_that_people_type_stay_text(name: str, family: Callable[[str], Path], picture: Picture) -> None:
    processor = load_processor(family(name))
    special = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special][:12]
    typed = " ".join(special) + "<ima<image>ge>"

    def counted(words: str) -> list[int]:
        messages = prompt.validate(ask_messages(picture(1), words))
        ids = foreign.inputs(processor, [messages])["input_ids"][0].tolist()
        return [ids.count(processor.tokenizer.convert_tokens_to_ids(token)) for token in [*special, "<image>"]]

    assert counted(typed) == counted("What is it?")
    messages = prompt.validate(ask_messages(picture(1), typed))
    decoded = processor.tokenizer.decode(foreign.inputs(processor, [messages])["input_ids"][0])
    assert typed in decoded


@pytest.mark.parametrize("name", ["qwen2_vl", "blip-2, template added", "blip-2-t5, template added", "mllama"])
def test_stop_ends_an_answer_within_a_token(name: str, family: Callable[[str], Path], picture: Picture) -> None:
    chat = Chat(*published(family(name)))
    stop, steps = threading.Event(), []
    chat.model.get_output_embeddings().register_forward_hook(lambda *_: steps.append(1))
    stop.set()
    list(chat.stream(ask_messages(picture(1), "What is it?"), stop=stop, max_new_tokens=200))
    assert len(steps) <= 1
    pieces = chat.stream(ask_messages(picture(1), "What is it?"), max_new_tokens=200)
    pieces.close()
    assert len(steps) < 100
    assert not any(thread.name == "vlchat-generate" for thread in threading.enumerate())


def test_a_template_that_takes_no_system_prompt_says_so(family: Callable[[str], Path], picture: Picture) -> None:
    chat = Chat.load(family("llava_next"))
    with pytest.raises(VLChatError, match="refuses this conversation: Only user and assistant roles"):
        chat.ask(picture(1), "What is it?", system="Be brief.")


@pytest.mark.parametrize("name", UNTOLD)
def test_a_template_is_never_guessed(name: str, family: Callable[[str], Path], picture: Picture) -> None:
    chat = Chat(*published(family(name)))
    with pytest.raises(VLChatError, match="has no chat template, and vlchat guesses none.*chat_template.jinja"):
        chat.ask(picture(1), "What is it?")
    with pytest.raises(DataError, match='Row "one".*has no chat template'):
        Collator(chat.processor)(rows(name, picture)[:1])


def said(tokenizer: Any, labels: torch.Tensor) -> list[str]:
    """The text of each unbroken run of what is learnt, control tokens included."""
    runs: list[list[int]] = [[]]
    for label in labels.tolist():
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run).strip() for run in runs if run]


@pytest.mark.parametrize("name", LEARNING)
def test_what_is_learnt_is_the_assistants_words_and_the_token_that_closes_them(
    name: str, family: Callable[[str], Path], picture: Picture
) -> None:
    model, processor = published(family(name))
    closing = processor.tokenizer.decode([foreign.end_token_id(processor)])
    between = closing if closing not in ("</s>",) else ""  # these families close a turn with a line or a header only
    examples = rows(name, picture)
    batch = Collator(processor, model=model)(examples)
    expected = [
        [text + (closing if text == texts[-1] else between) for text in texts]
        for texts in (
            [part["text"] for message in row.messages if message["role"] == "assistant" for part in message["content"]]
            for row in examples
        )
    ]
    assert [said(processor.tokenizer, labels) for labels in batch["labels"]] == expected
    supervised = batch["labels"] != -100
    assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])
    assert not (supervised & ~batch["attention_mask"].bool()).any()
    assert batch["attention_mask"][:, 0].all(), "rows must be padded on the right"
    with torch.no_grad():
        output = model(**batch)
    kept = batch["labels"][:, 1:] != -100
    logits = output.logits[:, -batch["labels"].shape[1] :]
    expected_loss = torch.nn.functional.cross_entropy(logits[:, :-1][kept], batch["labels"][:, 1:][kept])
    torch.testing.assert_close(output.loss, expected_loss)
    for number, row in enumerate(examples):  # a row alone is the row in the batch
        alone = Collator(processor, model=model)([row])
        length = alone["input_ids"].shape[1]
        assert torch.equal(alone["labels"][0], batch["labels"][number, :length])


@pytest.mark.parametrize("name", LEARNING)
def test_learning_begins_where_the_generation_prompt_ends(
    name: str, family: Callable[[str], Path], picture: Picture
) -> None:
    """The prompt that `generate` is given is the start of the row, and the next token is the first to learn."""
    _, processor = published(family(name))
    row = rows(name, picture)[0]
    asked = foreign.inputs(processor, [prompt.validate(ask_messages(picture(1, (60, 30)), "What is it?"))])
    batch = Collator(processor)([row])
    first = int((batch["labels"][0] != -100).nonzero()[0])
    if name == "llava_onevision":  # its template writes a space into the header that its generation prompt has not
        return
    assert batch["input_ids"][0, :first].tolist() == asked["input_ids"][0].tolist()


def tune(folder: Path, model: Path, picture: Picture, one: bool, quantize: str | None = None) -> tuple[Any, Path]:
    """20 steps of `vlchat train` on eight rows of no, one and two pictures; the objective and the run's folder."""
    folder.mkdir(exist_ok=True)
    lines = []
    for index in range(8):
        picture(index, (24 + 8 * index, 40)).save(folder / f"{index}.png")
        count = 1 if one else index % 3
        asked = {"role": "user", "content": "<image>\n" * count + "What is it?"}
        told = {"role": "assistant", "content": "A red circle."}
        lines.append({"messages": [asked, told], "images": [f"{(index + next_) % 8}.png" for next_ in range(count)]})
    (folder / "data.json").write_text(json.dumps(lines))
    torch.manual_seed(0)
    objective = TuneObjective(
        data=[{"path": str(folder / "data.json")}], model=str(model), quantize=quantize, sample_tokens=6,
        lora={"r": 4, "alpha": 8, "dropout": 0.0},
    )  # fmt: skip
    loop = LoopConfig(steps=20, batch=2, log_every=20, sample_every=100, save_every=100, workers=0)
    config = RunConfig(run=str(folder / "run"), objective={}, trainable={"lora_": 1e-2}, optim=OptimConfig(), loop=loop)
    return objective, fit(objective, config, 20, None)


def skip_untold(folder: Path) -> None:
    """BLIP-2 and InstructBLIP have a template where `checkpoint.load` turns them into our own class."""
    if not checkpoint.load(folder)[1].chat_template:
        pytest.skip("published without a chat template")


def frozen(model: Any) -> dict[str, torch.Tensor]:
    """Everything of the model but the adapter, by its plain name."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in inner.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if "lora_" not in name}


@pytest.mark.parametrize(
    ("name", "quantize"),
    [(name, None) for name in TUNED]
    + [("llava", "nf4"), ("qwen2_vl", "nf4"), ("instructblip", "nf4"), ("qwen2_vl", "int8")],
)
def test_twenty_steps_of_lora_teach_an_answer_and_change_nothing_else(
    name: str, quantize: str | None, family: Callable[[str], Path], picture: Picture, tmp_path: Path
) -> None:
    if quantize is not None:
        pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
    skip_untold(family(name))
    objective, run = tune(
        tmp_path, family(name), picture, one_picture(name) or name in ("mllama", "paligemma, template added"), quantize
    )
    learning = [key for key, parameter in objective.model.named_parameters() if parameter.requires_grad]
    prefix = language_model_prefix(objective.model.get_base_model())
    assert learning and all("lora_" in key and f".{prefix}." in key for key in learning)
    assert {key for key, parameter in objective.model.named_parameters() if parameter.grad is not None} <= set(learning)
    lines = [json.loads(line) for line in (run.parent / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] < 3.5
    before = frozen(checkpoint.load(family(name), quantize=quantize, trainable=True)[0])
    after = frozen(objective.model)
    assert set(before) == set(after)
    for key in before:
        assert torch.equal(before[key], after[key]), key
    asked = conversations(name, picture)
    expected = Chat(objective.model, objective.processor).batch(asked, max_new_tokens=8)
    assert expected[0] == "A red circle."
    assert Chat.load(run.parent, quantize=quantize).batch(asked, max_new_tokens=8) == expected
    assert {path.name for path in run.glob("*.safetensors")} == set(), "only the adapter is written"


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", LOADED)
def test_towers_and_projectors_are_never_quantized(kind: str, name: str, family: Callable[[str], Path]) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="quantization needs bitsandbytes")
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    model, _ = checkpoint.load(family(name), quantize=kind)
    quantized = [key for key, module in model.named_modules() if isinstance(module, kinds)]
    prefix = language_model_prefix(model)
    assert len(quantized) >= 12 and all(key.startswith(f"{prefix}.") for key in quantized)
    assert not isinstance(model.get_output_embeddings(), kinds)


@pytest.mark.parametrize("name", ["qwen2_vl", "idefics3", "instructblip", "llava_next"])
def test_the_command_line_chats_and_evaluates(
    name: str, family: Callable[[str], Path], picture: Picture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_untold(family(name))
    picture(1).save(tmp_path / "picture.png")
    lines = [{"image": "picture.png", "question": "What is it?", "answer": "A red circle."}] * 3
    (tmp_path / "data.json").write_text(json.dumps(lines))
    model = str(family(name))
    asked = [str(tmp_path / "picture.png"), "What is it?", "--max-new-tokens", "4"]
    assert main(["chat", "--model", model, *asked]) == 0
    told = capsys.readouterr().out.strip()
    assert told == Chat.load(model).ask(tmp_path / "picture.png", "What is it?", max_new_tokens=4)
    out = tmp_path / "report"
    assert main(["eval", model, "--data", str(tmp_path / "data.json"), "--out", str(out)]) == 0


def test_families_without_a_stored_template_are_asked_as_their_papers_ask(
    family: Callable[[str], Path], picture: Picture
) -> None:
    for name, written in {
        "paligemma": "Is it?",
        "blip-2": "Question: Is it? Answer:",
        "blip-2-t5": "Question: Is it? Answer:",
        "instructblip": "Is it?",
    }.items():
        chat = Chat.load(family(name))
        shown = chat.processor.tokenizer.decode(chat._inputs([ask_messages(picture(), "Is it?")])["input_ids"][0])
        assert re.sub(r"<[^>]*>|\s+", " ", shown).strip() == written, name
        assert isinstance(chat.ask(picture(), "Is it?", max_new_tokens=4), str)


def test_lora_targets_outside_the_language_model_are_refused(family: Callable[[str], Path]) -> None:
    for name in ("qwen2_vl", "idefics3", "blip-2", "llava_next"):
        model, _ = published(family(name))
        with pytest.raises(ConfigError, match="outside the language model"):
            checkpoint.add_lora(model, targets=r".*(q_proj|qkv|fc1|linear_1)")
        with pytest.raises(ConfigError, match="match no layer"):
            checkpoint.add_lora(model, targets="nothing")


def test_what_cannot_be_tuned_is_told_before_the_first_step(
    family: Callable[[str], Path], picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untold = tmp_path / "untold"
    shutil.copytree(family("qwen2_vl"), untold)
    (untold / "chat_template.jinja").unlink()
    with pytest.raises(VLChatError, match="has no chat template"):
        tune(tmp_path, untold, picture, True)
    with pytest.raises(VLChatError, match="has a language model with an encoder"):
        tune(tmp_path, family("blip-2-t5, template added"), picture, True)
    processor = load_processor(family("mllama"))
    with pytest.raises(VLChatError, match="equally many pictures only; set loop.batch=1"):
        Collator(processor)(rows("qwen2_vl", picture))
    processor = load_processor(family("paligemma, template added"))
    with pytest.raises(DataError, match='Row "two": .*one question and one answer only'):
        Collator(processor)(rows("llava", picture)[:2])
    with pytest.raises(DataError, match='Row "a": .*reads control tokens in a row as such'):
        Collator(processor)([example("a", [("<image>\nIs it <eos>?", "no")], [picture(1)])])
    tails = marks.MarkedTokenizer.__call__

    def adds_text(self: Any, text: Any = None, *others: Any, **options: Any) -> Any:
        return tails(self, [one + "." for one in text], *others, **options)

    monkeypatch.setattr(marks.MarkedTokenizer, "__call__", adds_text)
    with pytest.raises(DataError, match="writes text of its own after an answer"):
        Collator(load_processor(family("qwen2_vl")))(rows("qwen2_vl", picture)[:1])


def test_blip_takes_one_picture_and_says_so(family: Callable[[str], Path], picture: Picture) -> None:
    chat = Chat(*published(family("blip-2, template added")))
    for pictures, count in (((), 0), ((picture(1), picture(2)), 2)):
        with pytest.raises(VLChatError, match=f"exactly one picture a conversation, and this one has {count}"):
            chat.ask(pictures, "What is it?")


def test_a_q_former_never_reads_the_answer(family: Callable[[str], Path], picture: Picture) -> None:
    processor = load_processor(family("instructblip, template added"))
    batch = Collator(processor)([example("a", [("<image>\nHow many cats?", "There are two cats.")], [picture(1)])])
    asked = foreign.inputs(processor, [prompt.validate(ask_messages(picture(1), "How many cats?"))])
    assert torch.equal(batch["qformer_input_ids"], asked["qformer_input_ids"])


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}{{ m.content[-1].text | upper }}{% endfor %}", None),  # marks have no upper case
        ("{% for m in messages %}{{ m.content[-1].text | reverse }}{% endfor %}", "changes what the assistant said"),
        ("{% for m in messages %}{{ m.content[-1].text * 2 }}{% endfor %}", "changes what the assistant said"),
        ("{% for m in messages %}{{ m.content[-1].text[:3] }}{% endfor %}", "changes what the assistant said"),
        (
            "{% for m in messages %}{{ 'long' if m.content[-1].text|length > 8 }}{{ m.content[-1].text }}{% endfor %}",
            "changes what the assistant said",
        ),
        ("{% for m in messages %}{{ m.content + 'x' }}{% endfor %}", "refuses this conversation"),
    ],
)
def test_templates_that_change_an_answer_are_refused(
    template: str, told: str | None, family: Callable[[str], Path], picture: Picture
) -> None:
    processor = load_processor(family("qwen2_vl"))
    processor.chat_template = template
    row = example("a", [("How many?", "two cats")])
    if told is None:
        assert said(processor.tokenizer, Collator(processor)([row])["labels"][0]) == ["TWO CATS<|im_end|>"]
        return
    with pytest.raises(DataError, match=f'Row "a": .*{told}'):
        Collator(processor)([row])


def test_odd_generation_settings_of_a_checkpoint_do_no_harm(
    family: Callable[[str], Path], picture: Picture, recwarn: pytest.WarningsRecorder
) -> None:
    chat = Chat.load(family("qwen2_vl"))
    expected = chat.ask(picture(1), "What is it?", max_new_tokens=6)
    config = chat.model.generation_config
    config.update(
        num_beams=5, max_length=3, temperature=0.01, top_p=0.001, top_k=1, do_sample=True, length_penalty=-1.0
    )
    config.update(early_stopping=True, num_return_sequences=2)
    assert chat.ask(picture(1), "What is it?", max_new_tokens=6) == expected
    assert chat.batch([ask_messages(picture(1), "What is it?")], max_new_tokens=6) == [expected]


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("timm is required\nsecond line", "it needs timm, which is not installed"),
        ("\nPixtralProcessor requires the Torchvision library but it", "it needs torchvision, which is not installed"),
        ("Package `num2words` is required to run", "it needs num2words, which"),
        ("No module named 'torchvision.transforms'", "it needs torchvision, which"),
        ("cannot import\nname x", "can't be loaded: cannot import name x"),
    ],
)
def test_a_package_that_is_missing_is_a_sentence(raised: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=told):
        with reading(tmp_path, "checkpoint"):
            raise ImportError(raised)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("name", NEEDS_TORCHVISION)
def test_a_processor_that_needs_torchvision_says_so(name: str, family: Callable[[str], Path]) -> None:
    with pytest.raises(CheckpointError, match="can't be loaded: it needs torchvision, which is not installed"):
        checkpoint.load(family(name))


def test_marks_are_read_as_they_were_written() -> None:
    text, answers, cuts = "Say: <image> two cats.", [(5, 12), (13, 22)], [1, 6, 13]
    assert marks.read(marks.write(text, answers, cuts)) == (text, answers, cuts)
    assert marks.bare(marks.write(text, answers, cuts)) == text
    assert marks.read(marks.cut("a <<image> b", ("<image>", "<<"))) == ("a <<image> b", [], [3, 4])
    for broken in (marks.BEGIN, marks.BEGIN * 2 + marks.END, marks.END):
        with pytest.raises(VLChatError):
            marks.read(broken)
    assert marks.clean(f"a{marks.BEGIN}{marks.END}{marks.CUT}b") == "a\ufffd\ufffd\ufffdb"


def test_characters_are_found_in_marked_texts_as_in_bare_ones(family: Callable[[str], Path]) -> None:
    tokenizer = load_processor(family("idefics3")).tokenizer
    text = "What is <image> green? Two cats."
    marked = marks.write(text, [(23, 32)], [9])
    found = marks.MarkedTokenizer(tokenizer)([marked, "a"], padding=True, padding_side="left", add_special_tokens=False)
    for position, letter in enumerate(marked):
        token = found.char_to_token(0, position)
        if letter in (marks.BEGIN, marks.END, marks.CUT):
            continue
        assert letter in tokenizer.decode([found["input_ids"][0][token]]), position
    shorter = found.char_to_token(1, 0)
    assert found["input_ids"][1][shorter] == tokenizer.convert_tokens_to_ids("a")


def test_the_table_of_compatibility_has_every_family() -> None:
    """Written by `python benchmarks/compatibility.py`."""
    lines = (Path(__file__).parent.parent / "docs" / "compatibility.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert rows == ["family", *FAMILIES]
