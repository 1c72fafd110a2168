"""Tiny models from a configuration alone, with every kind of connector and language model, and inputs that fit."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from vlchat import VLChatConfig, VLChatForConditionalGeneration
from vlchat.connectors import build_connector

VOCABULARY = 100
IMAGE_TOKEN = 99
_QFORMER = {
    "type": "qformer", "num_query_tokens": 3, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "dropout": 0.0,
}  # fmt: skip
CONNECTORS: dict[str, dict] = {
    "mlp": {"type": "mlp", "depth": 2},
    "qformer": _QFORMER,
    "instructed": {**_QFORMER, "text_vocab_size": VOCABULARY, "max_instruction_tokens": 16},
}

_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GROUPED: dict[str, Any] = {**_COMMON, "intermediate_size": 64, "num_key_value_heads": 2}
LANGUAGES: dict[str, dict] = {
    "llama": {"model_type": "llama", **_GROUPED},
    "qwen2": {"model_type": "qwen2", **_GROUPED, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **_GROUPED, "sliding_window": 8, "head_dim": 8},
    "gemma3_text": {
        "model_type": "gemma3_text", **_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True,
    },
    # These two keep their embeddings elsewhere and tie them unless told otherwise.
    "opt": {"model_type": "opt", **_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "gpt2": {
        "model_type": "gpt2", **_COMMON, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
}  # fmt: skip
TIED = ("qwen2", "gemma3_text", "opt", "gpt2")


def language_config(name: str, **changes: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(**{**LANGUAGES[name], **changes})


def tiny_config(connector: str = "mlp", language: str = "llama", **changes: Any) -> VLChatConfig:
    """24-pixel pictures of 4 patches, 32 wide everywhere; `changes` go to the language model."""
    vision = AutoConfig.for_model(
        "clip_vision_model", hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        image_size=24, patch_size=12, projection_dim=16,
    )  # fmt: skip
    return VLChatConfig(
        vision_config=vision,
        text_config=language_config(language, **changes),
        connector=dict(CONNECTORS[connector]),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=build_connector(CONNECTORS[connector], 24, 32).num_tokens(4),
    )


def tiny(connector: str = "mlp", language: str = "llama", **changes: Any) -> VLChatForConditionalGeneration:
    torch.manual_seed(0)
    model = VLChatForConditionalGeneration(tiny_config(connector, language, **changes)).eval()
    with torch.no_grad():  # spread out, so that comparisons are not decided by rounding
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    assert model.generation_config is not None
    model.generation_config.suppress_tokens = [IMAGE_TOKEN]  # as from_backbones does: a picture is never an answer
    return model


def inputs_for(model: Any, rows: int = 2, words: int = 5, side: str = "left", seed: int = 0) -> dict[str, torch.Tensor]:
    """`rows` prompts of one picture each among words, every row after the first one shorter, padded on `side`."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    pictures = [config.image_token_id] * config.image_seq_length
    ids, mask = [], []
    for row in range(rows):
        text = torch.randint(3, 90, (words + 2,), generator=generator).tolist()[: words + 2 - row % 3]
        prompt = [1, *text[:2], *pictures, *text[2:]]
        filler = [0] * (3 + words + len(pictures) - len(prompt))
        ids.append(filler + prompt if side == "left" else prompt + filler)
        ones, zeros = [1] * len(prompt), [0] * len(filler)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    size = config.vision_config.image_size
    batch = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "pixel_values": torch.randn(rows, 3, size, size, generator=generator),
    }
    if config.connector.get("text_vocab_size"):
        batch["instruction_input_ids"] = torch.randint(3, 90, (rows, 4), generator=generator)
        batch["instruction_attention_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]] * rows)[:rows]
    return batch


def labels_for(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    return torch.where(labels == IMAGE_TOKEN, -100, labels)


def plain_language_model(model: VLChatForConditionalGeneration) -> Any:
    """transformers' own causal language model with the weights of `model`'s language half."""
    plain = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    plain.base_model.load_state_dict(model.model.language_model.state_dict())
    plain.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    plain.generation_config = model.generation_config
    return plain


def embeddings_of(model: VLChatForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The batch's input embeddings with the pictures put in place, row by row, (batch, sequence, hidden)."""
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(batch["input_ids"])
        pictures = model.get_image_features(
            batch["pixel_values"], batch.get("instruction_input_ids"), batch.get("instruction_attention_mask")
        )
        for row, picture in enumerate(pictures.pooler_output):
            embeddings[row, batch["input_ids"][row] == model.config.image_token_id] = picture
    return embeddings


def gradients(
    model: Any, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """The loss of one step, and the gradient of everything that is open."""
    model.zero_grad()
    loss = model(**batch, labels=labels_for(batch)).loss
    loss.backward()
    return loss.detach(), {
        name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters() if p.requires_grad
    }
