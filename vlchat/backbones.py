"""Composes a model from a vision tower and a language model that exist already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from vlchat.config import VLChatConfig
from vlchat.connectors import Connector, build_connector
from vlchat.errors import ConfigError
from vlchat.fit import fill
from vlchat.logits import check_logits
from vlchat.processor import IMAGE_TOKEN, add_image_token
from vlchat.quantize import pack_for_cpu, quantization_config
from vlchat.reading import reading
from vlchat.tensors import read_connector
from vlchat.towers import load_tower, picture_size
from vlchat.towers.composed import join
from vlchat.towers.composing import Vision, compose_tower
from vlchat.towers.features import measure_features, side_of_grid
from vlchat.towers.tiles import Tiles, grid_pinpoints
from vlchat.weightless import active, from_pretrained

if TYPE_CHECKING:
    from vlchat.model import VLChatForConditionalGeneration


def compose(
    cls: type[VLChatForConditionalGeneration],
    vision: Vision,
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
    connector_from: str | Path | None = None,
    tiles: Tiles | None = None,
) -> VLChatForConditionalGeneration:
    """A model from two backbones and a fresh connector. The backbones' tensors are taken over, not copied.

    Args:
        vision: a vision model, or the path or Hub id of one (of a CLIP pair the vision half is taken), or a composed
            tower, `{"type": name, **kwargs}`, one of `vlchat.towers.composing.TOWERS`.
        language: a causal language model, or the path or Hub id of one.
        connector: `{"type": name, **kwargs}`; its weights start random, in float32 unless `dtype` says otherwise.
        tokenizer: the language model's tokenizer. An image token is added to it where it has none, and the embeddings
            grow where they are too few. Without it, `config.image_token_id` is left to be set by hand.
        quantize: `nf4` or `int8` for the language model alone; tower and connector stay in floating point.
        dtype: of tower and language model; None keeps float32, `auto` what is stored.
        device_map: as in `from_pretrained`.
        connector_from: a checkpoint whose trained connector is taken instead of a fresh one: a run, a published LLaVA,
            BLIP-2 or InstructBLIP by path or Hub id, or LLaVA's `mm_projector.bin`.
        tiles: show pictures in high resolution, cut into at most so many tiles, or into tiles of given sizes; see
            `vlchat.towers.tiles`. The processor needs `vlchat.towers.composing.image_processor_of(vision, pinpoints)`.

    Raises:
        ConfigError: for backbones that cannot be joined.
        CheckpointError: when the connector there is of another shape; the names are listed.
    """
    options: dict[str, Any] = {"dtype": dtype or torch.float32}
    if device_map is not None:
        options["device_map"] = device_map
    if isinstance(vision, dict):
        if vision_feature_select_strategy == "cls":
            raise ConfigError('A composed tower gives patches: use vision_feature_select_strategy="patch".')
        # Its layers are chosen inside it.
        tower = compose_tower(vision, vision_feature_layer, **options)
        vision_feature_layer, vision_feature_select_strategy = None, "full"
    else:
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
            decoder = from_pretrained(
                AutoModelForCausalLM, language, use_safetensors=True, trust_remote_code=False, **options
            )
    head = decoder.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ConfigError(f"{decoder.__class__.__name__} has no plain output layer, so pictures can't be joined to it.")
    check_logits(decoder.config)

    size = None if isinstance(vision, dict) else picture_size(vision)
    features, width = measure_features(tower, vision_feature_layer, vision_feature_select_strategy, size)
    pinpoints = None
    if tiles is not None:
        own = size or tower.config.image_size
        pinpoints = grid_pinpoints(tiles, (own, own) if isinstance(own, int) else own)
    config = VLChatConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        connector=connector,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=vision_feature_select_strategy,
        vision_feature_size=width,
        image_grid_pinpoints=pinpoints,
    )
    fresh = build_connector(
        config.connector or {}, config.vision_feature_dim, config.embedding_dim, tiles=pinpoints is not None
    )
    model = assemble(cls, config, tower, decoder.base_model, head, fresh, features)
    if pinpoints is not None:
        side_of_grid(config.image_seq_length, "division into tiles")
    for module in fresh.modules():
        if not isinstance(module, PreTrainedModel):
            model.model._init_weights(module)
    if connector_from is not None and not active():
        fill(fresh, read_connector(connector_from), f"connector in {connector_from}")
    fresh.to(decoder.device, dtype if isinstance(dtype, torch.dtype) else torch.float32)
    model.generation_config = decoder.generation_config
    carry_quantization(decoder, model)
    pack_for_cpu(model, False)  # it is going to be trained
    if tokenizer is not None:
        _add_image_token(model, tokenizer, image_token)
    return model.eval()


def assemble(
    cls: type[VLChatForConditionalGeneration],
    config: VLChatConfig,
    tower: PreTrainedModel,
    language_model: PreTrainedModel,
    head: nn.Module,
    connector: Connector,
    features: int,
) -> VLChatForConditionalGeneration:
    """A model out of parts that exist; their tensors are taken over, not copied.

    Args:
        language_model: without its output layer.
        head: the output layer.
        features: how many of the tower's features a picture gives.

    Raises:
        ConfigError: for a part that `config` would not rebuild when the model is loaded again.
    """
    with torch.device("meta"):  # a skeleton without memory, whose parts are exchanged for the real ones
        model = cls(config)
    join(model.model, vision_tower=tower, language_model=language_model)
    model.model.connector = connector
    model.lm_head = head  # type: ignore[assignment]
    config.image_seq_length = connector.num_tokens(features)
    model.tie_weights()
    return model


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


def carry_quantization(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Tells `target` that its language model is quantized, so that saving, moving and PEFT treat it as such."""
    if getattr(source, "hf_quantizer", None) is None:
        return
    for name in ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    target.config.quantization_config = source.config.quantization_config
