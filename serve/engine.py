"""Many conversations answered at once: a line to wait in, one batch that they join and leave, nothing computed twice.

A thread of its own runs the model. Between two steps of the batch it takes in the next of those that wait, a piece of
its prompt at a time, so that a long prompt does not stop the others' words. What was computed of a conversation is kept
for its next turn and for whoever begins alike.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, TextStreamer

from serve import slots as keys_and_values
from serve.prefixes import Kept, Pictures, Prefixes, Seen, named
from serve.slots import Slots
from serve.tickets import Busy, Closed, End, Options, Ticket
from vlchat.chat import MEMORY_FULL, Chat
from vlchat.conversation import Message
from vlchat.errors import VLChatError
from vlchat.logits import finish_logits
from vlchat.lora import bare
from vlchat.model import VLChatForConditionalGeneration

MIB = 2**20


class _Writer(TextStreamer):
    """Tokens -> pieces of text, cut where whole words end."""

    def __init__(self, tokenizer: Any, ticket: Ticket) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.ticket = ticket

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.ticket.piece(text)


@dataclass
class _Row:
    """A conversation on its way."""

    ticket: Ticket
    options: Options
    inputs: dict[str, torch.Tensor]
    config: GenerationConfig
    ids: list[int]
    writer: _Writer
    names: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    embeddings: torch.Tensor | None = None  # (1, tokens, hidden) of what is not computed yet
    cache: DynamicCache | None = None
    cached: int = 0
    written: list[int] = field(default_factory=list)
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    generator: torch.Generator | None = None

    def finish(self, reason: str, error: BaseException | None = None) -> None:
        self.writer.end()
        self.ticket.finish(End(reason, len(self.ids), self.cached, len(self.written), error))


class Engine:
    """Answers for many at once.

    A model that is not ours, or that can't be batched so (`serve.slots.fits`), answers one after another.

    Args:
        chat: whose model answers.
        most: conversations in one batch.
        waiting: places in the line.
        memory: bytes for what is kept of conversations.
        pictures: bytes for what is kept of pictures.
        piece: tokens of a prompt that are computed between two steps of the others.
    """

    def __init__(
        self, chat: Chat, *, most: int = 8, waiting: int = 64, memory: int = 512 * MIB, pictures: int = 64 * MIB,
        piece: int = 256,
    ) -> None:  # fmt: skip
        self.chat, self.most, self.waiting, self.piece = chat, most, waiting, piece
        own = bare(chat.model)
        ours = isinstance(own, VLChatForConditionalGeneration)
        with chat.turn:
            self.batches = ours and keys_and_values.fits(own.get_decoder())
        self.model: Any = own
        self._others: dict[str, Engine] = {}  # adapters' names -> of the same model with this adapter
        self._line_options = {"most": most, "waiting": waiting, "memory": memory, "pictures": pictures, "piece": piece}
        self.prefixes, self.pictures = Prefixes(memory), Pictures(pictures)
        self._slots = Slots(most)
        self._line: deque[_Row] = deque()
        self._coming: _Row | None = None
        self._rows: list[_Row] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=torch.inference_mode()(self._run), name="vlchat-engine", daemon=True)
        self._thread.start()

    def submit(
        self, messages: Sequence[Message], options: Options | None = None,
        deliver: Callable[[str | End], object] | None = None,
    ) -> Ticket:  # fmt: skip
        """Takes a conversation into the line.

        Args:
            messages: as of `Chat.stream`.
            options: the defaults, if there are none.
            deliver: is called by the engine's thread with each piece and at last with an `End`, in place of iterating.

        Raises:
            Busy: all places are taken.
            VLChatError: the conversation can't be answered; as `Chat.stream`.
        """
        options = options or Options()
        if options.adapter is not None:
            return self._other(options.adapter).submit(messages, replace(options, adapter=None), deliver)
        with self._changed:
            self._refuse()
        inputs, config = self.chat.prepare(
            messages, max_new_tokens=options.max_new_tokens, temperature=options.temperature, top_p=options.top_p
        )
        ticket = Ticket(self, deliver)
        ids = inputs["input_ids"][0].tolist()
        row = _Row(ticket, options, inputs, config, ids, _Writer(self.chat.tokenizer, ticket))
        with self._changed:
            self._refuse()
            self._line.append(row)
            self._changed.notify()
        return ticket

    def _other(self, adapter: str) -> Engine:
        with self._changed:
            self._refuse()
            if adapter not in self._others:
                self._others[adapter] = Engine(self.chat.with_adapter(adapter), **self._line_options)
            return self._others[adapter]

    def _refuse(self) -> None:
        if self._closing:
            raise Closed
        if len(self._line) >= self.waiting:
            raise Busy(f"All {self.waiting} places in the line are taken. Ask again in a minute.")

    def place_of(self, ticket: Ticket) -> int:
        """See `Ticket.place`."""
        with self._changed:
            before = [row.ticket for row in self._line]
        return before.index(ticket) + 1 if ticket in before else 0

    def wake(self) -> None:
        """Has the engine look at its tickets now."""
        with self._changed:
            self._changed.notify()

    @property
    def description(self) -> dict[str, Any]:
        """The model's, see `Chat.description`."""
        return self.chat.description

    @property
    def names(self) -> list[str]:
        """The model and its adapters."""
        return [str(self.chat.description.get("name") or "vlchat"), *self.chat.adapters]

    @property
    def open(self) -> bool:
        """Whether it takes conversations."""
        return not self._closing

    @property
    def answering(self) -> int:
        """Conversations that are in the batch or on their way into it."""
        return len(self._rows) + (self._coming is not None)

    def close(self, wait: float | None = 10.0) -> None:
        """Takes no more, ends what is being answered after `wait` seconds (None: not before it is done), and stops."""
        with self._changed:
            self._closing = True
            refused, self._line = list(self._line), deque()
            self._changed.notify()
        for other in self._others.values():
            other.close(wait)
        for row in refused:
            row.finish("cancelled", Closed())
        self._thread.join(wait)
        for one in [*self._rows, *([self._coming] if self._coming else [])]:
            one.ticket.cancel()
        self._thread.join(None if wait is None else 10.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._line or self._coming or self._rows or self._closing):
                    self._changed.wait()
                if self._closing and not (self._coming or self._rows):
                    return
            if not self.batches:
                if self._next():
                    self._alone()
                continue
            computed = 0
            while computed < self.piece and self._next():
                computed += self._guarded(self._take_in) or 1
            self._drop_cancelled()
            if self._rows:
                self._guarded(self._step)

    def _next(self) -> bool:
        """Whether a conversation is coming; the first in the line is, if there is a slot. Who left is gone from it."""
        with self._changed:
            for row in [row for row in self._line if row.ticket.left.is_set()]:
                self._line.remove(row)
                row.finish("cancelled")
            if self._line and self._coming is None and len(self._rows) < self.most:
                self._coming = self._line.popleft()
            if self._coming is not None and self._coming.ticket.left.is_set():
                row, self._coming = self._coming, None
                row.finish("cancelled")
        return self._coming is not None

    def _alone(self) -> None:
        """Answers one conversation to its end, as any model can."""
        row = self._coming
        assert row is not None
        error = None
        try:
            for piece in self.chat.written(row.inputs, row.config, row.options.seed, row.ticket.left):
                row.ticket.piece(piece)
        except Exception as failed:
            error = failed
        self._coming = None
        row.finish("cancelled" if row.ticket.left.is_set() else "stop", error)

    def _guarded(self, work: Callable[[], int]) -> int:
        """Some work on the model, and its result. A failure is told to those whom it concerns; the others go on."""
        concerned = [self._coming] if work == self._take_in else list(self._rows)
        try:
            with self.chat.turn:
                return work()
        except torch.OutOfMemoryError as error:
            if self.prefixes.bytes:
                self.prefixes.clear()  # and the same work once more
                if self._coming is not None:
                    self._coming.cache = None
            else:
                self._fail(concerned[-1:], error)
        except Exception as error:
            self._fail(concerned, error)
        return 0

    def _fail(self, rows: Sequence[_Row | None], error: BaseException) -> None:
        told = VLChatError(MEMORY_FULL) if isinstance(error, torch.OutOfMemoryError) else self.chat.failed(error)
        for row in rows:
            if row is None:
                continue
            if row is self._coming:
                self._coming = None
            else:
                self._remove(row, keep=False)
            row.finish("stop", told)

    def _drop_cancelled(self) -> None:
        for row in [row for row in self._rows if row.ticket.left.is_set()]:
            self._remove(row)
            row.finish("cancelled")

    def _remove(self, row: _Row, keep: bool = True) -> None:
        """Takes a conversation out of the batch, and keeps what was computed of it."""
        slot = self._rows.index(row)
        if keep:
            length = self._slots.lengths[slot]
            written = np.array(row.written, dtype=np.int64)
            names = np.concatenate([row.names, written])[:length]
            try:
                self.prefixes.keep(row.options.scope, Kept(names, self._slots.taken(slot)))
            except torch.OutOfMemoryError:
                self.prefixes.clear()
        self._slots.leave(slot)
        last = self._rows.pop()
        if last is not row:
            self._rows[slot] = last

    def _take_in(self) -> int:
        """A piece of the prompt of the conversation that is coming, of so many tokens; after its last one it joins."""
        row = self._coming
        assert row is not None
        if row.cache is None:
            self._begin(row)
        assert row.cache is not None and row.embeddings is not None
        done = row.cache.get_seq_length()
        now, row.embeddings = row.embeddings[:, : self.piece], row.embeddings[:, self.piece :]
        places = torch.arange(done, done + now.shape[1], device=now.device)[None]
        states = self.model.get_decoder()(
            inputs_embeds=now, position_ids=places, past_key_values=row.cache, use_cache=True
        ).last_hidden_state
        if row.embeddings.shape[1]:
            return now.shape[1]
        logits = self._logits(states[:, -1:])
        self._slots.join(keys_and_values.of(row.cache))
        self._coming = row.cache = row.embeddings = None
        self._rows.append(row)
        self._write([row], logits)
        return now.shape[1]

    def _begin(self, row: _Row) -> None:
        """What of a conversation is known, and the embeddings of the rest."""
        seen = self._seen(row.inputs)
        image_token = self.model.config.image_token_id
        row.names = named(row.ids, image_token, seen)
        known, found = self.prefixes.longest(row.options.scope, row.names)
        row.cached = min(known, len(row.ids) - 1)  # the last token's state is what the answer begins from
        row.cache = keys_and_values.filled(found, row.cached) if row.cached else DynamicCache()
        embeddings = self.model.get_input_embeddings()(row.inputs["input_ids"])
        if seen:
            features = torch.cat([one for _, one in seen]).to(embeddings.dtype)
            places = row.inputs["input_ids"] == image_token
            if int(places.sum()) != len(features):
                raise VLChatError(f"The prompt has {int(places.sum())} image tokens for {len(features)} features.")
            embeddings = embeddings.masked_scatter(places[..., None], features)
        row.embeddings = embeddings[:, row.cached :]
        self._prepare_choice(row)

    def _seen(self, inputs: dict[str, torch.Tensor]) -> list[Seen]:
        """The conversation's pictures as the language model sees them."""
        digests = self.pictures.digests(inputs)
        found = [self.pictures.get(digest) for digest in digests]
        new = [number for number, one in enumerate(found) if one is None]
        if new:
            shown = {
                name: tensor[new] for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")
            }
            for number, features in zip(new, self.model.get_image_features(**shown).pooler_output, strict=True):
                found[number] = self.pictures.keep(digests[number], features)
        return [one for one in found if one is not None]

    def _prepare_choice(self, row: _Row) -> None:
        """How the next token is chosen: by transformers' own processors of logits, as `generate` chooses."""
        device = row.inputs["input_ids"].device
        config, _ = self.model._prepare_generation_config(row.config)
        self.model._prepare_special_tokens(config, True, device=device)
        row.processors = self.model._get_logits_processor(
            generation_config=config, input_ids_seq_length=len(row.ids), encoder_input_ids=row.inputs["input_ids"],
            logits_processor=LogitsProcessorList(), device=str(device),
        )  # fmt: skip
        if config.do_sample:
            row.generator = torch.Generator(device=device)
            row.generator.manual_seed(row.options.seed) if row.options.seed is not None else row.generator.seed()

    def _step(self) -> int:
        """One more token for each conversation of the batch; how many that are."""
        table = self.model.get_input_embeddings()
        device = table.weight.device
        tokens = torch.tensor([[row.written[-1]] for row in self._rows], device=device)
        embeddings = table(tokens)
        step = self._slots.begin(embeddings.dtype, device)
        states = self.model.get_decoder()(
            inputs_embeds=embeddings, past_key_values=self._slots, use_cache=True, **step
        ).last_hidden_state
        logits = self._logits(states)
        self._slots.end()
        self._write(list(self._rows), logits)
        return len(states)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) float32 of (rows, 1, hidden)."""
        logits = finish_logits(self.model.lm_head(states[:, -1]), self.model.config.get_text_config())
        return logits.float()

    def _write(self, rows: Sequence[_Row], logits: torch.Tensor) -> None:
        """Chooses each one's next token, and ends those that are done."""
        for row, one in zip(rows, logits.split(1), strict=True):
            try:
                token = self._chosen(row, one)
                row.written.append(token)
                row.writer.put(torch.tensor([token]))
            except Exception as error:
                self._fail([row], error)
                continue
            ended = token in (row.config.eos_token_id or ())
            if ended or len(row.written) >= int(row.config.max_new_tokens or 1):
                self._remove(row)
                row.finish("stop" if ended else "length")

    def _chosen(self, row: _Row, logits: torch.Tensor) -> int:
        """The next token, of (1, vocabulary)."""
        if row.processors:
            so_far: Any = torch.tensor([row.ids + row.written], device=logits.device)
            logits = row.processors(so_far, logits)
        if row.generator is None:
            return int(logits.argmax(dim=-1))
        return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=row.generator))
