"""Tiny random checkpoints of published families, saved as their makers' tools save them: weights, configuration,
processor, tokenizer and the family's own form of chat template. A few hundred kilobytes each, nothing is downloaded.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_templates as templates
import torch
from family_tokenizers import bert_tokenizer, byte_tokenizer, word_tokenizer
from transformers import (
    AutoModelForImageTextToText,
    Blip2Config,
    Blip2Processor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3Processor,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3Processor,
    InstructBlipConfig,
    InstructBlipProcessor,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaProcessor,
    Mistral3Config,
    MistralConfig,
    MllamaConfig,
    MllamaProcessor,
    OPTConfig,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    T5Config,
)

TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_VL = (*CHATML, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IDEFICS = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<image>", "<fake_token_around_image>",
           "<global-img>", "<end_of_utterance>",
           *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)))  # fmt: skip
GEMMA = ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
         "<image_soft_token>")  # fmt: skip


def pil(name: str, **options: Any) -> Any:
    """An image processor in its Pillow variant, such as `clip` or `qwen2_vl`."""
    module = importlib.import_module(f"transformers.models.{name}.image_processing_pil_{name}")
    found = [getattr(module, kind) for kind in dir(module) if kind.endswith("ImageProcessorPil")]
    return next(kind for kind in found if kind.__module__ == module.__name__)(**options)


def text_config(kind: type[PreTrainedConfig], tokenizer: PreTrainedTokenizerFast, end: str, **more: Any) -> Any:
    return kind(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(end), **{**TEXT, **more},
    )  # fmt: skip


def save(folder: Path, config: PreTrainedConfig, processor: Any) -> None:
    torch.manual_seed(5)
    model: Any = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():  # spread out, so that what is likeliest is not decided by rounding
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
            elif not parameter.any() and "bias" not in name:
                parameter.normal_()  # vectors that begin at zero, such as the mark of a line's end
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def pictures_only(kind: str, **parts: Any) -> Any:
    """A processor of a family that also takes films: its part for those needs torchvision and is only named."""
    from vlchat.foreign.pictures_only import without_films

    module, name = kind.split(".")
    cls = getattr(importlib.import_module(f"transformers.models.{module}.processing_{module}"), name)
    processor = without_films(cls)(video_processor=None, **parts)
    processor.film_settings = {"video_processor_type": name.replace("Processor", "VideoProcessor"), "do_resize": True}
    return processor


def _llava(folder: Path, vision: PreTrainedConfig, image_processor: Any, strategy: str, extra: int) -> None:
    tokenizer = word_tokenizer(("<unk>", "<s>", "</s>", "<pad>", "<image>"), bos="<s>", eos="</s>", pad="<pad>")
    config = LlavaConfig(
        vision_config=vision, text_config=text_config(LlamaConfig, tokenizer, "</s>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_select_strategy=strategy,
        image_seq_length=4,
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor, tokenizer, patch_size=12, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra, chat_template=templates.LLAVA,
    )  # fmt: skip
    save(folder, config, processor)


def llava(folder: Path) -> None:
    image_processor = pil("clip", size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    _llava(folder, CLIPVisionConfig(image_size=24, patch_size=12, projection_dim=16, **VISION), image_processor,
           "default", 1)  # fmt: skip


def llava_siglip(folder: Path) -> None:
    image_processor = pil("siglip", size={"height": 24, "width": 24})
    _llava(folder, SiglipVisionConfig(image_size=24, patch_size=12, vision_use_head=False, **VISION), image_processor,
           "full", 0)  # fmt: skip


def llava_next(folder: Path) -> None:
    tokenizer = word_tokenizer(("<unk>", "<s>", "</s>", "<pad>", "<image>"), bos="<s>", eos="</s>", pad="<pad>")
    pinpoints = [[24, 48], [48, 24], [48, 48]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=24, patch_size=12, projection_dim=16, **VISION),
        text_config=text_config(MistralConfig, tokenizer, "</s>"), image_grid_pinpoints=pinpoints,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=4,
    )  # fmt: skip
    image_processor = pil(
        "llava_next", size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        image_processor, tokenizer, patch_size=12, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=templates.LLAVA_NEXT,
    )  # fmt: skip
    save(folder, config, processor)


def llava_onevision(folder: Path) -> None:
    tokenizer = byte_tokenizer((*CHATML, "<image>", "<video>"), eos="<|im_end|>", pad="<|endoftext|>")
    pinpoints = [[24, 48], [48, 24], [48, 48]]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(image_size=24, patch_size=12, vision_use_head=False, **VISION),
        text_config=text_config(Qwen2Config, tokenizer, "<|im_end|>"), image_grid_pinpoints=pinpoints,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
    )  # fmt: skip
    image_processor = pil("llava_onevision", size={"height": 24, "width": 24}, image_grid_pinpoints=pinpoints)
    processor = pictures_only(
        "llava_onevision.LlavaOnevisionProcessor", image_processor=image_processor, tokenizer=tokenizer,
        num_image_tokens=4, vision_feature_select_strategy="full", chat_template=templates.LLAVA_ONEVISION,
    )  # fmt: skip
    save(folder, config, processor)


def _blip2(folder: Path, text: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    image_processor = pil("blip", size={"height": 24, "width": 24})
    processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=4)
    text.vocab_size = len(tokenizer)
    config = Blip2Config(
        vision_config={**VISION, "image_size": 24, "patch_size": 12, "initializer_range": 0.02},
        qformer_config={**VISION, "encoder_hidden_size": 32, "vocab_size": 200}, text_config=text,
        num_query_tokens=4, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    save(folder, config, processor)


def _opt_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(("<s>", "<pad>", "</s>", "<unk>"), bos="</s>", adds_bos=True, eos="</s>", pad="<pad>")


def blip_2(folder: Path) -> None:
    tokenizer = _opt_tokenizer()
    text = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=1024, word_embed_proj_dim=64, pad_token_id=1, bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    _blip2(folder, text, tokenizer)


def blip_2_t5(folder: Path) -> None:
    tokenizer = byte_tokenizer(("<pad>", "</s>", "<unk>"), eos="</s>", pad="<pad>")
    text = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    _blip2(folder, text, tokenizer)


def instructblip(folder: Path) -> None:
    tokenizer = word_tokenizer(("<unk>", "<s>", "</s>", "<pad>"), bos="<s>", eos="</s>", pad="<pad>")
    image_processor = pil("blip", size={"height": 24, "width": 24})
    qformer = bert_tokenizer()
    processor = InstructBlipProcessor(image_processor, tokenizer, qformer, num_query_tokens=4)
    config = InstructBlipConfig(
        vision_config={**VISION, "image_size": 24, "patch_size": 12, "initializer_range": 0.02},
        qformer_config={**VISION, "encoder_hidden_size": 32, "vocab_size": len(qformer)},
        text_config=text_config(LlamaConfig, tokenizer, "</s>"), num_query_tokens=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    save(folder, config, processor)


def _idefics_parts(image_processor: str) -> tuple[Any, Any]:
    tokenizer = byte_tokenizer(
        IDEFICS, bos="<|begin_of_text|>", adds_bos=True, eos="<end_of_utterance>", pad="<|end_of_text|>"
    )
    return tokenizer, pil(image_processor, size={"longest_edge": 48}, max_image_size={"longest_edge": 24})


def _idefics_config(kind: type[PreTrainedConfig], tokenizer: PreTrainedTokenizerFast) -> Any:
    return kind(
        vision_config={**VISION, "image_size": 24, "patch_size": 6}, scale_factor=2,
        text_config=text_config(LlamaConfig, tokenizer, "<end_of_utterance>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def idefics3(folder: Path) -> None:
    tokenizer, image_processor = _idefics_parts("idefics3")
    template = templates.UTTERANCES.replace("START", "<|begin_of_text|>")
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=4, chat_template=template)
    save(folder, _idefics_config(Idefics3Config, tokenizer), processor)


def smolvlm(folder: Path) -> None:
    tokenizer, image_processor = _idefics_parts("smolvlm")
    processor = pictures_only(
        "smolvlm.SmolVLMProcessor", image_processor=image_processor, tokenizer=tokenizer, image_seq_len=4,
        chat_template=templates.UTTERANCES.replace("START", "<|im_start|>"),
    )  # fmt: skip
    save(folder, _idefics_config(SmolVLMConfig, tokenizer), processor)


def _qwen_vl(
    folder: Path, config: type[PreTrainedConfig], processor: str, template: str, patch: int, vision: dict, **text: Any
) -> None:
    tokenizer = byte_tokenizer(QWEN_VL, eos="<|im_end|>", pad="<|endoftext|>")
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>"}.items()}  # fmt: skip
    words = {
        **TEXT, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}, **text,
    }  # fmt: skip
    image_processor = pil(
        "qwen2_vl", size={"shortest_edge": 4 * patch**2, "longest_edge": 64 * patch**2}, patch_size=patch
    )
    parts = pictures_only(processor, image_processor=image_processor, tokenizer=tokenizer, chat_template=template)
    save(folder, config(vision_config={**vision, "patch_size": patch}, text_config=words, **ids), parts)


def qwen2_vl(folder: Path) -> None:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
    _qwen_vl(folder, Qwen2VLConfig, "qwen2_vl.Qwen2VLProcessor", templates.QWEN2_VL, 6, vision)


def qwen2_5_vl(folder: Path) -> None:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
              "window_size": 24, "fullatt_block_indexes": [1]}  # fmt: skip
    _qwen_vl(folder, Qwen2_5_VLConfig, "qwen2_5_vl.Qwen2_5_VLProcessor", templates.QWEN2_VL, 6, vision)


def qwen3_vl(folder: Path) -> None:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
              "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}  # fmt: skip
    _qwen_vl(folder, Qwen3VLConfig, "qwen3_vl.Qwen3VLProcessor", templates.QWEN3_VL, 6, vision, head_dim=16)


def gemma3(folder: Path) -> None:
    tokenizer = word_tokenizer(
        GEMMA, bos="<bos>", eos="<eos>", pad="<pad>", image_token="<image_soft_token>", boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )  # fmt: skip
    text = text_config(
        Gemma3TextConfig, tokenizer, "<eos>", head_dim=16, sliding_window=16, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(image_size=24, patch_size=6, vision_use_head=False, **VISION),
        text_config=text, mm_tokens_per_image=4, image_token_id=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_id=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
    )  # fmt: skip
    image_processor = pil("gemma3", size={"height": 24, "width": 24})
    save(folder, config, Gemma3Processor(image_processor, tokenizer, templates.GEMMA3, image_seq_length=4))


def paligemma(folder: Path) -> None:
    tokenizer = word_tokenizer(GEMMA[:3], bos="<bos>", eos="<eos>", pad="<pad>")
    image_processor = pil("siglip", size={"height": 24, "width": 24})
    image_processor.image_seq_length = 4
    processor = PaliGemmaProcessor(image_processor, tokenizer)
    text = {
        **TEXT, "model_type": "gemma", "vocab_size": len(tokenizer), "head_dim": 16, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 2,
    }  # fmt: skip
    config = PaliGemmaConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "image_size": 24, "patch_size": 12,
                       "vision_use_head": False, "projection_dim": 64},
        text_config=text, projection_dim=64, hidden_size=64, vocab_size=len(tokenizer), pad_token_id=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    save(folder, config, processor)


def internvl(folder: Path) -> None:
    tokenizer = byte_tokenizer(
        (*CHATML, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"), eos="<|im_end|>", pad="<|endoftext|>",
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )  # fmt: skip
    config = InternVLConfig(
        vision_config={**VISION, "image_size": [24, 24], "patch_size": [6, 6]},
        text_config=text_config(Qwen2Config, tokenizer, "<|im_end|>"), image_seq_length=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )  # fmt: skip
    image_processor = pil("got_ocr2", size={"height": 24, "width": 24}, crop_to_patches=True, max_patches=4)
    processor = pictures_only(
        "internvl.InternVLProcessor", image_processor=image_processor, tokenizer=tokenizer, image_seq_length=4,
        chat_template=templates.INTERNVL,
    )  # fmt: skip
    save(folder, config, processor)


def _with(make: Callable[[Path], None], template: str) -> Callable[[Path], None]:
    """The family as it is published, and the template that a person put into its folder."""

    def made(folder: Path) -> None:
        make(folder)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")

    return made


def mistral3(folder: Path) -> None:
    specials = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    tokenizer = byte_tokenizer(specials, bos="<s>", adds_bos=True, eos="</s>", pad="<pad>")
    vision = {**VISION, "model_type": "pixtral", "image_size": 48, "patch_size": 6}
    config = Mistral3Config(
        vision_config=vision, text_config=text_config(MistralConfig, tokenizer, "</s>"), tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("[IMG]"),
    )  # fmt: skip
    save(folder, config, tokenizer)
    # The processor's own class can't even be imported without torchvision.
    image_processor = pil("pixtral", size={"longest_edge": 48}, patch_size={"height": 6, "width": 6}).to_dict()
    settings = {"processor_class": "PixtralProcessor", "patch_size": 6, "spatial_merge_size": 2,
                "image_processor": {**image_processor, "image_processor_type": "PixtralImageProcessor"}}  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(templates.MISTRAL3)


def mllama(folder: Path) -> None:
    specials = ("<|begin_of_text|>", "<|eot_id|>", "<|pad|>", "<|start_header_id|>", "<|end_header_id|>", "<|image|>",
                "<|python_tag|>")  # fmt: skip
    tokenizer = byte_tokenizer(specials, bos="<|begin_of_text|>", adds_bos=True, eos="<|eot_id|>", pad="<|pad|>")
    words = {**TEXT, "num_hidden_layers": 3, "vocab_size": len(tokenizer) - 1, "cross_attention_layers": [1],
             "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "eos_token_id": 1, "bos_token_id": 0,
             "pad_token_id": 2}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1,
              "attention_heads": 4, "vision_output_dim": 96, "image_size": 24, "patch_size": 12, "max_num_tiles": 2,
              "intermediate_layers_indices": [0, 1],
              "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}  # fmt: skip
    config = MllamaConfig(
        vision_config=vision, text_config=words, image_token_id=tokenizer.convert_tokens_to_ids("<|image|>")
    )
    image_processor = pil("mllama", size={"height": 24, "width": 24}, max_image_tiles=2)
    save(folder, config, MllamaProcessor(image_processor, tokenizer, templates.MLLAMA))


FAMILIES: dict[str, Callable[[Path], None]] = {
    "llava": llava,
    "llava_siglip": llava_siglip,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "blip-2": blip_2,
    "blip-2-t5": blip_2_t5,
    "instructblip": instructblip,
    "blip-2-t5, template added": _with(blip_2_t5, templates.BLIP_2),
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "gemma3": gemma3,
    "paligemma": paligemma,
    "paligemma, template added": _with(paligemma, templates.PALIGEMMA),
    "internvl": internvl,
    "mistral3": mistral3,
    "mllama": mllama,
}
# For transformers' own classes, which put the picture before the prompt themselves.
BLIPS: dict[str, Callable[[Path], None]] = {
    "blip-2, template added": _with(blip_2, templates.BLIP_2),
    "instructblip, template added": _with(instructblip, templates.INSTRUCTBLIP),
}
