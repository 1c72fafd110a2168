"""LLaVA as its authors publish it (liuhaotian/llava-v1.5-7b, github.com/haotian-liu/LLaVA).

One Llama, Mistral or Qwen2 checkpoint with `model.mm_projector.*` among its tensors, the tower by its Hub id in the
configuration, and no chat template. Weights may be `.bin` files: they are read as tensors only, never as code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from vlchat.errors import CheckpointError
from vlchat.fit import check_names, check_numbers, fill
from vlchat.interop.processors import let_tokenizer_start
from vlchat.model import VLChatForConditionalGeneration
from vlchat.processor import VLChatProcessor
from vlchat.quantize import quantization_config
from vlchat.reading import reading
from vlchat.tensors import connector_tensors, local_folder, read_tensors
from vlchat.towers import padding_image_processor
from vlchat.towers.composing import image_processor_of
from vlchat.weightless import active, from_pretrained

_LANGUAGE = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
_ELSEWHERE = ("model.mm_projector.", "model.vision_tower.", "model.image_newline")
_TOWER = "model.vision_tower.vision_tower."


def is_one(source: str | Path, revision: str | None = None) -> bool:
    """Whether a folder or Hub id holds this layout."""
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        return False
    with reading(source, "checkpoint"):
        settings, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    return "mm_vision_tower" in settings


def load(
    source: str | Path,
    quantize: str | None,
    dtype: str | torch.dtype,
    device: torch.device,
    revision: str | None,
    template: str | None = None,
) -> tuple[VLChatForConditionalGeneration, VLChatProcessor]:
    """The model and its processor.

    Args:
        template: chat template by name (LLaVA-1.5: vicuna); None takes the tokenizer's own. The layout stores none and
            goes by the folder's name, which is not done here.

    Raises:
        CheckpointError: for a projector or language model that is not known, missing or left-over tensors, or when
            there is no template.
    """
    with reading(source, "checkpoint"):
        settings, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        folder = local_folder(source, revision)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if template is None and not tokenizer.chat_template:
        raise CheckpointError(
            f"{source} is in LLaVA's own layout, which stores no chat template, and none is guessed. Say which one it "
            f"was trained with, once: vlchat import {source} FOLDER --template vicuna (LLaVA-1.5's)."
        )
    connector = _connector(settings, source)
    kind = _LANGUAGE.get(settings.get("model_type", ""))
    if kind is None:
        raise CheckpointError(f"{source}: a {settings.get('model_type')} is not read; known: {', '.join(_LANGUAGE)}.")
    if settings.get("mm_use_im_start_end"):
        raise CheckpointError(f"{source} puts tokens of its own around a picture (mm_use_im_start_end): not read here.")
    feature = settings.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise CheckpointError(f"{source}: mm_vision_select_feature {feature!r} is not known.")
    if not isinstance(settings["mm_vision_tower"], str):
        raise CheckpointError(f"{source} does not say which vision tower it has: mm_vision_tower is no name.")
    with reading(source, "checkpoint"):
        tiles = _tiles(settings, source)
    language = _language_model(folder, kind, settings, quantize, dtype, device)
    tensors = {} if active() else read_tensors(folder, lambda name: name.startswith(_ELSEWHERE))
    beside = folder / settings["mm_vision_tower"]
    tower = beside if beside.is_dir() else settings["mm_vision_tower"]
    model = VLChatForConditionalGeneration.from_backbones(
        tower,
        language,
        connector,
        tokenizer=tokenizer,
        dtype=language.dtype,
        device_map={"": str(device)},
        vision_feature_layer=settings.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if feature == "cls_patch" else "patch",
        tiles=tiles,
    )
    if not active():
        fill(model.model.connector, connector_tensors(tensors), f"projector in {source}")
    tuned = {name.removeprefix(_TOWER): tensor for name, tensor in tensors.items() if name.startswith(_TOWER)}
    if tuned:  # LLaVA writes the tower, too, where it was tuned
        nested = {name.removeprefix("vision_model."): tensor for name, tensor in tuned.items()}
        fill(model.model.vision_tower, nested, f"vision tower in {source}")
    pictures = image_processor_of(tower, model.config.image_grid_pinpoints)
    processor = VLChatProcessor.from_backbones(pictures, tokenizer, model.config.image_seq_length, template)
    let_tokenizer_start(processor, "first")
    if settings.get("image_aspect_ratio") == "pad":
        processor.image_processor = padding_image_processor(processor.image_processor)
    return model, processor


def _connector(settings: dict[str, Any], source: str | Path) -> dict[str, Any]:
    kind = str(settings.get("mm_projector_type", "linear"))
    if kind == "linear":
        return {"type": "linear"}
    depth = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if depth is None:
        raise CheckpointError(f"{source}: the projector {kind!r} is not known; linear and mlp2x_gelu are.")
    return {"type": "mlp", "depth": int(depth[1])}


def _tiles(settings: dict[str, Any], source: str | Path) -> list[list[int]] | None:
    """The sizes that pictures are cut into tiles at, height first; LLaVA-1.6 writes width first."""
    ratio = str(settings.get("image_aspect_ratio"))
    if "anyres" not in ratio:
        return None
    sizes, merge = settings.get("image_grid_pinpoints"), settings.get("mm_patch_merge_type")
    if ratio != "anyres" or merge != "spatial_unpad" or not isinstance(sizes, list):
        raise CheckpointError(
            f"{source} puts its tiles together in a way that is not read here ({ratio}, {merge}, {sizes}): anyres, "
            "spatial_unpad and a list of sizes are, as LLaVA-1.6 has them."
        )
    return [[height, width] for width, height in sizes]


def _language_model(
    folder: Path,
    kind: str,
    settings: dict[str, Any],
    quantize: str | None,
    dtype: str | torch.dtype,
    device: torch.device,
) -> Any:
    foreign = ("mm_", "_", "tune_mm", "model_type")
    own = {name: value for name, value in settings.items() if not name.startswith(foreign)}
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": str(device)}}
    if quantize is not None:
        compute = dtype if isinstance(dtype, torch.dtype) else None
        options["quantization_config"] = quantization_config(quantize, compute)
    with reading(folder, "language model"):
        loaded: Any = from_pretrained(
            AutoModelForCausalLM,
            folder,
            config=CONFIG_MAPPING[kind](**own),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **options,
        )
    model, info = loaded
    check_names(folder, info, elsewhere=_ELSEWHERE)
    check_numbers(folder, model)
    return model
