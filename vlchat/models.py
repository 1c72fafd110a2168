"""Short names of good starting points, and what each takes: `vlchat models`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import overload

AS_OF = "2026-11-21"  # licences and ids were looked up by this day; the cards on the Hub have the last word

BF16 = 2.0  # bytes a parameter
# 4 bits, and for each 64 parameters an 8-bit scale, and for each 256 of those scales a 32-bit one: 4.127 bits
# (double quantization; QLoRA, arXiv:2305.14314, section 3).
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8


@dataclass(frozen=True)
class Blocks:
    """The shape of a language model's blocks, which decides how much of a model nf4 makes small.

    Attributes:
        query: width of all query heads together.
        key_value: width of all key heads together, and of all value heads.
        gated: whether the feed-forward part has three matrices, as in Llama, or two, as in OPT.
    """

    layers: int
    hidden: int
    query: int
    key_value: int
    feed_forward: int
    gated: bool = True

    @property
    def linear(self) -> int:
        """Parameters in linear layers: q, k, v and o, and gate, up and down."""
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key_value
        return self.layers * (attention + (2 + self.gated) * self.hidden * self.feed_forward)


@dataclass(frozen=True)
class Entry:
    """A model to begin with.

    Attributes:
        name: the short name.
        id: on the Hub; None for the embedded model.
        parameters: in billions, all parts together.
        language: the shape of its language model's blocks.
        purpose: what for.
    """

    name: str
    id: str | None
    parameters: float
    language: Blocks
    licence: str
    purpose: str

    @property
    def bf16(self) -> float:
        """GB (10^9 bytes) of weights in bfloat16. Pictures and the conversation come on top."""
        return self.parameters * BF16

    @property
    def nf4(self) -> float:
        """GB of weights with `--quantize nf4`: only the language model's linear layers shrink."""
        quantized = self.language.linear / 1e9
        return quantized * NF4 + (self.parameters - quantized) * BF16


_QWEN2_0_5B = Blocks(24, 896, 896, 128, 4864)
_QWEN2_1_5B = Blocks(28, 1536, 1536, 256, 8960)
_QWEN2_7B = Blocks(28, 3584, 3584, 512, 18944)
_LLAMA_7B = Blocks(32, 4096, 4096, 4096, 11008)
_LLAMA_13B = Blocks(40, 5120, 5120, 5120, 13824)

MODELS: tuple[Entry, ...] = (
    Entry("mini", None, 0.0106, Blocks(6, 256, 256, 256, 704), "this project's",
          "drawn pictures only; learning, tests"),
    Entry("smolvlm-256m", "HuggingFaceTB/SmolVLM-256M-Instruct", 0.256, Blocks(30, 576, 576, 192, 1536),
          "Apache-2.0", "laptops; the smallest for photographs"),
    Entry("smolvlm-500m", "HuggingFaceTB/SmolVLM-500M-Instruct", 0.507, Blocks(32, 960, 960, 320, 2560),
          "Apache-2.0", "laptops"),
    Entry("smolvlm-2.2b", "HuggingFaceTB/SmolVLM-Instruct", 2.25, Blocks(24, 2048, 2048, 2048, 8192),
          "Apache-2.0", "small GPUs; several pictures"),
    Entry("llava-interleave-0.5b", "llava-hf/llava-interleave-qwen-0.5b-hf", 0.865, _QWEN2_0_5B,
          "Qwen research", "several pictures, on a laptop"),
    Entry("llava-onevision-0.5b", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 0.894, _QWEN2_0_5B,
          "Apache-2.0", "fine details, on a laptop"),
    Entry("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", 7.06, _LLAMA_7B,
          "Llama 2", "the plain LLaVA: many recipes and servers"),
    Entry("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", 13.35, _LLAMA_13B,
          "Llama 2", "the same, larger"),
    Entry("llava-next-mistral-7b", "llava-hf/llava-v1.6-mistral-7b-hf", 7.57, Blocks(32, 4096, 4096, 1024, 14336),
          "Apache-2.0", "large pictures, text in them"),
    Entry("qwen2-vl-2b", "Qwen/Qwen2-VL-2B-Instruct", 2.21, _QWEN2_1_5B,
          "Apache-2.0", "documents, many languages; small GPUs"),
    Entry("qwen2-vl-7b", "Qwen/Qwen2-VL-7B-Instruct", 8.29, _QWEN2_7B,
          "Apache-2.0", "documents, many languages"),
    Entry("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", 3.75, Blocks(36, 2048, 2048, 256, 11008),
          "Qwen research", "documents, places in pictures"),
    Entry("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct", 8.29, _QWEN2_7B,
          "Apache-2.0", "documents, places in pictures"),
    Entry("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct", 2.13, Blocks(28, 2048, 2048, 1024, 6144),
          "Apache-2.0", "a good first choice for a small GPU"),
    Entry("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct", 4.44, Blocks(36, 2560, 4096, 1024, 9728),
          "Apache-2.0", "a good first choice for 12 GB"),
    Entry("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct", 8.77, Blocks(36, 4096, 4096, 1024, 12288),
          "Apache-2.0", "a good first choice for 24 GB"),
    Entry("gemma3-4b", "google/gemma-3-4b-it", 4.30, Blocks(34, 2560, 2048, 1024, 10240),
          "Gemma, gated", "many languages"),
    Entry("paligemma2-3b", "google/paligemma2-3b-mix-448", 3.03, Blocks(26, 2304, 2048, 1024, 9216),
          "Gemma, gated", "short answers, captions; to fine-tune"),
    Entry("instructblip-vicuna-7b", "Salesforce/instructblip-vicuna-7b", 7.91, _LLAMA_7B,
          "other, see card", "a Q-Former that reads the question"),
    Entry("blip2-opt-2.7b", "Salesforce/blip2-opt-2.7b", 3.74, Blocks(32, 2560, 2560, 2560, 10240, gated=False),
          "MIT", "a Q-Former; captions, short answers"),
)  # fmt: skip


@overload
def resolve(model: str | None) -> str | None: ...
@overload
def resolve(model: str | Path | None) -> str | Path | None: ...
def resolve(model: str | Path | None) -> str | Path | None:
    """What a short name stands for: a Hub id, or None for the embedded model. Anything else comes back as it is.

    A file or folder here of that name is meant sooner.
    """
    try:
        if not isinstance(model, str) or Path(model).exists():
            return model
    except (OSError, ValueError):  # too long for a file's name
        return model
    found = {entry.name: entry for entry in MODELS}.get(model.lower())
    return found.id if found else model


def hint(model: str) -> str:
    """A closing hint for a name that is neither a folder nor known: ` Did you mean "x"?`, or an empty string."""
    close = difflib.get_close_matches(model.lower(), [entry.name for entry in MODELS], n=1, cutoff=0.7)
    return f' Did you mean "{close[0]}" (see vlchat models)?' if close else ""


def table() -> str:
    """The catalogue as text: two lines a model, none wider than 120 columns."""
    rows = [["name", "size", "bf16", "nf4", "licence", "what for"]]
    for entry in MODELS:
        size = f"{entry.parameters:.1f} B" if entry.parameters >= 1 else f"{entry.parameters * 1000:.0f} M"
        memory = [f"{amount:.1f} GB" if amount >= 0.1 else "<0.1 GB" for amount in (entry.bf16, entry.nf4)]
        rows.append([entry.name, size, *memory, entry.licence, entry.purpose])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = (1, 2, 3)
    lines = []
    places = ["", *(entry.id or "embedded in vlchat" for entry in MODELS)]
    for row, place in zip(rows, places, strict=True):
        cells = [f"{cell:{'>' if n in numbers else '<'}{widths[n]}}" for n, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
        if place:
            lines.append(f"  {place}")
    note = f"Weights alone, in GB of 10^9 bytes; pictures and the conversation come on top. As of {AS_OF}."
    return "\n".join([*lines, "", note])
