"""TextVQA (Singh et al. 2019): questions about the text in pictures, scored as MMF's evaluator scores them."""

from __future__ import annotations

from vlchat.conversation import ask_messages
from vlchat.evaluate.items import Item
from vlchat.evaluate.metrics import vqa_accuracy, vqa_normalize
from vlchat.evaluate.protocols.official import SHORT_ANSWER, Benchmark, Pictures, field, numbered, text, texts


class TextVqa(Benchmark):
    """TextVQA 0.5.1, validation: soft accuracy over ten people's answers.

    Scored by the rules of `TextVQAAccuracyEvaluator` in MMF (github.com/facebookresearch/mmf), which LLaVA uses as
    m4c_evaluator.py: commas and question marks go and "'s" becomes a word of its own, then the VQA challenge's
    normalisation, always. The prompt names no OCR tokens; the published figure of LLaVA-1.5 was measured with them
    ("Reference OCR token: ..."), and without them the same model scores well below it.

    Args:
        data: the folder, or `TextVQA_0.5.1_val.json`.
        images: the folder of `0054c91397f2fe05.jpg` and such; by default `train_images/` beside the file, where the
            validation pictures are too.
        limit: ask the first so many questions.
        missing: what to do where pictures are: "error" or "skip".

    Raises:
        DataError: files or pictures are missing, or are not the official ones.
    """

    benchmark = "TextVQA"
    page = "https://textvqa.org/dataset/"
    protocol = "textvqa-1 (soft accuracy by MMF's evaluator, without OCR tokens in the prompt)"

    def __init__(
        self, *, data: str, images: str | None = None, limit: int | None = None, missing: str = "error"
    ) -> None:
        files = self._open(data, limit)
        path = files.main("the questions", "TextVQA_*_val.json")
        pictures = Pictures(files.pictures(images, "train_images", "train_val_images/train_images", "images"))
        items, lost = [], {}
        for where, row in numbered(files.rows(path, "data"), path):
            name = str(field(row, "question_id", where))
            picture_name = f"{field(row, 'image_id', where)}.jpg"
            if (picture := pictures.find(picture_name)) is None:
                lost[name] = picture_name
            answers = texts(row, "answers", where)
            reference = max(answers, key=answers.count)
            messages = ask_messages(picture, f"{text(row, 'question', where)}\n{SHORT_ANSWER}")
            items.append(Item(name, messages, reference, answers))
        self._keep(files, items, lost, limit, missing)

    def scored(self, item: Item, reply: str) -> tuple[str, float]:
        said = split_words(reply)
        return vqa_normalize(said), vqa_accuracy(said, [split_words(answer) for answer in item.answers])


def split_words(answer: str) -> str:
    """What MMF's answer processor does first (`word_tokenize`)."""
    return answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
