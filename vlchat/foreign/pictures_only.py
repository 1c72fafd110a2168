"""Processors of other makers' models, for pictures: those of families that also take films need no torchvision."""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoConfig, AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.video_processing_auto import get_video_processor_config

from vlchat.errors import CheckpointError
from vlchat.reading import reading

_FILMS = "video_processor"


def load_processor(source: str | Path, revision: str | None = None) -> Any:
    """The processor beside a model, for pictures. What a family has for films needs torchvision and is left out.

    Raises:
        CheckpointError: when there is none, or pictures, too, need a package that is not installed.
    """
    # No `backend="pil"`: it would reach the tokenizer, too, as what that one is made of. Without torchvision it is so.
    options: dict[str, Any] = {"trust_remote_code": False, **({} if revision is None else {"revision": revision})}
    with reading(source, "processor"):
        try:
            processor = AutoProcessor.from_pretrained(source, **options)
        except (ImportError, OSError, ValueError):
            kind: Any = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(source, **options)), None)
            if importlib.util.find_spec("torchvision") or kind is None or _FILMS not in kind.get_attributes():
                raise
            processor = without_films(kind).from_pretrained(source, **options)
            processor.film_settings = get_video_processor_config(source, revision=revision)
    if not isinstance(processor, ProcessorMixin):
        kind = type(processor).__name__
        raise CheckpointError(f"{source} has no processor that takes text and pictures, only a {kind}.")
    if processor.chat_template is None:  # BLIP-2's and InstructBLIP's leave aside the one that is stored
        processor.chat_template = processor.get_processor_dict(source, **options)[0].get("chat_template")
    return processor


@lru_cache
def without_films(kind: type[Any]) -> type[Any]:
    """A family's processor class without its part for films: it reads and writes the family's own files.

    The settings of that part are kept as they were read, and saved again.
    """
    module = sys.modules[kind.__module__]
    if getattr(module, "num2words", module) is None:  # SmolVLM's writes the number of a film's frames with it
        module.num2words = str  # type: ignore[attr-defined]

    class PicturesOnly(kind):
        film_settings: dict[str, Any] | None = None
        video_processor = SimpleNamespace(num_frames=None, fps=None)  # SmolVLM's asks for these, films or not

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != _FILMS]

        @classmethod
        def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **options: Any) -> Any:
            parts = dict(zip(cls.get_attributes(), args, strict=True))
            in_order = [parts.get(name) for name in kind.get_attributes()]
            return super().from_args_and_dict(in_order, processor_dict, **options)

        def to_dict(self) -> dict[str, Any]:
            return {**super().to_dict(), **({_FILMS: self.film_settings} if self.film_settings else {})}

        def __reduce__(self) -> Any:
            return _unpickled, (kind, vars(self))

    PicturesOnly.__name__ = kind.__name__  # files name the class
    return PicturesOnly


def _unpickled(kind: type[Any], state: dict[str, Any]) -> Any:
    processor: Any = object.__new__(without_films(kind))  # type: ignore[arg-type]
    vars(processor).update(state)
    return processor
