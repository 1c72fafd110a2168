"""Loads a whole model from a folder or Hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vlchat import interop
from vlchat.errors import CheckpointError
from vlchat.fit import check_names, check_numbers
from vlchat.foreign.pictures_only import load_processor
from vlchat.interop import original_llava
from vlchat.quantize import linear_layers_to_keep, quantization_config
from vlchat.reading import reading


def load_whole(
    source: str | Path,
    quantize: str | None,
    dtype: str | torch.dtype,
    device: torch.device,
    revision: str | None,
) -> tuple[Any, Any]:
    """A model that transformers' `AutoModelForImageTextToText` loads, and its processor.

    Of families that are published without a chat template see `vlchat.interop.settle`.

    Raises:
        CheckpointError: when it cannot be read; when a tensor is missing, left over, of another shape or not finite
            (names are listed); when a family's own checkpoint has no chat template.
    """
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise CheckpointError(f"{source} holds no model: it has no config.json.")
    if original_llava.is_one(source, revision):
        return original_llava.load(source, quantize, dtype, device, revision)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "revision": revision or "main"}
    with reading(source, "checkpoint"):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        if quantize is not None:
            with torch.device("meta"):  # only for the names of its layers
                skeleton = AutoModelForImageTextToText.from_config(config)
            compute = dtype if isinstance(dtype, torch.dtype) else None
            options["quantization_config"] = quantization_config(quantize, compute, linear_layers_to_keep(skeleton))
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source,
            config=config,
            device_map={"": str(device)},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **options,
        )
        model, info = loaded
        processor = load_processor(source, revision)
    check_names(source, info)
    check_numbers(source, model)
    return interop.settle(model, processor)
