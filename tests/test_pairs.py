"""Image-text matching, by similarity, by a matching head, and by what a chat model holds likely."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs_of_towers import TEXTS, pictures, write_pair
from PIL import Image
from transformers import PreTrainedTokenizerFast

from vlchat.chat import Chat
from vlchat.data import SourceConfig
from vlchat.errors import ConfigError, DataError, VLChatError
from vlchat.evaluate import terminal
from vlchat.evaluate.answerers import ChatAnswerer
from vlchat.evaluate.cache import AnswerCache
from vlchat.evaluate.captioned import read_captioned
from vlchat.evaluate.embedders import LikelihoodMatcher, open_embedder, similarity
from vlchat.evaluate.embedders.likelihood import QUESTION
from vlchat.evaluate.embeddings import evaluate_with
from vlchat.evaluate.items import Item, Reading, Reply, Request
from vlchat.evaluate.page import write_page
from vlchat.evaluate.pairs import drawn_pairs, read_pairs
from vlchat.evaluate.report import page
from vlchat.evaluate.similarity import RememberedAnswerer, run_similarity
from vlchat.evaluate.tasks.matching import MatchingTask
from vlchat.evaluate.tasks.retrieval import RetrievalTask
from vlchat.evaluate.tasks.zero_shot import ZeroShotTask

LABELS = [True, False, True, True, False, False, True, False]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight pairs of four pictures with labels, and captions and Winoground rows of the same pictures."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, picture in enumerate(pictures(4)):
        picture.save(folder / f"{number}.png")
    rows = [{"image": f"{n % 4}.png", "caption": TEXTS[(n * 3) % 4], "match": label} for n, label in enumerate(LABELS)]
    (folder / "pairs.json").write_text(json.dumps(rows))
    captions = [{"image": f"{n}.png", "captions": [TEXTS[n], f"{TEXTS[n]} too"]} for n in range(4)]
    (folder / "captions.json").write_text(json.dumps(captions))
    fours = [
        {"id": n, "tag": "Object", "image_0": f"{n}.png", "image_1": f"{n + 1}.png", "caption_0": TEXTS[n],
         "caption_1": TEXTS[n + 1]} for n in range(3)
    ]  # fmt: skip
    (folder / "fours.jsonl").write_text("\n".join(map(json.dumps, fours)))
    return folder


def values(task: Any, done: list[tuple[Item, Reading]]) -> dict[str, float]:
    """Every measure over the rows that have its statistics."""
    found = {}
    for measure in task.measures:
        rows = [reading.stats for _, reading in done if all(name in reading.stats for name in measure.needs)]
        sums = {name: np.array(sum(row[name] for row in rows)) for name in measure.needs}
        found[measure.name] = float(measure.value(sums | {"rows": np.array(len(rows))}))
    return found


def area(scores: np.ndarray, matches: list[bool]) -> float:
    yes, no = ([s for s, match in zip(scores, matches, strict=True) if match == side] for side in (True, False))
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in yes for b in no]))


def test_by_similarity(tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    write_pair(tmp_path / "clip", "clip", tiny_tokenizer)
    embedder = open_embedder(tmp_path / "clip")
    assert embedder is not None
    task = MatchingTask(data=str(data / "pairs.json"))
    found = values(task, done := evaluate_with(embedder, task))
    shown = [Image.open(data / f"{n % 4}.png") for n in range(8)]
    scores = np.diag(similarity(embedder.images(shown), embedder.texts([TEXTS[(n * 3) % 4] for n in range(8)])))
    assert found["AUROC"] == pytest.approx(area(scores, LABELS))
    # The threshold of pictures 0 and 2 is the best of pictures 1 and 3, and the other way round.
    for row, (_, reading) in enumerate(done):
        others = [n for n in range(8) if (n % 4) % 2 != (row % 4) % 2]
        cuts = sorted(scores[others])
        edges = [cuts[0] - 1, *((a + b) / 2 for a, b in zip(cuts, cuts[1:], strict=False)), cuts[-1] + 1]
        right = [sum((scores[n] > edge) == LABELS[n] for n in others) for edge in edges]
        taken = scores[row] > edges[int(np.argmax(right))]
        assert reading.stats["right"] == float(taken == LABELS[row])
        assert reading.confidence is None
    assert any("each half of the pictures takes the threshold" in note for note in task.notes)
    assert [item.cluster for item, _ in done[:5]] == [f"picture {n}" for n in (0, 1, 2, 3, 0)]
    with pytest.raises(ConfigError, match="by is match, and clip has no matching head"):
        evaluate_with(embedder, MatchingTask(data=str(data / "pairs.json"), by="match"))


def test_a_sigmoid_loss_gives_probabilities(
    tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = write_pair(tmp_path / "siglip", "siglip", tiny_tokenizer)
    with torch.no_grad():
        model.logit_bias.fill_(0.3)
    model.save_pretrained(tmp_path / "siglip")
    embedder = open_embedder(tmp_path / "siglip")
    assert embedder is not None
    task = MatchingTask(data=str(data / "pairs.json"))
    done = evaluate_with(embedder, task)
    from vlchat.towers import clip_image_processor

    pixels = clip_image_processor(24)(pictures(4), return_tensors="pt")["pixel_values"]
    ids = tiny_tokenizer(TEXTS, padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        chances = model(pixel_values=pixels, input_ids=ids).logits_per_image.sigmoid().numpy()
    for row, (_, reading) in enumerate(done):
        chance = chances[row % 4, (row * 3) % 4]
        assert reading.answer == ("yes" if chance >= 0.5 else "no")
        assert reading.confidence == pytest.approx(max(chance, 1 - chance), abs=1e-4)


def test_by_the_matching_head(tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    write_pair(tmp_path / "blip2", "blip2", tiny_tokenizer)
    embedder = open_embedder(tmp_path / "blip2")
    assert embedder is not None
    task = MatchingTask(data=str(data / "captions.json"))
    done = evaluate_with(embedder, task)
    scores, matches = [], []
    for (item, reading), pair in zip(done, task.pairs, strict=True):
        no, yes = embedder.match(Image.open(pair.picture), [pair.text])[0]  # type: ignore[arg-type]
        chance = np.exp(yes) / (np.exp(yes) + np.exp(no))
        assert reading.confidence == pytest.approx(max(chance, 1 - chance), abs=1e-4)
        assert reading.stats["right"] == float((chance >= 0.5) == pair.match)
        assert item.reference == ("yes" if pair.match else "no")
        scores.append(round(float(yes - no), 4))
        matches.append(pair.match)
    found = values(task, done)
    assert found["AUROC"] == pytest.approx(area(np.array(scores), matches))
    preferred = []
    for n in range(4):  # four pairs a picture: two matches and two mismatches
        some = range(4 * n, 4 * n + 4)
        wrong = [scores[row] for row in some if not matches[row]]
        preferred += [np.mean([scores[row] > one for one in wrong]) for row in some if matches[row]]
    assert found["own text preferred"] == pytest.approx(np.mean(preferred))


def test_mismatches_are_never_a_pictures_own_and_depend_on_the_seed_alone(data: Path) -> None:
    rows = read_captioned(SourceConfig(str(data / "captions.json")))
    drawn = drawn_pairs(rows, 1)
    assert drawn == drawn_pairs(rows, 1) != drawn_pairs(rows, 2)
    own = {one.picture: one.texts for one in rows}
    assert len(drawn) == 16 and all((pair.text in own[pair.picture]) == pair.match for pair in drawn)
    same = [{"image": f"{n}.png", "caption": "A cat." if n else "a cat"} for n in range(4)]
    (data / "same.json").write_text(json.dumps(same))
    with pytest.raises(DataError, match="is said of all pictures: there is no mismatch"):
        MatchingTask(data=str(data / "same.json"))


def test_questions_that_are_true_or_false_are_pairs(data: Path) -> None:
    rows = [{"image": "0.png", "question": "True or false: it is red", "answer": "true"},
            {"image": "1.png", "question": "Is it red?", "answer": "No."}]  # fmt: skip
    (data / "vqa.json").write_text(json.dumps(rows))
    found = read_pairs(SourceConfig(str(data / "vqa.json")))
    assert found is not None
    assert [(one.text, one.match) for one in found] == [("it is red", True), ("Is it red?", False)]
    (data / "vqa.json").write_text(json.dumps([*rows, {"image": "1.png", "question": "What?", "answer": "red"}]))
    with pytest.raises(DataError, match="row 3.* does not say whether picture and text belong together"):
        read_pairs(SourceConfig(str(data / "vqa.json")))


def test_winogrounds_scores_on_a_worked_case(
    tmp_path: Path, data: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Equations 1 to 3 of arXiv 2204.03162, from the scores s(caption, picture)."""
    write_pair(tmp_path / "clip", "clip", tiny_tokenizer)
    embedder = open_embedder(tmp_path / "clip")
    assert embedder is not None
    task = MatchingTask(data=str(data / "fours.jsonl"))
    done = evaluate_with(embedder, task)
    shown = pictures(4)
    s = similarity(embedder.images(shown), embedder.texts(TEXTS)).T  # [caption, picture]
    for n, (item, reading) in enumerate(done):
        a, b = n, n + 1
        text = s[a, a] > s[b, a] and s[b, b] > s[a, b]
        image = s[a, a] > s[a, b] and s[b, b] > s[b, a]
        assert reading.stats == {"text": float(text), "image": float(image), "group": float(text and image)}
        assert item.slices == {"tag": "Object"}
    assert [measure.name for measure in task.measures] == ["group score", "text score", "image score"]
    with torch.no_grad():
        embedder.model.text_projection.weight.zero_()  # type: ignore[attr-defined]
    assert values(task, evaluate_with(embedder, task))["text score"] == 0.0  # a tie is wrong


class Chatty:
    """A tiny chat model, and every request it was asked."""

    def __init__(self, chat: Chat) -> None:
        self.inner = ChatAnswerer(chat, {"name": "tiny"}, "tiny")
        self.description, self.identity = self.inner.description, self.inner.identity
        self.asked: list[Request] = []

    def answer(self, requests: Any, *, max_new_tokens: int) -> list[Reply]:
        self.asked += requests
        return self.inner.answer(requests, max_new_tokens=max_new_tokens)


@pytest.fixture
def chatty(tiny_model: Callable[..., Any], tiny_processor: Any) -> Chatty:
    return Chatty(Chat(tiny_model(), tiny_processor))


def test_a_chat_model_judges_by_its_likelihoods(chatty: Chatty) -> None:
    picture = pictures(1)[0]
    logits = LikelihoodMatcher(chatty, "yes").match(picture, TEXTS[:2])
    for row, text in enumerate(TEXTS[:2]):
        asked = [{"role": "user", "content": [{"type": "image", "image": picture},
                                              {"type": "text", "text": QUESTION.format(text)}]}]  # fmt: skip
        no, yes = (one.logprob for one in chatty.inner.chat.likelihoods(asked, ["No", "Yes"]))
        assert logits[row] == pytest.approx([no, yes], abs=1e-5)
    scores = LikelihoodMatcher(chatty, "caption").match(picture, TEXTS[:2])[:, 1]
    raised = LikelihoodMatcher(chatty, "pmi").match(picture, TEXTS[:2])[:, 1]
    for row, text in enumerate(TEXTS[:2]):
        seen, blank = (
            chatty.inner.chat.likelihoods(
                [{"role": "user", "content": [{"type": "image", "image": one},
                                              {"type": "text", "text": "Describe this image briefly."}]}], [text]
            )[0]
            for one in (picture, Image.new("RGB", picture.size, (128, 128, 128)))
        )  # fmt: skip
        assert scores[row] == pytest.approx(seen.logprob / seen.tokens, abs=1e-5)
        assert raised[row] == pytest.approx(seen.logprob - blank.logprob, abs=1e-4)
    assert np.ptp(raised) > 1e-3
    with pytest.raises(ConfigError, match='likelihood is "no"; use yes, caption, pmi'):
        LikelihoodMatcher(chatty, "no")


def test_a_model_without_likelihoods_is_told() -> None:
    class Silent:
        """A server that gives no log-probabilities, as `Answerer` allows."""

        description, identity = {"name": "there"}, "there"

        def answer(self, requests: Any, *, max_new_tokens: int) -> list[Reply]:
            return [Reply("yes")] * len(requests)

    with pytest.raises(VLChatError, match="there does not say how likely its answers are"):
        LikelihoodMatcher(Silent()).match(pictures(1)[0], ["a"])


def test_a_chat_model_without_embeddings_judges_every_pair(data: Path, chatty: Chatty) -> None:
    matcher = LikelihoodMatcher(chatty, "yes")
    task = RetrievalTask(data=str(data / "captions.json"), captions=1)
    done = evaluate_with(matcher, task)
    assert len(chatty.asked) == 16
    margins = np.array([np.diff(matcher.match(one, TEXTS), axis=1)[:, 0] for one in pictures(4)])
    assert [reading.answer for _, reading in done[:4]] == [TEXTS[n] for n in margins.argmax(1)]
    assert any("it has no embeddings" in note for note in task.notes)
    with pytest.raises(ConfigError, match="4 pictures x 8 texts = 32 pairs would be asked; at most 31 are"):
        evaluate_with(matcher, RetrievalTask(data=str(data / "captions.json"), most_pairs=31))
    rows = [{"image": f"{n}.png", "label": TEXTS[n]} for n in range(4)]
    (data / "labels.json").write_text(json.dumps(rows))
    zero_shot = evaluate_with(matcher, ZeroShotTask(data=str(data / "labels.json"), templates="none"))
    names = sorted(TEXTS)
    assert [reading.answer for _, reading in zero_shot] == [
        names[int(np.argmax([margins[n, TEXTS.index(name)] for name in names]))] for n in range(4)
    ]
    with pytest.raises(ConfigError, match="16 pairs would be asked; at most 15"):
        evaluate_with(matcher, ZeroShotTask(data=str(data / "labels.json"), most_pairs=15))


def test_a_result_stands_beside_chance_and_asks_nothing_twice(
    tmp_path: Path, data: Path, chatty: Chatty, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    write_pair(tmp_path / "clip", "clip", tiny_tokenizer)
    task = RetrievalTask(data=str(data / "captions.json"))
    result = run_similarity(tmp_path / "clip", task, cache=tmp_path / "cache", progress=False)
    written = json.loads(json.dumps(result.to_dict()))
    assert written["controls"]["chance"]["blind"]["value"] == pytest.approx(
        np.mean([2 / 8, 1 - math.comb(6, 5) / math.comb(8, 5), 1, 1 / 4, 1, 1])
    )
    assert "better than chance" in written["verdicts"][0] and "picture" not in written["verdicts"][0]
    assert written["model"]["name"] == "clip" and len(written["model"]["embedder"]) == 64
    assert {row["slices"]["way"] for row in result.rows} == {"image to text", "text to image"}
    assert (tmp_path / "cache" / "embeddings").is_dir()
    text, picture = (result.table.slices["way"][way] for way in ("image to text", "text to image"))
    both = result.headline.value
    assert (text["mean recall"].value + picture["mean recall"].value) / 2 == pytest.approx(both)
    assert "over chance" in terminal(result)
    shown = write_page(page(result), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Is it better than chance?" in shown and "Does it need the pictures?" not in shown
    matching = MatchingTask(data=str(data / "pairs.json"))
    for _ in range(2):
        found = run_similarity(None, matching, chatting=lambda: chatty, cache=tmp_path / "cache", progress=False)
        assert len(chatty.asked) == 8  # the second time everything is known
    assert found.headline.value is not None
    remembered = RememberedAnswerer(chatty, AnswerCache(tmp_path / "cache"))
    request = Request([{"role": "user", "content": [{"type": "text", "text": "a"}]}], ("x", "y"))
    assert remembered.answer([request], max_new_tokens=1) == remembered.answer([request], max_new_tokens=1)
    assert len(chatty.asked) == 9
