"""The tab that shows a visitor what they said of answers, and takes it back."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from serve.feedback import pictures_of, question_of, tally
from serve.page.talk import Talk
from serve.page.template import template
from serve.page.view import place_of, url_of
from serve.page.words import LANGUAGES, told
from serve.page.words.errors import in_language
from serve.store import Picture, Rated, Store, Vote
from vlchat.errors import VLChatError

_WORDS = (
    "answer", "answers", "better", "command", "correction", "down", "model", "none", "other", "question", "remove",
    "same", "up", "votes", "worse",
)  # fmt: skip
COMMAND = "vlchat feedback export HISTORY_FOLDER OUT_FOLDER"


def feedback_tab(talk: Talk, tab: gr.Tab) -> None:
    """Builds it within the current context, which is `tab`'s, and fills it when that is opened.

    The component triggers `delete` with a kind (answer or vote) and a turn's id.
    """
    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    view = gr.HTML(
        _value([], [], LANGUAGES[0], lambda one, picture: ""), elem_id="feedback", apply_default_css=False,
        **template("feedback"),
    )  # fmt: skip

    def shown(request: gr.Request) -> dict[str, Any]:
        who = talk.visitor(request)
        store = talk.disk or talk.memory
        # Thumbs of those who keep no history are on the disk all the same; their votes are not.
        return _value(
            store.rated(who.owner),
            who.store.votes(who.owner),
            who.language,
            lambda one, picture: _url(store if isinstance(one, Rated) else who.store, who.owner, one, picture),
        )

    def remove(data: gr.EventData, request: gr.Request) -> dict[str, Any]:
        who, told_of = talk.visitor(request), data._data or {}
        turn = told_of.get("turn")
        try:
            if told_of.get("kind") == "vote":
                who.store.unvote(who.owner, turn if isinstance(turn, int) else 0)
            else:
                (talk.disk or talk.memory).rate(who.owner, turn if isinstance(turn, int) else 0, 0)
            gr.Info(told("feedback.removed", who.language))
        except VLChatError as error:
            gr.Warning(html.escape(in_language(str(error), who.language)))
        return shown(request)

    tab.select(shown, None, view, **quick)
    view.delete(remove, None, view, **quick)


def _url(store: Store, owner: str, one: Rated | Vote, picture: Picture) -> str:
    return url_of(place_of(owner, picture, lambda _: store.content(one, picture)))


def _value(
    rated: Sequence[Rated], votes: Sequence[Vote], language: str, url: Callable[[Rated | Vote, Picture], str]
) -> dict[str, Any]:
    """What the component shows, the newest first."""
    words = {name: told(f"feedback.{name}", language) for name in _WORDS}
    ratings = [one.answer.rating for one in rated]
    counts = told(
        "feedback.counts",
        language,
        answers=len(rated),
        up=ratings.count(1),
        down=ratings.count(-1),
        corrected=sum(bool(one.answer.correction) for one in rated),
        votes=len(votes),
    )
    answers = [
        {
            "turn": one.answer.id,
            "question": question_of(one),
            "pictures": [{"url": url(one, picture), "name": picture.name} for picture in pictures_of(one)],
            "answer": one.answer.text,
            "rating": one.answer.rating,
            "correction": one.answer.correction,
            "when": one.when,
        }
        for one in sorted(rated, key=lambda one: one.when, reverse=True)
    ]
    voted = [
        {
            "turn": one.question.id,
            "question": one.question.text,
            "pictures": [{"url": url(one, picture), "name": picture.name} for picture in one.question.pictures],
            "answers": [
                {"model": name, "text": text, "chosen": name == one.chosen} for name, text in one.answers.items()
            ],
            "when": one.when,
        }
        for one in sorted(votes, key=lambda one: one.when, reverse=True)
    ]
    table = [[*pair, *counted] for pair, counted in tally(votes).items()]
    return {"words": words, "counts": counts, "command": COMMAND, "answers": answers, "votes": voted, "tally": table}
