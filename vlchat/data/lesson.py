"""What a model sees of the rows: exact numbers of tokens, rows too long, and one row with what is learned of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image
from transformers import AutoConfig

from vlchat import foreign, images, interop, places, video
from vlchat.data.collate import decode_images
from vlchat.data.dataset import Source
from vlchat.data.faults import BadRow
from vlchat.data.formats import Example, Message
from vlchat.data.histograms import Histogram
from vlchat.data.lengths import Tokens, blank, measure
from vlchat.errors import DataError, ImageError, VLChatError
from vlchat.folders import adapter_base, is_adapter, read_manifest, refuse_pickles
from vlchat.foreign.pictures_only import load_processor
from vlchat.interop import original_llava
from vlchat.interop.processors import read_processor
from vlchat.processor import VLChatProcessor
from vlchat.reading import reading

CONTEXT, LEARNED, PICTURE = "context", "learned", "picture"


@dataclass(frozen=True)
class Sample:
    """One row as the model is shown it.

    Attributes:
        row: as messages name it.
        pieces: the whole row in order, (text, `learned` | `context` | `picture`). Text that is learned has a loss; the
            tokens of a picture are one piece, such as `<image> x 576`.
        tokens, learned, image_tokens: how many there are.
        pictures: as they are shown, RGB.
    """

    row: str
    pieces: list[tuple[str, str]]
    tokens: int
    learned: int
    image_tokens: int
    pictures: list[Image.Image]


def open_processor(model: str | Path | None, revision: str | None = None) -> tuple[Any, int | None]:
    """The processor of a checkpoint, ready to render conversations, and the most tokens its model takes (None where
    its configuration does not tell). No weights are read.

    Args:
        model, revision: as of `vlchat.checkpoint.load`; None is the embedded model.

    Raises:
        CheckpointError: nothing is there, or it has no processor.
    """
    place, revision = places.locate(model, revision)
    template = None
    if isinstance(place, Path):
        if original_llava.is_one(place):
            raise VLChatError(f"{place} is in LLaVA's original form, without a processor: `vlchat import` it first.")
        refuse_pickles(place)
        if is_adapter(place) and not (place / "processor_config.json").is_file():
            template = place / "chat_template.jinja"
            processor, context = open_processor(*adapter_base(place))
            if template.is_file():
                processor.chat_template = template.read_text(encoding="utf-8")
            return processor, context
    processor = load_processor(place, revision)
    if isinstance(place, Path) and not (place / "config.json").is_file():
        manifest = read_manifest(place)
        base = adapter_base(place)[0] if is_adapter(place) else ((manifest or {}).get("base") or {}).get("model")
        return processor, open_processor(base)[1] if base or manifest else None
    with reading(place, "configuration"):
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    if not isinstance(processor, VLChatProcessor):
        processor = _settled(processor, config)
        foreign.require_template(processor)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return processor, context if isinstance(context, int) and context > 0 else None


def _settled(processor: Any, config: Any) -> Any:
    """What `vlchat.interop.settle` makes of a processor beside its model, from the model's configuration alone."""
    usual = {"blip-2": "blip2", "instructblip": "instructblip"}.get(config.model_type)
    if usual is None or not config.use_decoder_only_language_model:
        return interop.settle(SimpleNamespace(config=config), processor)[1]
    facts: Any = SimpleNamespace(image_seq_length=config.num_query_tokens, image_token_id=config.image_token_id)
    return read_processor(processor, facts, None, usual=usual)


def budget(
    source: Source,
    numbers: Iterable[int],
    sizes: Mapping[int, list[tuple[int, int] | None]],
    processor: Any,
    max_length: int | None,
) -> tuple[list[BadRow], list[Histogram]]:
    """The tokens of each row, exactly: rows that are too long, that the processor refuses, or that teach nothing.

    Args:
        numbers: positions (from 0) of rows that can be used otherwise.
        sizes: for such a position the (width, height) of each of its pictures, upright; None where it is a video.
        max_length: the most tokens; None sets no limit.

    Returns:
        The faults, and how the tokens of the rows are spread.
    """
    faults: list[BadRow] = []
    lengths: list[int] = []
    learned: list[int] = []
    for index in numbers:
        example = source.read(index)
        assert isinstance(example, Example)
        try:
            tokens = measure(processor, blanks(source, example, sizes.get(index, [])))
        except VLChatError as error:
            faults.append(_fault(example, "text", "template_refuses", str(error)))
            continue
        lengths.append(len(tokens))
        learned.append(int(tokens.learned.sum()))
        if not learned[-1]:
            reason = "no token to learn from: the chat template writes none of the answer"
            faults.append(_fault(example, "answer", "no_supervision", reason))
        elif max_length is not None and len(tokens) > max_length:
            faults.append(_fault(example, "text", "too_long", tokens.needs(max_length)))
    return faults, [Histogram("tokens of a row", lengths), Histogram("tokens of a row that are learned", learned)]


def sample(source: Source, index: int, processor: Any) -> Sample:
    """The row at `index` (from 0), decoded, with what is learned of it told apart.

    Raises:
        DataError: the row cannot be used; names it.
    """
    example = source[index]
    messages = decode_images(example.messages, example.called)
    try:
        tokens = measure(processor, messages)
    except VLChatError as error:
        raise DataError(str(error)).within(example.called) from error
    shown = [part["image"] for message in messages for part in message["content"] if part["type"] == "image"]
    return Sample(
        example.called,
        _pieces(tokens, processor.tokenizer),
        len(tokens),
        int(tokens.learned.sum()),
        tokens.image_tokens,
        shown,
    )


def _pieces(tokens: Tokens, tokenizer: Any) -> list[tuple[str, str]]:
    """Runs of tokens of one kind as text."""
    kinds = [
        PICTURE if picture else LEARNED if taught else CONTEXT
        for taught, picture in zip(tokens.learned.tolist(), tokens.pictures.tolist(), strict=True)
    ]
    ids = tokens.ids.tolist()
    found: list[tuple[str, str]] = []
    begin = 0
    for end in range(1, len(kinds) + 1):
        if end < len(kinds) and kinds[end] == kinds[begin]:
            continue
        if kinds[begin] == PICTURE:
            usual = Counter(ids[begin:end]).most_common(1)[0][0]  # around it stand tokens that begin and end a picture
            text = f"{tokenizer.convert_ids_to_tokens(usual)} x {end - begin:,}"
        else:
            text = _text(tokenizer, ids, begin, end)
        found.append((text, kinds[begin]))
        begin = end
    return found


def _text(tokenizer: Any, ids: list[int], begin: int, end: int) -> str:
    """What the tokens begin .. end - 1 add to the text before them: alone, SentencePiece would lose their space."""
    before, whole = (tokenizer.decode(ids[:stop], clean_up_tokenization_spaces=False) for stop in (begin, end))
    if whole.startswith(before):
        return whole[len(before) :]
    return tokenizer.decode(ids[begin:end], clean_up_tokenization_spaces=False)


def blanks(source: Source, example: Example, sizes: list[tuple[int, int] | None]) -> list[Message]:
    """The messages with blank pictures of the right sizes, and of videos their frames."""
    known = iter(sizes)
    messages = []
    for message in example.messages:
        content = []
        for part in message["content"]:
            size = next(known, None) if part["type"] == "image" else None
            if size is not None:
                part = {"type": "image", "image": blank(*size)}
            elif part["type"] != "text":
                part = _opened(source, part)
            content.append(part)
        messages.append({**message, "content": content})
    try:
        return video.expanded(messages)
    except ImageError as error:
        raise DataError(str(error)) from error


def _opened(source: Source, part: dict[str, Any]) -> dict[str, Any]:
    """A picture decoded, or a video where it lies."""
    kind = part["type"]
    value = source.find(part[kind], kind) if isinstance(part[kind], str) else part[kind]
    return {**part, kind: images.decode(value) if kind == "image" else value}


def _fault(example: Example, field: str, kind: str, reason: str) -> BadRow:
    return BadRow(example.source, example.row, example.id, field, kind, reason)
