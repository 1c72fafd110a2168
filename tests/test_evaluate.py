"""The evaluation from data file to table, with real tiny models; the controls; and what a result says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlchat.chat import Chat
from vlchat.data import Source, SourceConfig, load_source
from vlchat.data.formats import text_of
from vlchat.errors import ConfigError, DataError, VLChatError
from vlchat.evaluate import (
    CONTROLS,
    TASKS,
    QuestionOnlyFloor,
    Reply,
    Request,
    VqaTask,
    evaluate,
    load,
    make_task,
    markdown,
    run,
    save,
    terminal,
)
from vlchat.evaluate.blind import images_of, shuffle_pictures, with_images
from vlchat.evaluate.items import question_of
from vlchat.evaluate.metrics import exact_match


class Scripted:
    """Answers from a rule instead of a model, to hold the bookkeeping against known figures."""

    description = {"name": "scripted", "trained_on": "nothing"}
    identity = None

    def __init__(self, rule: Callable[[list[dict[str, Any]]], str]) -> None:
        self.rule = rule
        self.batches: list[int] = []

    def answer(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Reply]:
        self.batches.append(len(requests))
        return [Reply(self.rule(request.messages)) for request in requests]


def brightness(messages: list[dict[str, Any]]) -> str:
    """Tells apart the grey pictures that `data` writes."""
    return str(images_of(messages)[-1].getpixel((0, 0))[0]) if images_of(messages) else "none shown"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Eight questions on four grey pictures whose brightness is the answer; half of them are closed ones."""
    rows = []
    for number in range(8):
        level = number // 2 * 60
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / f"{level}.png")
        kind = "open" if number % 2 == 0 else "CLOSED"
        answer = str(level) if kind == "open" else "yes"
        turns = [{"from": "human", "value": f"<image>\nWhat {kind}?"}, {"from": "gpt", "value": answer}]
        rows.append({"id": f"q{number}", "image": f"{level}.png", "conversations": turns, "answer_type": kind})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return str(tmp_path / "rows.json")


def test_scores_groups_and_blind_control(data: str) -> None:
    chat = Scripted(lambda m: brightness(m) if "open" in text_of(m[-1]) else "Yes, it is.")
    result = evaluate(chat, VqaTask(data=data), controls=["shuffled"], batch_size=3, progress=False)
    by_kind = result.table.slices["answer_type"]
    assert {kind: (found["accuracy"].rows, found["accuracy"].value) for kind, found in by_kind.items()} == {
        "open": (4, 1.0),
        "closed": (4, 0.0),
    }
    assert result.headline.value == 0.5
    by_first_word = result.table.overall["yes/no, by first word"]
    assert (by_first_word.rows, by_first_word.value) == (4, 1.0)
    assert result.control_slice("shuffled", "answer_type", "open").value == 0.0, "every picture must be another row's"
    control = result.controls["shuffled"]
    assert (control.rows, control.seen.value, control.blind.value) == (8, 0.5, 0.0)
    assert [row["id"] for row in result.rows] == [f"q{number}" for number in range(8)]
    assert result.rows[0]["reply"] == ["0"] and result.rows[0]["controls"]["shuffled"]["reply"] != ["0"]
    assert len({row["cluster"] for row in result.rows}) == 4 == result.headline.clusters
    assert max(chat.batches) == 3
    assert result.counts == {"questions": 8, "unanswered": 0, "shuffled_kept_pictures": 0, "asked": 16, "known": 0}


def test_the_floor_is_the_most_frequent_answer_to_the_same_question(tmp_path: Path) -> None:
    organs = [("What organ?", answer, "open") for answer in ("Lung", "the lung", "Liver")]
    verdicts = [("Is it?", answer, "closed") for answer in ("No", "no", "Yes")]
    rows = [
        {"question": question, "answer": answer, "answer_type": kind}
        for question, answer, kind in [*organs, *verdicts, ("What side?", "Left", "open")]
    ]
    floor = QuestionOnlyFloor(Source(rows))
    assert floor.guess("what  organ?", {"answer_type": "open"}) == "lung"
    assert floor.guess("Never asked?", {"answer_type": "closed"}) == "no"
    assert floor.guess("Never asked?", {"answer_type": "open"}) == "lung"
    assert floor.guess("Never asked?", {}) in ("lung", "no")
    with pytest.raises(DataError, match="no floor"):
        QuestionOnlyFloor(Source([{"image": "a", "messages": [{"role": "user", "content": "<image>"}]}]))


def test_the_floor_of_slake_is_near_its_published_figure(shared_data: Path) -> None:
    folder = shared_data / "slake"
    task = VqaTask(data=str(folder / "validation_llava.json"), floor=str(folder / "train_llava.json"))
    result = evaluate(Scripted(lambda _: "Yes"), task, progress=False, batch_size=64)
    assert result.floor is not None
    by_kind = result.floor.slices["answer_type"]
    assert 0.48 < result.floor.overall["accuracy"].value < 0.60  # 54 % on the part that is held back
    assert 0.40 < by_kind["open"]["accuracy"].value < 0.53  # 46 %
    assert 0.60 < by_kind["closed"]["accuracy"].value < 0.72  # 66 %


class FromTheQuestion:
    """A real text-only baseline: the most frequent answer to the question in the training data. It sees no picture."""

    description = {"name": "question-only"}
    identity = None

    def __init__(self, train: Source) -> None:
        self.floor = QuestionOnlyFloor(train)

    def answer(self, requests: Sequence[Request], *, max_new_tokens: int) -> list[Reply]:
        return [Reply(self.floor.guess(question_of(request.messages), {})) for request in requests]


def test_a_model_that_ignores_the_picture_is_exposed(shared_data: Path) -> None:
    folder = shared_data / "slake"
    baseline = FromTheQuestion(load_source(SourceConfig(str(folder / "train_llava.json"))))
    task = VqaTask(data=str(folder / "validation_llava.json"), floor=str(folder / "train_llava.json"), limit=300)
    result = evaluate(baseline, task, controls=list(CONTROLS), progress=False, batch_size=64)
    assert result.headline.value > 0.4, "it is no bad baseline"
    for control in result.controls.values():
        gain = control.verdict.difference
        assert gain.value == 0 and gain.low <= 0 <= gain.high and control.verdict.holds is False
    for told in (terminal(result), markdown(result)):
        assert told.count("Nothing shows that it looks at the picture") == 3
        assert "it may get from the question alone" in told and "Nothing shows that it knows more" in told


def test_a_model_that_looks_is_told_from_one_that_guesses(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        Image.new("RGB", (8, 8), (number * 4,) * 3).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "Brightness?", "answer": str(number * 4)})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    task = VqaTask(data=str(tmp_path / "rows.json"))
    result = evaluate(Scripted(brightness), task, controls=["shuffled", "none"], progress=False)
    assert [control.verdict.holds for control in result.controls.values()] == [True, True]
    assert "It looks at the picture: +100.0 points over shuffled pictures" in terminal(result)


def test_always_true_on_nlvr_is_the_majority_figure(shared_data: Path) -> None:
    source = load_source(SourceConfig(str(shared_data / "nlvr" / "dev_messages.jsonl")))
    scores = [exact_match("True.", [source.example(index).answer]) for index in range(len(source))]
    share = sum(scores) / len(scores)
    assert round(100 * max(share, 1 - share), 1) == 55.3


def test_several_answers_are_scored_by_soft_accuracy(tmp_path: Path) -> None:
    rows = [
        {"question": "Colour?", "answers": ["red"] * 2 + ["blue"] * 8},
        {"question": "Shape?", "answers": ["circle", "round"]},
        {"question": "Size?", "answer": "big"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    task = VqaTask(data=str(tmp_path / "rows.json"))
    replies = ("red", "Round.", "small")
    scores = [task.read(item, [Reply(reply)]).score for item, reply in zip(task.items(), replies, strict=True)]
    assert scores == pytest.approx([(2 * (1 / 3) + 8 * (2 / 3)) / 10, 1, 0])
    assert "1 rows scored by VQA soft accuracy, 2 by exact match" in task.notes[0]


def test_annotations_beside_a_conversation_are_its_answers(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    row = {"conversations": turns, "answers": [{"answer": "A cat."}] * 10}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    (item,) = (task := VqaTask(data=str(tmp_path / "rows.json"))).items()
    assert task.read(item, [Reply("a cat")]).score == 1.0


def test_half_an_emoji_costs_no_result(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"question": "What?", "answer": "red \\ud83d"}]')
    result = evaluate(Scripted(lambda messages: "red"), VqaTask(data=str(tmp_path / "rows.json")), progress=False)
    (line,) = (save(result, tmp_path / "out") / "replies.jsonl").read_text().splitlines()
    assert json.loads(line)["reference"] == "red \ud83d"


def test_earlier_turns_are_context_and_the_last_answer_is_the_reference(tmp_path: Path) -> None:
    turns = [("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d"), ("user", "unanswered?")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    item = VqaTask(data=str(tmp_path / "rows.json")).items()[0]
    assert [text_of(message) for message in item.messages] == ["a?", "b", "c?"]
    assert item.reference == "d"


def test_faulty_data_is_listed_before_the_first_question(tmp_path: Path) -> None:
    rows = [{"image": name, "question": "?", "answer": "x"} for name in ("gone.png", "lost.png")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"(?s)gone\.png.*lost\.png"):
        VqaTask(data=str(tmp_path / "rows.json"))


def test_shuffling_gives_no_row_its_own_picture_back() -> None:
    shown = [["a"], ["a"], ["a"], ["b"], ["b"], ["c"], [], ["x", "y"], ["z", "w"]]
    shuffled, kept = shuffle_pictures(shown, seed=3)
    assert [len(pictures) for pictures in shuffled] == [len(pictures) for pictures in shown]
    assert all(old != new for old, new in zip(shown, shuffled, strict=True) if old)
    assert sorted(map(str, shuffled)) == sorted(map(str, shown)), "the pictures shown must stay the same ones"
    assert kept == {6} and shuffled == shuffle_pictures(shown, seed=3)[0]
    assert shuffle_pictures([["a"], ["a"]], seed=0)[1] == {0, 1}
    assert shuffle_pictures([["a", "b"], ["b", "a"]], seed=0)[1] == {0, 1}, "its own pictures in another order"


def test_a_copy_of_a_picture_is_the_same_picture(tmp_path: Path) -> None:
    for name, level in (("one.png", 0), ("copy.png", 0), ("other.png", 9)):
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / name)
    assert shuffle_pictures([[tmp_path / "one.png"], [tmp_path / "copy.png"]], seed=0)[1] == {0, 1}
    assert shuffle_pictures([[tmp_path / "one.png"], [tmp_path / "other.png"]], seed=0)[1] == set()


def test_equal_pixels_are_the_same_picture(picture: Any) -> None:
    shown = [[picture(0)], [picture(0)], [picture(1)], [picture(2)]]
    assert shuffle_pictures(shown, seed=0)[1] == set()


def test_other_pictures_leave_the_words_alone() -> None:
    parts = [{"type": "text", "text": "t"}, {"type": "image", "image": "a"}]
    messages = [{"role": "user", "content": parts}]
    swapped = with_images(messages, ["b"])
    assert images_of(swapped) == ["b"] and images_of(messages) == ["a"]
    assert text_of(swapped[0]) == "t"


def test_videos_are_shuffled_as_pictures_are() -> None:
    rows = [[{"type": "video", "video": "a.gif", "frames": 2}], [{"type": "video", "video": b"GIF"}],
            [{"type": "image", "image": "a.gif"}]]  # fmt: skip
    conversations = [[{"role": "user", "content": [*parts, {"type": "text", "text": "t"}]}] for parts in rows]
    shuffled, kept = shuffle_pictures([images_of(messages) for messages in conversations], seed=0)
    swapped = [with_images(messages, shown) for messages, shown in zip(conversations, shuffled, strict=True)]
    assert kept == set() and all(messages[0]["content"][1]["text"] == "t" for messages in swapped)
    parts = [messages[0]["content"][0] for messages in swapped]
    assert all(part != before[0] for part, before in zip(parts, rows, strict=True))
    assert sorted(map(str, parts)) == sorted(str(before[0]) for before in rows)


def test_a_question_the_model_refuses_costs_only_itself(data: str) -> None:
    def refuse(messages: list[dict[str, Any]]) -> str:
        if images_of(messages) and brightness(messages) == "60":
            raise VLChatError("too long: 10 tokens, 5 allowed")
        return "yes"

    result = evaluate(Scripted(refuse), VqaTask(data=data), progress=False)
    assert result.counts["unanswered"] == 2
    assert result.table.slices["answer_type"]["closed"]["accuracy"].value == 3 / 4
    assert result.rows[3]["error"] == "too long: 10 tokens, 5 allowed"
    assert "2 questions got no reply" in terminal(result)

    rows = [{"question": "x", "answers": [letter] * 10} for letter in "AB"]  # of "A" the normalisation leaves nothing
    Path(data).with_name("letters.json").write_text(json.dumps(rows))
    letters = VqaTask(data=str(Path(data).with_name("letters.json")))

    def refuse_first(messages: list[dict[str, Any]]) -> str:
        refuse_first.asked += 1  # type: ignore[attr-defined]
        if refuse_first.asked < 3:  # type: ignore[attr-defined]
            raise VLChatError("no")
        return "B"

    refuse_first.asked = 0  # type: ignore[attr-defined]
    assert [row["score"] for row in evaluate(Scripted(refuse_first), letters, progress=False).rows] == [0.0, 1.0]

    def refuse_all(messages: list[dict[str, Any]]) -> str:
        raise VLChatError("no")

    with pytest.raises(VLChatError, match="none of the 8 questions"):
        evaluate(Scripted(refuse_all), VqaTask(data=data), progress=False)


def test_a_result_says_how_it_came_about(data: str, tmp_path: Path) -> None:
    task = VqaTask(data=data, floor=data)
    result = evaluate(Scripted(brightness), task, controls=["none", "shuffled"], seed=5, progress=False)
    folder = save(result, tmp_path / "out")
    written = json.loads((folder / "result.json").read_text())
    assert written["protocol"].startswith("vlchat-vqa-1")
    assert written["model"]["name"] == "scripted"
    assert written["data"]["path"] == data and len(written["data"]["sha256"]) == 64
    assert written["settings"]["seed"] == 5 and written["settings"]["decoding"] == "greedy"
    assert {"vlchat", "torch", "transformers", "python"} <= set(written["versions"])
    overall = written["overall"]["accuracy"]
    assert overall["rows"] == 8 and overall["low"] <= overall["value"] <= overall["high"]
    assert written["floor"]["overall"]["accuracy"]["rows"] == written["controls"]["shuffled"]["rows"] == 8
    assert written["slices"]["answer_type"]["open"]["accuracy"]["value"] == 1.0
    assert len((folder / "replies.jsonl").read_text().splitlines()) == 8
    assert load(folder) == (written, json.loads(json.dumps(result.rows)))
    for text in (terminal(result), (folder / "result.md").read_text()):
        for words in ("scripted", "vlchat-vqa-1", "open", "closed", "overall", "none", "shuffled", "floor"):
            assert words in text
        assert "95 % interval" in text and "looks at the picture" in text
    assert markdown(result).count("|\n") >= 5


def test_an_option_of_the_other_task_and_a_missing_one_are_told() -> None:
    with pytest.raises(ConfigError, match='"scenes" has no option "data"; the tasks vqa, .* have'):
        make_task("scenes", data="rows.json")
    with pytest.raises(ConfigError, match='"vqa" needs data: --data on the command line'):
        make_task("vqa")


@pytest.mark.parametrize("name", TASKS)
def test_unknown_tasks_and_options_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f'The task "{name}" has no option "colour"'):
        make_task(name, colour="red")
    with pytest.raises(ConfigError, match=f'Did you mean "{name}"'):
        make_task(name[:-1])


def test_a_real_model_answers_the_same_in_any_batch(data: str, tiny_model: Any, tiny_processor: Any) -> None:
    chat = Chat(tiny_model(), tiny_processor, {"name": "tiny"})
    task = VqaTask(data=data)
    results = [
        evaluate(chat, task, controls=list(CONTROLS), batch_size=size, max_new_tokens=5, progress=False)
        for size in (1, 8)
    ]
    for one, other in zip(results[0].rows, results[1].rows, strict=True):
        assert one.pop("confidence") == pytest.approx(other.pop("confidence"), rel=1e-4)
        assert one == other


def test_transformers_own_model_is_evaluated_too(
    data: str, tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from vlchat.processor import TEMPLATES
    from vlchat.towers import clip_image_processor

    config = LlavaConfig(
        vision_config=tiny_clip.config,
        text_config=tiny_llama.config,
        image_token_id=tiny_tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = LlavaProcessor(
        image_processor=clip_image_processor(24),
        tokenizer=tiny_tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(TEMPLATES / "chatml.jinja").read_text(),
    )
    chat = Chat(LlavaForConditionalGeneration(config).eval(), processor, {"name": "llava"})
    result = evaluate(chat, VqaTask(data=data), controls=["blurred"], max_new_tokens=3, progress=False)
    assert result.counts["questions"] == result.controls["blurred"].rows == 8 and result.counts["unanswered"] == 0


def test_the_command_runs_on_a_saved_folder(data: str, tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    options: dict[str, Any] = {"data": data, "limit": 4, "cache": tmp_path / "cache"}
    result = run(
        tmp_path / "model", "vqa", max_new_tokens=3, loading={"device": "cpu"}, progress=False, **options
    )
    assert result.task == "vqa" and result.counts["questions"] == 4
    assert result.settings["model"] == str(tmp_path / "model")


def test_scenes_score_right_answers_right(tmp_path: Path) -> None:
    scenes = pytest.importorskip("vlchat.scenes")
    try:
        task = make_task("scenes", questions=26, seed=1)
        items = task.items()
    except VLChatError as error:
        pytest.skip(f"the drawn world needs its font: {error}")

    def seen(messages: list[dict[str, Any]]) -> Any:
        return [text_of(m) for m in messages], [image.tobytes() for image in images_of(messages)]

    chat = Scripted(lambda messages: next(i.reference for i in items if seen(i.messages) == seen(messages)))
    result = evaluate(chat, task, progress=False)
    assert result.headline.value == 1.0
    by_kind = result.table.slices["kind"]
    assert {kind: found["right"].rows for kind, found in by_kind.items()} == dict.fromkeys(scenes.KINDS, 2)
    assert evaluate(Scripted(lambda _: "Hm."), task, progress=False).headline.value < 0.2
