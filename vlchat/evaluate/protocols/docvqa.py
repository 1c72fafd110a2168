"""DocVQA (Mathew et al. 2021): questions about scanned pages, scored by ANLS."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from vlchat.conversation import ask_messages
from vlchat.evaluate.items import Item
from vlchat.evaluate.measures import mean_of
from vlchat.evaluate.metrics import anls
from vlchat.evaluate.protocols.official import SHORT_ANSWER, Benchmark, Pictures, field, numbered, text, texts


class DocVqa(Benchmark):
    """DocVQA, task 1 (single page), validation: ANLS, by question type where the file says it.

    ANLS is the edit similarity to the nearest answer, 0 below 0.5 (`vlchat.evaluate.metrics.anls`). The answers of the
    test part are not published: its figures come from the challenge's server. The prompt is LLaVA-1.5's for short
    answers, which lmms-eval uses here too. A question of several types counts in the slice that names them all.

    Args:
        data: the folder, or `val_v1.0.json` (or `val_v1.0_withQT.json`, which has the question types).
        images: the folder of the pages, or the one that `documents/` lies in.
        limit: ask the first so many questions.
        missing: what to do where pictures are: "error" or "skip".

    Raises:
        DataError: files or pictures are missing, or are not the official ones.
    """

    benchmark = "DocVQA"
    page = "https://rrc.cvc.uab.es/?ch=17&com=downloads (Single Page Document VQA)"
    protocol = "docvqa-1 (ANLS with the threshold 0.5)"
    measures = [mean_of("score", "ANLS")]
    max_new_tokens = 32

    def __init__(
        self, *, data: str, images: str | None = None, limit: int | None = None, missing: str = "error"
    ) -> None:
        files = self._open(data, limit)
        path = files.main("the questions", "val_v1.0_withQT.json", "val_v1.0.json", "*/val_v1.0*.json")
        folders = ("documents", "spdocvqa_images", "../spdocvqa_images", "val/documents", "images")
        pictures = Pictures(files.pictures(images, *folders))
        items, lost = [], {}
        for where, row in numbered(files.rows(path, "data"), path):
            name, picture_name = str(field(row, "questionId", where)), str(field(row, "image", where))
            # The first release names the folder with the page, the later archive of pages has none.
            if (picture := pictures.find(PurePosixPath(picture_name).name, picture_name)) is None:
                lost[name] = picture_name
            answers = texts(row, "answers", where)
            messages = ask_messages(picture, f"{text(row, 'question', where)}\n{SHORT_ANSWER}")
            items.append(Item(name, messages, answers[0], answers, _types(row)))
        self._keep(files, items, lost, limit, missing)

    def scored(self, item: Item, reply: str) -> tuple[str, float]:
        return reply.strip(), anls(reply, item.answers)


def _types(row: Any) -> dict[str, str]:
    types = row.get("question_types")
    return {"question type": ", ".join(sorted(map(str, types)))} if isinstance(types, list) and types else {}
