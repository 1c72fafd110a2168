"""Composes a model from a vision tower and a language model that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from vlchat.config import VLChatConfig
from vlchat.connectors import build_connector
from vlchat.errors import ConfigError
from vlchat.logits import check_logits
from vlchat.processor import IMAGE_TOKEN, add_image_token
from vlchat.quantize import pack_for_cpu, quantization_config
from vlchat.reading import reading
from vlchat.towers import count_features, load_tower

if TYPE_CHECKING:
    from vlchat.model import VLChatForConditionalGeneration


def compose(
    cls: type[VLChatForConditionalGeneration],
    vision: str | Path | PreTrainedModel,
    language: str | Path | PreTrainedModel,
    connector: dict,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quantize: str | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    vision_feature_layer: int | list[int] | None = -2,
    vision_feature_select_strategy: str = "patch",
    image_token: str = IMAGE_TOKEN,
) -> VLChatForConditionalGeneration:
    """A model from two backbones and a fresh connector. The backbones' tensors are taken over, not copied.

    Args:
        vision: a vision model, or the path or Hub id of one (of a CLIP pair the vision half is taken).
        language: a causal language model, or the path or Hub id of one.
        connector: `{"type": name, **kwargs}`; its weights start random, in float32 unless `dtype` says otherwise.
        tokenizer: the language model's tokenizer. An image token is added to it where it has none, and the embeddings
            grow where they are too few. Without it, `config.image_token_id` is left to be set by hand.
        quantize: `nf4` or `int8` for the language model alone; tower and connector stay in floating point.
        dtype: of tower and language model; None keeps float32, `auto` what is stored.
        device_map: as in `from_pretrained`.

    Raises:
        ConfigError: for backbones that cannot be joined.
    """
    options: dict[str, Any] = {"dtype": dtype or torch.float32}
    if device_map is not None:
        options["device_map"] = device_map
    tower = load_tower(vision, **({} if isinstance(vision, PreTrainedModel) else options))
    if isinstance(language, PreTrainedModel):
        if quantize is not None:
            raise ConfigError("A language model that is already in memory can't be quantized: pass its path or Hub id.")
        decoder = language
    else:
        if quantize is not None:
            compute = options["dtype"] if isinstance(options["dtype"], torch.dtype) else None
            options["quantization_config"] = quantization_config(quantize, compute)
        with reading(language, "language model"):
            decoder = AutoModelForCausalLM.from_pretrained(language, use_safetensors=True, **options)
    head = decoder.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ConfigError(f"{decoder.__class__.__name__} has no plain output layer, so pictures can't be joined to it.")
    check_logits(decoder.config)

    config = VLChatConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        connector=connector,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=vision_feature_select_strategy,
    )
    with torch.device("meta"):  # a skeleton without memory, whose parts are exchanged for the real ones
        model = cls(config)
    for name, part, real in (
        ("vision", model.model.vision_tower, tower),
        ("language", model.model.language_model, decoder.base_model),
    ):
        if type(part) is not type(real):
            raise ConfigError(
                f"The {name} backbone is a {type(real).__name__}, which its configuration does not rebuild "
                f"(that gives a {type(part).__name__}), so the composed model could not be loaded again."
            )
    model.model.vision_tower = tower
    model.model.language_model = decoder.base_model
    model.lm_head = head
    fresh = build_connector(config.connector or {}, config.vision_feature_dim, config.embedding_dim)
    for module in fresh.modules():
        if not isinstance(module, PreTrainedModel):
            model.model._init_weights(module)
    model.model.connector = fresh.to(decoder.device, dtype if isinstance(dtype, torch.dtype) else torch.float32)
    config.image_seq_length = fresh.num_tokens(count_features(tower, vision_feature_select_strategy))
    model.tie_weights()
    model.generation_config = decoder.generation_config
    _carry_quantization(decoder, model)
    pack_for_cpu(model, False)  # it is going to be trained
    if tokenizer is not None:
        _add_image_token(model, tokenizer, image_token)
    return model.eval()


def _add_image_token(
    model: VLChatForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, image_token: str
) -> None:
    model.config.image_token_id = add_image_token(tokenizer, image_token)
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        # The mean of the known rows and nothing random: rebuilding from the same backbones gives the same model.
        with torch.no_grad():
            for table in (model.get_input_embeddings(), model.get_output_embeddings()):
                weight: Any = table.weight
                weight[rows:] = weight[:rows].float().mean(0).to(weight.dtype)
    # The image token marks a place in a prompt; it is never an answer.
    if model.generation_config is not None:
        suppressed = set(model.generation_config.suppress_tokens or [])
        model.generation_config.suppress_tokens = sorted(suppressed | {model.config.image_token_id})


def _carry_quantization(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Tells `target` that its language model is quantized, so that saving, moving and PEFT treat it as such."""
    if getattr(source, "hf_quantizer", None) is None:
        return
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    target.config.quantization_config = source.config.quantization_config
