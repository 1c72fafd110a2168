"""The processor: messages with pictures in, tensors for the model out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AddedToken,
    AutoProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from vlchat import foreign, prompt
from vlchat.chat_templates import IMAGE_TOKEN, TEMPLATES, template_names, template_source, written_tokens
from vlchat.config import VLChatConfig
from vlchat.errors import ConfigError, VLChatError
from vlchat.foreign import marks
from vlchat.reading import reading
from vlchat.towers import load_image_processor
from vlchat.towers.tiles import image_lengths


class VLChatProcessor(ProcessorMixin):
    """Image processor, tokenizer and chat template in one.

    Args:
        image_processor: prepares pictures for the vision tower.
        tokenizer: the language model's tokenizer; `image_token` is added to it where it is missing.
        image_seq_length: image tokens per picture, as in the model's configuration; of tiles, per tile.
        image_token: stands for one picture in a rendered prompt and is repeated `image_seq_length` times, or as often
            as the tiles of that picture need.
        instruction_length: for an instruction-aware Q-Former: at most so many tokens of the text beside each picture
            go to it; None sends none.
        start_token: who writes the start token. None: the template, where it belongs. "first": the tokenizer, before
            the rendered conversation; "after_images": the tokenizer, behind the pictures, which the template writes
            first. Models imported from transformers were trained on what its processors make in these two ways.
        qformer_folder: where, beside the processor, the Q-Former's own tokenizer is kept (InstructBLIP's is BERT's);
            None where it reads the language model's tokens.
        chat_template: Jinja source.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_seq_length: int = 576,
        image_token: str = IMAGE_TOKEN,
        instruction_length: int | None = None,
        start_token: str | None = None,
        qformer_folder: str | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.start_token = start_token
        self.qformer_folder = qformer_folder
        self._qformer_tokenizer: PreTrainedTokenizerBase | None = None
        self.image_seq_length = image_seq_length
        self.image_token = image_token
        self.instruction_length = instruction_length
        if tokenizer is not None:
            self.image_token_id: int = add_image_token(tokenizer, image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_backbones(
        cls,
        image_processor: BaseImageProcessor | str | Path,
        tokenizer: PreTrainedTokenizerBase | str | Path,
        image_seq_length: int,
        template: str | Path | None = "chatml",
        *,
        image_token: str = IMAGE_TOKEN,
        instruction_length: int | None = None,
    ) -> VLChatProcessor:
        """A processor for two backbones.

        Args:
            image_processor: of the vision tower, or the path or Hub id to load it from.
            tokenizer: of the language model, or the path or Hub id to load it from.
            template: a name from `vlchat/templates`, the path of a `.jinja` file, or None for the tokenizer's own.

        Raises:
            ConfigError: for an unknown template, or one whose control tokens the tokenizer does not have.
        """
        if not isinstance(image_processor, BaseImageProcessor):
            image_processor = load_image_processor(image_processor)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            with reading(tokenizer, "tokenizer"):
                tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        source = template_source(template, tokenizer).replace(IMAGE_TOKEN, image_token)
        missing = [name for name in written_tokens(source) if name not in tokenizer.get_vocab()]
        if missing:
            raise ConfigError(
                f"The template {str(template)!r} writes {', '.join(missing)}, which this tokenizer has no tokens for. "
                f"Choose another template: {', '.join(template_names())}."
            )
        if template is not None and "eos_token" in source and tokenizer.eos_token is None:
            raise ConfigError(f"The template {str(template)!r} ends answers with the end token this tokenizer lacks.")
        return cls(
            image_processor,
            tokenizer,
            image_seq_length=image_seq_length,
            image_token=image_token,
            instruction_length=instruction_length,
            chat_template=source,
        )

    def use_qformer_tokenizer(self, tokenizer: PreTrainedTokenizerBase, instruction_length: int) -> None:
        """Gives the Q-Former a tokenizer of its own, whose special tokens it sees as well."""
        self.qformer_folder, self.instruction_length = QFORMER_FOLDER, instruction_length
        self._qformer_tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs: Any) -> VLChatProcessor:  # type: ignore[override]
        """As of transformers, with the Q-Former's tokenizer where there is one."""
        processor = super().from_pretrained(source, **kwargs)
        if processor.qformer_folder is not None:
            reached = {name: kwargs[name] for name in ("revision", "token", "cache_dir") if name in kwargs}
            processor._qformer_tokenizer = AutoTokenizer.from_pretrained(
                source, subfolder=processor.qformer_folder, trust_remote_code=False, **reached
            )
        return processor

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """As of transformers, with the Q-Former's tokenizer where there is one."""
        if self._qformer_tokenizer is not None:
            self._qformer_tokenizer.save_pretrained(Path(folder) / QFORMER_FOLDER)
        return super().save_pretrained(folder, **kwargs)

    @property
    def end_token_id(self) -> int | None:
        """The token that closes an assistant's turn in this template, at which generation should stop."""
        if not prompt.tells_answers(self._template()):
            return foreign.end_token_id(self)
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        conversation = [prompt.validate(turns)]
        rendered, spans = prompt.render(conversation, self._template(), self.tokenizer, mark=True, mask=True)
        ids, offsets = prompt.encode(self.tokenizer, rendered[0], answers=spans[0])
        masked = [i for i, mask in zip(ids, _mask(offsets, spans[0]), strict=True) if mask]
        return masked[-1] if masked and masked[-1] in self.tokenizer.added_tokens_decoder else None

    def apply_chat_template(  # type: ignore[override]  # fewer options than transformers', each of them used
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        processor_kwargs: dict | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Renders one conversation, or a list of them, and tokenizes it.

        Pictures are `{"type": "image", "image": picture}` parts holding decoded pictures (PIL, array or tensor), never
        a path or an address: nothing is opened here. With `tokenize=True`, control tokens and `<image>` in people's
        text stay the characters they are. With `tokenize=False` the plain string comes back, in which they can't be
        told apart any more.

        Returns:
            A string or a list of strings; or token ids; or, with `return_dict`, `input_ids` and `attention_mask`
            (batch, sequence), `pixel_values` (images, channels, height, width) where there are pictures (in tiles:
            (images, pieces, channels, height, width) and `image_sizes` (images, 2), height and width), and
            `assistant_masks` (batch, sequence) on request: 1 on what the assistant wrote and the token that ends it.
            Batches with a generation prompt are padded on the left.

        Raises:
            VLChatError: for malformed messages, a picture too few or too many, or a template that refuses them.
        """
        options = {"padding": padding, "truncation": truncation, "max_length": max_length, **(processor_kwargs or {})}
        side = padding_side or options.pop("padding_side", None)
        if side is None and (add_generation_prompt or continue_final_message):
            side = "left"
        return_tensors = options.pop("return_tensors", return_tensors)
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = [prompt.validate(c) for c in (conversation if batched else [conversation])]
        template = chat_template or self._template()
        told = prompt.tells_answers(template) or chat_template is not None
        rendered, spans = prompt.render(
            conversations,
            template,
            self.tokenizer,
            mark=tokenize,
            mask=return_assistant_tokens_mask and told,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **kwargs,
        )
        if not tokenize:
            return rendered if batched else rendered[0]
        if return_assistant_tokens_mask and not self.tokenizer.is_fast:
            raise VLChatError("Assistant masks need a fast tokenizer (one with a tokenizer.json).")
        pictures = [prompt.pictures_of(c) for c in conversations]
        images = [picture for some in pictures for picture in some]
        shown, lengths = self._prepare(images, return_tensors, options.pop("images_kwargs", None))
        batch = []
        for index, text in enumerate(rendered):
            marked = return_assistant_tokens_mask and not told  # as published models' templates are
            text = foreign.answers(self, conversations[index]) if marked else text
            begin, special = self._start(text)
            if marked:
                ids, mask, _ = marks.encode(self.tokenizer, text[begin:], special)
            else:
                answers = [(first - begin, last - begin) for first, last in spans[index]]
                ids, offsets = prompt.encode(self.tokenizer, text[begin:], add_special_tokens=special, answers=answers)
                mask = _mask(offsets, answers)
            before = begin // len(self.image_token)
            ids, mask = [self.image_token_id] * before + ids, [0] * before + mask
            own, lengths = lengths[: len(pictures[index])], lengths[len(pictures[index]) :]
            batch.append(self._expand(ids, mask, own, f"Conversation {index + 1}" if batched else ""))
        data = self._collate(batch, shown, return_tensors, side, return_assistant_tokens_mask, **options)
        if images and self.instruction_length is not None:
            data.update(self._instructions(conversations, return_tensors))
        return data if return_dict else data["input_ids"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        text_kwargs: dict | None = None,
        images_kwargs: dict | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenizes finished prompts in which each `image_token` stands for one of `images`, in reading order.

        For text that people wrote use `apply_chat_template`, where they can't write an `image_token` of their own.

        Raises:
            VLChatError: when images and places differ in number.
        """
        pictures = prompt.flat_pictures(images)
        images_kwargs = {**kwargs, **(images_kwargs or {})}
        if text is None:
            if not pictures:
                raise VLChatError("There is nothing to process: pass text, images or both.")
            return self.image_processor(pictures, return_tensors=return_tensors, **images_kwargs)
        texts = [text] if isinstance(text, str) else list(text)
        options = {
            "padding": padding, "truncation": truncation, "max_length": max_length,
            "add_special_tokens": add_special_tokens, "padding_side": padding_side, **(text_kwargs or {}),
        }  # fmt: skip
        special, side = options.pop("add_special_tokens"), options.pop("padding_side")
        bos = self.tokenizer.bos_token
        batch = []
        for one in texts:
            one = prompt.clean(one)
            ids, _ = prompt.encode(
                self.tokenizer, one, add_special_tokens=special and not (bos and one.startswith(bos))
            )
            batch.append((ids, [0] * len(ids)))
        places = sum(ids.count(self.image_token_id) for ids, _ in batch)
        if places != len(pictures):
            where = "The prompt" if len(texts) == 1 else f"The {len(texts)} prompts"
            raise prompt.mismatch(places, len(pictures), where)
        shown, lengths = self._prepare(pictures, return_tensors, images_kwargs)
        expanded = []
        for ids, mask in batch:
            own, lengths = lengths[: ids.count(self.image_token_id)], lengths[ids.count(self.image_token_id) :]
            expanded.append(self._expand(ids, mask, own, ""))
        return self._collate(expanded, shown, return_tensors, side, False, **options)

    @property
    def model_input_names(self) -> list[str]:
        names = ["input_ids", "attention_mask", "pixel_values"]
        names += ["image_sizes"] if hasattr(self.image_processor, "image_grid_pinpoints") else []
        return names if self.instruction_length is None else [*names, *_INSTRUCTION_NAMES]

    def _start(self, text: str) -> tuple[int, bool]:
        """Where in a rendered conversation the tokenizer begins, and whether it adds its start token there."""
        begin = 0
        while self.start_token == "after_images" and text.startswith(self.image_token, begin):
            begin += len(self.image_token)
        begun = text.startswith(self.tokenizer.bos_token or "\0", begin)
        return begin, self.start_token is not None and not begun

    def _template(self) -> str:
        template = self.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            raise VLChatError("This processor has no chat template: build it with VLChatProcessor.from_backbones.")
        return template

    def _prepare(
        self, images: list[Any], return_tensors: str | None, images_kwargs: dict | None
    ) -> tuple[BatchFeature | None, list[int]]:
        """Pictures for the tower, and how many image tokens each takes."""
        if not images:
            return None, []
        shown = self.image_processor(images, return_tensors=return_tensors, **(images_kwargs or {}))
        return shown, image_lengths(shown, self.image_processor, self.image_seq_length)

    def _expand(
        self, ids: list[int], mask: list[int], lengths: list[int], where: str
    ) -> tuple[list[int], list[int]]:
        """Repeats each image token to the length of its image."""
        places = ids.count(self.image_token_id)
        if places != len(lengths):
            raise prompt.mismatch(places, len(lengths), where or "The prompt")
        each = iter(lengths)
        repeated = zip(ids, mask, [next(each) if token == self.image_token_id else 1 for token in ids], strict=True)
        expanded = [(token, bit) for token, bit, length in repeated for _ in range(length)]
        return [token for token, _ in expanded], [bit for _, bit in expanded]

    def _collate(
        self,
        batch: list[tuple[list[int], list[int]]],
        shown: BatchFeature | None,
        return_tensors: str | None,
        padding_side: str | None,
        with_mask: bool,
        *,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
    ) -> BatchFeature:
        if truncation and max_length is not None:
            batch = [self._truncate(ids, mask, max_length) for ids, mask in batch]
        lengths = [len(ids) for ids, _ in batch]
        length = max(lengths)
        if padding == "max_length" and max_length is not None:
            length = max(length, max_length)
        elif not padding or padding == "do_not_pad":
            if return_tensors is not None and len(set(lengths)) > 1:
                raise VLChatError(f"The conversations have {min(lengths)} to {length} tokens: pass padding=True.")
            length = 0
        side = padding_side or self.tokenizer.padding_side
        data: dict[str, Any] = {
            "input_ids": [prompt.padded(ids, length, self.pad_id, side) for ids, _ in batch],
            "attention_mask": [prompt.padded([1] * len(ids), length, 0, side) for ids, _ in batch],
        }
        if with_mask:
            data["assistant_masks"] = [prompt.padded(mask, length, 0, side) for _, mask in batch]
        features = BatchFeature(data, tensor_type=return_tensors)
        if shown is not None:
            features.update(shown)
        return features

    def _truncate(self, ids: list[int], mask: list[int], max_length: int) -> tuple[list[int], list[int]]:
        if self.image_token_id in ids[max_length:]:
            raise VLChatError(
                f"Cutting {len(ids)} tokens to {max_length} would cut through a picture: allow more tokens or use "
                "fewer pictures."
            )
        return ids[:max_length], mask[:max_length]

    def _instructions(self, conversations: list[list[dict]], return_tensors: str | None) -> BatchFeature:
        """For each picture the text of the message it stands in, tokenized without control tokens."""
        rows = []
        for conversation in conversations:
            for message in conversation:
                text = "".join(part["text"] for part in message["content"] if part["type"] == "text")
                ids = self._instruction_ids(text)
                rows += [ids or [self.pad_id] for part in message["content"] if part["type"] == "image"]
        length = max(map(len, rows))
        filler = self.pad_id if self._qformer_tokenizer is None else self._qformer_tokenizer.pad_token_id or 0
        data = {
            _INSTRUCTION_NAMES[0]: [prompt.padded(ids, length, filler, "right") for ids in rows],
            _INSTRUCTION_NAMES[1]: [prompt.padded([1] * len(ids), length, 0, "right") for ids in rows],
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def _instruction_ids(self, text: str) -> list[int]:
        if self._qformer_tokenizer is not None:
            kept: Any = self._qformer_tokenizer(
                prompt.clean(text), truncation=True, max_length=self.instruction_length, split_special_tokens=True
            )
            return kept["input_ids"]
        control = prompt.control_tokens(self.tokenizer, self._template())
        return prompt.encode(self.tokenizer, prompt.protect(text, control))[0][: self.instruction_length]

    @property
    def pad_id(self) -> int:
        """The token that fills up shorter conversations; nobody attends to it."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0


QFORMER_FOLDER = "qformer_tokenizer"  # as transformers' InstructBlipProcessor names it
_INSTRUCTION_NAMES = ("instruction_input_ids", "instruction_attention_mask")


def add_image_token(tokenizer: PreTrainedTokenizerBase, image_token: str = IMAGE_TOKEN) -> int:
    """Makes `image_token` a special token of the tokenizer, if it is not one yet, and returns its id.

    Special, so that it survives whole in a prompt, and so that people's text is known to need protection from it.
    """
    known = tokenizer.added_tokens_encoder.get(image_token)
    if known is None or not tokenizer.added_tokens_decoder[known].special:
        token = AddedToken(image_token, special=True, normalized=False)
        tokenizer.add_tokens([token], special_tokens=True)
    return tokenizer.added_tokens_encoder[image_token]


def _mask(offsets: list[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    """1 for every token that shares a character with one of the spans; tokens without characters share none."""
    return [
        int(any(start < span_end and end > span_start for span_start, span_end in spans)) for start, end in offsets
    ]


AutoProcessor.register(VLChatConfig, VLChatProcessor)

__all__ = ["IMAGE_TOKEN", "TEMPLATES", "VLChatProcessor", "add_image_token", "template_names"]
