"""LLaVA and LLaVA-NeXT as transformers keeps them, with CLIP, SigLIP and other towers.

Names of tensors as in llava-hf/llava-1.5-7b-hf and llava-hf/llava-v1.6-mistral-7b-hf: `vision_tower.vision_model...`,
`multi_modal_projector.linear_{1,2}`, `language_model.{model,lm_head}`, `image_newline`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import LlavaConfig, LlavaNextConfig, LlavaNextProcessor, LlavaProcessor, PreTrainedModel

from vlchat.backbones import assemble, carry_quantization
from vlchat.config import VLChatConfig
from vlchat.connectors import build_connector
from vlchat.errors import CheckpointError
from vlchat.interop.layouts import Layout, language_tensors, renamed, tower_tensors
from vlchat.interop.processors import read_processor, their_tokenizer
from vlchat.logits import changes_logits
from vlchat.model import VLChatForConditionalGeneration
from vlchat.processor import VLChatProcessor
from vlchat.tensors import connector_tensors
from vlchat.towers.features import measure_features, num_patches

# Start of a tensor's name in our mlp connector -> in the layout.
_CONNECTOR = {
    "layers.0.": "multi_modal_projector.linear_1.",
    "layers.1.": "multi_modal_projector.linear_2.",
    "image_newline": "image_newline",
}


def read(
    model: Any, processor: Any, template: str | None = None
) -> tuple[VLChatForConditionalGeneration, VLChatProcessor]:
    """A loaded Llava or LlavaNext, and its processor, as ours; see `read_model`.

    Raises:
        CheckpointError: as `read_model`, or for a processor without a template.
    """
    ours = read_model(model)
    return ours, read_processor(processor, ours.config, template)


def read_model(model: Any) -> VLChatForConditionalGeneration:
    """A loaded Llava or LlavaNext as our class. The two share their tensors.

    Raises:
        CheckpointError: for a projector that is not two linear layers with GELU.
    """
    config = model.config
    if config.projector_hidden_act != "gelu":
        raise CheckpointError(
            f"The projector's activation is {config.projector_hidden_act}; the mlp connector computes gelu."
        )
    full = config.vision_feature_select_strategy == "full"
    tower = model.model.vision_tower
    if not full and _tokens_before_patches(tower) != 1:
        raise CheckpointError(
            f"A {tower.config.model_type} tower has other than one token before its patches, of which Llava's "
            '"default" drops one: such a model can only be used as it is.'
        )
    ours = VLChatConfig(
        vision_config=tower.config,
        text_config=config.text_config,
        connector={"type": "mlp", "depth": 2, "bias": config.multimodal_projector_bias},
        image_token_id=config.image_token_id,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy="full" if full else "patch",
        image_grid_pinpoints=getattr(config, "image_grid_pinpoints", None),
    )
    tiled = ours.image_grid_pinpoints is not None
    features, _ = measure_features(tower, ours.vision_feature_layer, ours.vision_feature_select_strategy)
    with init_empty_weights(include_buffers=False):
        connector = build_connector(ours.connector or {}, ours.vision_feature_dim, ours.embedding_dim, tiles=tiled)
    connector.load_state_dict(connector_tensors(model.state_dict()), assign=True)
    result = assemble(
        VLChatForConditionalGeneration, ours, tower, model.model.language_model, model.lm_head, connector, features
    )
    result.generation_config = model.generation_config
    carry_quantization(model, result)
    return result.eval()


def cannot_hold(model: VLChatForConditionalGeneration, processor: VLChatProcessor) -> str | None:
    """Why a model of ours does not fit into the layout llava; None where it does."""
    if _tiled(model):
        return "it is shown pictures in tiles, and this layout shows them whole."
    return _cannot_project(model)


def cannot_hold_next(model: VLChatForConditionalGeneration, processor: VLChatProcessor) -> str | None:
    """Why a model of ours does not fit into the layout llava_next; None where it does."""
    if not _tiled(model):
        return "it is shown pictures whole, and this layout cuts them into tiles."
    return _cannot_project(model)


def _tiled(model: VLChatForConditionalGeneration) -> bool:
    return model.config.image_grid_pinpoints is not None


def _cannot_project(model: VLChatForConditionalGeneration) -> str | None:
    config, options = model.config, dict(model.config.connector or {})
    tower: Any = config.vision_config
    text: Any = config.text_config
    kind = options.get("type")
    one_vit = type(tower).__module__.startswith("transformers.") and isinstance(getattr(tower, "patch_size", None), int)
    if not one_vit:
        return f"its tower is a {tower.model_type}, and this layout has one ViT of transformers."
    if changes_logits(text):
        return f"its language model, a {text.model_type}, scales its logits, which this layout's class leaves out."
    if config.embedding_dim != text.hidden_size:
        return "its language model's embeddings are narrower than its layers, and this layout's are not."
    if kind != "mlp":
        return f"its connector is {kind!r}, and this layout has a projector of two linear layers (mlp, depth 2)."
    if options.get("depth", 2) != 2 or options.get("norm"):
        return "its mlp connector is not two plain linear layers: depth must be 2, and norm off."
    if options.get("hidden_size") not in (None, text.hidden_size):
        return "its mlp connector has a hidden_size of its own, and this layout's is the language model's."
    if config.vision_feature_layer is None:
        return "it takes the tower's own output, and this layout counts the tower's hidden states."
    if _strategy(model) is None:
        return (
            f"it selects the tower's features by {config.vision_feature_select_strategy!r} from a "
            f"{tower.model_type} tower, and this layout either takes all or drops the first token."
        )
    return None


def _strategy(model: VLChatForConditionalGeneration) -> str | None:
    """Llava's name for what our select strategy takes from this tower."""
    tower, strategy = model.model.vision_tower, model.config.vision_feature_select_strategy
    if strategy == "full":
        return "full"
    return {0: "full", 1: "default"}.get(_tokens_before_patches(tower)) if strategy == "patch" else None


def _tokens_before_patches(tower: PreTrainedModel) -> int:
    """The class token and registers."""
    return measure_features(tower, None, "full")[0] - num_patches(tower.config)


def _tensors(model: VLChatForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {
        **tower_tensors(model, "vision_tower."),
        **renamed(model.model.connector.state_dict(), _CONNECTOR, "connector"),
        **language_tensors(model),
    }


def _config(model: VLChatForConditionalGeneration) -> LlavaConfig | LlavaNextConfig:
    ours: Any = copy.deepcopy(model.config)  # LlavaConfig would take the choice of attention out of the model's own
    kind: Any = LlavaNextConfig if _tiled(model) else LlavaConfig
    return kind(
        **({"image_grid_pinpoints": ours.image_grid_pinpoints} if _tiled(model) else {}),
        vision_config=ours.vision_config,
        text_config=ours.text_config,
        image_token_index=ours.image_token_id,
        image_seq_length=ours.image_seq_length,
        projector_hidden_act="gelu",
        multimodal_projector_bias=(ours.connector or {}).get("bias", True),
        vision_feature_layer=ours.vision_feature_layer,
        vision_feature_select_strategy=_strategy(model),
        tie_word_embeddings=ours.tie_word_embeddings,
        architectures=[f"Llava{'Next' if _tiled(model) else ''}ForConditionalGeneration"],
    )


def _processor(
    processor: VLChatProcessor, model: VLChatForConditionalGeneration
) -> LlavaProcessor | LlavaNextProcessor:
    tower = model.model.vision_tower
    kind: Any = LlavaNextProcessor if _tiled(model) else LlavaProcessor
    return kind(
        image_processor=processor.image_processor,
        tokenizer=their_tokenizer(processor),
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=_strategy(model),
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=_tokens_before_patches(tower),
    )


LAYOUT = Layout(cannot_hold, _tensors, _config, _processor)
NEXT_LAYOUT = Layout(cannot_hold_next, _tensors, _config, _processor)
