"""Run by its path, in a process of its own: loads an exported folder with plain transformers and says what it answers.

    python -P reload.py PLACE

PLACE holds request.json and pixels.safetensors, and gets result.json and result.safetensors. Nothing of vlchat is
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
    processor = AutoProcessor.from_pretrained(request["folder"])
    pixels = load_file(place / "pixels.safetensors")
    tensors, texts = {}, []
    for index, (question, picture) in enumerate(request["asked"]):
        inputs = prepare(processor, question, Image.open(picture).convert("RGB"))
        # The same pixels: where torchvision is installed, it scales pictures a little differently.
        same = {name: pixels.get(f"{index}.{name}", value) for name, value in inputs.items()}
        with torch.inference_mode():
            tensors[f"{index}.logits"] = model(**same).logits.float().contiguous()
            written = model.generate(**same, do_sample=False, max_new_tokens=request["new_tokens"])
        tensors[f"{index}.input_ids"] = inputs["input_ids"]
        length = inputs["input_ids"].shape[1]
        texts.append(processor.tokenizer.decode(written[0, length:], skip_special_tokens=True))
    save_file(tensors, place / "result.safetensors")
    (place / "result.json").write_text(json.dumps(texts), encoding="utf-8")


def prepare(processor: Any, question: str, picture: Image.Image) -> Any:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    if processor.chat_template is not None:
        return processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
    # Blip2Processor takes no template; its tokenizer has read the one in the folder.
    text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    begun = text.startswith(processor.tokenizer.bos_token or "\0")
    return processor(images=picture, text=text, return_tensors="pt", add_special_tokens=not begun)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
