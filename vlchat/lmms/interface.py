"""lmms-eval's two ways of asking a model, on vlchat's answerers. Nothing here needs lmms-eval itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from vlchat.chat import Chat
from vlchat.errors import ConfigError, VLChatError
from vlchat.evaluate.answerers import ChatAnswerer, one_by_one
from vlchat.evaluate.items import Reply, Request
from vlchat.lmms.requests import Decoding, interleaved, length, shown, where

Written = tuple[str, dict[str, int]]  # an answer, and its `output_tokens`


class Interface:
    """What the chat and the simple interface share.

    A request is lmms-eval's `Instance`: its `args` tell the task, split and number of a document, and the task's
    functions that make a question of it.

    Args:
        answerer: the model.
        frames: how many pictures of a video are shown.
        system_prompt: goes before every conversation that has none.
        batch_size: questions answered at once.

    Attributes:
        task_dict: task -> split -> documents; lmms-eval fills it in.
        rank: of this process; the first one shows its progress.
    """

    task_dict: dict[str, Any]
    rank: int

    def __init__(
        self, answerer: ChatAnswerer, *, frames: int = 8, system_prompt: str | None = None, batch_size: int = 1
    ) -> None:
        self.answerer = answerer
        self.frames, self.system_prompt, self.batch_size = frames, system_prompt, batch_size

    @property
    def chat(self) -> Chat:
        return self.answerer.chat

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise ConfigError("lmms-eval asks for likelihoods through its simple tasks: add --force_simple.")

    def generate_until(self, requests: list[Any]) -> list[Written]:
        """One answer a request, in order; one that the model cannot take is empty, with a warning."""
        asked = []
        for request in requests:
            messages, options = self._question(request)
            asked.append((messages, Decoding.of(options), where(request)))
        return self._answers(asked)

    def generate_until_multi_round(self, requests: list[Any]) -> list[list[str]]:
        """The answers of every round of each request; what is asked in a round may depend on the answers before it."""
        results = []
        for request in tqdm(requests, desc="Model Responding", disable=self.rank != 0):
            written: list[str] = []
            for messages, options in self._rounds(request, written):
                found = self._answers([(messages, Decoding.of(options), where(request))], quiet=True)
                written.append(found[0][0])
            results.append(written)
        return results

    def _question(self, request: Any) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
        """(conversation, generation options) of a request."""
        raise NotImplementedError

    def _rounds(self, request: Any, written: list[str]) -> Iterator[tuple[list[dict[str, Any]], Mapping[str, Any]]]:
        """The same of every round; `written` grows by an answer after each."""
        raise NotImplementedError

    def _document(self, task: str, split: str, number: Any) -> Any:
        return self.task_dict[task][split][number]

    def _answers(
        self, asked: Sequence[tuple[list[dict[str, Any]], Decoding, str]], *, quiet: bool = False
    ) -> list[Written]:
        """Answers by batches of equal decoding and like length."""
        replies: list[Reply] = [Reply()] * len(asked)
        order = sorted(range(len(asked)), key=lambda number: (repr(asked[number][1]), length(asked[number][0])))
        with tqdm(total=len(asked), desc="Model Responding", disable=quiet or self.rank != 0) as bar:
            while order:
                how = asked[order[0]][1]
                most = self.batch_size if how.temperature == 0 else 1
                batch = [number for number in order[:most] if asked[number][1] == how]
                order = order[len(batch) :]
                for number, reply in zip(batch, self._batch([asked[n][0] for n in batch], how), strict=True):
                    replies[number] = reply
                    if reply.error is not None:
                        warnings.warn(f"{asked[number][2]} gets an empty answer: {reply.error}", stacklevel=2)
                bar.update(len(batch))
        return [
            (asked[number][1].cut(reply.text), {"output_tokens": reply.tokens})
            for number, reply in enumerate(replies)
        ]

    def _batch(self, conversations: list[list[dict[str, Any]]], how: Decoding) -> list[Reply]:
        if how.temperature == 0:
            requests = [Request(messages, beams=how.beams) for messages in conversations]
            return one_by_one(self.answerer, requests, how.max_new_tokens)
        try:  # drawn from torch's own generator, which lmms-eval seeds
            pieces = self.chat.stream(
                conversations[0], max_new_tokens=how.max_new_tokens, temperature=how.temperature, top_p=how.top_p
            )
            return [Reply("".join(pieces).strip())]
        except VLChatError as error:
            return [Reply(error=str(error))]

    def _told(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The conversation with the system prompt of --model_args."""
        if not self.system_prompt or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": [{"type": "text", "text": self.system_prompt}]}, *messages]


class ChatTasks(Interface):
    """The chat interface: tasks give conversations."""

    def _question(self, request: Any) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
        _, doc_to_messages, options, number, task, split = request.args
        return self._conversation(doc_to_messages(self._document(task, split, number))), options

    def _rounds(self, request: Any, written: list[str]) -> Iterator[tuple[list[dict[str, Any]], Mapping[str, Any]]]:
        _, doc_to_messages, options, number, task, split = request.args
        document = self._document(task, split, number)
        messages, info, place = doc_to_messages(document), None, 0
        while True:
            yield self._conversation(messages), options
            place += 1
            found = doc_to_messages(
                document, round_idx=place, previous_output=list(written), previous_round_info=info
            )
            if not (isinstance(found, tuple) and len(found) == 4) or found[1]:
                return
            messages, _, _, info = found

    def _conversation(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return self._told(
            [
                {"role": message["role"], "content": [part for one in message["content"] for part in self._parts(one)]}
                for message in messages
            ]
        )

    def _parts(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        if given["type"] == "text":
            return [{"type": "text", "text": given["text"]}]
        if given.get("start_time") is not None or given.get("end_time") is not None:
            raise ConfigError("A task shows part of a video, by start and end time; vlchat shows whole ones only.")
        return shown(given.get("url"), str(given["type"]), self.frames)


class SimpleTasks(Interface):
    """The simple interface: tasks give a text and pictures apart. Here likelihoods are asked for."""

    def _question(self, request: Any) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
        text, options, doc_to_visual, number, task, split = request.args
        return self._conversation(text, doc_to_visual(self._document(task, split, number))), options

    def _rounds(self, request: Any, written: list[str]) -> Iterator[tuple[list[dict[str, Any]], Mapping[str, Any]]]:
        text, options, doc_to_visual, doc_to_text, number, task, split = request.args
        document = self._document(task, split, number)
        visuals, info, place = doc_to_visual(document), None, 0
        while True:
            yield self._conversation(text, visuals), options
            place += 1
            found = doc_to_text(document, previous_output=list(written), round_idx=place, previous_round_info=info)
            if not (isinstance(found, tuple) and len(found) == 5) or found[2]:
                return
            visuals, text, _, _, info = found

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """The loss of each continuation as the whole answer, and whether it is what the model would write.

        A loss in spite of the name: lmms-eval takes the choice with the least of it (api/task.py, `np.argmin(lls)`),
        and its own models give transformers' loss, the mean over the tokens, the closing one included.
        """
        together: dict[tuple[Any, ...], list[int]] = {}
        for place, request in enumerate(requests):
            if len(request.args) != 6:
                raise ConfigError("acc_mutual_info asks for answers without a question; use acc or acc_norm.")
            text, _, _, number, task, split = request.args
            together.setdefault((text, number, task, split), []).append(place)
        results = [(math.inf, False)] * len(requests)
        for (text, number, task, split), places in tqdm(
            together.items(), desc="Model Responding", disable=self.rank != 0
        ):
            document = self._document(task, split, number)
            targets = [requests[place].args[1] for place in places]
            choices = tuple(str(t if isinstance(t, str) else t(document)).strip() for t in targets)
            messages = self._conversation(text, requests[places[0]].args[2](document))
            (judged,) = one_by_one(self.answerer, [Request(messages, choices)], 1)
            if judged.error is not None:
                warnings.warn(f"{where(requests[places[0]])} counts as impossible: {judged.error}", stacklevel=2)
                continue
            (written,) = one_by_one(self.answerer, [Request(messages)], max(judged.choice_tokens))
            for place, choice, logprob, count in zip(
                places, choices, judged.choices, judged.choice_tokens, strict=True
            ):
                results[place] = (-logprob / count, written.text == choice)
        return results

    def _conversation(self, text: str, visuals: Sequence[Any] | None) -> list[dict[str, Any]]:
        return self._told([{"role": "user", "content": interleaved(text, visuals or (), self.frames)}])
