"""Small folders in the layouts that benchmarks are published in, with rows made by hand and drawn pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def draw(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (shade % 256, 100, 50)).save(path)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def vqa_v2(folder: Path) -> Path:
    """Five questions on two pictures with ten answers each, as the validation part's two files hold them."""
    asked = [
        (42000, 42, "What animal is it?", "other", "what animal is", ["the cat"] * 5 + ["cat"] * 5),
        (42001, 42, "How many?", "number", "how many", ["2"] * 9 + ["two"]),
        (42002, 42, "What does it say?", "other", "what does the", ["stop"] * 10),
        (73000, 73, "Is it open?", "yes/no", "is it", ["yes"] * 8 + ["no"] * 2),
        (73001, 73, "What number is shown?", "number", "what number is", ["1,000"] * 4 + ["1000"] * 5 + ["don't know"]),
    ]
    questions = [{"image_id": image, "question": text, "question_id": name} for name, image, text, *_ in asked]
    annotations = [
        {
            "question_type": kind, "multiple_choice_answer": max(answers, key=answers.count), "image_id": image,
            "answer_type": answer_type, "question_id": name,
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                for number, answer in enumerate(answers, start=1)
            ],
        }
        for name, image, _, answer_type, kind, answers in asked
    ]  # fmt: skip
    info = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}, "data_subtype": "val2014"}
    write(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {**info, "questions": questions})
    write(folder / "v2_mscoco_val2014_annotations.json", {**info, "annotations": annotations})
    for image in (42, 73):
        draw(folder / "val2014" / f"COCO_val2014_{image:012d}.jpg", image)
    return folder


def textvqa(folder: Path) -> Path:
    """Three questions, as `TextVQA_0.5.1_val.json` holds them."""
    asked = [
        ("what is the brand?", ["nokia"] * 10),
        ("what does the sign say?", ["john's"] * 7 + ["johns"] * 2 + ["answering does not require reading text"]),
        ("what is the price?", ["1,000"] * 3 + ["1000"] * 2 + ["$5"] * 5),
    ]
    rows = [
        {
            "question": text, "image_id": f"003a8ae2ef43b90{number}", "image_classes": ["Sign"], "image_width": 24,
            "image_height": 24, "answers": answers, "question_tokens": text.split(), "question_id": 34602 + number,
            "set_name": "val", "flickr_original_url": "", "flickr_300k_url": "",
        }
        for number, (text, answers) in enumerate(asked)
    ]  # fmt: skip
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write(folder / "TextVQA_0.5.1_val.json", {**head, "data": rows})
    for number in range(len(asked)):
        draw(folder / "train_images" / f"003a8ae2ef43b90{number}.jpg", number)
    return folder


def gqa(folder: Path) -> Path:
    """Three balanced questions and one that is not, as `questions1.2.zip` holds them."""
    asked = [
        ("201307251", "Is it overcast?", "no", "verify", "global", True),
        ("201640614", "Who is wearing the dress?", "woman", "query", "rel", True),
        ("202225914", "Is the cup red or blue?", "red", "choose", "attr", True),
        ("299999999", "Is it sunny?", "no", "verify", "global", False),
    ]
    rows = {
        name: {
            "semantic": [], "entailed": [name], "equivalent": [name], "question": text, "imageId": f"n{name[-4:]}",
            "isBalanced": balanced, "groups": {"global": None, "local": "x"}, "answer": answer, "semanticStr": "",
            "annotations": {"answer": {}, "question": {}, "fullAnswer": {}}, "fullAnswer": f"It is {answer}.",
            "types": {"detailed": "weatherVerify", "semantic": semantic, "structural": structural},
        }
        for name, text, answer, structural, semantic, balanced in asked
    }  # fmt: skip
    write(folder / "testdev_balanced_questions.json", rows)
    for name in rows:
        draw(folder / "images" / f"n{name[-4:]}.jpg", int(name[-2:]))
    return folder


def pope(folder: Path) -> Path:
    """Four questions a setting about one picture, yes and no in turn, as POPE's `output/coco` holds them."""
    for setting in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": number, "image": "COCO_val2014_000000310196.jpg",
                "text": f"Is there a {thing} in the image?", "label": "yes" if number % 2 else "no",
            }
            for number, thing in enumerate(("snowboard", "car", "person", "dog"), start=1)
        ]  # fmt: skip
        path = folder / f"coco_pope_{setting}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw(folder / "val2014" / "COCO_val2014_000000310196.jpg", 7)
    return folder


def scienceqa(folder: Path) -> Path:
    """Four problems of the test part, two of them with a picture, as `data/scienceqa` holds them."""

    def problem(question: str, choices: list[str], answer: int, **rest: Any) -> dict[str, Any]:
        known = {"hint": "", "image": None, "task": "closed choice", "topic": "t", "category": "c", "skill": "s",
                 "lecture": "", "solution": "", "split": "test"}  # fmt: skip
        return {"question": question, "choices": choices, "answer": answer, **known, **rest}

    problems = {
        "4": problem("Which figure of speech is used?", ["chiasmus", "apostrophe"], 1, subject="language science",
                     grade="grade11", hint="Sing, O goddess."),
        "5": problem("What is the capital of Wyoming?", ["Phoenix", "Baton Rouge", "Honolulu", "Cheyenne"], 3,
                     subject="social science", grade="grade3"),
        "11": problem("Which trait does it have?", ["wings", "scales"], 0, subject="natural science", grade="grade4",
                      image="image.png", hint="Look."),
        "16": problem("Which is harder?", ["glass", "wool", "foam"], 0, subject="natural science", grade="grade2",
                      image="image.png"),
        "99": problem("Of another part?", ["yes", "no"], 0, subject="natural science", grade="grade2", split="train"),
    }  # fmt: skip
    write(folder / "problems.json", problems)
    write(folder / "pid_splits.json", {"train": ["99"], "val": [], "test": ["4", "5", "11", "16"]})
    for pid in ("11", "16"):
        draw(folder / "images" / "test" / pid / "image.png", int(pid))
    return folder


def mme(folder: Path) -> Path:
    """Two pictures in `existence` (beside their texts), one in `artwork` and one in `code_reasoning`."""
    existence = folder / "existence"
    for number in (1, 2):
        draw(existence / f"00000{number}.jpg", number)
        (existence / f"00000{number}.txt").write_text(
            f"Is there a dog {number}? Please answer yes or no.\tYes\n"
            f"Is there a cat {number}? Please answer yes or no.\tNo\n"
        )
    draw(folder / "artwork" / "images" / "10002.jpg", 30)
    (folder / "artwork" / "questions_answers_YN").mkdir()
    (folder / "artwork" / "questions_answers_YN" / "10002.txt").write_text(
        "Is it a painting? Please answer yes or no.\tYes\nIs it glassware? Please answer yes or no.\tNo"
    )
    draw(folder / "code_reasoning" / "0001.png", 40)
    (folder / "code_reasoning" / "0001.txt").write_text(
        "Is the result 'Hello'? Please answer yes or no.\tYes\nIs the result 'World'? Please answer yes or no.\tNo\n\n"
    )
    return folder


def chartqa(folder: Path) -> Path:
    """Two human questions and one augmented, as `ChartQA Dataset/test` holds them."""
    human = [("41699051005347.png", "How many bars?", "14"), ("5090.png", "Which is larger?", "Inspired")]
    augmented = [("two_col_2.png", "What was the share in 2019?", "57.6")]
    for name, rows in (("human", human), ("augmented", augmented)):
        found = [{"imgname": image, "query": query, "label": label} for image, query, label in rows]
        write(folder / f"test_{name}.json", found)
        for number, (image, *_) in enumerate(rows):
            draw(folder / "png" / image, number)
    return folder


def docvqa(folder: Path) -> Path:
    """Two questions, as `val_v1.0.json` of the first release holds them."""
    asked = [("what is the date?", ["1/8/93", "January 8, 1993"]), ("Who signed?", ["P. Carter", "p. carter"])]
    rows = [
        {
            "questionId": 337 + number, "question": text, "image": f"documents/xnbl0037_{number}.png", "docId": 279,
            "ucsf_document_id": "xnbl0037", "ucsf_document_page_no": str(number), "answers": answers,
            "data_split": "val",
        }
        for number, (text, answers) in enumerate(asked)
    ]  # fmt: skip
    head = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": "val"}
    write(folder / "val_v1.0.json", {**head, "data": rows})
    for number in range(len(asked)):
        draw(folder / "documents" / f"xnbl0037_{number}.png", number)
    return folder


LAYOUTS = {
    "vqa-v2": vqa_v2, "textvqa": textvqa, "gqa": gqa, "pope": pope, "scienceqa": scienceqa, "mme": mme,
    "chartqa": chartqa, "docvqa": docvqa,
}  # fmt: skip
