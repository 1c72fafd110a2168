"""A model's batch: prompts computed piece by piece, one more token for each conversation in it, and what is kept."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, StoppingCriteriaList

from serve import slots as keys_and_values
from serve.attention import regroup
from serve.choices import chosen, likely, prepare
from serve.prefixes import Kept, Pictures, Prefixes, named
from serve.products import rearrange
from serve.rows import Row, Writer, alike, padded
from serve.slots import KeyValues, Slots
from serve.tickets import Failed, Options, Ticket
from vlchat.chat import Chat
from vlchat.errors import VLChatError
from vlchat.foreign import new_tokens
from vlchat.generation import Stop
from vlchat.logits import finish_logits
from vlchat.lora import bare
from vlchat.model import VLChatForConditionalGeneration

_PATCH = 16  # pixels, for towers that do not tell


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
            if self.joins:
                regroup(self.model.get_decoder())
                tower, decoder = self.model.model.vision_tower, self.model.get_decoder()
                self._tower_share = tower.num_parameters() / decoder.num_parameters()
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
            for piece in self._pieces(row):
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

    def _pieces(self, row: Row) -> Iterator[str]:
        if row.options.beams == 1:
            yield from self.chat.written(row.inputs, row.config, row.options.seed, row.ticket.left)
            return
        config = copy.deepcopy(row.config)
        config.update(num_beams=row.options.beams, early_stopping=True, length_penalty=1.0, do_sample=False)
        config.update(temperature=1.0, top_p=1.0, top_k=50)
        with self.chat.turn:
            generated = self.chat.model.generate(
                **row.inputs,
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([Stop([row.ticket.left])]),
            )
        written = new_tokens(generated, row.inputs["input_ids"])[0]
        yield str(self.chat.tokenizer.decode(written, skip_special_tokens=True)).strip()

    def take_in(self, rows: Sequence[Row], tokens: int) -> int:
        """Computes a piece of the first one's prompt, or looks at a picture of it; those whose prompt ends have joined.

        Others that are like it, short and new, are computed in the same pass: a product of many rows costs less than
        several of few.

        Args:
            rows: that are coming, in their order.
            tokens: after which the others' step is due.

        Returns:
            How many were computed; for a picture, how many tokens cost as much.
        """
        row, *others = rows
        spent = self._ready(row, tokens)
        if row.embeddings is None or (spent and spent + row.embeddings.shape[1] > tokens):
            return spent
        if row.cached or not row.whole(tokens):
            return spent + self._extend(row, tokens)
        group = [row]
        for other in others:
            if spent + padded(group) >= tokens or not other.together:
                break
            try:
                spent += self._ready(other, tokens - spent - padded(group))
            except Exception:  # it is told of it once it is the first
                break
            if other.embeddings is None or other.cached or not other.whole(tokens) or not alike([*group, other]):
                break
            group.append(other)
        try:
            return spent + self._begun_together(group)
        except Exception:
            if len(group) == 1:
                raise
            for one in group:  # each by itself, so that only the one whose fault it is ends
                one.together = False
            return spent

    def _ready(self, row: Row, tokens: int) -> int:
        """Looks at the pictures of a conversation; then it has embeddings. What that cost, about `tokens` at most."""
        spent = 0
        while row.embeddings is None and (found := self._unseen(row)) is not None:
            number, price = found
            if spent and spent + price > tokens:
                return spent
            self._look(row, number)
            spent += price
            if spent >= tokens:
                return spent
        if row.embeddings is None:
            self._begin(row)
        return spent

    def _extend(self, row: Row, tokens: int) -> int:
        """The next tokens of a prompt."""
        assert row.cache is not None and row.embeddings is not None
        done = row.cache.get_seq_length()
        now, row.embeddings = row.embeddings[:, :tokens], row.embeddings[:, tokens:]
        places = torch.arange(done, done + now.shape[1], device=now.device)[None]
        states = self.model.get_decoder()(
            inputs_embeds=now, position_ids=places, past_key_values=row.cache, use_cache=True
        ).last_hidden_state
        if not row.embeddings.shape[1]:
            self._join(row, keys_and_values.of(row.cache), self._logits(states[:, -1:]))
        return now.shape[1]

    def _begun_together(self, rows: Sequence[Row]) -> int:
        """Several whole prompts, padded after their ends, where no token of theirs looks."""
        embeddings = [row.embeddings[0] for row in rows if row.embeddings is not None]
        padded = torch.nn.utils.rnn.pad_sequence(embeddings, batch_first=True)
        cache = DynamicCache()
        places = torch.arange(padded.shape[1], device=padded.device).expand(len(rows), -1)
        states = self.model.get_decoder()(
            inputs_embeds=padded, position_ids=places, past_key_values=cache, use_cache=True
        ).last_hidden_state
        last = torch.stack([one[len(own) - 1] for one, own in zip(states, embeddings, strict=True)])
        logits, found = self._logits(last[:, None]), keys_and_values.of(cache)
        for number, (row, own) in enumerate(zip(rows, embeddings, strict=True)):
            one = slice(number, number + 1)
            its = [(keys[one, :, : len(own)], values[one, :, : len(own)]) for keys, values in found]
            self._join(row, its, logits[one])
        return padded.shape[0] * padded.shape[1]

    def _join(self, row: Row, found: KeyValues, logits: torch.Tensor) -> None:
        """Takes a conversation into the batch, and chooses the first token of its answer."""
        self._slots.join(found)
        row.cache = row.embeddings = None
        self.rows.append(row)
        self._write([row], logits)

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
        seen = [row.seen[digest] for digest in row.digests or ()]
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
        prepare(self.model, row)

    def _unseen(self, row: Row) -> tuple[int, int] | None:
        """The number of a conversation's next picture that is not known, and its price; None where all are known."""
        if row.digests is None:
            row.digests = self.pictures.digests(row.inputs, self.name)  # an adapter may bring a connector of its own
        for number, digest in enumerate(row.digests):
            if digest not in row.seen:
                known = self.pictures.get(digest)
                if known is None:
                    return number, self._price(row.inputs["pixel_values"][number : number + 1])
                row.seen[digest] = known
        return None

    def _look(self, row: Row, number: int) -> None:
        assert row.digests is not None
        own = slice(number, number + 1)
        shown = {name: one[own] for name, one in row.inputs.items() if name not in ("input_ids", "attention_mask")}
        (features,) = self.model.get_image_features(**shown).pooler_output
        row.seen[row.digests[number]] = self.pictures.keep(row.digests[number], features)

    def _price(self, pixels: torch.Tensor) -> int:
        """Tokens of a prompt that cost as much as looking at a picture: its patches, by the sizes of the two models.

        Args:
            pixels: (1, channels, height, width), or (1, pieces, channels, height, width) of tiles.
        """
        patch = getattr(self.model.config.vision_config, "patch_size", None)
        patches = pixels.numel() / (pixels.shape[-3] * (patch if isinstance(patch, int) else _PATCH) ** 2)
        return max(1, int(patches * self._tower_share))

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) float32 of (rows, 1, hidden)."""
        logits = finish_logits(self.model.lm_head(states[:, -1]), self.model.config.get_text_config())
        return logits.float()

    def _write(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Chooses each one's next token, and ends those that are done."""
        for row, one in zip(rows, logits.split(1), strict=True):
            try:
                token = chosen(row, one)
                row.written.append(token)
                ended = token in (row.config.eos_token_id or ())
                if row.options.logprobs is not None and not ended:
                    row.ticket.likely.append(likely(self.chat.tokenizer, token, one[0], row.options.logprobs))
                row.ticket.token()
                row.writer.put(torch.tensor([token]))
            except Exception as error:
                self.fail([row], error)
                continue
            if ended or len(row.written) >= int(row.config.max_new_tokens or 1):
                self._remove(row)
                row.finish("stop" if ended else "length")
