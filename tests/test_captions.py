"""Caption scores against pycocoevalcap's own figures and worked rows, and the tokenizers against each other."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.metrics.captions import MEASURES, bleu, caption_scores, caption_statistics, cider, main, rouge_l
from vlchat.evaluate.metrics.tokens import TOKENIZERS, java_runs, python_tokens, stanford_tokens

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed"
)
needs_java = pytest.mark.skipif(not java_runs(), reason="Java is not installed")

# What the standard scorer gives on these two files (the folder's README).
GOLDEN = {
    "CIDEr": 0.5998, "BLEU-1": 0.5794, "BLEU-2": 0.4044, "BLEU-3": 0.2785, "BLEU-4": 0.1908, "ROUGE-L": 0.3963,
}  # fmt: skip


def sums_of(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.asarray(sum(row[name] for row in rows)) for name in rows[0]} | {"rows": np.asarray(len(rows))}


def figures(rows: list[dict[str, float]]) -> dict[str, float]:
    return {measure.name: float(measure.value(sums_of(rows))) for measure in MEASURES}


@needs_package
def test_the_coco_captions_score_as_published(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shared_data / "captions" / name) for name in ("gts.json", "res.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1,000 pictures"
    assert {line.split()[0]: float(line.split()[1]) for line in lines[1:]} == GOLDEN


@needs_package
def test_sums_of_rows_give_pycocoevalcaps_corpus_figures(shared_data: Path) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    folder = shared_data / "captions"
    references = dict(list(json.loads((folder / "gts.json").read_text()).items())[:150])
    replies = {name: json.loads((folder / "res.json").read_text())[name] for name in references}
    odd = list(replies)
    replies[odd[0]] = [""]
    replies[odd[1]] = ["train"]  # no 2-gram
    replies[odd[2]] = [" ".join(["a man on a horse"] * 20)]
    replies[odd[3]] = [references[odd[3]][1]]
    bleus, _ = Bleu(4).compute_score(references, replies, 0)
    expected = {f"BLEU-{n}": value for n, value in enumerate(bleus, start=1)}
    expected["CIDEr"] = Cider().compute_score(references, replies)[0]
    expected["ROUGE-L"] = Rouge().compute_score(references, replies)[0]
    rows = caption_statistics(list(references.values()), [replies[name][0] for name in references])
    assert figures(rows) == pytest.approx(expected, rel=1e-12)
    # With too few words the brevity penalty counts, also on part of the rows.
    short = {name: [" ".join(words[0].split()[:4])] for name, words in replies.items()}
    rows = caption_statistics(list(references.values()), [short[name][0] for name in references])
    part = list(references)[:40]
    expected = Bleu(4).compute_score({n: references[n] for n in part}, {n: short[n] for n in part}, 0)[0]
    assert [figures(rows[:40])[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(expected, rel=1e-12)


@needs_package
def test_worked_bleu() -> None:
    def score(longest: int, references: list[str], caption: str) -> float:
        (row,) = caption_statistics([references], [caption])
        return float(bleu(longest).value(sums_of([row])))

    # Of four words two are in the reference, which has "the" twice.
    assert score(1, ["the cat the"], "the the the the") == pytest.approx(2 / 4)
    # All is right, but two words stand where four are due: exp(1 - 4 / 2).
    assert score(1, ["a cat sat here"], "a cat") == pytest.approx(math.exp(-1))
    # Of three words two lengths are one away, 2 and 4: the shorter counts, and nothing is lost.
    assert score(2, ["a cat", "a cat sat down"], "a cat sat") == pytest.approx(1.0)
    # 1-grams 3/4, 2-grams 1/3, same length.
    assert score(2, ["a dog sat down"], "a dog lay down") == pytest.approx(math.sqrt(3 / 4 * 1 / 3))
    assert score(4, ["a dog"], "") == 0.0


@needs_package
def test_bleu_takes_many_resamples_at_once() -> None:
    first, second = caption_statistics([["a dog sat down"], ["the cat"]], ["a dog lay down", "a big old cat"])
    assert first is not None and second is not None
    many = {name: np.array([first[name], second[name], 2 * first[name], 0.0]) for name in first}
    many["rows"] = np.array([1, 1, 2, 0])
    values = bleu(2).value(many)
    assert values[2] == pytest.approx(values[0])
    assert values[0] == pytest.approx(math.sqrt(3 / 4 * 1 / 3)) and values[1] < 1e-3
    assert np.isnan(values[3])


@needs_package
def test_worked_rouge() -> None:
    # The longest common subsequence is "the cat": precision 2/3, recall 2/4; the other reference is worse in both.
    precision, recall = 2 / 3, 2 / 4
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert rouge_l(["the cat is here", "one of many other dogs"], "the cat sat") == pytest.approx(expected)
    assert rouge_l(["a cat"], "") == 0.0


@needs_package
def test_worked_cider() -> None:
    references = [["a man rides a horse"], ["two dogs play outside"], ["three red cars"]]
    # No n-gram is in two pictures. The right caption has cosine 1 for 1- to 4-grams, times 10; three words have no
    # 4-gram, so that a quarter is missing; another picture's caption has 0.
    assert cider(references, ["a man rides a horse", "a man rides a horse", "three red cars"]) == pytest.approx(
        [10.0, 0.0, 7.5]
    )
    assert cider(references[:1], ["a man rides a horse"]) == [0.0]  # log(1 picture) is 0: nothing weighs anything
    with pytest.raises(DataError, match="no reference caption has a word"):
        cider([[""], [" "]], ["a", "b"])


@needs_package
def test_a_row_that_is_not_asked_for_keeps_its_weight_in_cider() -> None:
    references = [["a man rides a horse"], ["two dogs play outside"], ["three red cars"], ["a man walks"]]
    everything = caption_statistics(references, ["a man walks", "two dogs", "red cars", "a man walks"])
    part = caption_statistics(references, ["a man walks", None, None, "a man walks"])
    assert part == [everything[0], None, None, everything[3]]


# What Stanford's program (corenlp 3.4.1) makes of them, its punctuation taken out.
STANFORD = {
    "A man's dog isn't here.": "a man 's dog is n't here",
    "“Stop”, it’s the dogs’ bowl…": "stop it 's the dogs bowl",
    "They can't; he cannot, I'm gonna": "they ca n't he can not i 'm gon na",
    "An x-ray (of a well-known T-shirt)": "an x-ray -lrb- of a well-known t-shirt -rrb-",
    "10:30am, 5% of $1,000.50 & #1": "10:30 am 5 % of $ 1,000.50 & # 1",
    "Mr. Smith lives in the U.S. at 5 p.m.": "mr. smith lives in the u.s. at 5 p.m.",
    "see no. 5, say no.": "see no. 5 say no",
    "black-and-white and/or w/o AT&T r&b": "black-and-white and/or w/o at&t r & b",
    "the '80s 747's rock 'n' roll o'clock 'tis": "the '80s 747 's rock 'n' roll o'clock 't is",
    "c'mon ma'am, y'all met O'Brien 'em more'n ol' Al": "c'mon ma'am y' all met o'brien 'em more 'n ol' al",
    "WOW!!! what?! yes!": "wow !!! what ?! yes",
    "a dog 🐶 on ½ 😀🚗 ❤️": "a dog on 1/2 ❤",
    "café naïve Zürich e\u0301tude 漢字": "café naïve zürich e\u0301tude 漢字",
    "visit foo.net/bar or me@foo.com @me #tag": "visit foo.net/bar or me@foo.com @me #tag",
    "2nd 4x4 3D 5ft 1980s -5 2m²": "2nd 4x4 3d 5ft 1980s -5 2m ²",
    "a man,a dog;a cat:a bird.The end--now - then": "a man a dog a cat a bird.the end now then",
    "[sic] {x} a/b / c\\d x_y ^ ~": "-lsb- sic -rsb- -lcb- x -rcb- a/b / c \\ d x_y ^ ~",
    "": "",
    " \n\t ": "",
    "... !": "",
    "two\nlines\r\nof\u2028text": "two lines of text",
    "half a pair \ud83d here": "half a pair here",
}


@pytest.mark.parametrize("caption", STANFORD)
def test_python_tokens_are_stanfords(caption: str) -> None:
    assert python_tokens([caption]) == [STANFORD[caption]]


@needs_package
@needs_java
def test_stanford_tokens_keep_their_lines() -> None:
    assert stanford_tokens(list(STANFORD)) == list(STANFORD.values())
    assert stanford_tokens([""]) == [""] and stanford_tokens([]) == []


def as_written(tokens: str, number: int) -> str:
    """A tokenised caption as a person writes it: the inverse of the tokenizer, with punctuation of our choice."""
    text = re.sub(r" (n't|'s|'m|'d|'ll|'re|'ve)\b", r"\1", tokens)
    draw = random.Random(number)
    text = " ".join(word + ("," if draw.random() < 0.08 else "") for word in text.split())
    ends = (text + ".", f'"{text.capitalize()}!"', text.upper() + "?", text.replace(" in ", " (in) ").title(), text)
    return ends[number % len(ends)]


@needs_package
@needs_java
def test_both_tokenizers_agree_on_what_people_wrote(shared_data: Path) -> None:
    sentences = set()
    for row in json.loads((shared_data / "slake" / "train_llava.json").read_text()):
        sentences |= {turn["value"].replace("<image>", "") for turn in row["conversations"]}
    for file in (shared_data / "nlvr").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            sentences |= {message["content"].replace("<image>", "") for message in json.loads(line)["messages"]}
    for line in (shared_data / "twemoji" / "captions.jsonl").read_text().splitlines():
        row = json.loads(line)
        sentences |= {row["name"], ", ".join(row["tags"]) + "."}
    groups = json.loads((shared_data / "captions" / "gts.json").read_text()).values()
    captions = [text for group in groups for text in group]
    written = [*sorted(sentences), *(as_written(text, number) for number, text in enumerate(captions))]
    assert len(written) > 8000
    pairs = zip(written, stanford_tokens(written), python_tokens(written), strict=True)
    assert [(text, stanford, ours) for text, stanford, ours in pairs if stanford.split() != ours.split()] == []


def test_no_caption_breaks_the_tokenizer() -> None:
    for piece in ("a+", "a.", "http://", "'", "n't", "é", "a@", "\ud800", "\0", "9,", "A&", "can", "(", "&amp;", "…"):
        (tokens,) = python_tokens([piece * 20_000])
        assert "\ud800" not in tokens


def test_stanfords_tokenizer_says_when_java_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not java_runs()
    with pytest.raises(ConfigError, match="needs Java, which cannot start: No such file or directory. Set the tokeniz"):
        stanford_tokens(["a"])
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho no runtime is installed >&2\nexit 1\n")
    java.chmod(0o755)
    assert not java_runs()
    with pytest.raises(ConfigError, match="it says: no runtime is installed Set the tokenizer to python"):
        stanford_tokens(["a", "b"])


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ConfigError, match=r"Caption scores need the package `pycocoevalcap`: pip install 'vlchat\["):
        cider([["a dog"]], ["a dog"])


@needs_package
def test_raw_captions_are_tokenised_first() -> None:
    references = {"x": ["A dog's bowl.", "The bowl isn't empty!"], "y": ["Two cars."]}
    captions = {"y": "two cars", "x": "a dog 's bowl"}
    exact = {name: [python_tokens([text])[0] for text in group] for name, group in references.items()}
    assert caption_scores(references, captions, TOKENIZERS["python"]) == caption_scores(exact, captions)
    assert caption_scores(references, captions, TOKENIZERS["python"])["BLEU-2"] == pytest.approx(1.0)


def test_scores_of_unlike_pictures_are_refused() -> None:
    with pytest.raises(DataError, match='1 of 2 pictures have no caption; the first is "b"'):
        caption_scores({"a": ["x"], "b": ["y"]}, {"a": "x"})
    with pytest.raises(DataError, match='1 of 1 pictures have no reference; the first is "a"'):
        caption_scores({}, {"a": "x"})
    with pytest.raises(DataError, match='picture "a" has an empty list of references'):
        caption_scores({"a": []}, {"a": "x"})


@pytest.mark.parametrize(
    ("references", "captions", "said"),
    [
        ("{", "{}", "references.json is not valid JSON"),
        ("[]", "{}", "references.json must hold an object"),
        ('{"a": ["x"]}', '{"a": ["x", "y"]}', 'captions.json: picture "a" has 2 captions; one is scored'),
        ('{"a": [1]}', '{"a": "x"}', 'references.json: the captions of "a" must be texts'),
        ('{"a": ["x"]}', None, "captions.json cannot be read: No such file or directory"),
    ],
)
def test_the_command_says_what_is_wrong(
    references: str, captions: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "references.json").write_text(references)
    if captions is not None:
        (tmp_path / "captions.json").write_text(captions)
    assert main([str(tmp_path / "references.json"), str(tmp_path / "captions.json")]) == 2
    assert said in capsys.readouterr().err
