"""VQA v2 (Goyal et al. 2017): questions and annotations of the challenge, scored as its own script scores them."""

from __future__ import annotations

from collections.abc import Sequence

from vlchat.conversation import ask_messages
from vlchat.errors import DataError
from vlchat.evaluate.items import Item
from vlchat.evaluate.metrics import soft_accuracy, vqa_normalize
from vlchat.evaluate.protocols.official import SHORT_ANSWER, Benchmark, Pictures, field, numbered, text


class VqaV2(Benchmark):
    """VQA v2: soft accuracy, by answer type and question type.

    Scored by the rules of the challenge's own script (github.com/GT-Vision-Lab/VQA, vqaEval.py): punctuation, digits,
    articles and contractions are normalised on both sides, but where all ten people gave the same answer nothing is,
    not even the case ("to not preprocess answers to questions requiring OCR", issue 14 there). So "Black." is wrong
    where ten people wrote "black". The task vqa and many projects (lmms-eval since pull request 794) normalise always;
    they score the same replies higher.

    Args:
        data: the folder, or `v2_OpenEnded_mscoco_val2014_questions.json`.
        annotations: `v2_mscoco_val2014_annotations.json`; by default the one beside the questions.
        images: the folder of `COCO_val2014_000000000042.jpg` and such, or the one that `val2014/` lies in.
        limit: ask the first so many questions.
        missing: what to do where pictures are: "error" or "skip".

    Raises:
        DataError: files or pictures are missing, or are not the official ones.
    """

    benchmark = "VQA v2"
    page = "https://visualqa.org/download.html"
    protocol = "vqa-v2-1 (soft accuracy by the VQA challenge's own script, unanimous answers compared as written)"

    def __init__(
        self,
        *,
        data: str,
        annotations: str | None = None,
        images: str | None = None,
        limit: int | None = None,
        missing: str = "error",
    ) -> None:
        files = self._open(data, limit)
        path = files.main("the questions", "v2_OpenEnded_mscoco_*_questions.json", "*_questions.json")
        content = files.load(path)
        subset = str(content.get("data_subtype", "val2014")) if isinstance(content, dict) else "val2014"
        same_part = path.name.replace("_OpenEnded", "").replace("questions", "annotations")
        truth = files.one("the annotations", same_part, "*_annotations.json", given=annotations, option="annotations")
        known = {
            str(field(row, "question_id", where)): row
            for where, row in numbered(files.rows(truth, "annotations"), truth)
        }
        pictures = Pictures(files.pictures(images, subset, f"images/{subset}", "images"))
        items, lost = [], {}
        for where, row in numbered(files.rows(path, "questions"), path):
            name = str(field(row, "question_id", where))
            if name not in known:
                raise DataError(f"{where}: question_id {name} is not in {truth.name}; are they of one part?")
            image = field(row, "image_id", where)
            if not isinstance(image, int):
                raise DataError(f"{where}: image_id must be a whole number, not {str(image)[:60]}")
            picture_name = f"COCO_{subset}_{image:012d}.jpg"
            if (picture := pictures.find(picture_name)) is None:
                lost[name] = picture_name
            marked = known[name]
            place = f"{truth.name}: question_id {name}"
            given = field(marked, "answers", place)
            if not isinstance(given, list) or not given:
                raise DataError(f"{place}: `answers` must be a list with at least one answer")
            answers = tuple(str(field(answer, "answer", place)) for answer in given)
            slices = {kind: str(marked[kind]) for kind in ("answer_type", "question_type") if marked.get(kind)}
            reference = str(marked.get("multiple_choice_answer") or answers[0])
            messages = ask_messages(picture, f"{text(row, 'question', where)}\n{SHORT_ANSWER}")
            items.append(Item(name, messages, reference, answers, slices))
        self._keep(files, items, lost, limit, missing)

    def scored(self, item: Item, reply: str) -> tuple[str, float]:
        return official_accuracy(reply, item.answers)


def official_accuracy(reply: str, answers: Sequence[str]) -> tuple[str, float]:
    """The reply as the challenge's script compares it, and its soft accuracy, 0 to 1.

    Normalised on both sides only where two people differ.
    """
    given = [_spaced(answer) for answer in answers]
    said = _spaced(reply)
    if len(set(given)) > 1:
        given, said = [vqa_normalize(answer) for answer in given], vqa_normalize(said)
    return said, soft_accuracy(said, given)


def _spaced(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
