"""Activations of the language model that are computed again in the backward pass instead of kept."""

from __future__ import annotations

from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from vlchat.errors import ConfigError


def recomputable_layers(model: Any) -> list[GradientCheckpointingLayer]:
    """The language model's layers that can compute their activations again, the first one first."""
    return [part for part in model.get_decoder().modules() if isinstance(part, GradientCheckpointingLayer)]


def recompute_language_model(model: Any, layers: bool | int) -> None:
    """Activation checkpointing in the language model alone: a frozen tower that is hooked gets a backward pass.

    Args:
        layers: True for all of its layers, False for none, or how many, from the first. Each that is left out saves
            the time of its forward pass and keeps its activations.

    Raises:
        ConfigError: the language model does not know it, or has not so many layers.
    """
    if layers is False:
        return
    decoder, known = model.get_decoder(), recomputable_layers(model)
    if layers is not True and not 1 <= layers <= len(known):
        raise ConfigError(
            f"objective.checkpointing is {layers}, and the language model has {len(known)} layers that can do so: use "
            f"true, false or a number from 1 to {len(known)}."
        )
    name = "activation_checkpointing_enable"  # before transformers 5.23 gradient_checkpointing_enable
    enable = getattr(decoder, name, None) or decoder.gradient_checkpointing_enable
    try:
        # The reentrant kind would rest on transformers' hook that gives frozen embeddings a gradient.
        enable({"use_reentrant": False})
    except ValueError:
        raise ConfigError(
            f"The language model, a {type(decoder).__name__}, can't compute its activations again: set "
            "objective.checkpointing=false."
        ) from None
    for layer in known[len(known) if layers is True else layers :]:
        layer.gradient_checkpointing = False
