"""A model's batch: prompts computed piece by piece, one more token for each conversation in it, and what is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, TextStreamer

from serve import slots as keys_and_values
from serve.prefixes import Kept, Pictures, Prefixes, Seen, named
from serve.products import rearrange
from serve.slots import Slots
from serve.tickets import End, Failed, Likely, Options, Ticket
from vlchat.chat import Chat
from vlchat.errors import VLChatError
from vlchat.logits import finish_logits
from vlchat.lora import bare
from vlchat.model import VLChatForConditionalGeneration


class Writer(TextStreamer):
    """Tokens -> pieces of text, cut where whole words end."""

    def __init__(self, tokenizer: Any, ticket: Ticket) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.ticket = ticket

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.ticket.piece(text)


@dataclass(eq=False)
class Row:
    """A conversation on its way.

    Attributes:
        batch: that it joins.
        inputs, config: of `Chat.prepare`.
        names: of `serve.prefixes.named`.
        embeddings: (1, tokens, hidden) of what of its prompt is not computed yet.
        cached: tokens of its prompt that were known.
        written: its answer.
    """

    batch: Batch
    ticket: Ticket
    options: Options
    inputs: dict[str, torch.Tensor]
    config: GenerationConfig
    ids: list[int]
    writer: Writer
    names: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    embeddings: torch.Tensor | None = None
    cache: DynamicCache | None = None
    cached: int = 0
    written: list[int] = field(default_factory=list)
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    generator: torch.Generator | None = None

    def finish(self, reason: str, error: BaseException | None = None) -> None:
        self.writer.end()
        self.ticket.finish(End(reason, len(self.ids), self.cached, len(self.written), error))


class Batch:
    """The conversations that one model, or one of its adapters, answers now.

    Args:
        chat: whose model answers.
        name: of the adapter: what is kept of one is nothing to another.
        most: conversations at once.
        prefixes, pictures: what is kept, with other batches.

    Attributes:
        joins: whether conversations can be answered together: not by other makers' models, and not where
            `serve.slots.fits` says no.
        rows: that are being answered.
    """

    def __init__(self, chat: Chat, name: str, most: int, prefixes: Prefixes, pictures: Pictures) -> None:
        self.chat, self.name, self.prefixes, self.pictures = chat, name, prefixes, pictures
        self.model: Any = bare(chat.model)
        rearrange(self.model)
        with chat.turn:
            self.joins = isinstance(self.model, VLChatForConditionalGeneration) and keys_and_values.fits(
                self.model.get_decoder()
            )
        self.rows: list[Row] = []
        self._slots = Slots(most)

    def row(self, ticket: Ticket, options: Options, inputs: dict[str, Any], config: GenerationConfig) -> Row:
        """A conversation for this batch."""
        ids = inputs["input_ids"][0].tolist()
        return Row(self, ticket, options, inputs, config, ids, Writer(self.chat.tokenizer, ticket))

    def alone(self, row: Row) -> None:
        """Answers one conversation to its end, as any model can."""
        error: VLChatError | None = None
        text = ""
        try:
            for piece in self.chat.written(row.inputs, row.config, row.options.seed, row.ticket.left):
                row.ticket.token()
                row.ticket.piece(piece)
                text += piece
        except Exception as failed:
            cause = failed.__cause__  # what is no sentence has become one on its way
            told = failed if cause is None and isinstance(failed, VLChatError) else None
            error = told or Failed(cause or failed, isinstance(failed, torch.OutOfMemoryError))
        row.written = self.chat.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        full = len(row.written) >= int(row.config.max_new_tokens or 1)
        row.finish(row.ticket.ending if row.ticket.left.is_set() else "length" if full else "stop", error)

    def take_in(self, row: Row, tokens: int) -> int:
        """Computes a piece of a prompt; after the last one the conversation has joined.

        Args:
            tokens: the most that are computed.

        Returns:
            How many were.
        """
        if row.cache is None:
            self._begin(row)
        assert row.cache is not None and row.embeddings is not None
        done = row.cache.get_seq_length()
        now, row.embeddings = row.embeddings[:, :tokens], row.embeddings[:, tokens:]
        places = torch.arange(done, done + now.shape[1], device=now.device)[None]
        states = self.model.get_decoder()(
            inputs_embeds=now, position_ids=places, past_key_values=row.cache, use_cache=True
        ).last_hidden_state
        if row.embeddings.shape[1]:
            return now.shape[1]
        logits = self._logits(states[:, -1:])
        self._slots.join(keys_and_values.of(row.cache))
        row.cache = row.embeddings = None
        self.rows.append(row)
        self._write([row], logits)
        return now.shape[1]

    def step(self) -> int:
        """One more token for each conversation of the batch; how many that are."""
        table = self.model.get_input_embeddings()
        device = table.weight.device
        tokens = torch.tensor([[row.written[-1]] for row in self.rows], device=device)
        embeddings = table(tokens)
        step = self._slots.begin(embeddings.dtype, device)
        states = self.model.get_decoder()(
            inputs_embeds=embeddings, past_key_values=self._slots, use_cache=True, **step
        ).last_hidden_state
        logits = self._logits(states)
        self._slots.end()
        self._write(list(self.rows), logits)
        return len(states)

    def drop_left(self) -> None:
        """Takes those out whose answer nobody wants any more."""
        for row in [row for row in self.rows if row.ticket.left.is_set()]:
            self._remove(row)
            row.finish(row.ticket.ending)

    def fail(self, rows: Iterable[Row], error: BaseException) -> None:
        """Ends some answers with an error; they may be in the batch or on their way."""
        full = isinstance(error, torch.OutOfMemoryError)
        told = error if isinstance(error, VLChatError) else Failed(error, full)
        for row in rows:
            if row in self.rows:
                self._remove(row, keep=False)
            row.finish("stop", told)

    def _remove(self, row: Row, keep: bool = True) -> None:
        """Takes a conversation out, and keeps what was computed of it."""
        slot = self.rows.index(row)
        if keep:
            length = self._slots.lengths[slot]
            written = np.array(row.written, dtype=np.int64)
            names = np.concatenate([row.names, written])[:length]
            try:
                self.prefixes.keep(self._scope(row), Kept(names, self._slots.taken(slot)))
            except (RuntimeError, MemoryError):  # torch.OutOfMemoryError is one; a CPU's allocator raises others
                self.prefixes.clear()
        self._slots.leave(slot)
        last = self.rows.pop()
        if last is not row:
            self.rows[slot] = last
        if not keep or not self.rows:
            self._slots.trim()

    def _scope(self, row: Row) -> tuple[str, str]:
        return self.name, row.options.scope

    def _begin(self, row: Row) -> None:
        """What of a conversation is known, and the embeddings of the rest."""
        seen = self._seen(row.inputs)
        image_token = self.model.config.image_token_id
        row.names = named(row.ids, image_token, seen)
        known, found = self.prefixes.longest(self._scope(row), row.names)
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
        digests = self.pictures.digests(inputs, self.name)  # an adapter may bring a connector of its own
        found = {digest: self.pictures.get(digest) for digest in digests}
        new = [number for number, digest in enumerate(digests) if found[digest] is None]
        new = [number for number in new if digests.index(digests[number]) == number]  # each once
        if new:
            shown = {
                name: tensor[new] for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")
            }
            for number, features in zip(new, self.model.get_image_features(**shown).pooler_output, strict=True):
                found[digests[number]] = self.pictures.keep(digests[number], features)
        return [seen for digest in digests if (seen := found[digest]) is not None]

    def _prepare_choice(self, row: Row) -> None:
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

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) float32 of (rows, 1, hidden)."""
        logits = finish_logits(self.model.lm_head(states[:, -1]), self.model.config.get_text_config())
        return logits.float()

    def _write(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Chooses each one's next token, and ends those that are done."""
        for row, one in zip(rows, logits.split(1), strict=True):
            try:
                token = self._chosen(row, one)
                row.written.append(token)
                ended = token in (row.config.eos_token_id or ())
                if row.options.logprobs is not None and not ended:
                    row.ticket.likely.append(self._likely(token, one[0], row.options.logprobs))
                row.ticket.token()
                row.writer.put(torch.tensor([token]))
            except Exception as error:
                self.fail([row], error)
                continue
            if ended or len(row.written) >= int(row.config.max_new_tokens or 1):
                self._remove(row)
                row.finish("stop" if ended else "length")

    def _chosen(self, row: Row, logits: torch.Tensor) -> int:
        """The next token, of (1, vocabulary)."""
        if row.processors:
            so_far: Any = torch.tensor([row.ids + row.written], device=logits.device)
            logits = row.processors(so_far, logits)
        if row.generator is None:
            return int(logits.argmax(dim=-1))
        return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=row.generator))

    def _likely(self, token: int, logits: torch.Tensor, most: int) -> Likely:
        """How likely a token was, and the likeliest ones, by the model itself: no temperature, nothing held back."""
        logprobs = logits.log_softmax(dim=-1)
        values, tokens = logprobs.topk(min(most, len(logprobs)))
        others = zip(tokens.tolist(), values.tolist(), strict=True)
        return Likely(
            self.chat.tokenizer.decode([token]),
            float(logprobs[token]),
            tuple((self.chat.tokenizer.decode([other]), value) for other, value in others),
        )
