"""`vlchat compare`: what is refused, what is paired, what is told, and that the figures are those of the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored import questions, saved
from stored import PROMPTS, result_of, stored

from vlchat.cli import main
from vlchat.errors import VLChatError
from vlchat.evaluate import certificate
from vlchat.evaluate.comparison import compare, compare_suites, raised, verdict
from vlchat.evaluate.measures import mean_of
from vlchat.evaluate.statistics import difference, holm
from vlchat.evaluate.stored import read_result, read_results

BEFORE = [1.0, 0.0] * 40
AFTER = [1.0, 1.0] * 30 + [0.0, 0.0] * 10  # 30 rows gained, 10 lost: 50 % to 75 %
COIN = [float(value) for value in np.random.default_rng(0).integers(0, 2, 80)]


def test_two_models_are_compared_from_their_folders(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = questions(tmp_path / "data", 12)
    for name in ("a", "b"):
        folder = saved(tmp_path / name, tiny_model(), tiny_processor)
        asked = ["eval", str(folder), "--data", str(data), "--no-controls", "--max-new-tokens", "3", "--no-cache"]
        assert main([*asked, "--out", str(tmp_path / f"scores-{name}")]) == 0
    changed = tmp_path / "scores-b" / "replies.jsonl"  # what a better model would have written
    rows = [json.loads(line) for line in changed.read_text().splitlines()]
    for row in rows[:6]:
        row |= {"reply": [row["reference"]], "answer": row["reference"], "score": 1.0}
        row["stats"]["score"] = 1.0
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    both = ["compare", str(tmp_path / "scores-a"), str(tmp_path / "scores-b")]
    assert main(both) == 2
    assert "replies.jsonl gives accuracy 0.5, and result.json states 0.0" in capsys.readouterr().err
    result = json.loads((tmp_path / "scores-b" / "result.json").read_text())
    result["overall"]["accuracy"]["value"] = 0.5
    first = float(np.mean([row["stats"]["first word"] for row in rows if "first word" in row["stats"]]))
    result["overall"]["yes/no, by first word"]["value"] = first
    (tmp_path / "scores-b" / "result.json").write_text(json.dumps(result))
    assert main([*both, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "accuracy goes from 0.0 % to 50.0 %, +50.0 points" in told
    assert "Gained (scored higher), 5 of 6:" in told and "q0: What open 0?" in told
    written = json.loads((tmp_path / "out" / "compare.json").read_text())["tasks"]["vqa"]
    assert [row["id"] for row in written["gained"]] == [f"q{number}" for number in range(6)] and not written["lost"]
    assert (tmp_path / "out" / "compare.md").read_text().count("| q5 |") == 1
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("data:image/jpeg") == 6, "the data lie where they lay, so the rows are shown with their pictures"


def test_the_figures_are_those_of_the_rows() -> None:
    found = compare(result_of(BEFORE), result_of(AFTER))
    (change, *_) = found.changes
    sides = [[{"score": score} for score in scores] for scores in (BEFORE, AFTER)]
    assert change.difference == difference(mean_of("score", "accuracy"), *sides, [f"p{row // 2}" for row in range(80)])
    assert (change.before.value, change.after.value, change.difference.value) == (0.5, 0.75, 0.25)
    assert found.counts == {"gained": 30, "lost": 10, "both right": 30, "both wrong": 10}
    assert found.gained[:3] == [1, 3, 5] and found.lost[:3] == [60, 62, 64]
    assert change.told and change.better and change.verdict == "better"
    assert found.verdict.startswith("Better: accuracy goes from 50.0 % to 75.0 %, +25.0 points (95 % interval ")
    assert "McNemar's p = 0.002" in found.verdict
    back = compare(result_of(AFTER), result_of(BEFORE)).verdict
    assert back.startswith("Worse: accuracy goes from 75.0 % to 50.0 %, -25.0 points")


def test_slices_allow_for_each_other() -> None:
    found = compare(result_of(BEFORE), result_of(AFTER))
    changes = {change.name: change for change in found.slices["kind"]}
    assert changes["odd"].difference.value == 0.75 and changes["even"].difference.value == -0.25
    alone = [changes[name].difference.p for name in ("even", "odd")]
    assert [changes[name].p for name in ("even", "odd")] == holm(alone)
    assert changes["even"].p > changes["even"].difference.p or changes["odd"].p > changes["odd"].difference.p
    many = raised([changes["even"]] * 30)
    assert many[0].p == 30 * changes["even"].difference.p and not many[0].told and changes["even"].told


def test_what_cannot_be_told_says_what_would() -> None:
    after = [1 - score if number < 3 else score for number, score in enumerate(COIN)]
    found = compare(result_of(COIN), result_of(after))
    gap = found.changes[0].difference
    assert found.changes[0].verdict == "cannot be told" and gap.value != 0
    assert found.verdict.startswith("It cannot be told whether it is better: accuracy goes from ")
    assert f"a difference under {100 * gap.detectable:.1f} points is missed" in found.verdict
    needed = gap.rows_needed()
    assert needed is not None and needed > 80
    said = int(found.verdict.split("it takes about ")[1].split(" rows")[0].replace(",", ""))
    assert needed <= said < 1.1 * needed + 1
    same = compare(result_of(COIN), result_of(COIN))
    assert same.verdict.startswith("It cannot be told") and "+0.0 points" in same.verdict
    errors = mean_of("score", "error rate", better="lower")
    lower = compare(result_of(AFTER, measures=[errors]), result_of(BEFORE, measures=[errors]))
    assert verdict(lower.changes[0]).startswith("Better: error rate goes from 75.0 % to 50.0 %, -25.0 points")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"protocol": "another"}, 'the protocol is "a protocol" in the one and "another" in the other'),
        ({"data": {"path": "x", "sha256": "ee"}}, 'data.sha256 is "dd" in the one and "ee" in the other'),
        ({"data": {"sha256": "dd", "limit": 5}}, 'data.limit is missing in the one and "5" in the other'),
        ({"prompts": PROMPTS | {"words": "cc", "first": "user: Why?"}}, 'prompts.words is "user: What?" in the one'),
        ({"prompts": PROMPTS | {"pictures": "cc"}}, 'prompts.pictures is "bb" in the one and "cc" in the other'),
        ({"rows": result_of([1.0, 0.0, 1.0]).rows[::-1]}, 'the id of row 1 is "r0" in the one and "r2" in the other'),
        ({"rows": result_of([1.0, 0.0]).rows}, 'the number of rows is "3" in the one and "2" in the other'),
    ],
)
def test_what_is_not_the_same_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path / "a", [1.0, 0.0, 1.0])
    stored(tmp_path / "b", [1.0, 0.0, 1.0], **changes)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'a'} and {tmp_path / 'b'} cannot be compared: {told}" in error
    stored(tmp_path / "c", [1.0, 0.0, 1.0], data={"path": "elsewhere", "sha256": "dd", "floor": {"sha256": "ff"}})
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 0, "where the file lies does not matter"


def test_what_differs_in_models_and_settings_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(tmp_path / "a", BEFORE)
    settings = result_of([]).settings | {"batch_size": 7, "control_rows": 9}
    stored(tmp_path / "b", AFTER, model={"name": "n", "weights": "v" * 64}, settings=settings)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    assert f"model: name: m -> n\nmodel: weights: {'w' * 12} -> {'v' * 12}\nsettings: batch_size: 2 -> 7" in told
    assert "control_rows" not in told


def suite(folder: Path, **scores: list[float]) -> Path:
    for name, values in scores.items():
        stored(folder / name, values)
    return folder


def test_suites_are_paired_by_name_and_what_was_forgotten_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite(tmp_path / "a", mine=BEFORE, other=[1.0] * 8 + [0.0] * 4, gone=BEFORE)
    suite(tmp_path / "b", mine=AFTER, other=[1.0] * 6 + [0.4] * 2 + [1.0] + [0.0] * 3, new=AFTER)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["notes"][:2] == [f"Only in {tmp_path / 'a'}: gone.", f"Only in {tmp_path / 'b'}: new."]
    assert "every task but the first, mine" in found["notes"][2]
    assert list(found["tasks"]) == ["mine", "other"] and found["tasks"]["other"]["replay"]
    lost = found["forgotten"]
    assert (lost["tasks"], lost["known"], lost["lost"], lost["unknown"], lost["learned"]) == (["other"], 8, 2, 4, 1)
    assert lost["share"]["value"] == 0.25 and lost["share"]["low"] < 0.25 < lost["share"]["high"]
    assert "of 8 rows of other that were right before, 2 are wrong after (25.0 %, 95 % interval" in lost["sentence"]
    headlines = [found["tasks"][name]["measures"][0] for name in ("mine", "other")]
    assert [one["p"] for one in headlines] == holm([one["difference"]["p"] for one in headlines])
    (tmp_path / "a" / "suite.json").write_text('{"tasks": ["other", "mine", "gone"]}')
    results = [read_results(tmp_path / name) for name in ("a", "b")]
    assert list(results[0]) == ["other", "mine", "gone"]
    by_order = compare_suites(*results)
    assert by_order.forgotten is not None and by_order.forgotten.tasks == ["mine"]
    by_name = compare_suites(*results, replay=["other", "mine"])
    assert by_name.forgotten is not None and by_name.forgotten.known == 48 and by_name.forgotten.lost == 12
    with pytest.raises(VLChatError, match='no task "scenes" in both to replay; they share other and mine'):
        compare_suites(*results, replay=["scenes"])
    with pytest.raises(VLChatError, match="No task is in both: the first has gone, the second has new"):
        compare_suites({"gone": results[0]["gone"]}, {"new": results[1]["new"]})


def test_a_task_called_replay_is_one(tmp_path: Path) -> None:
    one, two = result_of(BEFORE), result_of(AFTER)
    found = compare_suites({"a": one, "b": one, "my replay": one}, {"a": two, "b": two, "my replay": two})
    assert [part.replay for part in found.parts] == [False, False, True] and not found.notes
    single = compare_suites({"vqa": one}, {"vqa": two})
    assert single.forgotten is None


def test_a_suite_notes_the_order_of_its_tasks(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> None:
    model, data = saved(tmp_path / "m", tiny_model(), tiny_processor), questions(tmp_path / "data", 4)
    entries = [{"task": "vqa", "name": name, "data": str(data), "max_new_tokens": 2} for name in ("zebra", "ape")]
    (tmp_path / "suite.yaml").write_text(json.dumps({"controls": [], "tasks": entries}))
    asked = ["eval", str(model), "--suite", str(tmp_path / "suite.yaml"), "--no-cache"]
    assert main([*asked, "--out", str(tmp_path / "out")]) == 0
    assert list(read_results(tmp_path / "out")) == ["zebra", "ape"]


def test_measures_that_depend_on_the_data_fall_back_to_the_rows(tmp_path: Path) -> None:
    named = [mean_of("right", "right in conversation")]
    stored(tmp_path / "a", BEFORE, "conversation", measures=named)
    found = read_result(tmp_path / "a")
    assert [one.name for one in found.measures] == ["mean score of the rows"]
    assert found.headline.value == 0.5 and "are not at hand" in found.notes[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere", "b"], "There is no folder nowhere"),
        (["b", "empty"], "empty holds no result of `vlchat eval --out`"),
        (["b"], "takes two folders, BEFORE and AFTER"),
        (["b", "bad"], "holds a damaged result (KeyError"),
        (["b,c", "--out", "x"], "leave --out and --replay out"),
    ],
)
def test_mistakes_are_sentences(
    tmp_path: Path, arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    stored(tmp_path / "b", BEFORE)
    bad = stored(tmp_path / "bad", BEFORE) / "result.json"
    bad.write_text(json.dumps({name: part for name, part in json.loads(bad.read_text()).items() if name != "model"}))
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and "Traceback" not in error


def test_a_parser_that_has_changed_between_two_results_is_told(
    tmp_path: Path, tiny_model: Any, tiny_processor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = saved(tmp_path / "m", tiny_model(), tiny_processor), questions(tmp_path / "data", 4)
    asked = ["eval", str(model), "--data", str(data), "--no-controls", "--no-cache", "--max-new-tokens", "2"]
    for name in ("a", "b"):
        assert main([*asked, "--out", str(tmp_path / name)]) == 0
    path = tmp_path / "b" / certificate.FILE
    content = json.loads(path.read_text()) | {"parser": "0123456789abcdef"}
    del content["sha256"]
    path.write_text(json.dumps(content | {"sha256": certificate._digest(content)}))
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    assert "versions: parser: " in told and "-> 0123456789ab" in told
