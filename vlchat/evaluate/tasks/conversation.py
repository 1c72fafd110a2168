"""Several questions of one conversation, asked one after the other: what an early mistake costs later answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlchat.data import Example, SourceConfig
from vlchat.data.fields import answer_of
from vlchat.data.formats import Message, text_of
from vlchat.errors import ConfigError, DataError
from vlchat.evaluate.items import Item, Reading, Reply, Request
from vlchat.evaluate.measures import Measure, mean_of, ratio_of
from vlchat.evaluate.metrics import exact_match, vqa_accuracy, vqa_normalize
from vlchat.evaluate.metrics.choices import probability
from vlchat.evaluate.tasks.base import Task
from vlchat.evaluate.tasks.vqa import PEOPLE_FOR_SOFT_ACCURACY, data_of, source_config, usable, vqa_item

MOST_TURNS_NAMED = 10  # later ones count together


class ConversationTask(Task):
    """Every user turn of a row that an answer follows, each scored as the task vqa scores a single one.

    A row's `answers` may hold a list of accepted answers for each turn; with four or more a turn is scored by VQA soft
    accuracy, else by exact match. A turn without a reply ends its conversation: what comes after it is wrong.

    Args:
        data, format, images, split, limit, slices: as for the task vqa.
        context: what stands for the earlier answers: "own", the model's replies, or "reference", the right ones, which
            shows how much of a late turn's loss the model's own mistakes are.

    Raises:
        DataError: a row cannot be used, or has `answers` that are not one list a turn.
    """

    measures: Sequence[Measure]

    def __init__(
        self,
        *,
        data: str | SourceConfig,
        format: str | None = None,
        images: str | None = None,
        split: str | None = None,
        limit: int | None = None,
        slices: Sequence[str] = (),
        context: str = "own",
    ) -> None:
        if context not in ("own", "reference"):
            raise ConfigError(f'context is "{context}"; it must be "own" or "reference"')
        self.context = context
        config = source_config(data, format=format, images=images, split=split, limit=limit)
        self._items = [_item(example, slices) for example in usable(config)]
        turns = [len(item.source) for item in self._items]
        self.protocol = (
            "vlchat-conversation-1 (each turn by exact match or VQA soft accuracy after the VQA challenge's "
            f"normalisation, on the {'own' if context == 'own' else 'right'} earlier answers)"
        )
        places = sorted({min(place, MOST_TURNS_NAMED + 1) for count in turns for place in range(1, count + 1)})
        self.measures = [
            ratio_of("right turns", "turns", "turn accuracy"),
            mean_of("whole", "whole-conversation accuracy"),
            *(ratio_of(f"right at {_name(place)}", f"asked at {_name(place)}", _name(place)) for place in places),
        ]
        self.data: dict[str, Any] = data_of(config)
        self.notes: list[str] = [
            f"{sum(turns):,} turns in {len(turns):,} conversations of {min(turns)} to {max(turns)}. A conversation is "
            "right where every turn is."
        ]

    def items(self) -> list[Item]:
        return self._items

    def requests(self, item: Item, replies: Sequence[Reply]) -> list[Request]:
        places = _asked_places(item.messages)
        if self.context == "reference":
            return [] if replies else [Request(item.messages[: place + 1]) for place in places]
        if len(replies) == len(places) or any(reply.error is not None for reply in replies):
            return []
        messages = list(item.messages[: places[len(replies)] + 1])
        for place, reply in zip(places, replies, strict=False):
            messages[place + 1] = {"role": "assistant", "content": [{"type": "text", "text": reply.text}]}
        return [Request(messages)]

    def read(self, item: Item, replies: Sequence[Reply]) -> Reading:
        accepted: list[list[str]] = item.source
        scores = [
            _score(replies[turn], answers) if turn < len(replies) else 0.0 for turn, answers in enumerate(accepted)
        ]
        stats = {
            "right turns": sum(scores),
            "turns": float(len(scores)),
            "whole": float(all(score == 1 for score in scores)),
        }
        for place, score in enumerate(scores, start=1):
            name = _name(place)
            stats[f"right at {name}"] = stats.get(f"right at {name}", 0.0) + score
            stats[f"asked at {name}"] = stats.get(f"asked at {name}", 0.0) + 1
        said = " | ".join(vqa_normalize(reply.text) for reply in replies)
        sure = [found for reply in replies if (found := probability(reply)) is not None]
        # As the score is the mean over the turns, so is what the model expects of it.
        return Reading(said, sum(scores) / len(scores), stats, sum(sure) / len(scores) if sure else None)


def _name(place: int) -> str:
    return f"turn {place}" if place <= MOST_TURNS_NAMED else f"turns after {MOST_TURNS_NAMED}"


def _score(reply: Reply, answers: Sequence[str]) -> float:
    if reply.error is not None:
        return 0.0
    soft = len(answers) >= PEOPLE_FOR_SOFT_ACCURACY
    return (vqa_accuracy if soft else exact_match)(reply.text, answers)


def _asked_places(messages: Sequence[Message]) -> list[int]:
    """Where the user turns stand that an answer follows; the last message is one of them."""
    last = len(messages) - 1
    return [
        place
        for place, message in enumerate(messages)
        if message["role"] == "user" and (place == last or messages[place + 1]["role"] == "assistant")
    ]


def _item(example: Example, slices: Sequence[str]) -> Item:
    # The messages hold the right answers in between, and all pictures, so that controls can exchange these.
    last = max(place for place, message in enumerate(example.messages) if message["role"] == "assistant")
    references = [text_of(example.messages[place + 1]) for place in _asked_places(example.messages[:last])]
    given = example.meta.get("answers")
    accepted = [[reference] for reference in references]
    if isinstance(given, list) and any(isinstance(answers, list) for answers in given):
        if len(given) != len(references) or not all(isinstance(answers, list) and answers for answers in given):
            raise DataError(
                f"{example.called}: `answers` must hold one list with at least one answer for each of the "
                f"{len(references)} answered turns"
            )
        accepted = [
            [answer_of(answer, f"answers[{turn}][{place}]") for place, answer in enumerate(answers)]
            for turn, answers in enumerate(given)
        ]
    elif isinstance(given, list) and given:  # as the task vqa reads them: those of the last turn
        accepted[-1] = [answer_of(answer, f"answers[{place}]") for place, answer in enumerate(given)]
    meta = {name: value for name, value in example.meta.items() if name != "answers"}
    plain = Example(example.id, example.messages, meta, example.source, example.row, example.format)
    item = vqa_item(plain, slices)
    return Item(item.id, item.messages, " | ".join(references), (), item.slices, source=accepted)
