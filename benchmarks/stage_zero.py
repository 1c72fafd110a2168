"""The embedded model's tower and language model apart, for benchmarks that train a connector between them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from vlchat import Chat

EMBEDDED = "embedded"


def stage_zero(runs: Path) -> tuple[Path, Path]:
    """The folders of a tower and of a language model.

    What the recipe has left in `runs` (`make mini`) is taken as it is. Otherwise both are taken out of the embedded
    model and written to `runs/embedded`. That language model has stage 2's LoRA in it; it answers from described
    pictures as well as before (docs/LOG.md).
    """
    tower, language = runs / "tower-read", runs / "lm"
    if tower.exists() and language.exists():
        return tower, language
    tower, language = runs / EMBEDDED / "tower", runs / EMBEDDED / "lm"
    if not language.exists():
        chat = Chat.load()
        chat.model.model.vision_tower.save_pretrained(tower)
        chat.processor.image_processor.save_pretrained(tower)
        alone = LlamaForCausalLM(chat.model.config.text_config).to(torch.float32)
        alone.model.load_state_dict(chat.model.model.language_model.state_dict())
        alone.save_pretrained(language)
        chat.processor.tokenizer.save_pretrained(language)
    return tower, language
