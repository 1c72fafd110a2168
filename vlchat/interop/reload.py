"""Run by its path, in a process of its own: loads an exported folder with plain transformers and says what it answers.

    python -P reload.py PLACE

PLACE holds request.json and inputs.safetensors, and gets result.safetensors. Nothing of vlchat is
imported unless the folder is in vlchat's own layout.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor


def main(place: Path) -> None:
    request = json.loads((place / "request.json").read_text(encoding="utf-8"))
    if request["imports"]:
        importlib.import_module(request["imports"])
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        request["folder"], dtype=torch.float32, output_loading_info=True
    )
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            sys.exit(f"{kind.replace('_', ' ')}: {', '.join(sorted(info[kind])[:8])}.")
    if (Path(request["folder"]) / "adapter").is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(Path(request["folder"]) / "adapter"))
    given = load_file(place / "inputs.safetensors")
    tensors, processor = {}, None
    try:
        processor = AutoProcessor.from_pretrained(request["folder"])
    except (ImportError, ValueError) as error:  # families that also take films want torchvision for them
        if "torchvision" not in str(error).lower():
            raise
    for index, (question, picture) in enumerate(request["asked"]):
        inputs = {name.split(".", 1)[1]: tensor for name, tensor in given.items() if name.startswith(f"{index}.")}
        tensors[f"{index}.logits"], tensors[f"{index}.written"] = answer(model, inputs, request["new_tokens"])
        if processor is not None:
            prompt = prepare(processor, question, Image.open(picture).convert("RGB"))
            tensors[f"{index}.input_ids"] = prompt["input_ids"]
    save_file(tensors, place / "result.safetensors")


@torch.inference_mode()
def answer(model: Any, inputs: dict[str, torch.Tensor], new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the prompt (of the first new token, where an encoder reads the prompt), and greedy token ids."""
    text = model.config.get_text_config()
    first = {}
    if text.is_encoder_decoder:
        start = model.generation_config.decoder_start_token_id or text.decoder_start_token_id or text.pad_token_id
        first = {"decoder_input_ids": torch.tensor([[start]])}
    logits = model(**inputs, **first).logits.float().contiguous()
    written = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
    return logits, written.contiguous()


def prepare(processor: Any, question: str, picture: Image.Image) -> Any:
    """A question about a picture as tensors, by the chat template where there is one."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    if processor.chat_template is not None:
        return processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
    text = question
    if processor.tokenizer.chat_template is not None:  # Blip2Processor takes no template, its tokenizer has read it
        text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    begun = text.startswith(processor.tokenizer.bos_token or "\0")
    return processor(images=picture, text=text, return_tensors="pt", add_special_tokens=not begun)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
