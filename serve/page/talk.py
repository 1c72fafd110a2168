"""A visitor's conversations on the page: asked, answered, asked again, changed; what is seen is what is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from serve.decoding import Decoder
from serve.inside import Facts, Inside
from serve.messages import turns_as_messages, uploaded, without_refused
from serve.page.asking import Answer, Asking, together
from serve.page.attached import attached
from serve.page.beside import pair_of, paired, said, settled_pair
from serve.page.inside import Told
from serve.page.settings import Choices
from serve.page.view import forget_all, growing, place_of, turn_shown, waiting
from serve.page.words import language_of, told
from serve.store import Absent, Conversation, Picture, Store, Turn
from serve.tickets import End, Options
from vlchat.conversation import Message
from vlchat.errors import VLChatError

_KEEP = 1.0  # seconds between two times that a growing answer is written down
_LONGEST_TEXT = 100_000  # characters, of anything that somebody writes
_MEMORY = 1 << 29  # bytes, of all conversations that are not kept
_SETTLE = 2.0  # seconds in which an answer that was stopped is written down
# A page or a film takes longer than a picture: eight frames, each after the hundred before it, of a phone's film.
_DOCUMENT_SECONDS = 20
_DOCUMENT_CLOCK = 90.0


@dataclass(frozen=True)
class Visitor:
    """Somebody at the page.

    Attributes:
        owner: whose conversations these are.
        store: where they are kept.
        language: of `serve.page.words.LANGUAGES`.
    """

    owner: str
    store: Store
    language: str

    def turns(self, conversation: str) -> list[Turn]:
        """Of a conversation; none of one that is not begun."""
        return self.store.turns(self.owner, conversation) if conversation else []

    def path_of(self, picture: Picture) -> Path:
        """Where the page finds a picture."""
        return place_of(self.owner, picture, lambda digest: self.store.picture(self.owner, digest))

    def shown(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """The turns for the page."""
        return [
            turn_shown(turn, self.path_of, self.language, facts_line(turn, self.language), self._unsure(turn))
            for turn in turns
        ]

    def _unsure(self, turn: Turn) -> str:
        return told("inside.unsure", self.language) if turn.facts.get("unsure") else ""


class Talk:
    """What happens to conversations; the page's events call it.

    Args:
        asking: asks the engine.
        disk: where conversations are kept; None where the operator keeps none.
        examples: a folder whose pictures may be asked about, too.

    Attributes:
        memory: conversations that are not kept.
        documents: turns documents into pictures, in processes of their own: pictures are not held up by them.
    """

    def __init__(self, asking: Asking, disk: Store | None, examples: Path) -> None:
        self.asking, self.disk, self.examples = asking, disk, examples
        self.memory = Store(None, _MEMORY)
        self.inside = Inside(asking.engine)
        self.documents = Decoder(2, seconds=_DOCUMENT_SECONDS, clock=_DOCUMENT_CLOCK)
        self._asked: set[tuple[str, str]] = set()  # and not yet answering
        self._answering: set[tuple[str, str]] = set()
        forget_all()

    def visitor(self, request: gr.Request) -> Visitor:
        """Who asks. Of those who show neither key nor cookie, each visit is another's."""
        owner = getattr(request.state, "owner", "")
        return Visitor(owner or f"visit/{request.session_hash}", self.store_of(owner), language_of(request))

    def store_of(self, owner: str) -> Store:
        """Where somebody's conversations are: in memory, if they or the operator keep none."""
        return self.disk if owner and self.disk is not None and self.disk.keeps(owner) else self.memory

    @property
    def roots(self) -> list[Path]:
        """The folders that pictures may come from."""
        return [Path(get_upload_folder()), self.examples]

    async def ask(
        self, who: Visitor, conversation: str, choices: Choices, message: Mapping[str, Any]
    ) -> tuple[str, Sequence[str]]:
        """Writes a question down, its documents as pictures.

        Args:
            conversation: its id; "" begins one.
            message: `{"text": str, "files": [path | {"path": path}]}`.

        Returns:
            The conversation's id; and sentences for the visitor, of what the model sees of documents.

        Raises:
            VLChatError: it can't be asked.
        """
        return await self.documents.apart(self._ask, who, conversation, choices, message)

    def _ask(
        self, who: Visitor, conversation: str, choices: Choices, message: Mapping[str, Any]
    ) -> tuple[str, Sequence[str]]:
        text = str(message.get("text") or "").strip()
        files = uploaded(message.get("files") or [], self.roots)
        if not (text or files):
            raise VLChatError("Type a question, or add a picture.")
        _short(text)
        _short(choices.system)
        self._at_rest(who, conversation)
        already = sum(len(turn.pictures) for turn in without_refused(who.turns(conversation)))
        found = attached(files, already, self.documents, who.language)
        there = conversation or who.store.begin(who.owner, choices.__dict__).id
        who.store.settle(who.owner, there, choices.__dict__)
        who.store.add(who.owner, there, "user", text, found.pictures)
        self._asked.add((who.owner, there))
        return there, found.told

    def again(self, who: Visitor, conversation: str) -> None:
        """Takes the last answer back, to be written anew.

        Raises:
            VLChatError: the conversation is being answered; as `undo` and `edit`.
        """
        self._at_rest(who, conversation)
        turns = who.turns(conversation)
        asked = _last_question(turns)
        if asked is not None and asked + 1 < len(turns):
            who.store.cut(who.owner, conversation, turns[asked + 1].id)
        if asked is not None:
            self._asked.add((who.owner, conversation))

    def undo(self, who: Visitor, conversation: str) -> dict[str, Any]:
        """Takes the last question back; it is returned as `ask` takes it."""
        self._at_rest(who, conversation)
        turns = who.turns(conversation)
        asked = _last_question(turns)
        if asked is None:
            return {"text": "", "files": []}
        message = self._message(who, turns[asked], turns[asked].text)
        who.store.cut(who.owner, conversation, turns[asked].id)
        return message

    def edit(self, who: Visitor, conversation: str, turn: int, text: str) -> None:
        """Another wording of a question, with its pictures; what came after it is gone."""
        self._at_rest(who, conversation)
        _short(text)
        asked = [one for one in who.turns(conversation) if one.id == turn and one.role == "user"]
        if asked and (text.strip() or asked[0].pictures):
            pictures = [(one.name, who.store.picture(who.owner, one.digest)) for one in asked[0].pictures]
            who.store.replace(who.owner, conversation, turn, text.strip(), pictures)
            self._asked.add((who.owner, conversation))

    def _at_rest(self, who: Visitor, conversation: str) -> None:
        if (who.owner, conversation) in self._answering:
            raise VLChatError(told("chat.busy", who.language))

    def _message(self, who: Visitor, turn: Turn, text: str) -> dict[str, Any]:
        return {"text": text, "files": [str(who.path_of(picture)) for picture in turn.pictures]}

    async def answers(
        self, who: Visitor, conversation: str, choices: Choices, request: gr.Request
    ) -> AsyncGenerator[tuple[list[dict[str, Any]], tuple[str, ...]]]:
        """The conversation, its last question being answered, kept as it grows. One that was not just asked is not.

        Yields:
            The turns for the page, and (where two answer, `Choices.beside`) both answers as HTML.
        """
        turns, key = who.turns(conversation), (who.owner, conversation)
        if key not in self._asked or key in self._answering or not turns or turns[-1].role != "user":
            return
        self._asked.discard(key)
        self._answering.add(key)
        before, kept, written = who.shown(turns), 0, time.monotonic()
        names = [choices.adapter, *([choices.beside] if choices.beside != "-" else [])]
        several = [choices.options(name) for name in names]
        latest: tuple[Answer, ...] = (Answer(),) * len(names)

        def messages() -> Sequence[Message]:
            return turns_as_messages(turns, who.path_of, choices.system, self.asking.decoder)

        streams = [self.asking.answers(messages, options, turns[-1].text, request) for options in several]
        try:
            async with aclosing(together(streams)) as grown:
                async for latest in grown:
                    if any(one.text for one in latest):
                        kept = kept or self._begun(who, conversation, turns[-1])
                        if time.monotonic() - written > _KEEP:
                            written = time.monotonic()
                            who.store.finish(who.owner, kept, latest[0].text, {"reason": "cancelled"})
                    if len(latest) > 1:
                        yield before, tuple(said(one, who.language) for one in latest)
                    elif kept:
                        yield [*before, growing(kept, latest[0].text)], ()
                    elif not latest[0].refused:
                        yield [*before, waiting(latest[0].place, who.language)], ()
        finally:
            try:
                if any(one.text or one.refused or one.end is not None for one in latest):
                    kept = kept or self._begun(who, conversation, turns[-1])
                    facts = [
                        self.facts(one, options, choices.system) for one, options in zip(latest, several, strict=True)
                    ]
                    who.store.finish(who.owner, kept, latest[0].text.strip(), paired(latest, facts))
            except Absent:
                pass  # the conversation was deleted meanwhile, by its owner
            finally:
                self._answering.discard(key)

    def vote(self, who: Visitor, conversation: str, chosen: str) -> None:
        """Chooses between the two answers to the last question: "left", "right" or "same". The better one stays."""
        if (who.owner, conversation) in self._answering:
            raise VLChatError(told("chat.busy", who.language))
        turns = who.turns(conversation)
        if not turns or pair_of(turns[-1], who.language) is None:
            return
        turn, asked = turns[-1], _last_question(turns)
        text, facts, answers = settled_pair(turn, chosen, self.asking.engine.names)
        if asked is not None:
            better = "" if chosen == "same" else list(answers)[chosen == "right"]
            who.store.vote(who.owner, conversation, turns[asked].id, answers, better)
        who.store.finish(who.owner, turn.id, text, facts)

    def _begun(self, who: Visitor, conversation: str, question: Turn) -> int:
        """A new answer's id, if the question that it is for still stands there.

        Raises:
            Absent: it does not.
        """
        if [one.id for one in who.turns(conversation)][-1:] != [question.id]:
            raise Absent(told("chat.changed", who.language))
        return who.store.add(who.owner, conversation, "assistant", "")

    def rate(self, who: Visitor, turn: int, rating: int, correction: str) -> None:
        """Keeps what a visitor thinks of an answer; of those who keep no history, that exchange alone."""
        _short(correction)
        who.store.rate(who.owner, turn, rating, correction)
        if who.store is self.memory and self.disk is not None:
            self.disk.keep_rated(who.owner, self.memory, turn)

    def facts(self, answer: Answer, options: Options, system: str) -> dict[str, Any]:
        """What is kept of an answer beside its words: `Facts`, who answered, and why there is none."""
        reason = "The model ended its answer before the first word. Try other words or another setting."
        refused = answer.refused or ("" if answer.text.strip() or answer.end is None else reason)
        end = answer.end or End("cancelled")
        try:
            context = self.asking.engine.described(options.adapter).get("context_length")
        except VLChatError:  # it is gone
            context = None
        facts = Facts(
            end.prompt_tokens, end.cached_tokens, end.new_tokens, end.reason, round(answer.first_seconds, 4),
            round(answer.seconds, 4), context, tuple((one.text, round(one.logprob, 4)) for one in answer.likely),
        )  # fmt: skip
        kept = {**vars(facts), "adapter": options.adapter or "", **({"refused": refused} if refused else {})}
        likelihood = facts.likelihood
        trust = self.inside.trust(options.adapter) if likelihood is not None else None
        unsure = likelihood is not None and trust is not None and trust.unsure(likelihood)
        return {**kept, "system": system, **({"unsure": True} if unsure else {})}

    def told(self, request: gr.Request, which: tuple[str, int]) -> Told | None:
        """An answer to look into, see `serve.page.inside`."""
        who = self.visitor(request)
        turns = who.turns(which[0])
        place = next((place for place, one in enumerate(turns) if one.id == which[1]), 0)
        if not place or not turns[place].text:
            return None
        answer = turns[place]
        system = str(answer.facts.get("system", ""))
        messages = turns_as_messages(turns[:place], who.path_of, system, self.asking.decoder)
        return Told(messages, answer.text, str(answer.facts.get("adapter") or "") or None, facts_of(answer))

    async def settled(self, who: Visitor, conversation: str) -> list[Turn]:
        """The turns, once an answer that was stopped is written down."""
        end = time.monotonic() + _SETTLE
        while (who.owner, conversation) in self._answering and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return who.turns(conversation)

    def close(self) -> None:
        """Writes all down. Nothing is asked after it."""
        self.inside.close()
        self.documents.close()
        for store in filter(None, (self.disk, self.memory)):
            store.close()
        forget_all()

    def settings(self, who: Visitor, conversation: Conversation) -> Choices:
        """What a conversation was kept with."""
        return Choices.kept(conversation.settings, self.asking.engine.names)


def facts_of(turn: Turn) -> Facts:
    """What was kept of how an answer was written."""
    known = {one.name for one in fields(Facts)}
    return Facts(**{name: value for name, value in turn.facts.items() if name in known})


def facts_line(turn: Turn, language: str) -> str:
    """What is told under an answer: its tokens, its speed, what is left of the context, why it ended."""
    facts = facts_of(turn)
    if turn.role != "assistant" or not facts.new_tokens:
        return ""
    parts = [told("chat.tokens", language, count=facts.new_tokens)]
    if facts.rate is not None:
        parts.append(told("chat.speed", language, speed=f"{facts.rate:.0f}"))
    parts.append(told("chat.first", language, seconds=f"{facts.first_token:.2f}"))
    if facts.context is not None:
        left = max(0, facts.context - facts.prompt_tokens - facts.new_tokens)
        parts.append(told("chat.left-over", language, left=f"{left:,}"))
    parts.append(told(f"chat.reason-{facts.reason}", language))
    return " · ".join(parts)


def _short(text: str) -> None:
    if len(text) > _LONGEST_TEXT:
        raise VLChatError(f"The text has {len(text):,} characters; at most {_LONGEST_TEXT:,} are taken.")


def _last_question(turns: Sequence[Turn]) -> int | None:
    places = [place for place, turn in enumerate(turns) if turn.role == "user"]
    return places[-1] if places else None
