"""ChartQA (Masry et al. 2022): questions about charts, numbers right to within 5 %."""

from __future__ import annotations

from vlchat.conversation import ask_messages
from vlchat.errors import DataError
from vlchat.evaluate.items import Item
from vlchat.evaluate.metrics import relaxed_accuracy
from vlchat.evaluate.protocols.official import SHORT_ANSWER, Benchmark, Pictures, field, numbered, text


class ChartQa(Benchmark):
    """ChartQA: relaxed accuracy, over all questions and by who asked: human, or augmented (written by a machine).

    Numbers count as right within 5 % of the answer, everything else as the same text but for its case, by the code of
    pix2struct that the field uses (`vlchat.evaluate.metrics.relaxed_accuracy`). ChartQA's figure is the mean over both
    files, which hold 1,250 questions each. The prompt is LLaVA-1.5's for short answers, as in lmms-eval's first version
    of the task (later: "with a single word").

    Args:
        data: the folder `ChartQA Dataset`, or its `test/` with `test_human.json` and `test_augmented.json`, or one of
            these files.
        split: which part: "test" (the published figures), "val" or "train".
        images: the folder of the pictures; by default `png/` beside the files.
        limit: ask the first so many questions of each file.
        missing: what to do where pictures are: "error" or "skip".

    Raises:
        DataError: files or pictures are missing, or are not the official ones.
    """

    benchmark = "ChartQA"
    page = "https://github.com/vis-nlp/ChartQA (ChartQA Dataset)"
    protocol = "chartqa-1 (relaxed accuracy, numbers within 5 %, by pix2struct's code)"

    def __init__(
        self,
        *,
        data: str,
        split: str = "test",
        images: str | None = None,
        limit: int | None = None,
        missing: str = "error",
    ) -> None:
        files = self._open(data, limit)
        if files.data.is_file():
            found = [files.data]
        else:
            places = ("", f"{split}/", f"ChartQA Dataset/{split}/")
            names = (f"{split}_human.json", f"{split}_augmented.json")
            found = [files.one("questions", *(place + name for place in places)) for name in names]
        pictures = Pictures(files.pictures(images, "png", f"{split}/png", f"ChartQA Dataset/{split}/png"))
        items: list[Item] = []
        lost: dict[str, str] = {}
        for path in found:
            asked_by = path.stem.split("_")[-1]
            for number, (where, row) in enumerate(numbered(files.rows(path)[:limit], path), start=1):
                name, picture_name = f"{asked_by}/{number}", str(field(row, "imgname", where))
                if (picture := pictures.find(picture_name)) is None:
                    lost[name] = picture_name
                label = field(row, "label", where)
                if not isinstance(label, str | int | float):
                    raise DataError(f"{where}: label must be a text, not {type(label).__name__}")
                messages = ask_messages(picture, f"{text(row, 'query', where)}\n{SHORT_ANSWER}")
                items.append(Item(name, messages, str(label), (str(label),), {"asked by": asked_by}))
        self._keep(files, items, lost, limit, missing, limited=True)

    def scored(self, item: Item, reply: str) -> tuple[str, float]:
        return reply.strip(), relaxed_accuracy(reply, item.answers)
