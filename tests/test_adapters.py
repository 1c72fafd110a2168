"""Several adapters on one base answer as each run does alone; adapters of other programs load on the base they name."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from talkative import save_talkative

from serve.engine import Engine
from serve.tickets import Options
from vlchat import adapters, checkpoint, compare
from vlchat.arguments import named
from vlchat.chat import Chat, ask_messages
from vlchat.errors import CheckpointError, UnsafeCheckpointError, VLChatError
from vlchat.lora import add_lora

QUESTIONS = ["two cats ?", "What is in the picture?", "is it green?"]


@pytest.fixture
def base(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> Path:
    return save_talkative(tmp_path / "base", tiny_clip, tiny_tokenizer)


def shake(model: Any, pattern: str, seed: int, by: float = 0.3) -> list[str]:
    """Changes the parameters whose names hold `pattern` and returns their names."""
    torch.manual_seed(seed)
    names = [name for name, _ in model.named_parameters() if pattern in name]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.add_(torch.randn_like(parameter) * by)
    assert names
    return names


@pytest.fixture
def runs(base: Path) -> dict[str, Path]:
    """Three runs on one base: an adapter with a connector, an adapter on fewer layers, and trained tensors alone."""

    def run(name: str, seed: int, trained: str | None, **lora: Any) -> Path:
        model, processor = checkpoint.load(base)
        if lora:
            model = add_lora(model, **lora)
            shake(model, "lora_B", seed)
        names = shake(model, trained, seed + 1) if trained else []
        checkpoint.save(
            base.parent / name, model, processor,
            base={"model": base}, trained=names, adapter=bool(lora), trained_on=name,
        )  # fmt: skip
        return base.parent / name

    return {
        "both": run("both", 1, ".connector.", r=4, alpha=8),
        "few": run("few", 3, None, r=2, alpha=4, targets=r"model\.language_model\..*\.q_proj"),
        "plain": run("plain", 5, "layers.0.mlp"),
    }


def answers(chat: Chat, picture: Any, adapter: str | None = None) -> list[str]:
    return [chat.ask(picture, question, max_new_tokens=8, adapter=adapter) for question in QUESTIONS]


@torch.inference_mode()
def logits(chat: Chat, picture: Any) -> torch.Tensor:
    asked = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "two cats"}]}]
    inputs = chat._inputs([asked])
    with chat.turn:
        return chat.model(**inputs).logits


def test_each_adapter_answers_as_it_does_alone(base: Path, runs: dict[str, Path], picture: Callable) -> None:
    shared = Chat.load(base, adapters=runs)
    alone = {None: Chat.load(base), **{name: Chat.load(folder) for name, folder in runs.items()}}
    expected = {name: answers(chat, picture(1)) for name, chat in alone.items()}
    assert len({tuple(told) for told in expected.values()}) == 4, "the test needs answers that differ"
    for name in ("both", None, "few", "plain", "both", "plain", None, "few"):
        assert answers(shared, picture(1), name) == expected[name], name
        one = shared.adapters[name] if name else shared
        assert torch.equal(logits(one, picture(2)), logits(alone[name], picture(2))), name
    assert shared.adapters["both"].description["trained_on"] == "both"
    parameters = {id(p) for chat in (shared, *shared.adapters.values()) for p in chat.model.parameters()}
    lora = sum("lora_" in name for name, _ in shared.model.named_parameters())
    assert len(parameters) == len(list(alone[None].model.parameters())) + lora, "the base is there once"


def test_two_people_ask_at_once(base: Path, runs: dict[str, Path], picture: Callable) -> None:
    shared = Chat.load(base, adapters=runs)
    expected = {name: answers(shared, picture(1), name) for name in runs}
    wrong: list[Any] = []

    def ask(names: list[str]) -> None:
        for _ in range(4):
            for name in names:
                if (told := answers(shared, picture(1), name)) != expected[name]:
                    wrong.append((name, told))

    people = [threading.Thread(target=ask, args=(names,)) for names in (["both", "few"], ["plain", "both"])]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert not wrong


def test_one_engine_answers_with_all_of_them_at_once(base: Path, runs: dict[str, Path], picture: Callable) -> None:
    shared = Chat.load(base, adapters=runs)
    asked = [(name, ask_messages(picture(1), question)) for question in QUESTIONS for name in (None, *runs)]
    expected = ["".join(shared.stream(messages, max_new_tokens=6, adapter=name)) for name, messages in asked]
    assert len(set(expected)) > len(QUESTIONS)
    engine = Engine(shared, most=5)
    assert engine.joins
    for _ in range(2):  # the second time each finds what was kept of its own
        tickets = [engine.submit(messages, Options(6, adapter=name)) for name, messages in asked]
        assert ["".join(ticket) for ticket in tickets] == expected
    assert all(ticket.end is not None and ticket.end.cached_tokens > 0 for ticket in tickets)
    with pytest.raises(VLChatError, match="no adapter"):
        engine.submit(asked[0][1], Options(adapter="bot"))
    engine.close()


def test_runs_that_stand_on_the_same_base_share_it(
    base: Path, runs: dict[str, Path], picture: Callable, tmp_path: Path
) -> None:
    shared = Chat.load(runs["both"], adapters={"few": runs["few"]})
    assert answers(shared, picture(1)) == answers(Chat.load(runs["both"]), picture(1))
    assert answers(shared, picture(1), "few") == answers(Chat.load(runs["few"]), picture(1))
    assert answers(shared, picture(1)) == answers(Chat.load(runs["both"]), picture(1))
    assert adapters.shared_base([runs["both"], runs["few"]]) == (runs["both"], {1: runs["few"]})
    assert adapters.shared_base([runs["plain"], base]) == (base, {0: runs["plain"]})
    copy = shutil.copytree(base, tmp_path / "copy")
    assert adapters.shared_base([copy, base]) is None


def test_runs_that_made_their_connector_share_their_backbones(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any,
    picture: Callable,
) -> None:  # fmt: skip
    tiny_clip.save_pretrained(tmp_path / "clip")
    tiny_llama.save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")
    for name, seed in (("one", 1), ("two", 2)):
        model = tiny_model()
        names = shake(model, ".connector.", seed, by=1.0)
        checkpoint.save(
            tmp_path / name, model, tiny_processor, base={"vision": tmp_path / "clip", "language": tmp_path / "llama"},
            trained=names, adapter=False, trained_on="",
        )  # fmt: skip
    shared = Chat.load(tmp_path / "one", adapters={"two": tmp_path / "two"}, attn="eager")
    for name in ("two", None, "two"):
        one = shared.adapters[name] if name else shared
        alone = Chat.load(tmp_path / (name or "one"), attn="eager")
        assert torch.equal(logits(one, picture(2)), logits(alone, picture(2)))
    assert shared.model.model.language_model.config._attn_implementation == "eager"


def test_an_adapter_on_another_base_is_refused(base: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="both was trained on top of .*base, and not of the embedded model"):
        Chat.load(None, adapters={"x": runs["both"]})
    with pytest.raises(CheckpointError, match="base is a whole model, not an adapter"):
        Chat.load(base, adapters={"x": base})
    with pytest.raises(VLChatError, match='There is no adapter "bth"; known: both. Did you mean "both"?'):
        Chat.load(base, adapters={"both": runs["both"]}).ask(None, "two cats", adapter="bth")
    for pairs, told in ((["runs/x"], "is not NAME=FOLDER"), (["=x"], "is not"), (["a=x", "a=y"], 'names "a" twice')):
        with pytest.raises(VLChatError, match=told):
            named("--adapter", pairs)
    assert named("--adapter", ["a=x=1", "b=y"]) == {"a": "x=1", "b": "y"}


@pytest.fixture
def foreign(base: Path, tmp_path: Path) -> Path:
    """What peft, TRL and LLaMA-Factory leave behind: LoRA by short names, a whole connector beside it."""
    model, processor = checkpoint.load(base)
    settings = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["connector"])
    model = get_peft_model(model, settings)
    shake(model, "lora_B", 8)
    shake(model, "modules_to_save", 9)
    model.save_pretrained(tmp_path / "foreign")
    (tmp_path / "foreign" / "training_args.bin").write_bytes(b"\x80 a pickle that nobody reads")
    name(tmp_path / "foreign", str(base))
    model.eval()
    return tmp_path / "foreign"


def name(folder: Path, base: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def test_an_adapter_of_another_program_loads_on_the_base_that_it_names(
    base: Path, foreign: Path, runs: dict[str, Path], picture: Callable
) -> None:
    chat = Chat.load(foreign)
    from peft import PeftModel

    model, processor = checkpoint.load(base)
    reference = Chat(PeftModel.from_pretrained(model, str(foreign)), processor)
    assert torch.equal(logits(chat, picture(2)), logits(reference, picture(2)))
    assert answers(chat, picture(1)) != answers(Chat.load(base), picture(1))
    assert chat.description["adapter"] and chat.description["base"] == {"model": str(base)}
    shared = Chat.load(base, adapters={"foreign": foreign, "both": runs["both"]})
    for wanted in ("foreign", "both", "foreign", None):
        one = shared.adapters[wanted] if wanted else shared
        alone = {"foreign": foreign, "both": runs["both"], None: base}[wanted]
        assert torch.equal(logits(one, picture(2)), logits(Chat.load(alone), picture(2))), wanted


def test_an_adapter_that_changes_its_base_shares_it_with_no_other(
    base: Path, foreign: Path, runs: dict[str, Path]
) -> None:
    weights = foreign / "adapter_model.safetensors"
    table = Chat.load(base).model.get_input_embeddings().weight
    whole = {"base_model.model.model.language_model.embed_tokens.weight": table.detach() + 1}
    save_file(load_file(weights) | whole, weights)
    assert not torch.equal(Chat.load(foreign).model.get_input_embeddings().weight, table)
    with pytest.raises(CheckpointError, match="changes its base itself.*load it alone"):
        Chat.load(base, adapters={"foreign": foreign, "both": runs["both"]})
    chats = compare.load([str(base), str(foreign)])
    assert torch.equal(chats["base"].model.get_input_embeddings().weight, table)
    assert not torch.equal(chats["foreign"].model.get_input_embeddings().weight, table)


def test_an_adapter_that_cannot_be_used_is_told(foreign: Path, runs: dict[str, Path]) -> None:
    part = runs["both"] / "adapter"
    with pytest.raises(CheckpointError, match=r"adapter is a part of the checkpoint .*both: name that instead"):
        Chat.load(part)
    weights = foreign / "adapter_model.safetensors"
    tensors = load_file(weights)
    odd = sorted(key for key in tensors if "lora_A" in key)[0]
    for damage, told in (
        ({odd: None}, "Missing: .*lora_A"),
        ({odd.replace("q_proj", "x_proj"): tensors[odd].clone()}, "Unexpected: .*x_proj"),
        ({odd: tensors[odd][:, :-1].contiguous()}, "does not fit this model: .*size mismatch"),
    ):
        save_file({key: value for key, value in (tensors | damage).items() if value is not None}, weights)
        with pytest.raises(CheckpointError, match=told):
            Chat.load(foreign)
    save_file(tensors, weights)
    for base, told in (
        (None, "does not say of which model. Write the base's path"),
        ("/nowhere/at all", "is an adapter of /nowhere/at all, which is not there. Write"),
        ("nobody/nothing", "nobody/nothing can't be loaded"),
    ):
        name(foreign, base)
        with pytest.raises(CheckpointError, match=told):
            Chat.load(foreign)
    weights.unlink()
    with pytest.raises(UnsafeCheckpointError, match="training_args.bin, a pickle"):
        Chat.load(foreign)
    (foreign / "training_args.bin").unlink()
    with pytest.raises(CheckpointError, match="adapter without adapter_model.safetensors"):
        Chat.load(foreign)


def test_only_lora_and_its_like_load(base: Path, tmp_path: Path) -> None:
    model, _ = checkpoint.load(base)
    prompt = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=64, num_transformer_submodules=1, num_attention_heads=4,
        num_layers=3, base_model_name_or_path=str(base),
    )  # fmt: skip
    prompt.save_pretrained(tmp_path / "prompt")
    save_file({"prompt_embeddings": torch.zeros(2, 64)}, tmp_path / "prompt" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="LoRA and its like load"):
        Chat.load(tmp_path / "prompt")
