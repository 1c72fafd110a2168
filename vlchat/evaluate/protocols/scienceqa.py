"""ScienceQA (Lu et al. 2022): school questions with choices, half of them with a picture."""

from __future__ import annotations

import re
from typing import Any

from vlchat.conversation import ask_messages
from vlchat.errors import DataError
from vlchat.evaluate.items import Item
from vlchat.evaluate.measures import mean_of
from vlchat.evaluate.protocols.official import Benchmark, Pictures, field, text, texts
from vlchat.evaluate.tasks.multiple_choice import laid_out

_LETTERS = ("A", "B", "C", "D", "E")


class ScienceQa(Benchmark):
    """ScienceQA: accuracy, that of the questions with a picture, and by subject, context and grade.

    The prompt is that of LLaVA-1.5 as lmms-eval writes it down: "Context: ..." where there is a hint, the question, a
    line "A. ..." for each choice, and "Answer with the option's letter from the given choices directly." The parser is
    LLaVA's (llava/eval/eval_science_qa.py, version 1.5): the letter alone, a letter followed by ". ", or "The answer is
    A." said once; "A." alone and "(A)" are none, and none is wrong. ScienceQA's own script (models/run_gpt3.py) guesses
    there at random; lmms-eval takes "A." too.

    The slices are those of tools/evaluate_acc.py: subject (NAT, SOC, LAN), grades (G1-6, G7-12), and the three that
    overlap: questions with a hint (TXT), with a picture (IMG), with neither (NO).

    Args:
        data: the folder, or `problems.json`.
        splits: `pid_splits.json`; by default the one beside the problems.
        split: which part: "test" (the published figures), "val", "train", "minival" or "minitest".
        images: the folder with `test/1/image.png` or `1/image.png`; by default `images/` beside the files.
        limit: ask the first so many questions.
        missing: what to do where pictures are: "error" or "skip".

    Raises:
        DataError: files or pictures are missing, or are not the official ones.
    """

    benchmark = "ScienceQA"
    page = "https://github.com/lupantech/ScienceQA (data/scienceqa; pictures by tools/download.sh)"
    protocol = "scienceqa-1 (the letter by LLaVA's parser)"
    measures = [
        mean_of("score", "accuracy"),
        mean_of("with picture", "IMG accuracy"),
        mean_of("unread", "no letter", better="lower"),
    ]

    def __init__(
        self,
        *,
        data: str,
        splits: str | None = None,
        split: str = "test",
        images: str | None = None,
        limit: int | None = None,
        missing: str = "error",
    ) -> None:
        files = self._open(data, limit)
        path = files.main("the questions", "problems.json")
        problems = files.load(path)
        parts = files.load(files.one("the ids of each part", "pid_splits.json", given=splits, option="splits"))
        if not isinstance(problems, dict) or not isinstance(parts, dict):
            raise files.error(f"{path} and its splits must hold objects: are they the official files?")
        if not isinstance(parts.get(split), list):
            raise DataError(f'There is no split "{split}"; known: {", ".join(parts)}')
        folder = "test" if split == "minitest" else "val" if split == "minival" else split
        named = (f"images/{folder}", folder, "images")
        pictures = Pictures(files.pictures(images, *named))
        items, lost = [], {}
        for pid in map(str, parts[split]):
            where = f"{path.name}: problem {pid}"
            if pid not in problems:
                raise DataError(f"{where} is in the split {split}, but not among the problems")
            row, picture = problems[pid], None
            question = text(row, "question", where)
            if row.get("image"):
                picture_name = f"{pid}/{row['image']}"
                if (picture := pictures.find(picture_name)) is None:
                    lost[pid] = picture_name
            items.append(_item(pid, row, question, picture, where))
        self._keep(files, items, lost, limit, missing)
        self.data["split"] = split

    def scored(self, item: Item, reply: str) -> tuple[str, float]:
        letter = llava_letter(reply, item.source)
        return letter or "none", float(letter == item.reference)

    def stats(self, item: Item, answer: str, score: float) -> dict[str, float]:
        shown = {"with picture": score} if item.slices["picture"] == "IMG" else {}
        return {"score": score, "unread": float(answer in ("none", ""))} | shown


def llava_letter(reply: str, count: int) -> str | None:
    """The letter that LLaVA's script reads in a reply to a question with `count` choices, or None.

    Its pattern wants one more character after "The answer is A", whichever it is, and fails where it fits twice.
    """
    said = reply.strip()
    stated = re.findall(r"The answer is ([A-Z]).", said)
    if said in _LETTERS:
        letter = said
    elif len(said) >= 3 and said[0] in _LETTERS and said[1:3] == ". ":
        letter = said[0]
    else:
        letter = stated[0] if len(stated) == 1 else ""
    return letter if letter and letter in _LETTERS[:count] else None


def _item(pid: str, row: Any, question: str, picture: Any, where: str) -> Item:
    options = texts(row, "choices", where)
    place = field(row, "answer", where)
    if not isinstance(place, int) or not 0 <= place < len(options) <= len(_LETTERS):
        raise DataError(f"{where}: answer {place!r} is not the place of one of its {len(options)} choices")
    hint = str(row.get("hint") or "")
    asked_text = laid_out((f"Context: {hint}\n" if hint else "") + question, options)
    grade = int(re.sub(r"\D", "", str(row.get("grade", ""))) or 0)
    subject = str(row.get("subject", "unknown"))
    slices = {
        "subject": {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}.get(subject, subject),
        "text": "TXT" if hint else "no text",
        "picture": "IMG" if row.get("image") else "no picture",
        "context": "with context" if hint or row.get("image") else "NO",
        "grades": "G1-6" if 1 <= grade <= 6 else "G7-12" if grade else "unknown",
    }
    return Item(
        pid, ask_messages(picture, asked_text), _LETTERS[place], (_LETTERS[place],), slices, source=len(options)
    )
