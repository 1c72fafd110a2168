"""POPE (Li et al. 2023): is an object in the picture? Whether a model sees things that are not there."""

from __future__ import annotations

from collections.abc import Sequence

from vlchat.conversation import ask_messages
from vlchat.errors import DataError
from vlchat.evaluate.items import Item, Reading, Reply
from vlchat.evaluate.metrics.choices import YES_NO_MEASURES, pope_yes_no, yes_no_reading
from vlchat.evaluate.protocols.official import SHORT_ANSWER, Benchmark, Pictures, field, text


class Pope(Benchmark):
    """POPE: accuracy, precision, recall, F1 and the share of yes, over all questions and by setting.

    The three files (random, popular, adversarial: how the absent objects were chosen) are the slices `setting`. The
    figure most papers give is the F1 of each setting, or the mean of the three; the table's own line is over all rows.
    The parser is POPE's (evaluate.py): what is no "no" is a yes. So a model that writes anything at all scores, and a
    yes ratio far from 50 % is worth more than the accuracy. A question without a reply is neither. The prompt is
    LLaVA-1.5's; POPE's own is the question alone.

    Args:
        data: the folder with `coco_pope_random.json`, `coco_pope_popular.json` and `coco_pope_adversarial.json`, or one
            of these files.
        images: COCO's `val2014` folder, or the one that it lies in.
        limit: ask the first so many questions of each file.
        missing: what to do where pictures are: "error" or "skip".

    Raises:
        DataError: files or pictures are missing, or are not the official ones.
    """

    benchmark = "POPE"
    page = (
        "https://github.com/AoiDragon/POPE (output/coco), and its pictures, COCO's val2014, from "
        "https://cocodataset.org/#download"
    )
    protocol = "pope-1 (yes/no by POPE's own parser)"
    measures = YES_NO_MEASURES
    max_new_tokens = 64

    def __init__(
        self, *, data: str, images: str | None = None, limit: int | None = None, missing: str = "error"
    ) -> None:
        files = self._open(data, limit)
        if files.data.is_file():
            found = [files.data]
        elif not (found := files.all("*pope_*.json", "*pope_*.jsonl")):
            raise files.error(f"{data} has no coco_pope_random.json, nor another file of questions.")
        pictures = Pictures(files.pictures(images, "val2014", "images", "../val2014"))
        items, lost = [], {}
        for path in found:
            setting = path.stem.split("pope_")[-1]
            for number, row in enumerate(files.lines(path)[:limit], start=1):
                where = f"{path.name}: line {number}"
                label = str(field(row, "label", where)).strip().lower()
                if label not in ("yes", "no"):
                    raise DataError(f'{where}: label is "{label}"; it must be yes or no')
                name, picture_name = f"{setting}/{row.get('question_id', number)}", str(field(row, "image", where))
                if (picture := pictures.find(picture_name)) is None:
                    lost[name] = picture_name
                messages = ask_messages(picture, f"{text(row, 'text', where)}\n{SHORT_ANSWER}")
                items.append(Item(name, messages, label, (label,), {"setting": setting}))
        self._keep(files, items, lost, limit, missing, limited=True)

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        said = None if replies[0].error is not None else pope_yes_no(replies[0].text)
        return yes_no_reading(said, item.reference == "yes")
