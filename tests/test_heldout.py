"""Held-out rows: which they are, what a look at them finds, and that looking changes nothing."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from alignments import objective, write_backbones
from PIL import Image
from processes import together
from safetensors.torch import load_file
from tiny_runs import logged, squares, train
from torch.nn import functional

from train.config import HeldoutConfig, RunConfig, load_runs
from train.heldout import Heldout, hold_out, split
from train.ranks import world_size
from train.scores import Figure, averages, chosen, look, pieces, unmoved
from train.sources import open_data
from train.tune import TuneObjective
from vlchat import checkpoint, evaluate, runs
from vlchat.data import Mixture, Source, inspect
from vlchat.data.collate import decode_images
from vlchat.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parent.parent


def ids(rows: Any) -> set[str]:
    return {rows[index].called for index in range(len(rows))}


# -- which rows


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_one_picture_stay_on_one_side_whatever_source_shows_them(tmp_path: Path, seed: int) -> None:
    one = squares(tmp_path / "one", pictures=20)
    rows = json.loads(one.read_text())
    # The same files again, from another folder, by other spellings of their names.
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "images").symlink_to(tmp_path / "one")
    again = [{**row, "id": f"again-{row['id']}", "image": f"./{row['image']}"} for row in rows[:20]]
    (tmp_path / "two" / "data.json").write_text(json.dumps(again))
    sources = [{"path": str(one)}, {"path": str(tmp_path / "two" / "data.json"), "images": str(tmp_path / "one")}]
    training, held = split(open_data(sources, 0), HeldoutConfig(rows=12), seed)
    shown = {Path(picture).resolve() for example in held for picture in example.images}
    kept = {Path(p).resolve() for source in training.sources for i in range(len(source)) for p in source[i].images}
    assert 1 <= len(held) <= 12 and len(held) + sum(map(len, training.sources)) == 60
    assert shown and not shown & kept


def test_a_chain_of_pictures_holds_its_rows_together() -> None:
    def row(*pictures: str) -> dict[str, Any]:
        content = [{"type": "image", "image": Image.new("RGB", (4, 4), name)} for name in pictures]
        turns = [{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}]
        return {"messages": [*turns, {"role": "assistant", "content": "!"}]}

    rows = [row("red", "blue"), row("blue", "lime"), row("lime", "red"), row("black"), row("black"), row("white")]
    for seed in range(20):
        _, held = split(Mixture([Source(rows)]), HeldoutConfig(rows=3), seed)
        found = {example.id for example in held}
        assert found in ({"#1", "#2", "#3"}, {"#4", "#5", "#6"}), found


def test_the_side_of_a_row_depends_on_the_seed_and_the_row_alone(tmp_path: Path) -> None:
    few, more = squares(tmp_path / "few", 30), squares(tmp_path / "more", 33)
    of = {}
    for path, seed in ((few, 1), (few, 2), (more, 1)):
        _, held = split(open_data([{"path": str(path)}], 9), HeldoutConfig(share=0.2), seed)
        of[path, seed] = {example.id for example in held}
    assert of[few, 1] != of[few, 2] and len(of[few, 1]) == 12
    assert len(of[few, 1] - of[more, 1]) <= 2, "new rows at the end move hardly any"


def test_a_source_of_more_weight_gives_more_of_its_rows(tmp_path: Path) -> None:
    sources = [{"path": str(squares(tmp_path / "a", 200))}, {"path": str(squares(tmp_path / "b", 200)), "weight": 3.0}]
    mixture = open_data(sources, 0)
    training, held = split(mixture, HeldoutConfig(rows=80), 0)
    from_b = sum("/b/" in str(example.images[0]) for example in held)
    assert 48 <= from_b <= 72  # 60 expected, standard deviation 4
    shares = [count / len(source) for count, source in zip(training.counts, training.sources, strict=True)]
    assert shares == pytest.approx([1.0, 3.0])


def test_held_out_rows_are_never_trained_on(model: Path, data: Path) -> None:
    objective = TuneObjective([{"path": str(data)}], str(model), seed=3)
    everything = ids(objective.mixture)
    heldout = hold_out(objective, RunConfig("run", {}, heldout=HeldoutConfig(rows=4), seed=3))
    assert heldout is not None and len(heldout) == 4 and len(objective.mixture) == 12
    shown = {name for step in range(12) for name in objective.batch(range(step * 5, step * 5 + 5))["ids"]}
    assert shown == everything - ids(heldout.examples)


def test_rows_that_were_left_out_before_hide_no_shared_picture(tmp_path: Path) -> None:
    file = squares(tmp_path / "data", 10)
    rows = json.loads(file.read_text())
    rows[4]["answer"] = rows[5]["answer"] = ""  # all of one picture's
    file.write_text(json.dumps(rows))
    mixture = open_data([{"path": str(file)}], 0)
    usable = inspect(mixture, max_bad=2).keep(mixture)
    assert len(usable) == 18
    sides = []
    for rows_of in (usable, mixture):
        training, held = split(rows_of, HeldoutConfig(rows=6), 0)
        shown = {str(picture) for example in held for picture in example.images}
        kept = {str(p) for source in training.sources for i in range(len(source)) for p in source[i].images}
        assert len(held) == 6 and not shown & kept
        sides.append({example.id for example in held})
    assert sides[1] - {"colour-2", "red-2"} <= sides[0], "a row's side does not depend on the others"


def test_held_out_rows_that_tell_their_faults_late_are_left_out(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = squares(tmp_path / "own", 3, first=50)
    rows = json.loads(own.read_text())
    rows[2]["answer"] = "far too long " * 200
    own.write_text(json.dumps(rows))
    keys: dict[str, Any] = {"heldout": {"data": [{"path": str(own)}], "every": 2, "tokens": 2}}
    run = train(tmp_path / "run", model, data, "objective.max_length=60", **keys)
    told = capsys.readouterr().out
    assert told.count("Left out of the held-out rows: ") == 1 and 'id "colour-51"' in told
    assert len(logged(run, "heldout_loss")) == 3
    own.write_text(json.dumps([rows[2]]))
    with pytest.raises(DataError, match='No held-out row can be used. The first: .*"colour-51"'):
        train(tmp_path / "other", model, data, "objective.max_length=60", **keys)


def test_drawn_rows_are_held_out_without_drawing_them_all() -> None:
    mixture = open_data([{"type": "scenes", "ask": "captions", "rows": 100_000}], 0)
    training, held = split(mixture, HeldoutConfig(rows=3), 0)
    assert len(held) == 3 and len(training) == 99_997


def test_what_cannot_be_held_out_is_refused(tmp_path: Path, data: Path, model: Path) -> None:
    mixture = open_data([{"path": str(data)}], 0)
    with pytest.raises(ConfigError, match="heldout.rows asks for 16 rows, and the training data has 16"):
        split(mixture, HeldoutConfig(rows=16), 0)
    rows = [{**row, "image": "square-0.png"} for row in json.loads(data.read_text())]
    (data.parent / "one.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match="heldout.rows: no 4 rows can be held out"):
        split(open_data([{"path": str(data.parent / "one.json")}], 0), HeldoutConfig(rows=4), 0)

    class Drawn:
        name = "clip"

    with pytest.raises(ConfigError, match="heldout: clip draws its rows as it goes"):
        hold_out(Drawn(), RunConfig("run", {}, heldout=HeldoutConfig(rows=4)))


def test_pictures_of_own_rows_that_are_trained_on_are_counted(data: Path, model: Path) -> None:
    objective = TuneObjective([{"path": str(data)}], str(model))
    (data.parent / "own.json").write_text(json.dumps(json.loads(data.read_text())[2:5]))
    wanted = HeldoutConfig(data=[{"path": str(data.parent / "own.json")}])
    own = hold_out(objective, RunConfig("run", {}, heldout=wanted))
    assert own is not None and len(own) == 3 and len(objective.mixture) == 16
    assert own.origin == "own.json; 2 of their pictures are trained on as well, so the scores flatter"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rows": 3, "share": 0.1}, "heldout.rows and heldout.share both say what is held out"),
        ({"share": 1.0}, "heldout.share must lie between 0 and 1, not 1"),
        ({"rows": 3, "every": 0}, "heldout.every must be at least 1, not 0"),
        ({"rows": 3, "least": -1.0}, "heldout.least must be at least 0, not -1"),
        ({"patience": 2}, "heldout.patience needs rows to look at"),
        ({"row": 2}, 'Unknown key "row" in .*heldout. Did you mean "rows"?'),
    ],
)
def test_a_held_out_part_that_makes_no_sense_is_refused(tmp_path: Path, keys: dict, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"run": "run", "objective": {"type": "tune"}, "heldout": keys}))
    with pytest.raises(ConfigError, match=message):
        load_runs(file)


# -- what a look finds


def test_the_loss_is_that_of_each_token_of_all_rows_alone(model: Path, data: Path) -> None:
    rows = json.loads(data.read_text())
    rows[0]["answer"] = "a much longer answer than all the others have, so that rows weigh by their tokens"
    data.write_text(json.dumps(rows))
    objective = TuneObjective([{"path": str(data)}], str(model))
    source = objective.mixture.sources[0]
    heldout = Heldout([source[index] for index in range(7)], "")
    total, count = 0.0, 0
    plain, processor = checkpoint.load(model)
    for example in heldout.examples:  # in float64, each row by itself, from the logits
        inputs = processor.apply_chat_template(
            decode_images(example.messages, ""),
            tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True,
        )  # fmt: skip
        mask = inputs.pop("assistant_masks")[0, 1:].bool()
        with torch.no_grad():
            logits = plain(**inputs).logits[0, :-1].double()
        chosen_ones = functional.log_softmax(logits, -1)[torch.arange(len(mask)), inputs["input_ids"][0, 1:]]
        total, count = total - chosen_ones[mask].sum().item(), count + int(mask.sum())
    for batch in (1, 3, 16):
        found = look(objective, heldout, Accelerator(cpu=True), batch=batch, generate=0, tokens=2)
        assert found.scores["loss"] == pytest.approx(total / count, rel=1e-5)
        assert found.losses >= {"loss"} and not found.answers


def test_terms_are_weighted_sums_over_counts_and_figures_count_for_nothing() -> None:
    figures = [Figure(0, "itg", 6.0, 3.0, 1.0), Figure(0, "itc", 1.0, 2.0, 0.5)]
    figures += [Figure(2, "itg", 4.0, 2.0, 1.0), Figure(2, "hits", 1.0, 4.0, 0.0)]
    found = averages(figures)
    assert found.scores == pytest.approx({"loss": 2.0 + 0.5 * 0.5, "itg": 2.0, "itc": 0.5, "hits": 0.25})
    assert found.losses == {"loss", "itg", "itc"}


def test_pieces_cover_all_rows_and_none_is_alone() -> None:
    for rows in range(2, 60):
        found = pieces(rows, 8)
        assert [row for piece in found for row in piece] == list(range(rows))
        assert all(2 <= len(piece) <= 8 for piece in found)


def test_written_answers_are_scored_as_vlchat_eval_scores_them(model: Path, data: Path, tmp_path: Path) -> None:
    rows = json.loads(data.read_text())
    rows[3]["answers"] = ["no"] * 7 + ["yes"] * 3  # ten people's: soft accuracy
    data.write_text(json.dumps(rows))
    own = tmp_path / "data" / "own.json"
    own.write_text(json.dumps(rows[1:9]))
    run = train(tmp_path / "run", model, data, heldout={"data": [{"path": str(own)}], "every": 2, "tokens": 5})
    for step in (2, 4):
        told = evaluate.run(run / f"step-{step}", "vqa", data=str(own), max_new_tokens=5, progress=False)
        printed = [line for line in runs.lines(run / runs.SAMPLES) if line["step"] == step]
        assert [line["reply"] for line in printed] == [entry["reply"][0] for entry in told.rows][: len(printed)]
        soft = [entry["score"] for entry in told.rows if entry["id"] == rows[3]["id"]]
        assert logged(run, "heldout_score")[step] == pytest.approx(sum(soft) / len(soft))
    assert len(printed) == 4 and {"id", "question", "reply", "reference", "exact"} <= printed[0].keys()


def test_the_rows_that_are_answered_are_the_same_at_every_look() -> None:
    rows: Any = list(range(1000))
    assert chosen(rows[:9], 9) == chosen(rows[:9], 99) == rows[:9]
    some: Any = chosen(rows, 50)
    assert some == chosen(rows, 50) and len(set(some)) == 50 and some != rows[::20]


# -- looking changes nothing


def test_a_run_that_is_looked_at_ends_with_the_same_bits(model: Path, data: Path, tmp_path: Path) -> None:
    own = squares(tmp_path / "own", 4, first=50)
    plain = train(tmp_path / "plain", model, data)
    seen = train(
        tmp_path / "seen", model, data, heldout={"data": [{"path": str(own)}], "every": 1, "generate": 3, "tokens": 3},
        loop={"sample_every": 1},
    )  # fmt: skip
    assert len(logged(seen, "heldout_loss")) == 5 and not logged(plain, "heldout_loss")
    for part in ("trained", "optimizer"):
        one, two = (load_file(run / "step-4" / "training_state" / f"{part}.safetensors") for run in (plain, seen))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one), part
    one, two = (json.loads((run / "step-4" / "training_state" / "progress.json").read_text()) for run in (plain, seen))
    assert one["random"] == two["random"]
    assert logged(plain, "loss") == logged(seen, "loss")


def test_modes_and_gradients_are_put_back_even_after_an_error() -> None:
    layers = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2).eval())
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), unmoved(layers):
        assert not layers[0].training and not torch.is_grad_enabled()
        torch.rand(3)
        raise ZeroDivisionError
    assert layers[0].training and not layers[1].training and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


def _looked(folder: str, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    made = objective(Path(folder), "mlp", itc=1.0)
    heldout = Heldout(list(made.mixture.sources[0]), "")
    assert world_size() == ranks
    found = look(made, heldout, Accelerator(cpu=True), batch=3, generate=3, tokens=2)
    assert found.losses == {"loss", "itg", "itc"} and len(found.answers) == 3
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.scores.items()}


def test_rows_that_are_compared_with_each_other_are_looked_at_by_two_processes_as_by_one(
    tmp_path: Path, tiny_clip: Any, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    write_backbones(tmp_path, tiny_clip, tiny_llama, tiny_tokenizer)
    one = _looked(str(tmp_path), 0, 1)
    two = together(partial(_looked, str(tmp_path)), 2, tmp_path)  # three pieces: one process has more of them
    for found in two:
        assert found.keys() == one.keys()
        assert all(found[name].item() == pytest.approx(one[name].item(), rel=1e-9) for name in one)


def test_two_processes_find_what_one_finds(model: Path, data: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"heldout": {"rows": 6, "every": 2, "batch": 2, "tokens": 3}, "seed": 1}
    one = train(tmp_path / "one", model, data, **keys)
    (tmp_path / "two.yaml").write_text((tmp_path / "one.yaml").read_text().replace(str(one), str(tmp_path / "two")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [*command, "-m", "train", str(tmp_path / "two.yaml")], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, both = (
        [line for line in runs.lines(run / runs.METRICS) if "heldout_loss" in line] for run in (one, tmp_path / "two")
    )
    assert len(both) == len(first) == 3
    assert both[0] == first[0], "before training, to the last digit"
    assert both[-1]["heldout_loss"] == pytest.approx(first[-1]["heldout_loss"], rel=0.2)  # other dropout
    assert done.stdout.count("step 0  heldout_loss") == 1
