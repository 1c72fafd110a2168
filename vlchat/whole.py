"""Loads a whole model from a folder or Hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vlchat import interop
from vlchat.errors import CheckpointError
from vlchat.fit import check_names, check_numbers
from vlchat.folders import newest, tensor_count
from vlchat.foreign.pictures_only import load_processor
from vlchat.interop import original_llava
from vlchat.quantize import linear_layers_to_keep, quantization_config
from vlchat.reading import reading
from vlchat.weightless import from_pretrained


def load_whole(
    source: str | Path,
    quantize: str | None,
    dtype: str | torch.dtype,
    device: torch.device,
    revision: str | None,
    ours: bool = True,
) -> tuple[Any, Any]:
    """A model that transformers' `AutoModelForImageTextToText` loads, and its processor.

    Args:
        ours: see `vlchat.interop.settle`; without it the model is as transformers has it.

    Raises:
        CheckpointError: when it cannot be read; when a tensor is missing, left over, of another shape or not finite
            (names are listed); when a family's own checkpoint has no chat template.
    """
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        runs = sorted(found.name for found in Path(source).glob("*/") if newest(found) != found)
        known = f" It holds the runs {', '.join(runs)}." if runs else ""
        raise CheckpointError(f"{source} holds no model: it has no config.json.{known}")
    if original_llava.is_one(source, revision):
        return original_llava.load(source, quantize, dtype, device, revision)
    options: dict[str, Any] = {
        "dtype": dtype, "use_safetensors": True, "revision": revision or "main", "trust_remote_code": False,
    }  # fmt: skip
    with reading(source, "checkpoint"):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        with torch.device("meta"):  # only for the names and sizes of its layers
            skeleton = AutoModelForImageTextToText.from_config(config)
        stored_quantized = getattr(config, "quantization_config", None) is not None
        if not stored_quantized:
            _check_size(source, sum(parameter.numel() for parameter in skeleton.parameters()))
        if quantize is not None:
            if stored_quantized:
                raise CheckpointError(f"{source} is stored quantized already: leave --quantize out.")
            compute = dtype if isinstance(dtype, torch.dtype) else None
            options["quantization_config"] = quantization_config(quantize, compute, linear_layers_to_keep(skeleton))
        loaded: Any = from_pretrained(
            AutoModelForImageTextToText,
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
    return interop.settle(model, processor) if ours else (model, processor)


def _check_size(source: str | Path, described: int) -> None:
    """Before memory is taken for what the configuration describes and the files do not hold."""
    stored = tensor_count(Path(source)) if Path(source).is_dir() else 0
    if stored and described > 2 * stored:
        raise CheckpointError(
            f"The configuration in {source} describes {described:,} parameters, and the weights are {stored:,} "
            "numbers: one of the two belongs to another model."
        )
