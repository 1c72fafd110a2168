"""MME (Fu et al. 2023): two questions about each picture, one to be answered yes and one no."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vlchat.conversation import ask_messages
from vlchat.errors import DataError
from vlchat.evaluate.items import Item, Reading, Reply, Request
from vlchat.evaluate.measures import Measure, Sums, mean_of, ratio_of
from vlchat.evaluate.metrics.choices import probability
from vlchat.evaluate.protocols.official import Benchmark, OfficialFiles, Pictures
from vlchat.evaluate.tasks.multiple_choice import with_text

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")
_INSIDE = ("MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version", "MME_Benchmark")
_PAGE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"

Pair = tuple[str, str, list[tuple[str, str]]]  # (what it is called, the picture's name, two questions with yes or no)


class Mme(Benchmark):
    """MME: perception (of 2000) and cognition (of 800), accuracy and accuracy+, by category.

    A row is a picture with its two questions, each asked alone; accuracy+ is the share of pictures with both right. A
    category scores 100 accuracy + 100 accuracy+; perception and cognition are sums over their ten and four categories.
    The questions are asked as the files hold them ("... Please answer yes or no."); LLaVA-1.5 puts its short-answer
    prompt in that sentence's place. The parser is that of MME's calculation.py: "yes" or "no" within the first four
    letters, in lower case, after surrounding space; anything else is wrong.

    Args:
        data: the folder of the release, with a folder a category (pictures and their .txt beside them, or in `images/`
            and `questions_answers_YN/`); or the folder of the evaluation tool's files, one a category
            (`existence.txt`: picture, question and answer between tabs, two lines a picture).
        images: with the tool's files, the folder of the release that has the pictures.
        limit: ask about the first so many pictures.
        missing: what to do where pictures are: "error" or "skip".

    Raises:
        DataError: files or pictures are missing, or are not the official ones.
    """

    benchmark = "MME"
    page = _PAGE
    protocol = "mme-1 (yes/no by the parser of MME's own calculation.py; accuracy+ is both questions of a picture)"

    def __init__(
        self, *, data: str, images: str | None = None, limit: int | None = None, missing: str = "error"
    ) -> None:
        files = self._open(data, limit)
        if not files.data.is_dir():
            raise files.error(f"{data} is a file; the folder with the categories is needed.")
        items: list[Item] = []
        lost: dict[str, str] = {}
        hashes: dict[str, str] = {}
        for category in (*PERCEPTION, *COGNITION):
            digest = hashlib.sha256()
            found, pictures = _category(files, category, images)
            for where, picture_name, pair in found:
                if len(pair) != 2:
                    raise DataError(f"{where} has {len(pair)} questions; MME has two a picture")
                digest.update(f"{picture_name} {pair}\n".encode())
                suffixed = [picture_name] if Path(picture_name).suffix else [picture_name + end for end in _SUFFIXES]
                name = f"{category}/{picture_name}"
                if (picture := pictures.find(*suffixed)) is None:
                    lost[name] = name
                right = tuple(answer for _, answer in pair)
                messages = ask_messages(picture, "\n".join(question for question, _ in pair))
                kind = "perception" if category in PERCEPTION else "cognition"
                slices = {"category": category, "kind": kind}
                items.append(Item(name, messages, " ".join(right), right, slices, source=[text for text, _ in pair]))
                hashes[category] = digest.hexdigest()
        if not items:
            raise files.error(
                f"{data} has none of the folders or files of MME's categories ({', '.join(PERCEPTION)}...)."
            )
        self._keep(files, items, lost, limit, missing)
        self.data["files"] = hashes
        there = {item.slices["category"] for item in self._items}
        self.measures = _measures(there)
        if absent := [name for name in (*PERCEPTION, *COGNITION) if name not in there]:
            self.notes.append(f"Not asked, so that they add nothing to the totals: {', '.join(absent)}.")

    def requests(self, item: Item, replies: Sequence[Reply]) -> list[Request]:
        return [] if replies else [Request(with_text(item.messages, text)) for text in item.source]

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        said = ["other" if reply.error is not None else mme_yes_no(reply.text) for reply in replies]
        right = sum(one == answer for one, answer in zip(said, item.answers, strict=False))
        both = float(right == len(item.answers))
        category = item.slices["category"]
        stats = {"right": float(right), "asked": 2.0, "both": both, "other": float(said.count("other"))}
        # A row counts for a total only if it has what that is made of, so it says of the other categories: nothing.
        for one in PERCEPTION if category in PERCEPTION else COGNITION:
            stats[f"points in {one}"] = 100 * (right / 2 + both) if one == category else 0.0
            stats[f"pictures in {one}"] = float(one == category)
        sure = [found for reply in replies if (found := probability(reply)) is not None]
        return Reading(" ".join(said), right / 2, stats, sum(sure) / len(said) if sure else None)


def mme_yes_no(reply: str) -> str:
    """`yes`, `no` or `other`, as MME's calculation.py reads a reply: in the first four letters, "yes" before "no"."""
    beginning = reply.strip().lower()[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else "other"


def _measures(categories: set[str]) -> list[Measure]:
    totals = [
        _total(f"{kind} (of {200 * len(parts)})", [name for name in parts if name in categories])
        for kind, parts in (("perception", PERCEPTION), ("cognition", COGNITION))
        if categories & set(parts)
    ]
    shares = [ratio_of("right", "asked", "accuracy"), mean_of("both", "accuracy+")]
    return [*totals, *shares, ratio_of("other", "asked", "neither yes nor no", better="lower")]


def _total(name: str, categories: Sequence[str]) -> Measure:
    def value(sums: Sums) -> np.ndarray:
        total = np.zeros(np.shape(sums["rows"]))
        for category in categories:
            points, count = np.asarray(sums[f"points in {category}"]), np.asarray(sums[f"pictures in {category}"])
            total = total + np.divide(points, count, out=np.zeros(np.shape(points)), where=count > 0)
        return np.where(np.asarray(sums["rows"]) > 0, total, np.nan)

    needs = tuple(f"{what} in {category}" for category in categories for what in ("points", "pictures"))
    return Measure(name, value, needs, percent=False)


def _category(files: OfficialFiles, category: str, images: str | None) -> tuple[Iterator[Pair], Pictures]:
    """The pictures of a category with their questions, and where the pictures are."""
    places = [files.folder, *(files.folder / name for name in _INSIDE)]
    folder = next((place / category for place in places if (place / category).is_dir()), None)
    if folder is not None:
        texts = folder / "questions_answers_YN"
        shown = [each for each in (folder / "images", folder) if each.is_dir()]
        return _release(texts if texts.is_dir() else folder), Pictures(shown)
    listed = [place / f"{category}.txt" for place in (files.folder, files.folder / "Your_Results")]
    file = next((each for each in listed if each.is_file()), None)
    if file is None:
        return iter(()), Pictures([])
    if images is None:
        raise files.error(f"{file.name} names pictures that lie elsewhere: name the release's folder as images.")
    roots = [Path(images), *(Path(images) / name for name in _INSIDE)]
    shown = [each for root in roots for each in (root / category / "images", root / category) if each.is_dir()]
    return _tool(file), Pictures(shown)


def _release(folder: Path) -> Iterator[Pair]:
    for file in sorted(folder.glob("*.txt")):
        lines = [line.split("\t") for line in _lines(file)]
        yield str(file), file.stem, [_question(cells, 0, str(file)) for cells in lines]


def _tool(file: Path) -> Iterator[Pair]:
    rows = [(line.split("\t")[0], _question(line.split("\t"), 1, str(file))) for line in _lines(file)]
    for start in range(0, len(rows), 2):
        pair = rows[start : start + 2]
        if len({name for name, _ in pair}) != 1:
            raise DataError(
                f"{file}: lines {start + 1} and {start + 2} are of two pictures; MME has two lines a picture"
            )
        yield f"{file}: line {start + 1}", pair[0][0], [question for _, question in pair]


def _question(cells: Sequence[str], first: int, where: str) -> tuple[str, str]:
    answer = cells[first + 1].strip().lower() if len(cells) > first + 1 else ""
    if answer not in ("yes", "no"):
        raise DataError(f'{where}: "{" | ".join(cells)[:80]}" is no question and Yes or No with a tab between')
    return cells[first].strip(), answer


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8: save it as UTF-8") from error
