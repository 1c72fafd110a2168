"""vlchat's models as lmms-eval asks them: by requests as its tasks make them, and through its own registry."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlchat.chat import Chat, ask_messages
from vlchat.errors import ConfigError, VLChatError
from vlchat.evaluate.answerers import ChatAnswerer
from vlchat.lmms.interface import ChatTasks, SimpleTasks
from vlchat.lmms.requests import LONGEST, Decoding, interleaved, shown

ROOT = Path(__file__).resolve().parent.parent
ENTRY = "vlchat.lmms:manifest"


@dataclass
class Instance:
    """What of `lmms_eval.api.instance.Instance` a model reads, where lmms-eval is not installed."""

    args: tuple[Any, ...]
    doc_id: Any = 0
    task_name: str = "drawn"


def instance(kind: str, *args: Any) -> Any:
    """A request: lmms-eval's own where it is installed."""
    number = args[-3]
    try:
        from lmms_eval.api.instance import Instance as Theirs
    except ImportError:
        return Instance(args, number)
    return Theirs(kind, args, 0, {"task": "drawn", "doc_id": number, "repeats": 1})


@pytest.fixture
def chat(tiny_model: Any, tiny_processor: Any) -> Chat:
    return Chat(tiny_model(), tiny_processor, {"name": "tiny"})


@pytest.fixture
def documents(picture: Any) -> list[dict[str, Any]]:
    """Rows about one picture, two, and none; two of them long."""
    return [
        {"pictures": [picture(n) for n in range(number % 3)], "question": f"What is {'a b ' * (number % 4)}{number}?"}
        for number in range(7)
    ]


def opened(kind: Any, chat: Chat, documents: list[Any], **options: Any) -> Any:
    made = kind(ChatAnswerer(chat), **options)
    made.rank, made.task_dict = 0, {"drawn": {"test": documents}}
    return made


def to_messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    """As `ConfigurableMessagesTask` of lmms-eval builds a user's turn."""
    parts: list[dict[str, Any]] = [{"type": "image", "url": picture} for picture in document["pictures"]]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": document["question"]}]}]


def chat_request(number: int, **options: Any) -> Any:
    return instance("generate_until", "", to_messages, options, number, "drawn", "test")


def simple_request(number: int, question: str, **options: Any) -> Any:
    return instance("generate_until", question, options, lambda document: document["pictures"], number, "drawn", "test")


def own(chat: Chat, document: dict[str, Any], most: int, beams: int = 1) -> str:
    asked = ask_messages(document["pictures"], document["question"])
    return chat.answers([asked], max_new_tokens=most, beams=beams)[0].text


@pytest.mark.parametrize("batch_size", [1, 4])
def test_both_interfaces_give_the_model_s_own_answers_in_order(
    batch_size: int, chat: Chat, documents: list[Any]
) -> None:
    lengths = [6, 9, 6, 6, 9, 6, 6]
    expected = [own(chat, document, most) for document, most in zip(documents, lengths, strict=True)]
    assert len(set(expected)) > 4
    asked = [chat_request(number, max_new_tokens=most) for number, most in enumerate(lengths)]
    found = opened(ChatTasks, chat, documents, batch_size=batch_size).generate_until(asked)
    assert [text for text, _ in found] == expected
    assert [counts["output_tokens"] for _, counts in found] == [
        chat.answers([ask_messages(d["pictures"], d["question"])], max_new_tokens=most)[0].tokens
        for d, most in zip(documents, lengths, strict=True)
    ]
    asked = [
        simple_request(number, document["question"], max_new_tokens=most)
        for number, (document, most) in enumerate(zip(documents, lengths, strict=True))
    ]
    assert [text for text, _ in opened(SimpleTasks, chat, documents).generate_until(asked)] == expected


def test_how_an_answer_is_made() -> None:
    assert Decoding.of({}) == Decoding(LONGEST, 1, 0.0, 1.0, ())
    told = {"max_new_tokens": 5, "temperature": 0, "top_p": None, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}
    assert Decoding.of(told) == Decoding(5, 1, 0.0, 1.0, ("\n\n",))
    assert Decoding.of({"temperature": 0.7, "top_p": 0.9}) == Decoding(LONGEST, 1, 0.7, 0.9, ())
    assert Decoding.of({"temperature": 0.7, "top_p": 0.9, "do_sample": False}).temperature == 0.0
    assert Decoding.of({"do_sample": True}).temperature == 1.0
    assert Decoding.of({"num_beams": 4}).beams == 4
    with pytest.raises(ConfigError, match="4 beams and temperature 0.7; vlchat searches or draws, not both"):
        Decoding.of({"num_beams": 4, "temperature": 0.7})
    with pytest.raises(ConfigError, match="--repeats"):
        Decoding.of({"num_return_sequences": 2})
    assert Decoding.of({"until": "."}).cut("one. two") == "one"
    assert Decoding.of({"until": ["x", "two", ""]}).cut("one. two x") == "one. "
    assert Decoding.of({"until": ["q"]}).cut("one. two") == "one. two"


def test_beams_and_temperature_are_kept(chat: Chat, documents: list[Any]) -> None:
    model = opened(ChatTasks, chat, documents, batch_size=8)
    asked = [chat_request(number, max_new_tokens=8, num_beams=3) for number in range(7)]
    searched = [text for text, _ in model.generate_until(asked)]
    assert searched == [own(chat, document, 8, beams=3) for document in documents]
    assert searched != [own(chat, document, 8) for document in documents]
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.generate_until([chat_request(n, max_new_tokens=8, temperature=1.5) for n in range(7)]))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_row_that_the_model_cannot_take_costs_itself(chat: Chat, documents: list[Any]) -> None:
    documents[2]["question"] = "word " * 2000
    model = opened(ChatTasks, chat, documents, batch_size=4)
    with pytest.warns(UserWarning, match="Row 2 of drawn gets an empty answer: The conversation takes"):
        found = model.generate_until([chat_request(number, max_new_tokens=4) for number in range(4)])
    assert found[2][0] == "" and [text for text, _ in found][:2] == [own(chat, d, 4) for d in documents[:2]]


def test_rounds_see_the_answers_before_them(chat: Chat, documents: list[Any]) -> None:
    def messages(document: dict[str, Any], round_idx: int | None = None, previous_output: Any = (),
                 previous_round_info: Any = None) -> Any:  # fmt: skip
        if round_idx is None:
            return to_messages(document)
        text = f"{previous_output[-1]} {previous_round_info}"
        turn = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        return turn, round_idx == 3, previous_output, round_idx

    def text(document: dict[str, Any], *, round_idx: int, previous_output: Any, previous_round_info: Any) -> Any:
        return [], f"{previous_output[-1]} {previous_round_info}", round_idx == 3, previous_output, round_idx

    options = {"max_new_tokens": 4}
    expected = [own(chat, documents[1], 4)]
    for info in (None, 1):
        expected.append(own(chat, {"pictures": [], "question": f"{expected[-1]} {info}"}, 4))
    request = instance("generate_until_multi_round", "", messages, options, 1, "drawn", "test")
    assert opened(ChatTasks, chat, documents).generate_until_multi_round([request]) == [expected]
    kind, question = "generate_until_multi_round", documents[1]["question"]
    request = instance(kind, question, options, lambda d: d["pictures"], text, 1, "drawn", "test")
    assert opened(SimpleTasks, chat, documents).generate_until_multi_round([request]) == [expected]


def test_choices_are_judged_by_their_loss_the_least_first(chat: Chat, documents: list[Any]) -> None:
    choices = ["a cat", "two red cats", "no", own(chat, documents[1], 20)]
    asked = [
        instance("loglikelihood", documents[1]["question"], f" {choice}", lambda d: d["pictures"], 1, "drawn", "test")
        for choice in choices
    ]
    found = opened(SimpleTasks, chat, documents).loglikelihood(asked)
    told = chat.likelihoods(ask_messages(documents[1]["pictures"], documents[1]["question"]), choices)
    assert [loss for loss, _ in found] == pytest.approx([-one.logprob / one.tokens for one in told])
    assert all(loss > 0 for loss, _ in found) and min(found)[0] == min(loss for loss, _ in found)
    assert [greedy for _, greedy in found][:3] == [False] * 3
    with pytest.raises(ConfigError, match="add --force_simple"):
        opened(ChatTasks, chat, documents).loglikelihood(asked)


def test_pictures_stand_where_the_text_has_a_place_for_each(picture: Any, tmp_path: Path) -> None:
    one, two = picture(1), picture(2)
    kinds = [[part.get("text", part.get("image")) for part in interleaved(text, [one, two], 4)]
             for text in ("<image> and <image>?", "both?", "<image> one place", "")]  # fmt: skip
    assert kinds == [[one, " and ", two, "?"], [one, two, "both?"], [one, two, "one place"], [one, two]]
    assert interleaved("how is <image> written?", [], 4) == [{"type": "text", "text": "how is <image> written?"}]
    video = {"type": "video", "video": "film.mp4", "frames": 4}
    assert shown("film.mp4", "image", 4) == shown("film.mp4", "video", 4) == [video]
    assert shown({"type": "video", "url": "film.mp4"}, "image", 4) == [video]
    assert shown([one, two], "video", 4) == [{"type": "image", "image": one}, {"type": "image", "image": two}]
    with pytest.raises(ConfigError, match="shows audio as str"):
        shown("speech.wav", "audio", 4)


def test_a_video_is_shown_by_its_frames_and_a_system_prompt_goes_first(
    chat: Chat, picture: Any, tmp_path: Path
) -> None:
    frames = [picture(number) for number in range(4)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=100)
    read = [Image.open(tmp_path / "film.gif")]
    for number in range(1, 4):
        read.append(Image.open(tmp_path / "film.gif"))
        read[number].seek(number)
    document = {"pictures": [], "question": "What happens?"}

    def messages(document: Any) -> Any:
        shown = {"type": "video", "url": str(tmp_path / "film.gif")}
        return [{"role": "user", "content": [shown, {"type": "text", "text": document["question"]}]}]

    asked = instance("generate_until", "", messages, {"max_new_tokens": 6}, 0, "drawn", "test")
    model = opened(ChatTasks, chat, [document], frames=4, system_prompt="Be brief.")
    told = ask_messages([frame.convert("RGB") for frame in read], "What happens?", "Be brief.")
    expected = chat.batch([told], max_new_tokens=6)
    assert [text for text, _ in model.generate_until([asked])] == expected

    def part(document: Any) -> Any:
        return [{"role": "user", "content": [{"type": "video", "url": "film.mp4", "start_time": 1.0}]}]

    with pytest.raises(VLChatError, match="part of a video"):
        model.generate_until([instance("generate_until", "", part, {}, 0, "drawn", "test")])


def test_lmms_eval_finds_the_model_by_its_entry_point(tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install lmms-eval")
    found = tmp_path / "entry-0.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: entry\nVersion: 0\n")
    (found / "entry_points.txt").write_text(f"[lmms_eval.models]\nvlchat = {ENTRY}\n")
    code = (
        "from lmms_eval import models\n"
        "for simple in (False, True):\n"
        "    made = models.get_model('vlchat', simple)\n"
        "    print(made.__module__, made.__name__, made.is_simple, sorted(made.__abstractmethods__))\n"
        "model = made.create_from_arg_string('frames=4', {'batch_size': '2', 'device': 'cpu', 'max_batch_size': 8})\n"
        "print(model.batch_size, model.frames, model.chat.description['name'])\n"
        "try: made.create_from_arg_string('pretraned=x')\n"
        "except ValueError as error: print(error)\n"
        "try: made.create_from_arg_string('', {'batch_size': 'auto'})\n"
        "except ValueError as error: print(error)\n"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[-5:-2] == [
        "vlchat.lmms.models VLChat False []", "vlchat.lmms.models VLChatSimple True []", "2 4 vlchat-mini",
    ]  # fmt: skip
    assert lines[-2].endswith('Did you mean "pretrained"?') and "--batch_size is auto" in lines[-1]
