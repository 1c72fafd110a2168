"""GQA (Hudson and Manning 2019): compositional questions, exact match."""

from __future__ import annotations

from typing import Any

from vlchat.conversation import ask_messages
from vlchat.errors import DataError
from vlchat.evaluate.items import Item
from vlchat.evaluate.measures import mean_of
from vlchat.evaluate.protocols.official import SHORT_ANSWER, Benchmark, Pictures, field, text

_SEMANTIC = {"attr": "attribute", "cat": "category", "global": "scene", "obj": "object", "rel": "relation"}


class Gqa(Benchmark):
    """GQA, balanced test-dev: accuracy, binary and open, by structural and semantic type.

    GQA's own eval.py compares strings as they are; a question is open where its structural type is "query", else
    binary. What models write is first put in lower case and loses final full stops, as LLaVA does
    (scripts/convert_gqa_for_eval.py). lmms-eval drops all punctuation instead. Questions that are not balanced are left
    out, as eval.py does for accuracy.

    Args:
        data: the folder, or `testdev_balanced_questions.json`.
        images: the folder of `n161313.jpg` and such; by default `images/` beside the file or above it.
        limit: ask the first so many questions.
        missing: what to do where pictures are: "error" or "skip".

    Raises:
        DataError: files or pictures are missing, or are not the official ones.
    """

    benchmark = "GQA"
    page = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
    protocol = "gqa-1 (exact match in lower case without final full stops, as LLaVA hands replies to GQA's eval.py)"
    measures = [mean_of("score", "accuracy"), mean_of("binary", "binary"), mean_of("open", "open")]

    def __init__(
        self, *, data: str, images: str | None = None, limit: int | None = None, missing: str = "error"
    ) -> None:
        files = self._open(data, limit)
        name = "testdev_balanced_questions.json"
        path = files.main("the questions", name, f"questions*/{name}")
        questions = files.load(path)
        if not isinstance(questions, dict) or not questions:
            raise files.error(f"{path} does not hold questions by their ids: is it the official file?")
        pictures = Pictures(files.pictures(images, "images", "../images", "../../images"))
        items, lost = [], {}
        for name, row in questions.items():
            where = f"{path.name}: question {name}"
            if isinstance(row, dict) and row.get("isBalanced") is False:
                continue
            picture_name = f"{field(row, 'imageId', where)}.jpg"
            if (picture := pictures.find(picture_name)) is None:
                lost[name] = picture_name
            answer = str(field(row, "answer", where))
            messages = ask_messages(picture, f"{text(row, 'question', where)}\n{SHORT_ANSWER}")
            items.append(Item(name, messages, answer, (answer,), _slices(field(row, "types", where), where)))
        if not items:
            raise DataError(f"{path} has no balanced questions")
        self._keep(files, items, lost, limit, missing)

    def scored(self, item: Item, reply: str) -> tuple[str, float]:
        said = reply.strip().rstrip(".").lower()
        return said, float(said == item.reference)

    def stats(self, item: Item, answer: str, score: float) -> dict[str, float]:
        return {"score": score, item.slices["answers"]: score}


def _slices(types: Any, where: str) -> dict[str, str]:
    structural, semantic = str(field(types, "structural", where)), str(field(types, "semantic", where))
    return {
        "answers": "open" if structural == "query" else "binary",
        "structural": structural,
        "semantic": _SEMANTIC.get(semantic, semantic),
    }
