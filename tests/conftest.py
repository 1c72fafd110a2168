"""Tiny real models, tokenizers and pictures, made on the spot; no network."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported; nothing here may ask a server

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="vlchat-tests-")  # answers of a test are nobody's cache
os.environ["XDG_DATA_HOME"] = os.environ["XDG_CACHE_HOME"]  # nor conversations anybody's
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# A shell that runs the tests in the background has SIGINT ignored, which child processes would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data that is not part of the repository; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    return SHARED


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """As of `tiny_tokenizers.byte_level`."""
    from tiny_tokenizers import byte_level

    return byte_level()


@pytest.fixture
def tiny_clip() -> CLIPVisionModel:
    """A CLIP tower for 24-pixel pictures: 4 patches and a class token, 32 wide, 3 layers."""
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=24,
        patch_size=12,
        projection_dim=16,
    )
    return CLIPVisionModel(config).eval()


@pytest.fixture
def tiny_llama(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama 64 wide with 2 layers, grouped queries, and the tiny tokenizer's vocabulary."""
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # spread out, so that argmax and comparisons are not decided by rounding
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else None
    return model


@pytest.fixture
def tiny_model(
    tiny_clip: CLIPVisionModel, tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Any]:
    """A factory: `tiny_model(connector, **options of from_backbones)`."""
    from vlchat import VLChatForConditionalGeneration

    def make(connector: dict | None = None, **options: Any) -> VLChatForConditionalGeneration:
        torch.manual_seed(3)
        return VLChatForConditionalGeneration.from_backbones(
            tiny_clip,
            tiny_llama,
            connector or {"type": "mlp", "depth": 2},
            tokenizer=tiny_tokenizer,
            **options,
        )

    return make


@pytest.fixture
def tiny_processor(tiny_tokenizer: PreTrainedTokenizerFast) -> Any:
    """The processor that goes with `tiny_model()`: 4 image tokens per picture, ChatML."""
    from vlchat import VLChatProcessor
    from vlchat.towers import clip_image_processor

    return VLChatProcessor.from_backbones(clip_image_processor(24), tiny_tokenizer, 4, "chatml")


@pytest.fixture
def model(tmp_path: Path, tiny_model: Callable[..., Any], tiny_processor: Any) -> Path:
    """Of tests that train: the folder of a whole tiny model to start from. Some files have a `model` of their own."""
    from tiny_runs import base

    return base(tmp_path, tiny_model, tiny_processor)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Of tests that train: a file of 16 questions about 8 coloured squares. Some files have `data` of their own."""
    from tiny_runs import squares

    return squares(tmp_path / "data")


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """A factory: `picture(seed, size=(24, 24))` gives an RGB picture of coloured noise."""

    def make(seed: int = 0, size: tuple[int, int] = (24, 24)) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make
