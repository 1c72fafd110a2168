"""What the published layouts share: a reason why not, tensors by their published names, and the files beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict

from vlchat.errors import CheckpointError
from vlchat.model import VLChatForConditionalGeneration
from vlchat.processor import VLChatProcessor

# Published files, vLLM and llama.cpp keep the level that transformers 5 took out of these towers.
_NESTED = {"clip_vision_model": "vision_model.", "siglip_vision_model": "vision_model."}


@dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
        cannot_hold: (model, processor) -> a sentence on why not, or None.
        tensors: (model) -> every tensor by its published name; the output layer is absent where it is tied.
        config: (model) -> transformers' configuration of it.
        processor: (processor, model) -> transformers' processor of it.
    """

    cannot_hold: Callable[[VLChatForConditionalGeneration, VLChatProcessor], str | None]
    tensors: Callable[[VLChatForConditionalGeneration], dict[str, torch.Tensor]]
    config: Callable[[VLChatForConditionalGeneration], Any]
    processor: Callable[[VLChatProcessor, VLChatForConditionalGeneration], Any]

    def write(self, model: VLChatForConditionalGeneration, processor: VLChatProcessor, folder: Path) -> None:
        """Writes configuration, generation configuration, weights (safetensors, 5 GB a file) and processor."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors(model).items()}
        save_torch_state_dict(tensors, str(folder), safe_serialization=True)
        config = self.config(model)
        dtype = str(model.dtype).removeprefix("torch.")
        written = config.to_dict() | {"dtype": dtype}
        for part in [written, *(value for value in written.values() if isinstance(value, dict))]:
            part.pop("_name_or_path", None)
            part.pop("quantization_config", None)
            if "dtype" in part:
                part["dtype"] = dtype
        (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        theirs = self.processor(processor, model)
        theirs.save_pretrained(folder)
        # Servers of older releases look for the picture's preparation in a file of its own.
        theirs.image_processor.save_pretrained(folder)


def tower_tensors(model: VLChatForConditionalGeneration, prefix: str) -> dict[str, torch.Tensor]:
    """The tower's tensors as published: `vision_tower.vision_model.embeddings...` of a CLIP."""
    tower = model.model.vision_tower
    level = _NESTED.get(tower.config.model_type, "")
    return {f"{prefix}{level}{name}": tensor for name, tensor in tower.state_dict().items()}


def language_tensors(model: VLChatForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The language model's tensors as published: `language_model.model...` and `language_model.lm_head.weight`."""
    body = model.model.language_model
    found = {f"language_model.model.{name}": tensor for name, tensor in body.state_dict().items()}
    if not is_tied(model):
        found["language_model.lm_head.weight"] = model.lm_head.weight
    return found


def is_tied(model: VLChatForConditionalGeneration) -> bool:
    """Whether input and output embeddings are one tensor."""
    inputs: Any = model.get_input_embeddings().weight
    outputs: Any = model.lm_head.weight
    return inputs.data_ptr() == outputs.data_ptr()


def renamed(tensors: dict[str, torch.Tensor], names: dict[str, str], what: str) -> dict[str, torch.Tensor]:
    """Tensors with the start of each name exchanged.

    Args:
        names: start of a name -> what stands there instead.

    Raises:
        CheckpointError: for a tensor that no start fits.
    """
    result = {}
    for name, tensor in tensors.items():
        start = next((start for start in names if name.startswith(start)), None)
        if start is None:
            known = ", ".join(names)
            raise CheckpointError(f"The {what} has a tensor {name}, which has no place; known ones begin with {known}.")
        result[names[start] + name.removeprefix(start)] = tensor
    return result
