"""BLIP-2 as transformers keeps it (`Blip2ForConditionalGeneration`), with a decoder as its language model.

Names of tensors as in Salesforce/blip2-opt-2.7b: `query_tokens`, `vision_model`, `qformer`, `language_projection`,
`language_model`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import Blip2Config, Blip2Processor, Blip2QFormerConfig, Blip2VisionModel

from vlchat.backbones import assemble, carry_quantization
from vlchat.config import VLChatConfig
from vlchat.connectors import QFormerConnector
from vlchat.errors import CheckpointError
from vlchat.interop.layouts import Layout, is_tied, renamed
from vlchat.interop.processors import read_processor, their_tokenizer
from vlchat.model import VLChatForConditionalGeneration
from vlchat.processor import VLChatProcessor
from vlchat.tensors import connector_tensors
from vlchat.towers.features import measure_features

# Start of a tensor's name in our qformer connector -> in the layout.
_CONNECTOR = {"query_tokens": "query_tokens", "qformer.": "qformer.", "projection.": "language_projection."}
# The Q-Former's settings that our connector keeps as transformers has them by default.
_DEFAULTS = ("hidden_act", "layer_norm_eps")


def read(
    model: Any, processor: Any, template: str | None = None
) -> tuple[VLChatForConditionalGeneration, VLChatProcessor]:
    """A loaded BLIP-2 as our class. The two share their tensors.

    Raises:
        CheckpointError: for a T5 or another encoder-decoder as its language model.
    """
    result = join(model, qformer_options(model.config.qformer_config))
    return result, read_processor(processor, result.config, template, usual="blip2")


def join(model: Any, options: dict[str, Any]) -> VLChatForConditionalGeneration:
    """A loaded BLIP-2 or InstructBLIP as our class.

    Args:
        options: of the qformer connector.
    """
    theirs = model.config
    if not theirs.use_decoder_only_language_model:
        raise CheckpointError(
            f"The language model is a {theirs.text_config.model_type}, which encodes the prompt apart from the answer; "
            "vlchat's own class holds decoders such as Llama, Qwen and OPT. Use the checkpoint as it is."
        )
    if theirs.image_token_id is None:
        raise CheckpointError(
            "The configuration names no image_token_index: take a newer revision of the checkpoint, which has one."
        )
    config = VLChatConfig(
        vision_config=theirs.vision_config,
        text_config=theirs.text_config,
        connector={"type": "qformer", "num_query_tokens": theirs.num_query_tokens, **options},
        image_token_id=theirs.image_token_id,
        vision_feature_layer=None,
        vision_feature_select_strategy="full",
    )
    settings = {name: value for name, value in (config.connector or {}).items() if name != "type"}
    with init_empty_weights(include_buffers=False):
        connector = QFormerConnector(config.vision_feature_dim, config.embedding_dim, **settings)
    connector.load_state_dict(connector_tensors(model.state_dict()), assign=True)
    decoder = model.language_model
    result = assemble(
        VLChatForConditionalGeneration,
        config,
        model.vision_model,
        decoder.base_model,
        decoder.get_output_embeddings(),
        connector,
        measure_features(model.vision_model, None, "full")[0],
    )
    result.generation_config = model.generation_config
    carry_quantization(model, result)
    return result.eval()


def qformer_options(config: Any) -> dict[str, Any]:
    """Our connector's options for a Q-Former's configuration.

    Raises:
        CheckpointError: for a setting that they cannot express.
    """
    usual = Blip2QFormerConfig()
    for name in _DEFAULTS:
        if getattr(config, name) != getattr(usual, name):
            raise CheckpointError(f"The Q-Former's {name} is {getattr(config, name)}; {getattr(usual, name)} is known.")
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "cross_attention_frequency": config.cross_attention_frequency,
        "dropout": config.hidden_dropout_prob,
        "max_instruction_tokens": config.max_position_embeddings,
    }


def cannot_hold(model: VLChatForConditionalGeneration, processor: VLChatProcessor) -> str | None:
    """Why a model of ours does not fit into this layout; None where it does."""
    connector = model.model.connector
    if not isinstance(connector, QFormerConnector):
        return f"its connector is {(model.config.connector or {}).get('type')!r}, and this layout has a Q-Former."
    if connector.uses_instructions:
        return "its Q-Former reads the instruction, and this layout's sees no text."
    if not isinstance(model.model.vision_tower, Blip2VisionModel):
        return f"its tower is a {model.config.vision_config.model_type}, and this layout has BLIP-2's own ViT."  # type: ignore[union-attr]
    if model.config.vision_feature_layer is not None or model.config.vision_feature_select_strategy != "full":
        return "it selects features of the tower, and this layout takes the tower's whole output."
    return None


def _tensors(model: VLChatForConditionalGeneration) -> dict[str, torch.Tensor]:
    found = {f"vision_model.{name}": tensor for name, tensor in model.model.vision_tower.state_dict().items()}
    found |= renamed(model.model.connector.state_dict(), _CONNECTOR, "connector")
    body = model.model.language_model.state_dict()
    found |= {f"language_model.model.{name}": tensor for name, tensor in body.items()}
    if not is_tied(model):
        found["language_model.lm_head.weight"] = model.lm_head.weight
    return found


def _config(model: VLChatForConditionalGeneration) -> Blip2Config:
    ours = copy.deepcopy(model.config)  # Blip2Config would take the choice of attention out of the model's own
    connector = model.model.connector
    assert isinstance(connector, QFormerConnector)
    config = Blip2Config(
        vision_config=ours.vision_config,
        text_config=ours.text_config,
        qformer_config=copy.deepcopy(connector.qformer.config),
        num_query_tokens=connector.num_tokens(0),
        image_token_index=ours.image_token_id,
        architectures=["Blip2ForConditionalGeneration"],
    )
    config.tie_word_embeddings = ours.tie_word_embeddings
    return config


def _processor(processor: VLChatProcessor, model: VLChatForConditionalGeneration) -> Blip2Processor:
    # This processor writes the image tokens itself, before all text.
    template = str(processor.chat_template).replace(processor.image_token, "")
    theirs = Blip2Processor(
        processor.image_processor,
        their_tokenizer(processor),
        num_query_tokens=model.model.connector.num_tokens(0),
    )
    theirs.chat_template = template
    return theirs


LAYOUT = Layout(cannot_hold, _tensors, _config, _processor)
