"""Files, Hugging Face datasets and mixtures; and paths that must not lead out of the image folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlchat import images
from vlchat.data import Mixture, Source, SourceConfig, fingerprint, load_source
from vlchat.data.dataset import resolve_image
from vlchat.errors import ConfigError, DataError, PathEscapeError

VQA = {"image": "a.png", "question": "What?", "answer": "cat"}


@pytest.fixture
def folder(tmp_path: Path, picture: Any) -> Path:
    """data/images/a.png, and a picture outside of data/ that no row may reach."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    picture(0).save(tmp_path / "data" / "images" / "a.png")
    picture(1).save(tmp_path / "outside.png")
    return tmp_path / "data"


def write(path: Path, rows: list[Any]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        path.write_text(json.dumps(rows))
    return str(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_files(folder: Path, suffix: str) -> None:
    rows = [VQA, VQA | {"id": 7}, VQA | {"question_id": 8}]
    source = load_source(SourceConfig(write(folder / f"rows{suffix}", rows)))
    assert [example.id for example in source] == ["#1", "7", "8"]
    assert source[0].images == [folder / "images" / "a.png"]
    assert len(source) == 3 and source.name == f"rows{suffix}"


def test_csv_with_quotes_empty_cells_and_nested_json(folder: Path) -> None:
    path = folder / "rows.csv"
    header, first = "\ufeffimage,question,answer,answers\n", 'a.png,"What, then?",cat,\n'
    path.write_text(header + first + 'a.png,What?,,"[""cat"", ""cat"", ""dog""]"\n')
    source = load_source(SourceConfig(str(path)))
    assert source[0].messages[0]["content"][1]["text"] == "What, then?"
    assert source[1].answer == "cat" and source[1].meta["answers"] == ["cat", "cat", "dog"]
    path.write_text("image,caption\na.png,one,two\n")
    with pytest.raises(DataError, match="row 1 has more cells"):
        load_source(SourceConfig(str(path)))


def test_hugging_face_folder_stays_undecoded_until_asked(folder: Path, tmp_path: Path, picture: Any) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {
        "images": [[picture(0), picture(1)], [picture(2)]],
        "messages": [
            [
                {"role": "user", "content": [{"type": "image"}] * count + [{"type": "text", "text": "?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
            ]
            for count in (2, 1)
        ],
    }
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": [{"role": datasets.Value("string"), "content": [
                {"type": datasets.Value("string"), "text": datasets.Value("string")}]}],
        }
    )  # fmt: skip
    saved = tmp_path / "saved"
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(saved)
    source = load_source(SourceConfig(str(saved)))
    example = source[0]
    assert len(source) == 2 and [type(image) for image in example.images] == [bytes, bytes]
    assert images.decode(example.images[1]).tobytes() == picture(1).tobytes()
    assert len(load_source(SourceConfig(str(saved), split="test"))) == 1
    with pytest.raises(DataError, match="no split val; known: train, test"):
        load_source(SourceConfig(str(saved), split="val"))


def test_parquet_and_a_folder_of_pictures(tmp_path: Path, picture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": [picture(3)], "text": ["noise"]}, features=features)
    table.to_parquet(tmp_path / "rows.parquet")
    source = load_source(SourceConfig(str(tmp_path / "rows.parquet")))
    assert source[0].answer == "noise" and isinstance(source[0].images[0], bytes)

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    picture(4).save(pictures / "a.png")
    (pictures / "metadata.csv").write_text("file_name,text\na.png,noise\n")
    example = load_source(SourceConfig(str(pictures)))[0]
    assert example.answer == "noise"
    assert images.decode(example.images[0]).tobytes() == picture(4).tobytes()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.json", "[{]", "not valid JSON"),
        ("rows.json", '{"a": 1}', "must hold a list"),
        ("rows.json", "[]", "has no rows"),
        ("rows.json", "[" * 100_000, "nested too deeply"),
        ("rows.xlsx", "x", "unknown kind of file"),
        ("rows.parquet", "no parquet", "rows.parquet cannot be read as a parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        load_source(SourceConfig(str(tmp_path / name)))


def test_a_missing_file_a_bad_line_and_odd_settings(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_source(SourceConfig(str(tmp_path / "none.json")))
    (tmp_path / "rows.jsonl").write_text(json.dumps(VQA) + "\n{oops\n")
    source = load_source(SourceConfig(str(tmp_path / "rows.jsonl"), images=str(tmp_path)))
    with pytest.raises(DataError, match=r"rows.jsonl: row 2, row: line 2 is not valid JSON"):
        source.example(1)
    with pytest.raises(ConfigError, match="limit is 0"):
        load_source(SourceConfig(str(tmp_path / "rows.jsonl"), limit=0))
    with pytest.raises(DataError, match="leave `split` out"):
        load_source(SourceConfig(str(tmp_path / "rows.jsonl"), split="train"))
    with pytest.raises(DataError, match="image folder .* does not exist"):
        load_source(SourceConfig(str(tmp_path / "rows.jsonl"), images=str(tmp_path / "no")))
    limited = load_source(SourceConfig(str(tmp_path / "rows.jsonl"), limit=1))
    assert len(limited) == 1
    with pytest.raises(IndexError):
        limited.example(1)


@pytest.mark.parametrize(
    "value",
    [
        "../outside.png",
        "images/../../outside.png",
        "images\\..\\..\\outside.png",
        "images/../a.png",
        "{tmp}/outside.png",
        "/etc/hostname",
        "C:\\pictures\\a.png",
        "link.png",
        "linked/outside.png",
        "a\0.png",
    ],
)
def test_paths_out_of_the_image_root_are_refused_with_the_row(folder: Path, value: str) -> None:  # torture row 51
    (folder / "images" / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "linked").symlink_to(folder.parent)
    row = VQA | {"image": value.replace("{tmp}", str(folder.parent)), "id": "row-3"}
    source = load_source(SourceConfig(write(folder / "rows.json", [row])))
    with pytest.raises(PathEscapeError, match=r'rows.json: row 1 \(id "row-3"\)'):
        source[0]


def test_an_images_link_out_of_the_data_folder_needs_an_explicit_root(folder: Path, picture: Any) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    picture(5).save(elsewhere / "b.png")
    data = folder.parent / "linked-data"
    data.mkdir()
    (data / "images").symlink_to(elsewhere)
    path = write(data / "rows.json", [VQA | {"image": "images/b.png"}])
    with pytest.raises(PathEscapeError):
        load_source(SourceConfig(path))[0]
    assert load_source(SourceConfig(write(data / "own.json", [VQA | {"image": "b.png"}]), images=str(elsewhere)))[0]


def test_absolute_paths_inside_links_inside_and_missing_files(folder: Path) -> None:
    inside = folder / "images" / "a.png"
    assert resolve_image(str(inside), [folder]) == inside
    (folder / "copy.png").symlink_to(inside)
    assert resolve_image("copy.png", [folder]) == folder / "copy.png"
    assert resolve_image("none.png", [folder]) is None
    assert resolve_image(str(folder / "none.png"), [folder, folder / "images"]) is None
    source = load_source(SourceConfig(write(folder / "rows.json", [VQA | {"image": "none.png", "id": "x"}])))
    with pytest.raises(DataError, match=r'rows.json: row 1 \(id "x"\), image: "none.png" was not found in'):
        source[0]


def rows(name: str, count: int) -> Source:
    return Source([{"question": f"{name}{i}", "answer": "x"} for i in range(count)], name=name)


def shown(mixture: Mixture, epoch: int) -> list[tuple[int, int]]:
    mixture.set_epoch(epoch)
    return [mixture.locate(index) for index in range(len(mixture))]


def test_a_mixture_depends_on_seed_epoch_and_index_alone() -> None:
    def mixture(seed: int = 4) -> Mixture:
        return Mixture([rows("a", 20), rows("b", 10)], [1.0, 2.0], seed)

    one, two = mixture(), mixture()
    third = shown(one, 3)
    for epoch in (5, 0, 3):  # whatever was looked at before
        again = shown(two, epoch)
    assert again == third
    assert shown(one, 2) != third and shown(mixture(5), 3) != third
    assert one[0].messages  # the Example itself is reachable
    turns = [[source for source, _ in shown(one, epoch)] for epoch in (0, 1)]
    assert turns[0] != turns[1], "the order in which sources take turns must change too"


def test_weights_are_times_an_epoch() -> None:
    mixture = Mixture([rows("a", 20), rows("b", 10), rows("c", 9)], [1.0, 2.0, 0.5], seed=1)
    assert mixture.counts == [20, 20, 4]
    for epoch in range(3):
        counted = Counter(shown(mixture, epoch))
        assert [counted[0, row] for row in range(20)] == [1] * 20
        assert [counted[1, row] for row in range(10)] == [2] * 10


def test_a_fraction_reaches_every_row_in_turn() -> None:
    mixture = Mixture([rows("a", 10)], [0.5])
    first, second = shown(mixture, 0), shown(mixture, 1)
    assert sorted(row for _, row in first + second) == list(range(10))


@pytest.mark.parametrize("weights", [[0.0], [-1.0], [float("nan")], [1.0, 1.0]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="weight"):
        Mixture([rows("a", 3)], weights)


def test_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    before = fingerprint(path)
    path.write_text("[2]")
    assert fingerprint(path) != before and len(before) == 64


@pytest.mark.parametrize(
    ("path", "count", "name"),
    [
        ("slake/train_llava.json", 4917, "llava"),
        ("slake/validation_llava.json", 1053, "llava"),
        ("nlvr/dev_messages.jsonl", 5934, "messages"),
        ("twemoji/captions.jsonl", 1874, "caption"),
    ],
)
def test_other_peoples_data_loads_row_by_row(shared_data: Path, path: str, count: int, name: str) -> None:
    source = load_source(SourceConfig(str(shared_data / path)))
    examples = list(source)
    assert len(examples) == count
    assert all(len(example.images) == 1 and example.answer for example in examples)
    assert load_source(SourceConfig(str(shared_data / path), format=name))[0] == examples[0]
    assert isinstance(images.decode(examples[-1].images[0]), Image.Image)
