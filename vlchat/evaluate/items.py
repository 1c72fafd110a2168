"""What is asked of a model, what it replies, and how a reply is read: the shapes that everything here passes around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlchat.data.formats import Message


@dataclass(frozen=True)
class Request:
    """One thing asked of a model.

    Attributes:
        messages: end in the user's turn; their pictures may be paths, which the runner decodes.
        choices: where there are any, the model writes nothing: it says how likely it holds each of them as the answer.
        max_new_tokens: the longest reply; None leaves it to the run.
        beams: beam search over so many beams; 1 is greedy.
        stated: what the request is about, for a task that asks several things of an item (the order of the choices).
    """

    messages: list[Message]
    choices: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    beams: int = 1
    stated: Any = None


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: what the model wrote; empty for a request with choices.
        logprob: the sum of the log-probabilities of the tokens it wrote, the closing one included; None where the
            model does not say (a server without logprobs).
        tokens: how many tokens that sum is over.
        choices: the log-probability of each choice, a sum over its tokens, the closing one included.
        choice_tokens: how many tokens each choice has.
        error: why there is no reply, in a sentence; the request then counts as answered wrongly.
    """

    text: str = ""
    logprob: float | None = None
    tokens: int = 0
    choices: tuple[float, ...] = ()
    choice_tokens: tuple[int, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Item:
    """One row of a task.

    Attributes:
        id: its name in tables and reports; unique within a task.
        messages: the conversation up to the user's turn that is to be answered.
        reference: the right answer, as a report shows it.
        answers: every accepted answer; for soft accuracy one a person.
        slices: what tables split by, such as {"answer_type": "closed", "modality": "MRI"}.
        cluster: rows with the same one are not independent (they share a picture); None lets the runner name the
            pictures.
        source: whatever the task wants to keep of the row.
    """

    id: str
    messages: list[Message]
    reference: str
    answers: tuple[str, ...] = ()
    slices: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None
    source: Any = None


@dataclass(frozen=True)
class Reading:
    """A reply as its task understands it.

    Attributes:
        answer: what was compared with the reference, after parsing (a choice's letter, "yes", the normalised text).
        score: how right the row is, 0 to 1; what rows are ranked, paired and calibrated by.
        stats: numbers of this row that the task's measures are made of: they are summed over rows first.
        confidence: how sure the model was, 0 to 1; None lets the runner take the probability of what was written, or of
            the choice that was taken.
    """

    answer: str
    score: float
    stats: Mapping[str, float] = field(default_factory=dict)
    confidence: float | None = None


def question_of(messages: Sequence[Message]) -> str:
    """The last user turn's text."""
    last = messages[-1]["content"]
    return "\n".join(part["text"] for part in last if part["type"] == "text").strip()
