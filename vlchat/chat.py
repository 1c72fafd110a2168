"""Conversations about pictures with any image-text model: messages in, text out, a piece at a time.

Speaks only the Hugging Face protocol (a processor with a chat template, a model with `generate`), so it works with
our own models and with any other `AutoModelForImageTextToText` checkpoint.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList, TextIteratorStreamer

from vlchat import foreign, prompt
from vlchat.conversation import Message, Picture, decoded
from vlchat.conversation import ask_messages as ask_messages
from vlchat.data import Example
from vlchat.data.collate import IGNORED, Collator
from vlchat.errors import VLChatError, nearest
from vlchat.generation import Answer, Stop, TokenLogprobs, last_run, lengths, seeded
from vlchat.processor import VLChatProcessor

_COLDEST = 1e-4  # below it the likeliest token is taken: logits divided by less would overflow
_MEMORY_FULL = "The GPU's memory is full. Send fewer pictures or less text, or load the model quantized (nf4 or int8)."


class Chat:
    """A model and its processor, ready to be asked.

    One generation runs at a time; others wait for it.

    Args:
        turn: a lock that is held during each generation, and a model's adapter with it; by default one of its own.
        generation_config: by default the model's.

    Attributes:
        description: what people should know of the model: `name`, `parameters`, `trained_on`, ...
        adapters: the same model with each of its adapters, by name; see `vlchat.adapters`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        description: dict[str, Any] | None = None,
        *,
        turn: Any = None,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.description = description or {}
        self.adapters: dict[str, Chat] = {}
        self.generation_config = generation_config or model.generation_config
        self.turn = turn or threading.Lock()
        ours = isinstance(processor, VLChatProcessor)
        self._closing = processor.end_token_id if ours else foreign.end_token_id(processor)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        quantize: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        attn: str | None = None,
        revision: str | None = None,
        adapters: Mapping[str, str | Path | None] | None = None,
    ) -> Chat:
        """Opens the embedded model, or the folder, Hub id or short name `path`; see `vlchat.checkpoint.load`.

        Args:
            adapters: NAME -> a run or PEFT adapter on top of `path`, for `stream(..., adapter=NAME)`; see
                `vlchat.adapters.load`.

        Raises:
            CheckpointError: there is no usable checkpoint.
        """
        from vlchat import checkpoint

        options: dict[str, Any] = {
            "quantize": quantize, "dtype": dtype, "device": device, "attn": attn, "revision": revision,
        }  # fmt: skip
        if adapters:
            from vlchat.adapters import load

            return load(path, adapters, **options)
        model, processor = checkpoint.load(path, **options)
        description = checkpoint.describe(path, revision)
        return cls(model, processor, {**description, "parameters": description["parameters"] or model.num_parameters()})

    @property
    def context_length(self) -> int | None:
        """Tokens that a conversation may take, its pictures and the answer included; None where there is no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def ask(
        self,
        pictures: Picture | Sequence[Picture] | None,
        question: str,
        *,
        system: str | None = None,
        **options: Any,
    ) -> str:
        """The whole answer to one question about no, one or several pictures; `options` as of `stream`."""
        return "".join(self.stream(ask_messages(pictures, question, system), **options)).strip()

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: threading.Event | None = None,
        adapter: str | None = None,
    ) -> Generator[str, None, None]:
        """Answers a conversation, a few letters at a time.

        Args:
            messages: the turns so far, the last one a person's. Pictures are anything `vlchat.images.decode` takes;
                a `{"type": "video", "video": path | bytes}` part becomes pictures of its frames (`vlchat.video`).
            max_new_tokens: where the answer is cut off.
            temperature: 0 takes the likeliest token each time; 1 draws from the model's own distribution.
            top_p: with a temperature, draw only from the likeliest tokens that make up this probability.
            seed: makes drawing repeatable.
            stop: ends the answer within a token when it is set, as does closing the iterator.
            adapter: which of `adapters` answers; by default the model as it was loaded.

        Raises:
            VLChatError: at once, not on the first piece, when the request cannot be answered: a bad picture, an
                option out of range, a conversation longer than the context (both numbers are named).
        """
        if adapter is not None:
            return self.with_adapter(adapter).stream(
                messages, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop
            )
        inputs, config = self.prepare(messages, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
        return self.written(inputs, config, seed, stop)

    def with_adapter(self, name: str) -> Chat:
        """One of `adapters`.

        Raises:
            VLChatError: there is none of this name.
        """
        if name not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise VLChatError(f'There is no adapter "{name}"; known: {known}{nearest(name, self.adapters)}')
        return self.adapters[name]

    def prepare(
        self, messages: Sequence[Message], *, max_new_tokens: int = 256, temperature: float = 0.0, top_p: float = 1.0
    ) -> tuple[dict[str, Any], GenerationConfig]:
        """What `generate` takes for a conversation: tensors of one row on the model's device, and how to answer.

        Args, Raises:
            as of `stream`.
        """
        inputs = self._inputs([messages])
        length = inputs["input_ids"].shape[1]
        return inputs, self._generation_config(length, max_new_tokens, temperature, top_p)

    def batch(self, conversations: Sequence[Sequence[Message]], *, max_new_tokens: int = 256) -> list[str]:
        """The likeliest answers to several conversations at once, padded on the left; arguments as of `stream`."""
        return [answer.text for answer in self.answers(conversations, max_new_tokens=max_new_tokens)]

    def answers(
        self, conversations: Sequence[Sequence[Message]], *, max_new_tokens: int = 256, beams: int = 1
    ) -> list[Answer]:
        """As `batch`, with how likely each answer was.

        Args:
            conversations, max_new_tokens: as of `stream`.
            beams: search for the likeliest answer over so many beams; 1 takes the likeliest token each time.

        Raises:
            VLChatError: as `stream`; fewer than one beam.
        """
        if beams < 1:
            raise VLChatError(f"beams is {beams}; it must be at least 1.")
        if not conversations:
            return []
        inputs = self._inputs(conversations)
        length = inputs["input_ids"].shape[1]
        limit = self.context_length
        # Padded to the longest of them, short conversations would have as little room for an answer as it has.
        crowded = limit is not None and length + max_new_tokens > limit
        if len(conversations) > 1 and (
            crowded or not foreign.apart(inputs, [prompt.validate(c) for c in conversations])
        ):
            several = ([messages] for messages in conversations)
            return [self.answers(one, max_new_tokens=max_new_tokens, beams=beams)[0] for one in several]
        config = self._generation_config(length, max_new_tokens, 0.0, 1.0)
        config.update(num_beams=beams, early_stopping=beams > 1, length_penalty=1.0, return_dict_in_generate=beams > 1)
        if beams > 1:
            config.update(output_scores=True)
        likely = TokenLogprobs()
        with self.turn, torch.inference_mode():
            try:
                generated = self.model.generate(
                    **inputs,
                    generation_config=config,
                    logits_processor=LogitsProcessorList([likely] if beams == 1 else []),
                )
            except Exception as error:
                raise self.failed(error) from error
        ends = self._end_tokens(config)
        if beams == 1:
            written = foreign.new_tokens(generated, inputs["input_ids"])
            logprobs, tokens = likely.totals(written, ends)
        else:  # a beam's score is the mean over its tokens
            written = foreign.new_tokens(generated.sequences, inputs["input_ids"])
            tokens = lengths(written[:, -len(generated.scores) :], ends)
            logprobs = [
                score * count for score, count in zip(generated.sequences_scores.tolist(), tokens, strict=True)
            ]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [Answer(text.strip(), *one) for text, one in zip(texts, zip(logprobs, tokens, strict=True), strict=True)]

    def likelihoods(self, messages: Sequence[Message], choices: Sequence[str]) -> list[Answer]:
        """How likely the model holds each of some answers to a conversation, in its template's own words.

        Returns:
            One a choice: its text, and the log-probability of its tokens, the closing one included.

        Raises:
            VLChatError: no choice, an empty one, or a conversation that the model cannot take; what is longer than its
                context is told with both numbers.
        """
        if not choices or not all(choice.strip() for choice in choices):
            raise VLChatError("Give one or more choices, none of them empty.")
        asked = decoded(messages)
        told = [[*asked, {"role": "assistant", "content": [{"type": "text", "text": choice}]}] for choice in choices]
        batch = Collator(self.processor, self.context_length, self.model)(
            [Example(f"choice {number}", one) for number, one in enumerate(told, 1)]
        )
        labels = last_run(batch.pop("labels"), IGNORED)[:, 1:]  # (choices, tokens - 1)
        inputs = self._placed(batch)
        with self.turn, torch.inference_mode():
            try:
                logits = self.model(**inputs).logits[:, -labels.shape[1] - 1 : -1].float().cpu()
            except Exception as error:
                raise self.failed(error) from error
        counted = labels != IGNORED
        found = logits.log_softmax(dim=-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        totals, counts = found.masked_fill(~counted, 0.0).sum(dim=1).tolist(), counted.sum(dim=1).tolist()
        return [Answer(*one) for one in zip(choices, totals, counts, strict=True)]

    def failed(self, error: BaseException) -> BaseException:
        """What to raise for an answer that did not come about: a sentence, for it is often the checkpoint's fault."""
        if isinstance(error, VLChatError | torch.OutOfMemoryError) or not isinstance(error, Exception):
            return error
        reason = " ".join(str(error).split())[:300]
        sentence = VLChatError(f"{type(self.model).__name__} failed at its answer: {reason or type(error).__name__}")
        sentence.__cause__ = error
        return sentence

    def warm_up(self) -> None:
        """Answers once with one token, so that the first person does not wait for what is set up on first use."""
        self.ask(Image.new("RGB", (32, 32)), "?", max_new_tokens=1)

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    def _inputs(self, conversations: Sequence[Sequence[Message]]) -> dict[str, Any]:
        """Tensors for `generate`: (batch, prompt) ids, padded on the left, and the pictures' pixels."""
        prepared = [decoded(messages) for messages in conversations]
        if isinstance(self.processor, VLChatProcessor):
            inputs = self.processor.apply_chat_template(
                prepared,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                processor_kwargs={"padding": True, "padding_side": "left"},
            )
        else:
            inputs = foreign.inputs(self.processor, prepared, self.model)
        return self._placed(inputs)

    def _placed(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors on the model's device, pixels in its dtype."""
        dtype = self.model.dtype
        return {
            name: value.to(self.model.device, dtype if value.is_floating_point() else None)
            for name, value in tensors.items()
        }

    def _generation_config(
        self, prompt_length: int, max_new_tokens: int, temperature: float, top_p: float
    ) -> GenerationConfig:
        if max_new_tokens < 1:
            raise VLChatError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise VLChatError(f"temperature is {temperature}; it must be a number from 0 on.")
        if not 0 < top_p <= 1:
            raise VLChatError(f"top_p is {top_p}; it must be above 0 and at most 1.")
        limit = self.context_length
        if limit is not None:
            if prompt_length >= limit:
                raise VLChatError(
                    f"The conversation takes {prompt_length} tokens, its pictures included, but the model reads at "
                    f"most {limit}. Start a new conversation, or send less text or fewer pictures."
                )
            max_new_tokens = min(max_new_tokens, limit - prompt_length)
        config = copy.deepcopy(self.generation_config)
        drawing = temperature > _COLDEST
        # The neutral values otherwise: a checkpoint's own sampling settings would only cause warnings.
        config.update(do_sample=drawing, temperature=temperature if drawing else 1.0, top_p=top_p if drawing else 1.0)
        config.update(top_k=0 if drawing else 50)
        config.update(max_new_tokens=max_new_tokens, max_length=None, num_return_sequences=1, num_beams=1)
        # Ways of answering that a checkpoint may ask for, and that are not offered here.
        config.update(return_dict_in_generate=False, stop_strings=None, penalty_alpha=None, force_words_ids=None)
        config.update(prompt_lookup_num_tokens=None, dola_layers=None, constraints=None)
        config.update(eos_token_id=self._end_tokens(config) or None)
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id or next(iter(self._end_tokens(config)), 0)
        return config

    def _end_tokens(self, config: GenerationConfig) -> list[int]:
        known = config.eos_token_id
        ends = list(known) if isinstance(known, (list, tuple)) else [known]
        ends += [self.tokenizer.eos_token_id, self._closing]
        return sorted({end for end in ends if end is not None})

    def written(
        self, inputs: dict[str, Any], config: GenerationConfig, seed: int | None, stop: threading.Event | None
    ) -> Generator[str, None, None]:
        """The pieces of an answer to what `prepare` gave."""
        left = threading.Event()  # set when whoever reads the pieces goes away
        stops = [left] if stop is None else [left, stop]
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failures: list[BaseException] = []

        def generate() -> None:
            try:
                with self._my_turn(stops) as mine:
                    if mine:
                        with torch.inference_mode(), seeded(seed, self.model.device):
                            criteria = StoppingCriteriaList([Stop(stops)])
                            self.model.generate(
                                **inputs, generation_config=config, streamer=streamer, stopping_criteria=criteria
                            )
            except BaseException as error:  # raised again in the thread that reads
                failures.append(error)
            finally:
                streamer.end()

        worker = threading.Thread(target=generate, name="vlchat-generate", daemon=True)
        worker.start()
        try:
            begun = False
            for piece in streamer:
                piece = piece if begun else piece.lstrip()
                if piece:
                    begun = True
                    yield piece
        finally:
            left.set()
            worker.join()
        if failures and isinstance(failures[0], torch.OutOfMemoryError):
            raise VLChatError(_MEMORY_FULL) from failures[0]
        if failures:
            raise self.failed(failures[0])

    @contextmanager
    def _my_turn(self, stops: Sequence[threading.Event]) -> Iterator[bool]:
        """Waits for the model; False when the wait was called off."""
        while not self.turn.acquire(timeout=0.05):
            if any(stop.is_set() for stop in stops):
                yield False
                return
        try:
            yield True
        finally:
            self.turn.release()
