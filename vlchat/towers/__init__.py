"""Vision towers: any transformers vision model, by path or Hub id, with its image processor.

A tower of one backbone needs no code here; `vlchat.towers.composing` makes towers of several.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModel,
    BaseImageProcessor,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPImageProcessorPil,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
    PreTrainedModel,
    ViTImageProcessorPil,
)

# Not from transformers itself: in 5.17 that name insists on torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from vlchat.errors import CheckpointError, ConfigError
from vlchat.reading import reading
from vlchat.towers.features import measure_features, num_patches, select_features
from vlchat.weightless import from_pretrained

__all__ = [
    "clip_image_processor", "count_features", "load_image_processor", "load_tower", "made_size", "num_patches",
    "padding_image_processor", "picture_size", "select_features",
]  # fmt: skip

# transformers knows these towers inside their own families alone.
AutoModel.register(Blip2VisionConfig, Blip2VisionModel, exist_ok=True)
AutoModel.register(InstructBlipVisionConfig, InstructBlipVisionModel, exist_ok=True)


def load_tower(source: str | Path | PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
    """A vision tower from a model, a local folder or a Hub id. Of a CLIP-like pair, the vision half is taken.

    Args:
        source: where the tower is.
        kwargs: passed to `from_pretrained` (dtype, device_map, revision ...).

    Raises:
        ConfigError: when what is found there is not a vision model, or one that needs more than pictures.
        CheckpointError: when nothing can be read there, or tensors are missing; pickled weights are not read.
    """
    if isinstance(source, PreTrainedModel):
        model: PreTrainedModel = source
    else:
        with reading(source, "vision tower"):
            # A pair is loaded as a pair, so that its text half's tensors are not reported as unexpected.
            loaded: Any = from_pretrained(
                AutoModel, source, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **kwargs
            )
        model, info = loaded
        _check_missing(model, info["missing_keys"], source)
    if getattr(model.config, "vision_config", None) is not None and hasattr(model, "vision_model"):
        model = model.vision_model  # type: ignore[assignment]
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise ConfigError(f"{model.__class__.__name__} at {_name(source)} is not a vision model: it takes no pictures.")
    needed = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if name != "pixel_values"
        and parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    if needed:  # SigLIP 2 NaFlex and its like, whose pictures come as lists of patches
        raise ConfigError(
            f"{model.__class__.__name__} at {_name(source)} needs {', '.join(needed)} besides the pictures, which no "
            "tower is given here. Take a version for pictures of one size."
        )
    if model.config.model_type == "vit_mae":
        model.config.mask_ratio = 0.0  # it hides patches in pretraining alone
    return model


def load_image_processor(source: str | Path, **kwargs: Any) -> BaseImageProcessor:
    """The image processor beside a tower, in its Pillow variant, which needs no torchvision."""
    with reading(source, "image processor"):
        values, _ = BaseImageProcessor.get_image_processor_dict(source, **kwargs)
        if str(values.get("image_processor_type")).startswith("DINOv3ViT"):
            # It has no Pillow variant. ViT's scales eight-bit pixels and not floats; otherwise they are the same.
            return ViTImageProcessorPil(**{k: v for k, v in values.items() if k in _VIT_OPTIONS and v is not None})
        return AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False, **kwargs)


_VIT_OPTIONS = (
    "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std",
)  # fmt: skip


def count_features(tower: PreTrainedModel, strategy: str) -> int:
    """How many features one picture of the tower's own size gives under a select strategy, in its own output."""
    return measure_features(tower, None, strategy)[0]


def clip_image_processor(image_size: int) -> CLIPImageProcessorPil:
    """CLIP's own picture preparation, to `image_size` pixels square: the shorter side scaled, the middle cut out."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )


def padding_image_processor(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """The same preparation, but pictures are first made square with their mean color, so that nothing is cut off or
    squeezed (LLaVA-1.5's `image_aspect_ratio pad`).

    Raises:
        ConfigError: for pictures in tiles, which are cut to shape.
    """
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    if hasattr(image_processor, "image_grid_pinpoints"):
        raise ConfigError("Pictures in tiles are not made square first: leave pad out, or tiles.")
    settings = {name: value for name, value in image_processor.to_dict().items() if value is not None}
    settings.pop("image_processor_type", None)
    # SigLIP's says nothing of cropping, and means none.
    return LlavaImageProcessorPil(**{"do_center_crop": False, **settings, "do_pad": True})


def picture_size(source: str | Path | PreTrainedModel) -> tuple[int, int] | None:
    """Height and width of the pictures that the image processor beside a tower makes; None where there is none.

    It need not be the tower's own size: DINOv2 is configured for 518 pixels, and shown 224.

    Raises:
        ConfigError: as `made_size`.
    """
    if isinstance(source, PreTrainedModel):
        return None
    try:
        processor = load_image_processor(source)
    except CheckpointError:
        return None
    return made_size(processor, str(source))


def made_size(processor: Any, source: str) -> tuple[int, int]:
    """Height and width of the pictures that an image processor makes.

    Raises:
        ConfigError: when it makes pictures of one size for some pictures, and of another size for others.
    """
    square, wide = (
        tuple(processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"].shape[-2:])
        for size in ((64, 64), (128, 64))
    )
    if square != wide:
        raise ConfigError(
            f"The image processor of {source} makes {square[0]} x {square[1]} of one picture and {wide[0]} x {wide[1]} "
            "of another. A tower is shown pictures of one size: set size to a height and a width, or do_center_crop."
        )
    return square


def _check_missing(model: PreTrainedModel, missing: set[str], source: str | Path) -> None:
    """Tensors that the checkpoint lacks are an error, but for those of a pooler, which nothing here reads."""
    poolers = {name for name in missing if "pooler" in name.split(".")}
    if missing - poolers:
        raise CheckpointError(
            f"The vision tower {source} lacks tensors: {', '.join(sorted(missing - poolers))}. It may be cut short, or "
            "not what its config.json says."
        )
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for name in poolers & tensors.keys():  # composing twice gives the same model
            tensors[name].zero_()


def _name(source: str | Path | PreTrainedModel) -> str:
    return "memory" if isinstance(source, PreTrainedModel) else str(source)
