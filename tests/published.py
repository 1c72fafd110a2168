"""Small random checkpoints of published families, as transformers makes them, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    OPTConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from vlchat.towers import clip_image_processor
from vlchat.towers.tiles import tile_image_processor

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
PIXELS: dict[str, Any] = {"image_size": 24, "patch_size": 12}
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)  # as llava-hf/llava-1.5-7b-hf has it


def spread(model: Any) -> Any:
    """Weights far enough apart that comparisons and argmax are not decided by rounding."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif "norm" not in name:
                parameter.normal_(std=0.1)
    model.tie_weights()
    return model.eval()


def language(kind: str, words: int) -> Any:
    shared = {"vocab_size": words, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 3,
              "eos_token_id": 0}  # fmt: skip
    if kind == "opt":
        return OPTConfig(
            hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32, **shared
        )
    sizes: dict[str, Any] = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 2}
    if kind == "qwen2":
        return Qwen2Config(tie_word_embeddings=True, **sizes, **shared)
    return LlamaConfig(**sizes, **shared)


def llava(tokenizer: Any, tower: str, decoder: str, **options: Any) -> tuple[Any, Any]:
    vision: Any = CLIPVisionConfig(**SIZES, **PIXELS, projection_dim=16)
    strategy, before = "default", 1
    if tower == "siglip":
        vision, strategy, before = SiglipVisionConfig(**SIZES, **PIXELS, vision_use_head=False), "full", 0
    config = LlavaConfig(
        vision_config=vision,
        text_config=language(decoder, len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_select_strategy=strategy,
        **options,
    )
    processor = LlavaProcessor(
        clip_image_processor(24), tokenizer, patch_size=12, vision_feature_select_strategy=strategy,
        chat_template=LLAVA_TEMPLATE, num_additional_image_tokens=before,
    )  # fmt: skip
    return spread(LlavaForConditionalGeneration(config)), processor


def llava_next(tokenizer: Any) -> tuple[Any, Any]:
    pinpoints = [[24, 48], [48, 24], [48, 48]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**SIZES, **PIXELS, projection_dim=16),
        text_config=language("llama", len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        image_grid_pinpoints=pinpoints,
    )
    processor = LlavaNextProcessor(
        tile_image_processor(clip_image_processor(24), (24, 24), pinpoints), tokenizer, patch_size=12,
        vision_feature_select_strategy="default", chat_template=LLAVA_TEMPLATE, num_additional_image_tokens=1,
    )  # fmt: skip
    return spread(LlavaNextForConditionalGeneration(config)), processor


def blip2(tokenizer: Any, decoder: str) -> tuple[Any, Any]:
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**SIZES, **PIXELS),
        qformer_config=Blip2QFormerConfig(**{**SIZES, "num_hidden_layers": 2}),
        text_config=language(decoder, len(tokenizer)),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = Blip2Processor(blip_image_processor(), tokenizer, num_query_tokens=4)
    return spread(Blip2ForConditionalGeneration(config)), processor


def instructblip(tokenizer: Any, decoder: str) -> tuple[Any, Any]:
    words = bert()
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**SIZES, **PIXELS),
        qformer_config=InstructBlipQFormerConfig(
            **{**SIZES, "num_hidden_layers": 2}, vocab_size=len(words), max_position_embeddings=64
        ),
        text_config=language(decoder, len(tokenizer)),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = InstructBlipProcessor(blip_image_processor(), tokenizer, words, num_query_tokens=4)
    return spread(InstructBlipForConditionalGeneration(config)), processor


def blip_image_processor() -> Any:
    return BlipImageProcessorPil(size={"height": 24, "width": 24})


def bert() -> Any:
    """A WordPiece tokenizer that writes [CLS] and [SEP] around a text, as BERT's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    words = Tokenizer(models.WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


MAKERS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "llava": lambda tokenizer: llava(tokenizer, "clip", "llama"),
    "llava-two-layers": lambda tokenizer: llava(
        tokenizer, "clip", "qwen2", vision_feature_layer=[-2, -1], multimodal_projector_bias=False
    ),
    "llava-siglip": lambda tokenizer: llava(tokenizer, "siglip", "qwen2", vision_feature_layer=-1),
    "blip2-llama": lambda tokenizer: blip2(tokenizer, "llama"),
    "blip2-opt": lambda tokenizer: blip2(tokenizer, "opt"),
    "instructblip": lambda tokenizer: instructblip(tokenizer, "llama"),
}


ROWS = [
    "What is <image>? and <image> left of it",
    "no picture here",
    "<image>two cats and one dog.",
    "is it<image> green?",
]


def batch_for(model: Any, processor: Any, rows: list[str], pictures: int) -> dict[str, torch.Tensor]:
    """Ids with mixed picture counts, padded on the left, and random pixels and instructions."""
    tokenizer = processor.tokenizer
    token = model.config.image_token_id
    lines = []
    for row in rows:
        ids: list[int] = []
        for part, text in enumerate(row.split("<image>")):
            ids += [token] * 4 * bool(part) + tokenizer(text, add_special_tokens=False)["input_ids"]
        lines.append(ids)
    length = max(map(len, lines))
    generator = torch.Generator().manual_seed(7)
    batch = {
        "input_ids": torch.tensor([[tokenizer.pad_token_id] * (length - len(line)) + line for line in lines]),
        "attention_mask": torch.tensor([[0] * (length - len(line)) + [1] * len(line) for line in lines]),
        "pixel_values": torch.randn(pictures, 3, 24, 24, generator=generator),
    }
    if model.config.model_type == "instructblip":
        batch["qformer_input_ids"] = torch.randint(4, 100, (pictures, 6), generator=generator)
        batch["qformer_attention_mask"] = torch.ones(pictures, 6, dtype=torch.long)
        batch["qformer_attention_mask"][0, 4:] = 0
    return batch


def ours_from(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("qformer_", "instruction_"): value for name, value in batch.items()}
