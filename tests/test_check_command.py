"""`vlchat check` as people type it: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlchat.cli import main
from vlchat.data import SourceConfig, check
from vlchat.data.histograms import Histogram

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path: Path, picture: Any) -> list[dict[str, Any]]:
    """Of four rows the second and the last cannot be used."""
    picture(0, (40, 30)).save(tmp_path / "a.png")
    return [
        {"id": 1, "image": "a.png", "question": "What is it?", "answer": "a “cat”"},
        {"id": 2, "image": "none.png", "question": "What?", "answer": "a cat"},
        {"id": 3, "image": "a.png", "question": "How\nmany, then?", "answer": "two"},
        {"id": 1, "image": "a.png", "question": "Why?", "answer": "so"},
    ]


@pytest.fixture
def data(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path / "rows.json"


def test_what_is_wrong_stands_at_the_end_with_what_to_do(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data)]) == 1
    told = capsys.readouterr().out
    assert told.startswith("rows.json: 4 rows, 4 images in 1 file, 0 rows without an image, 4 answers; format vqa (4)")
    assert "words of an answer: 1 to 2" in told and "2 rows of 4 cannot be used:" in told
    assert 'row 2 (id "2"), image: "none.png" was not found' in told and "row 1 has the same id" in told
    assert f"looked for in {data.parent}." in told and "--images FOLDER" in told.splitlines()[-1]
    assert main(["check", str(data), "--limit", "1", "--no-decode"]) == 0
    assert capsys.readouterr().out.endswith("\nEvery row can be used.\n")


def test_json_is_all_that_is_printed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data), "--json", "--quarantine", str(tmp_path / "q.jsonl")]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["bad_rows"] == 2 and report["kinds"] == {"missing_file": 1, "duplicate_id": 1}
    assert report["bad"][0]["row"] == 2 and report["missing"] == ["none.png"]
    assert {bar["values"]: bar["count"] for bar in report["histograms"][0]["bars"]} == {"1": 2, "2": 2}


def test_the_quarantine_file_follows_the_data(data: Path, tmp_path: Path, picture: Any) -> None:
    quarantine = tmp_path / "quarantine.jsonl"
    assert main(["check", str(data), "--quarantine", str(quarantine)]) == 1
    listed = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [(one["row"], one["id"], one["field"], one["kind"]) for one in listed] == [
        (2, "2", "image", "missing_file"), (4, "1", "id", "duplicate_id"),
    ]  # fmt: skip
    picture(3).save(tmp_path / "none.png")
    assert main(["check", str(data), "--quarantine", str(quarantine)]) == 1
    assert [json.loads(line)["row"] for line in quarantine.read_text().splitlines()] == [4], "mended rows are gone"


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_a_clean_copy_holds_the_rows_that_can_be_used(
    tmp_path: Path, rows: list[dict[str, Any]], suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, clean = tmp_path / f"rows{suffix}", tmp_path / f"clean{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row, separators=(", ", ":")) for row in rows) + "\n")
    else:
        lines = [f'{row["id"]},{row["image"]},"{row["question"]}",{row["answer"]}' for row in rows]
        path.write_text("id,image,question,answer\n" + "\n".join(lines) + "\n")
    before = path.read_bytes()
    assert main(["check", str(path), "--clean", str(clean)]) == 1
    assert f"Written: {clean}, 2 of 4 rows." in capsys.readouterr().out and path.read_bytes() == before
    assert main(["check", str(clean)]) == 0
    if suffix == ".json":
        assert json.loads(clean.read_text()) == [rows[0], rows[2]] and "“cat”" in clean.read_text()
    elif suffix == ".jsonl":  # byte for byte, without the empty lines
        kept = [line for line in before.split(b"\n") if line]
        assert clean.read_bytes() == kept[0] + b"\n" + kept[2] + b"\n"
    else:
        kept = '1,a.png,What is it?,a “cat”\n3,a.png,"How\nmany, then?",two\n'
        assert clean.read_text() == f"id,image,question,answer\n{kept}"
    capsys.readouterr()
    assert main(["check", str(path), "--clean", str(clean)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_clean_copy_of_a_dataset_folder_is_parquet(tmp_path: Path, picture: Any) -> None:
    datasets = pytest.importorskip("datasets")
    table = {"image": [picture(0), picture(1)], "text": ["a cat", " "]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path / "saved")
    clean = tmp_path / "clean.parquet"
    assert main(["check", str(tmp_path / "saved"), "--clean", str(clean)]) == 1
    report = check(SourceConfig(str(clean)))
    assert report.ok and report.rows == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--clean", "clean.jsonl"], "another ending"),
        (["--clean", "clean.json", "--limit", "2"], "leave --limit out"),
        (["--quarantine", "rows.json"], "is no quarantine file"),
        (["--report", "."], "holds other files"),
        (["--max-length", "100"], "add --model"),
        (["--sample", "2"], "add --model"),
        (["--sample", "0", "--model"], "--sample is 0"),
        (["--sample", "9", "--model"], "There is no row 9"),
        (["--workers", "-1"], "--workers is -1"),
        (["--model", "no/such/model/here"], "no checkpoint folder"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_looked_at(
    data: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    before = {path: path.read_bytes() for path in data.parent.iterdir() if path.is_file()}
    assert main(["check", str(data), *arguments]) == 2
    captured = capsys.readouterr()
    assert told in captured.err and captured.out == "" and captured.err.count("\n") == 1
    assert {path: path.read_bytes() for path in data.parent.iterdir() if path.is_file()} == before


def test_a_model_counts_tokens_and_shows_a_row(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data), "--model", "--report", str(tmp_path / "report")]) == 1
    told = capsys.readouterr().out
    assert "tokens of a row: " in told and "64 of them of pictures" in told
    assert "  <image> x 64\u21b5" in told and "[[a “cat”<|im_end|>]]" in told and "\033" not in told
    written = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert written == ["histograms.png", "report.json", "sample.png"]
    assert json.loads((tmp_path / "report" / "report.json").read_text())["bad_rows"] == 2
    shown = np.asarray(Image.open(tmp_path / "report" / "sample.png"))
    for ground in ((0xC9, 0xF0, 0xD5), (0xDF, 0xE3, 0xFF)):  # of what is learned, and of the picture's tokens
        assert (shown == ground).all(-1).any(), "in the legend and in the row"
    assert main(["check", str(data), "--model", "--report", str(tmp_path / "report"), "--sample", "3"]) == 1
    assert "row 3" in capsys.readouterr().out  # an earlier report is replaced
    assert main(["check", str(data), "--model", "--max-length", "70"]) == 1
    assert "of 70 tokens; 64 of them are image tokens" in capsys.readouterr().out


def test_what_is_learned_is_green_on_a_terminal(data: Path) -> None:
    pty = pytest.importorskip("pty")
    here, there = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    command = [sys.executable, "-m", "vlchat.cli", "check", str(data), "--model"]
    process = subprocess.Popen(
        command, env={**environment, "PYTHONPATH": str(ROOT)}, stdout=there, stderr=subprocess.DEVNULL
    )
    os.close(there)
    told = b""
    try:
        while piece := os.read(here, 1 << 16):
            told += piece
    except OSError:  # Linux's way of saying that the other end has closed
        pass
    os.close(here)
    assert process.wait() == 1
    assert "\033[1;32ma “cat”<|im_end|>\033[0m".encode() in told and b"[[" not in told
    assert b"\033[34m<image> x 64\033[0m" in told


@pytest.mark.parametrize("seed", range(20))
def test_bars_hold_the_values_that_they_name(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [
        rng.integers(0, 10, 50), rng.integers(5, 900, 300), np.round(rng.lognormal(3, 1.5, 400)),
        rng.integers(200, 260, 40), [7] * 5, [0, 10_000],
    ][seed % 6]  # fmt: skip
    histogram = Histogram("values", [int(value) for value in values])
    assert sum(count for _, count in histogram.bars) == len(values) and len(histogram.bars) <= 14
    for label, count in histogram.bars:
        low, _, high = label.replace(",", "").partition("-")
        assert count == sum(int(low) <= value <= int(high or low) for value in values), (label, histogram.bars)
    text = histogram.render()
    assert text.startswith(f"values: {min(values):,.0f}")
    longest = max(histogram.bars, key=lambda bar: bar[1])
    lines = text.splitlines()[1:]
    if lines:
        assert max(lines, key=lambda line: line.count("\u2588")).split()[-1] == f"{longest[1]:,}"


def test_bars_of_fractions_and_of_nothing() -> None:
    ratios = Histogram("width / height", [0.5, 0.75, 1.0, 1.0, 1.5, 1.78, 3.0] * 3)
    assert sum(count for _, count in ratios.bars) == 21 and ratios.summary() == "0.5 to 3, median 1"
    for label, count in ratios.bars:
        low, high = map(float, label.split("-"))
        assert count == sum(low <= value < high for value in ratios.values)
    assert Histogram("none", []).render() == "none: none" and Histogram("none", []).to_dict()["bars"] == []


def test_twenty_planted_faults_are_found_and_nothing_else(shared_data: Path, tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / "slake_faults.py")
    command = [sys.executable, script, "--slake", str(shared_data / "slake"), "--rows", "150"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Found 20 of 20 planted faults of 20 kinds." in run.stdout and "Found besides: nothing." in run.stdout
