"""What is taken from a vision tower: which states, which of their tokens; feature maps become tokens too."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import output_capturing

from vlchat.errors import ConfigError

# Later releases of transformers keep only the hidden states that are asked for by index; 5.17 keeps all or none.
_CAN_SELECT_STATES = hasattr(output_capturing, "select_hidden_states")


def tower_features(
    tower: PreTrainedModel,
    pixel_values: torch.Tensor,
    layer: int | list[int] | None,
    strategy: str,
    **kwargs: Any,
) -> tuple[Any, torch.Tensor]:
    """Runs a tower on `pixel_values` (images, channels, height, width).

    Args:
        layer: index of the hidden state to take, or a list whose states are concatenated; None is the tower's own
            output, after its final norm.
        strategy: see `select_features`.

    Returns:
        The tower's output, and the features (images, tokens, dim). A map (images, channels, height, width), as a CNN
        gives it, is read row by row.

    Raises:
        ConfigError: for a layer or a selection that this tower does not have.
    """
    config = tower.config
    pixel_values = beside(pixel_values, next(tower.parameters()))
    wanted = [layer] if isinstance(layer, int) else list(layer or ())
    # Counting from the end needs the number of layers, which CNNs do not tell.
    enough = wanted if _CAN_SELECT_STATES and hasattr(config, "num_hidden_layers") else bool(wanted)
    keep = kwargs.pop("output_hidden_states", None) or enough
    if config.model_type == "vit_mae":
        # Its patches are shuffled by noise, to hide some of them: rising noise leaves them where they are.
        kwargs["noise"] = torch.arange(num_patches(config), device=tower.device).expand(len(pixel_values), -1).float()
    outputs = tower(pixel_values, output_hidden_states=keep or False, return_dict=True, **kwargs)
    states = [_state(outputs.hidden_states, index, config) for index in wanted] or [outputs.last_hidden_state]
    height, width = pixel_values.shape[-2:]
    states = [_tokens(state, strategy, config, height, width) for state in states]
    if len({state.shape[1] for state in states}) > 1:
        raise ConfigError(
            f"The layers {wanted} of this {config.model_type} tower have {[state.shape[1] for state in states]} tokens "
            "and can't be put side by side. Take one of them."
        )
    # A single state is left as it lies: a copy in another order of memory would be multiplied by another routine, and
    # in bfloat16 give other bits than transformers' Llava.
    return outputs, states[0] if len(states) == 1 else torch.cat(states, dim=-1)


def beside(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`tensor` on the device of `parameter` and in its precision. A parameter that `device_map` offloaded is nowhere
    until it is used, and its inputs are moved then."""
    device = tensor.device if parameter.device.type == "meta" else parameter.device
    return tensor.to(device, parameter.dtype)


def num_patches(vision_config: Any, height: int | None = None, width: int | None = None) -> int:
    """How many patch tokens a picture of that many pixels (the tower's own size when absent) becomes.

    Raises:
        ConfigError: for a tower without patches.
    """
    patch, size = getattr(vision_config, "patch_size", None), getattr(vision_config, "image_size", None)
    if vision_config.model_type == "dinov3_convnext":  # a CNN whose own output looks like a ViT's
        patch = 4 * 2 ** (len(vision_config.hidden_sizes) - 1)
    if patch is None or (size is None and height is None):
        raise ConfigError(
            f"A {vision_config.model_type} tower has no patch_size and image_size; "
            'use vision_feature_select_strategy="full" with it.'
        )
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    if height is None or width is None:
        height, width = (size, size) if isinstance(size, int) else size  # type: ignore[misc]
    return (height // patch_height) * (width // patch_width)


def select_features(features: torch.Tensor, strategy: str, patches: int) -> torch.Tensor:
    """Keeps the tokens of `features` (images, tokens, dim) that the strategy names.

    The class token and any registers come before the patches; towers differ in how many (CLIP 1, SigLIP 0), so they
    are counted from the end instead of assuming one. A tower that merges patches on its way (Swin) has fewer tokens
    than patches, and no class token.

    Raises:
        ConfigError: for `cls` on a tower that has no class token.
    """
    if strategy == "full":
        return features
    prefix = max(0, features.shape[1] - patches)
    if strategy == "patch":
        return features[:, prefix:]
    if prefix < 1:
        raise ConfigError('This tower has no class token; use vision_feature_select_strategy="patch" or "full".')
    return features[:, :1]


def measure_features(
    tower: PreTrainedModel, layer: int | list[int] | None, strategy: str, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """How many features a picture gives, and how wide they are: asked of the tower, with a blank picture.

    Args:
        size: height and width of the pictures; None is the tower's own size.

    Raises:
        ConfigError: for a tower that does not say for which size it is, or does not work at this one.
    """
    found: Any = size or getattr(tower.config, "image_size", None)
    if found is None:
        raise ConfigError(
            f"A {tower.config.model_type} tower does not say how large its pictures are: put its "
            "preprocessor_config.json beside it, and compose it by its path."
        )
    height, width = (found, found) if isinstance(found, int) else tuple(found)
    training = tower.training
    try:
        with torch.no_grad():
            pixels = torch.zeros(1, getattr(tower.config, "num_channels", 3), height, width)
            features = tower_features(tower.eval(), pixels, layer, strategy)[1]
    except ConfigError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise ConfigError(f"A {tower.config.model_type} tower can't see {height} x {width} pixels: {error}") from error
    finally:
        tower.train(training)
    return features.shape[1], features.shape[2]


def side_of_grid(num_patches: int, who: str) -> int:
    """The side of a square grid of so many patches.

    Raises:
        ConfigError: when they form no square.
    """
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ConfigError(
            f"The {who} needs a square grid of patches, and this tower gives {num_patches} features. "
            'Use vision_feature_select_strategy="patch" and square pictures.'
        )
    return side


def _state(states: Any, index: int, config: PreTrainedConfig) -> torch.Tensor:
    count = len(states) if states is not None else 0
    if not -count <= index < count:
        hint = "use vision_feature_layer=None" if not count else f"it has {count}, from {-count} to {count - 1}"
        raise ConfigError(f"This {config.model_type} tower has no hidden state {index}; {hint}.")
    return states[index]


def _tokens(state: torch.Tensor, strategy: str, config: PreTrainedConfig, height: int, width: int) -> torch.Tensor:
    if state.ndim == 4:
        state = state.flatten(2).transpose(1, 2)
        return select_features(state, strategy, state.shape[1])
    return select_features(state, strategy, 0 if strategy == "full" else num_patches(config, height, width))
